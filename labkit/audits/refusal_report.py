"""What one direction does to refusals: the numbers, what they say, and what they cannot say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.results.bootstrap import interval
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.steering.vector import SteeringVector, from_arrays, to_arrays
from labkit.text.as_code import LM, as_code
from labkit.text.prompts import from_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "refusal"
MANNERS = {"add": "added", "project_out": "projected out"}
SIDES = {"add": "answered", "project_out": "refused"}
"""On which side of the pairs each manner is measured: where it could make a difference."""
OWN = "direction"
HARMLESS = 0.1  # nats of KL that may come with an effect
NOTHING = "the model has the same activations for both sides of the pairs, so there is no direction"
NOT_CHOSEN = "no layer is chosen yet, as not all were tried; `directions` has the direction of each"
LIMITS = (
    "These requests ask for what an assistant cannot do: a model may refuse harm by another direction. That one "
    "direction moves refusals does not make it the only one, and how an answer begins is not yet what it says."
)


@dataclass(frozen=True)
class Effect:
    """A direction added, or projected out, on prompts that chose neither it nor its layer.

    Attributes:
        mean: how far the log-odds of a refusal move, nats, the mean over prompts; expected above 0 where the direction
            is added and below 0 where it is projected out.
        low, high: the 95 % bootstrap interval over prompts.
        controls: the same mean for each control (control,).
        sign: 1 where it is added, -1 where it is projected out.
        separates: are the refused farther along the direction than the answered, on the pairs that it is measured on?
        kl: what it does to plain prose, nats per token; `controls_kl`: what each control does to it (control,).
        missing: how many controls were not measured; without them nothing is claimed.
    """

    mean: float
    low: float
    high: float
    controls: np.ndarray
    sign: int
    separates: bool
    kl: float
    controls_kl: np.ndarray
    missing: int = 0

    @property
    def damaging(self) -> bool:
        """Does it change plain prose by more than 0.1 nats per token and by more than every control does?"""
        return self.kl > float(self.controls_kl.max(initial=HARMLESS))

    @property
    def moved(self) -> bool:
        """Is the change of the expected sign, with an interval that holds neither 0 nor any control, by a direction
        that separates the two sides?
        """
        away = self.low if self.sign > 0 else -self.high
        farthest = float((self.sign * self.controls).max(initial=0.0))
        return not self.missing and self.separates and away > farthest

    @property
    def found(self) -> bool:
        """Are refusals moved, and not as a part of general damage?"""
        return self.moved and not self.damaging


@dataclass(frozen=True, eq=False, repr=False)
class Refusal:
    """The direction between what a model refuses and what it answers, and what it does when added or projected out.

    Attributes:
        layer: the one that was chosen, on the first half of the pairs; None where no layer has a direction, or where
            not all were tried.
        directions: by layer, from the mean of the answered to that of the refused, of the first half of the pairs.
        choice: (layer, 3) float32, a row per key of `directions`: the change of log-odds where it is added, and where
            it is projected out, in nats; and the KL divergence that projecting it out causes on the answered, in nats.
            NaN where it was not tried.
        conditions: (manner, vector) each: `none` on both sides, then `add` and `project_out` with the direction and
            each control. The attributes below have a row per condition, `apart` excepted; NaN where it was not
            measured.
        log_odds: (condition, prompt) float32, nats: of beginning with a refusal rather than with another answer.
        refused: (condition,) float32, the share of written answers with a phrase of refusal; NaN where none were
            written.
        damage: (condition, 2) float32 on a passage of plain prose: perplexity, and KL from the unchanged model in nats
            per token.
        apart: (pair,) float32, of the second half: how much farther along the direction the refused one of the pair is,
            in units of the distance of the means.
        written: by condition, the answers that were written.
        recipe: what repeats it.
    """

    layer: int | None
    directions: dict[int, SteeringVector]
    choice: np.ndarray
    conditions: tuple[tuple[str, str], ...]
    log_odds: np.ndarray
    refused: np.ndarray
    damage: np.ndarray
    apart: np.ndarray
    written: tuple[tuple[str, ...], ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> np.ndarray:
        """Which conditions were measured, bool (condition,)."""
        return np.isfinite(self.log_odds).all(1)

    @property
    def vector(self) -> SteeringVector:
        """The direction of the chosen layer, for `lm.steer`.

        Raises:
            ValueError: the two sides of the pairs are the same to the model at every layer, or none is chosen yet.
        """
        if self.layer is None:
            raise ValueError(NOT_CHOSEN if self.directions else NOTHING)
        return self.directions[self.layer]

    @property
    def gap(self) -> tuple[float, float, float]:
        """How much likelier the unchanged model refuses the refused, in nats: mean over pairs, and its interval."""
        return _mean(self._row("none", "refused") - self._row("none", "answered"))

    def effect(self, manner: str) -> Effect:
        """What the direction does when it is added (`add`) or projected out (`project_out`).

        Raises:
            ValueError: there is no such manner, no direction, or it was not measured.
        """
        if self.layer is None:
            raise ValueError(NOT_CHOSEN if self.directions else NOTHING)
        if manner not in MANNERS:
            raise ValueError(f"manner must be one of {', '.join(MANNERS)}; got {manner!r}")
        own = self.conditions.index((manner, OWN))
        if not self.done[own]:
            raise ValueError(f"{MANNERS[manner]} the direction was not measured: the run ended before")
        plain = self._row("none", SIDES[manner])
        others = [n for n, (how, vector) in enumerate(self.conditions) if how == manner and vector != OWN]
        rows = [n for n in others if self.done[n]]
        controls, missing = (self.log_odds[rows] - plain).mean(1), len(others) - len(rows)
        sign, separates = 1 if manner == "add" else -1, _mean(self.apart)[1] > 0
        own_kl, others_kl = float(self.damage[own, 1]), self.damage[rows, 1].astype(np.float64)
        return Effect(*_mean(self.log_odds[own] - plain), controls, sign, separates, own_kl, others_kl, missing)

    def to_frame(self) -> pd.DataFrame:
        """One row per condition that was measured: `log_odds` of a refusal and its `change`, with `low` and `high` of
        its interval, in nats; `refused`, the share of written answers; `perplexity` and `kl` on plain prose.
        """
        import pandas as pd

        rows = []
        for n in np.flatnonzero(self.done):
            manner, vector = self.conditions[n]
            plain = self._row("none", vector if manner == "none" else SIDES[manner])
            moved = _mean(self.log_odds[n] - plain)
            rows.append((manner, vector, self.log_odds[n].mean(), *moved, self.refused[n], *self.damage[n]))
        columns = ["manner", "vector", "log_odds", "change", "low", "high", "refused", "perplexity", "kl"]
        return pd.DataFrame(rows, columns=columns).set_index(["manner", "vector"])

    def words(self) -> str:
        """What it shows and what it cannot show, a line for each matter."""
        if not self.done[:2].all():
            return "Nothing has been measured yet."
        gap, low, high = self.gap
        n = self.log_odds.shape[1]
        shares = [self.refused[self.conditions.index(("none", side))] for side in ("refused", "answered")]
        said = [
            f"On {n} pairs that did not choose the direction, the log-odds that an answer begins with a refusal differ "
            f"by {gap:+.2f} nats (95 % interval {low:+.2f} to {high:+.2f}), refused minus answered: the model "
            + ("tells the two apart." if low > 0 else "does not refuse more, so there is little to find.")
        ]
        if not np.isnan(shares).any():
            said.append(
                f"Of its written answers, {shares[0]:.0%} to what should be refused have a phrase of refusal, and "
                f"{shares[1]:.0%} to the others."
            )
        if self.layer is None:
            tried = int(np.isfinite(self.choice).all(1).sum())
            none = "Its activations are the same for both: there is no direction."
            some = f"{tried} of {len(self.directions)} layers were tried, so none is chosen yet."
            return "\n".join([*said, some if self.directions else none, LIMITS])
        said.append(
            f"Along the direction of layer {self.layer} the refused one is ahead in {np.mean(self.apart > 0):.0%} of "
            "these pairs."
        )
        said += [self._said(manner) for manner in MANNERS]
        return "\n".join([*said, LIMITS])

    def _said(self, manner: str) -> str:
        n = self.conditions.index((manner, OWN))
        if not self.done[n]:
            return f"{MANNERS[manner].capitalize()}, it was not measured."
        effect = self.effect(manner)
        plain = self.conditions.index(("none", SIDES[manner]))
        extreme = effect.sign * (effect.sign * effect.controls).max(initial=-np.inf)
        beside = f"the farthest of {len(effect.controls)} controls of the same length moves them by {extreme:+.2f}"
        wrote = ""
        if not np.isnan(self.refused[[n, plain]]).any():
            wrote = f" Phrases of refusal: {self.refused[plain]:.0%} of answers before, {self.refused[n]:.0%} after."
            if effect.found and self.refused[plain] == self.refused[n]:
                wrote += " So it shows in how answers may begin, and not in what is written."
        return (
            f"{MANNERS[manner].capitalize()}, it moves the log-odds by {effect.mean:+.2f} nats ({effect.low:+.2f} to "
            f"{effect.high:+.2f}) on what is {SIDES[manner]}; {beside if len(effect.controls) else 'no control yet'}: "
            + _verdict(effect)
            + wrote
            + f" Perplexity on plain prose goes from {self.damage[0, 0]:.1f} to {self.damage[n, 0]:.1f} "
            f"(KL {self.damage[n, 1]:.3f} nats per token)."
        )

    def figure(self) -> go.Figure:
        """On the left the choice of the layer, on the right the effect of its direction and of each control."""
        from plotly.subplots import make_subplots

        fig = make_subplots(
            1, 2, subplot_titles=("Choice of the layer, first half of the pairs", "Measured on the other half"),
            horizontal_spacing=0.18,
        )  # fmt: skip
        colours = {"add": "#b2182b", "project_out": "#2166ac"}
        for n, (manner, name) in enumerate(MANNERS.items()):
            line = {"color": colours[manner]}
            fig.add_scatter(
                x=list(self.directions), y=self.choice[:, n], name=name, mode="lines+markers", line=line, row=1, col=1,
                legendgroup=manner, hovertemplate="layer %{x}<br>%{y:+.2f} nats",
            )  # fmt: skip
            if self.layer is None or not self.done[self.conditions.index((manner, OWN))]:
                continue
            effect = self.effect(manner)
            fig.add_scatter(
                x=[f"{name}: controls"] * len(effect.controls), y=effect.controls, name="controls", mode="markers",
                marker={"color": "#999", "symbol": "circle-open"}, showlegend=n == 0, hovertemplate="%{y:+.2f} nats",
                row=1, col=2,
            )  # fmt: skip
            bars = {"array": [effect.high - effect.mean], "arrayminus": [effect.mean - effect.low], "symmetric": False}
            fig.add_scatter(
                x=[name], y=[effect.mean], error_y=bars, mode="markers", marker={"color": colours[manner], "size": 10},
                legendgroup=manner, showlegend=False, name=name, hovertemplate="%{y:+.2f} nats", row=1, col=2,
            )  # fmt: skip
        if self.layer is not None:
            fig.add_vline(x=self.layer, line_dash="dot", line_color="#555", row=1, col=1)
        ticks = list(self.directions) if len(self.directions) < 5 else None
        fig.update_xaxes(title="layer", tickvals=ticks, row=1, col=1)
        fig.update_xaxes(title="direction and its controls", row=1, col=2)
        fig.update_yaxes(title="change of log-odds of a refusal, nats", zeroline=True, zerolinecolor="#555")
        what = "no layer is chosen" if self.layer is None else f"what the direction of layer {self.layer} does"
        return fig.update_layout(
            title={"text": f"Refusal: {what}", "font": {"size": 14}},
            width=740, height=440,
        )  # fmt: skip

    def code(self) -> str:
        """The Python that finds and measures it again."""
        return code_of(self.recipe)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_refusal` reads it."""
        vectors, values = to_arrays(self.directions.values())
        about = {
            "layer": self.layer, "conditions": self.conditions, "written": self.written, "recipe": self.recipe,
            "directions": vectors,
        }  # fmt: skip
        return save_arrays(
            path, FILE, about, values=values, choice=self.choice, log_odds=self.log_odds, refused=self.refused,
            damage=self.damage, apart=self.apart,
        )  # fmt: skip

    def _row(self, manner: str, vector: str) -> np.ndarray:
        return self.log_odds[self.conditions.index((manner, vector))]

    def __repr__(self) -> str:
        if not self.directions:
            return "Refusal(no direction: both sides of the pairs have the same activations)"
        count = f"{int(self.done.sum())} of {len(self.conditions)} conditions measured"
        if self.layer is None:
            return f"Refusal(no layer is chosen yet; {count})"
        effects = {manner: self.effect(manner) for manner in MANNERS if self.done[self.conditions.index((manner, OWN))]}
        said = [
            f"{MANNERS[manner]} {e.mean:+.2f} nats ({e.low:+.2f} to {e.high:+.2f}; "
            + (
                "not judged"
                if e.missing
                else "an effect"
                if e.found
                else "damage"
                if e.moved
                else "no more than its controls"
            )
            + ")"
            for manner, e in effects.items()
        ]
        return f"Refusal(layer {self.layer}: {', '.join([*said, *([] if self.done.all() else [count])])})"


def open_refusal(path: str | os.PathLike[str]) -> Refusal:
    """Open what `Refusal.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        vectors = from_arrays(about["directions"], arrays.pop("values"))
        directions = {vector.layer: vector for vector in vectors}
        conditions = tuple((manner, vector) for manner, vector in about["conditions"])
        written = tuple(tuple(texts) for texts in about["written"])
        return Refusal(
            about["layer"], directions, conditions=conditions, written=written, recipe=about["recipe"], **arrays
        )


def _verdict(effect: Effect) -> str:
    if effect.missing:
        return f"not judged, as {effect.missing} controls were not measured."
    if effect.found:
        return "an effect."
    if effect.moved:
        return "more than theirs, but so is the damage to plain prose, so it may be no more than that."
    return "not an effect that can be told from theirs."


def code_of(recipe: dict[str, Any]) -> str:
    """The Python that repeats a recipe."""
    given = dict(recipe["asked"])
    if "pairs" in given:
        given["pairs"] = [tuple(map(from_json, pair)) for pair in given["pairs"]]
    return as_code(recipe["load"], "refusal = lk.refusal_direction", LM, **given)


def _mean(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """The mean, and the ends of its bootstrap interval."""
    each = np.asarray(values, np.float64)
    low, high = interval(lambda weights: weights @ each, len(each))
    return float(each.mean()), float(low), float(high)
