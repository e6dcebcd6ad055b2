"""How fast a text becomes unlikely when its prompt is removed part by part, the most important first.

If an attribution is right about what matters, its order makes the score fall faster than a random order does (Samek et
al. 2017; DeYoung et al. 2020 call it comprehensiveness). Unlike single removals this sees parts that stand in for one
another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.attribution.removal import Removals, Replacement
from labkit.attribution.result import NAMES, InputAttribution
from labkit.elsewhere import where_the_model_is
from labkit.language_model import LanguageModel
from labkit.results.bootstrap import ends
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.job import finish
from labkit.text.as_code import Name, as_call, changed
from labkit.text.whole_numbers import whole

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "deletion curve"
LEVEL = 0.9
_ATTRIBUTION = Name("attribution")
USUAL = {"points": 20, "orders": 10, "seed": 0}


@dataclass(frozen=True, repr=False)
class DeletionCurve:
    """The score of a text while its prompt is removed.

    Attributes:
        removed: how many parts are gone at each point, int (point,), from 0.
        scores: the log-probability of what was written, less the foil's, in nats, with the most important removed
            first, float32 (point,); NaN where it was not computed.
        random: the same in random orders, (order, point).
        recipe: what repeats it.
    """

    removed: np.ndarray
    scores: np.ndarray
    random: np.ndarray
    recipe: dict[str, Any] = field(repr=False)

    @property
    def finish(self) -> str:
        """`stopped` where scores are missing, else `complete`."""
        return "stopped" if np.isnan(self.scores).any() or np.isnan(self.random).any() else "complete"

    @property
    def area(self) -> float:
        """The mean score while everything is removed, in nats: the lower, the better the order."""
        return float(self._areas(self.scores[None])[0])

    @property
    def random_areas(self) -> np.ndarray:
        """The same of each random order, float64 (order,)."""
        return self._areas(self.random)

    def band(self, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """The scores between which a share of the random orders lies at each point, (point,) each."""
        low, high = ends(self.random, level)
        return low, high

    def to_frame(self) -> pd.DataFrame:
        """One row per point: how many parts are removed, the score, and the mean and band of random orders."""
        import pandas as pd

        low, high = self.band()
        return pd.DataFrame(
            {"removed": self.removed, "score": self.scores, "random": self.random.mean(0), "low": low, "high": high}
        )

    def figure(self) -> go.Figure:
        """The score by how many parts are removed, with the band of random orders."""
        import plotly.graph_objects as go

        low, high = self.band()
        name = f"{LEVEL:.0%} of {len(self.random)} random orders"
        figure = go.Figure(
            [
                go.Scatter(x=self.removed, y=high, mode="none", showlegend=False, hoverinfo="skip"),
                go.Scatter(x=self.removed, y=low, mode="none", fill="tonexty", name=name, hoverinfo="skip",
                           fillcolor="rgba(120,120,120,0.3)"),
                go.Scatter(x=self.removed, y=self.random.mean(0), name="their mean", mode="lines",
                           line={"dash": "dot", "color": "#555"}),
                go.Scatter(x=self.removed, y=self.scores, name="most important first", mode="lines+markers",
                           line={"color": "#0072b2"}),
            ]
        )  # fmt: skip
        return figure.update_layout(
            title={
                "text": f"{NAMES[self.recipe['method']]}: the text with the prompt removed part by part",
                "font": {"size": 14},
            },
            xaxis={"title": f"{self.recipe['by']}s removed"},
            yaxis={"title": "log-probability (nats)"},
            width=680,
            height=420,
        )

    def code(self) -> str:
        """The Python that computes it again."""
        return str(self.recipe["code"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_deletion_curve` reads it."""
        return save_arrays(
            path, FILE, {"recipe": self.recipe}, removed=self.removed, scores=self.scores, random=self.random
        )

    def __repr__(self) -> str:
        if self.finish == "stopped":
            return f"DeletionCurve({self.removed[-1]} {self.recipe['by']}s, not complete)"
        return (
            f"DeletionCurve({self.removed[-1]} {self.recipe['by']}s, mean score {self.area:.2f}; random orders "
            f"{self.random_areas.min():.2f} to {self.random_areas.max():.2f})"
        )

    def _areas(self, scores: np.ndarray) -> np.ndarray:
        width = np.diff(self.removed)
        return (scores[:, 1:] + scores[:, :-1]).astype(np.float64) @ width / 2 / width.sum()


@where_the_model_is
def deletion(
    attribution: InputAttribution, *, points: int = 20, orders: int = 10, seed: int = 0, progress: bool = True
) -> DeletionCurve:
    """Remove the parts of a prompt one after the other, the most important first, and score the text each time.

    Args:
        attribution: by any method; parts are removed as it replaces them.
        points: at how many places of the way to measure, besides its beginning; at most one for each part.
        orders: how many random orders to compare with.
        seed: of these.
        progress: show a progress bar.

    Returns:
        A `DeletionCurve`; after an interrupt, with NaN for what was not computed.

    Raises:
        ValueError: fewer than two parts, an attribution that is not complete or has no model, or no points or orders.
        TypeError: it is no attribution.
    """
    if not isinstance(attribution, InputAttribution):
        raise TypeError(f"lk.deletion takes what lk.input_attribution gives; got {type(attribution).__name__}")
    if attribution.finish == "stopped":
        raise ValueError("this attribution was interrupted, so what matters most is not known; compute it again")
    if attribution.lm is None:
        raise ValueError("this needs the model; open the file with lk.open_input_attribution(path, lm)")
    if len(attribution.units) < 2:
        raise ValueError("an order needs at least two parts; this attribution has one: choose smaller ones with by=")
    points, orders = whole("points", points, least=1), whole("orders", orders, least=1)
    seed = whole("seed", seed, least=0)
    job = DeletionJob(attribution.lm, attribution, points, orders, seed)
    finish(job, "deletion", unit="score", kept="curve", progress=progress)
    return job.curve


class DeletionJob:
    """The scores of all orders, so that what is done is kept."""

    def __init__(self, lm: LanguageModel, attribution: InputAttribution, points: int, orders: int, seed: int) -> None:
        self.lm, self.attribution = lm, attribution
        n, draw = len(attribution.units), np.random.default_rng(seed)
        first = np.argsort(-attribution.values, kind="stable")
        self._orders = [first, *(draw.permutation(n) for _ in range(orders))]
        self.removed = np.unique(np.linspace(0, n, min(points, n) + 1).round().astype(int))
        if np.isnan(attribution.without):  # with nothing left there is no score
            self.removed = self.removed[:-1]
        self.scores = np.full((1 + orders, len(self.removed)), np.nan, np.float32)
        given = changed(USUAL, {"points": points, "orders": orders, "seed": seed})
        asked = attribution.recipe["asked"]
        self._recipe = {
            "method": attribution.method, "by": asked["by"] if isinstance(asked["by"], str) else "span",
            "code": attribution.code() + as_call("curve = lk.deletion", _ATTRIBUTION, **given),
        }  # fmt: skip

    @property
    def total(self) -> int:
        return self.scores.size

    @property
    def done(self) -> int:
        return int((~np.isnan(self.scores)).sum())

    def steps(self) -> Iterator[int]:
        """Do the work; yields how many scores there are."""
        recipe, units = self.attribution.recipe, self.attribution.units
        spans = [tuple(span) for span in recipe["spans"]]
        removals = Removals(self.lm, tuple(recipe["ids"]), spans, Replacement.of(self.lm, recipe["asked"]["replace"]))
        signs = np.concatenate([np.full(len(span), sign) for span, sign in zip(spans, (1, -1), strict=False)])
        places: dict[frozenset[int], list[tuple[int, int]]] = {}
        for row, order in enumerate(self._orders):
            for column, count in enumerate(self.removed):
                gone = frozenset(place for n in order[:count] for place in units[n].positions)
                places.setdefault(gone, []).append((row, column))
        sets = list(places)
        for numbers, rows in removals.steps(sets):
            for n, row in zip(numbers, rows, strict=True):
                for place in places[sets[n]]:
                    self.scores[place] = row @ signs
            yield self.done

    @property
    def curve(self) -> DeletionCurve:
        """What is computed so far."""
        return DeletionCurve(self.removed, self.scores[0], self.scores[1:], self._recipe)


def open_deletion_curve(path: str | os.PathLike[str]) -> DeletionCurve:
    """Open what `DeletionCurve.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        return DeletionCurve(arrays["removed"], arrays["scores"], arrays["random"], about["recipe"])
