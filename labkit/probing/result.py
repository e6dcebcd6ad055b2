"""Probe: how well a label can be read off, layer by layer, and the directions that it is read along."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.sites import Site
from labkit.probing.fit import score
from labkit.results.bootstrap import LEVEL, interval
from labkit.results.figures import heatmap
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.steering.vector import SteeringVector
from labkit.text.as_code import Name, as_call, changed

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "probe"
USUAL = {
    "site": None, "groups": None, "layers": None, "by_position": None, "C": 0.01, "folds": 5, "controls": 2, "seed": 0,
}  # fmt: skip
ARRAYS = ("own", "shuffled", "random", "directions", "typical", "chance", "biases")
CONTROLS = {"shuffled": "shuffled labels", "random": "random features of the token"}


def _none() -> np.ndarray:
    return np.empty(0)


@dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """Linear probes of a label, by layer and position.

    Attributes:
        site: the kind of site.
        layers: the layers that are done.
        positions: what is probed apart: positions of each text, or `all` together.
        classes: the labels; None where they are numbers.
        recipe: what repeats it.
        own: from which scores are computed, (layer, position, group, sums); see `labkit.probing.fit.sums`.
        shuffled: the same with shuffled labels, (layer, position, control, group, sums).
        random: of random features of the tokens, (control, position, group, sums).
        directions: the weights of a probe of all rows, for activations as they are, as long as these differ along them;
            float32 (layer, position, output, d_model), one output per class or one for two, or for numbers.
        biases: what is added to the dot product of an activation and a direction so that 0 is where the probe is
            undecided, or of numbers where it predicts 0; float64 (layer, position, output). Empty in files from before
            it was kept.
        typical: the mean norm of the activations, (layer, position).
        chance: the score of the best constant answer, (position,).
    """

    site: str
    layers: tuple[int, ...]
    positions: tuple[int | str, ...]
    classes: tuple[Any, ...] | None
    recipe: dict[str, Any]
    own: np.ndarray = field(default_factory=_none)
    shuffled: np.ndarray = field(default_factory=_none)
    random: np.ndarray = field(default_factory=_none)
    directions: np.ndarray = field(default_factory=_none)
    typical: np.ndarray = field(default_factory=_none)
    chance: np.ndarray = field(default_factory=_none)
    biases: np.ndarray = field(default_factory=_none)

    @property
    def measure(self) -> str:
        """What the scores are: `accuracy` of classes; of numbers `r2`, the explained share of their variance."""
        return "r2" if self.classes is None else "accuracy"

    @property
    def scores(self) -> np.ndarray:
        """How well groups that were not seen are told, (layer, position)."""
        return score(self.own.sum(-2)) if self.layers else np.empty((0, len(self.positions)))

    def interval(self, layer: int, position: int | str | None = None, *, level: float = LEVEL) -> tuple[float, float]:
        """The ends of the bootstrap interval of a score, over groups; see `labkit.results.bootstrap`."""
        return _ends([self.own[self._layer(layer), self._position(position)]], level)

    def to_frame(self, *, level: float = LEVEL) -> pd.DataFrame:
        """One row per layer and position: the score (`accuracy` or `r2`) of the probe, of shuffled labels and of random
        features of the tokens, each with the ends of its bootstrap interval over groups; `chance`, that of the best
        constant answer; how many rows and groups there are."""
        import pandas as pd

        rows = []
        for n, layer in enumerate(self.layers):
            for p, position in enumerate(self.positions):
                row: dict[str, Any] = {"layer": layer, "position": position}
                parts = {
                    self.measure: [self.own[n, p]],
                    "shuffled": list(self.shuffled[n, p]),
                    "random": list(self.random[:, p]),
                }
                for name, some in parts.items():
                    low, high = _ends(some, level)
                    row |= {name: _mean(some), f"{name}_low": low, f"{name}_high": high}
                counts = self.own[n, p][:, 0]
                sizes = {"rows": int(counts.sum()), "groups": int((counts > 0).sum())}
                rows.append(row | {"chance": self.chance[p], **sizes})
        return pd.DataFrame(rows)

    @property
    def best(self) -> int | None:
        """The layer with the best score, at the best position; None where no layer is done."""
        return self.layers[int(self.scores.max(1).argmax())] if self.layers else None

    def direction(self, layer: int, *, position: int | str | None = None, label: Any = None) -> SteeringVector:
        """The direction along which the label is read, as a steering vector: for `lm.steer`, to be projected out, and
        to project activations on (`vector.along`).

        It is the weights of a probe of all rows, for activations as they are. It is as long as the activations of a
        class are, on average, from those of the others along it, or, of numbers, as they move per unit. What a label is
        read along need not be what the model acts on: `vector.random()` is the control.

        Args:
            layer: of the site.
            position: which, if several were probed apart.
            label: towards which class; by default the second of two.

        Raises:
            ValueError: the site is not the residual stream after a layer, there is no such layer, position or label, or
                a label is needed and not given.
        """
        kind = Site.parse(self.site).kind
        if kind not in ("resid_pre", "resid_post") or (kind == "resid_pre" and layer == 0):
            raise ValueError(
                f"a steering vector is a direction of the residual stream after a layer; this probe is of {self.site}. "
                "Collect and probe resid_post"
            )
        n, p = self._layer(layer), self._position(position)
        output, sign, towards = self._output(label)
        after = self.layers[n] - (kind == "resid_pre")
        asked = {"position": position, "label": label}
        how = {name: value for name, value in asked.items() if value is not None}
        recipe = {
            "code": self.code() + as_call("vector = probe.direction", layer, **how),
            "about": f"probe {towards}",
            "load": self.recipe["load"],
            "versions": self.recipe["versions"],
        }
        values = torch.from_numpy(sign * self.directions[n, p, output])
        return SteeringVector(values, after, float(self.typical[n, p]), (), recipe)

    def bias(self, layer: int, *, position: int | str | None = None, label: Any = None) -> float:
        """What to add to the dot product of an activation and `direction(...)`, so that 0 is where the probe is
        undecided, or of numbers where it predicts 0.

        Args:
            layer, position, label: as in `direction`.

        Raises:
            ValueError: there is no such layer, position or label, or the probe was saved before biases were kept.
        """
        n, p = self._layer(layer), self._position(position)
        output, sign, _ = self._output(label)
        if not self.biases.size:
            raise ValueError("this probe was saved without its biases; probe again, or use probe.direction alone")
        return float(sign * self.biases[n, p, output])

    def _output(self, label: Any) -> tuple[int, float, str]:
        """Which of the weights leads towards a label, with which sign, and that in words."""
        if self.classes is None:
            if label is not None:
                raise ValueError("the labels are numbers, and the direction leads to larger ones; leave out label=")
            return 0, 1.0, "towards larger labels"
        if label is None and len(self.classes) > 2:
            raise ValueError(
                f"there are {len(self.classes)} labels; say towards which, such as label={self.classes[0]!r}"
            )
        label = self.classes[1] if label is None else label
        if label not in self.classes:
            raise ValueError(f"there is no label {label!r}; there are {', '.join(map(repr, self.classes))}")
        n = self.classes.index(label)
        return (0, 2.0 * n - 1, f"towards {label!r}") if len(self.classes) == 2 else (n, 1.0, f"towards {label!r}")

    def _layer(self, layer: int) -> int:
        if layer not in self.layers:
            raise ValueError(f"layer {layer} was not probed; there are {', '.join(map(str, self.layers)) or 'none'}")
        return self.layers.index(layer)

    def _position(self, position: int | str | None) -> int:
        if position is None and len(self.positions) == 1:
            return 0
        if position not in self.positions:
            raise ValueError(f"position={position!r}: choose one of {', '.join(map(repr, self.positions))}")
        return self.positions.index(position)

    def figure(self, position: int | str | None = None, *, level: float = LEVEL) -> go.Figure:
        """The score by layer, with its interval, both controls and chance; of several positions a heatmap of scores,
        unless one is chosen."""
        name = {"accuracy": "accuracy", "r2": "R²"}[self.measure]
        title = f"{self.site}: how well the label can be read off, on groups not seen"
        if len(self.positions) > 1 and position is None:
            values = self.scores
            return heatmap(
                values, x=[str(one) for one in self.positions], y=[str(layer) for layer in self.layers],
                axes=("position", "layer"), title=title, unit=name, colours="Blues",
                ends=(min(0.0, float(np.nanmin(values))) if self.classes is None else float(self.chance.min()), 1.0),
                hover="layer %{y}<br>position %{x}<br>%{z:.3f}",
                size=(max(520, 160 + 50 * values.shape[1]), max(320, 180 + 14 * len(values))),
            )  # fmt: skip
        import plotly.graph_objects as go

        place = self.positions[self._position(position)]
        frame = self.to_frame(level=level).query("position == @place")
        drawn = []
        styles = {self.measure: ("probe", "#0072B2", "solid")} | {
            one: (words, colour, "dash")
            for (one, words), colour in zip(CONTROLS.items(), ("#D55E00", "#009E73"), strict=True)
        }
        for column, (words, colour, dash) in styles.items():
            y = frame[column]
            drawn.append(
                go.Scatter(
                    x=frame.layer, y=y, name=words, mode="lines+markers", line={"color": colour, "dash": dash},
                    error_y={
                        "type": "data", "symmetric": False, "array": frame[f"{column}_high"] - y,
                        "arrayminus": y - frame[f"{column}_low"], "thickness": 1,
                    },
                    hovertemplate=f"layer %{{x}}<br>{words} %{{y:.3f}}<extra></extra>",
                )
            )  # fmt: skip
        chance = float(self.chance[self._position(position)])
        drawn.append(
            go.Scatter(
                x=frame.layer, y=[chance] * len(frame), name="chance", mode="lines",
                line={"color": "#777777", "dash": "dot"}, hovertemplate=f"chance {chance:.3f}<extra></extra>",
            )
        )  # fmt: skip
        where = "" if place == "all" else f", position {place}"
        return go.Figure(drawn).update_layout(
            title={"text": f"{title}{where}", "font": {"size": 14}},
            xaxis={"title": "layer"},
            yaxis={"title": name},
            legend={"orientation": "h", "y": -0.2},
            width=720,
            height=420,
        )

    def code(self) -> str:
        """The Python that probes again, labels and all."""
        recipe, how = self.recipe, changed(USUAL, self.recipe)
        before = f"{recipe['collection']}labels = {recipe['labels']!r}\n"
        if "groups" in how:
            before += f"groups = {how['groups']!r}\n"
            how["groups"] = Name("groups")
        return before + as_call("probe = lk.probe", Name("collected"), Name("labels"), **how)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_probe` reads it."""
        about = {
            "site": self.site, "layers": self.layers, "positions": self.positions, "classes": self.classes,
            "recipe": self.recipe,
        }  # fmt: skip
        return save_arrays(path, FILE, about, **{name: getattr(self, name) for name in ARRAYS})

    def __repr__(self) -> str:
        what = "numbers" if self.classes is None else f"{len(self.classes)} classes"
        if not self.layers:
            return f"Probe({self.site}, {what}: no layer is done)"
        n, p = np.unravel_index(int(self.scores.argmax()), self.scores.shape)
        low, high = _ends([self.own[n, p]], LEVEL)
        where = f"layer {self.layers[n]}" + ("" if self.positions[p] == "all" else f", position {self.positions[p]}")
        controls = f"shuffled {_mean(list(self.shuffled[n, p])):.2f}, random {_mean(list(self.random[:, p])):.2f}"
        return (
            f"Probe({self.site}, {len(self.layers)} layer{'s' * (len(self.layers) > 1)}, {what}: "
            f"{self.measure} {self.scores[n, p]:.2f} ({low:.2f} to {high:.2f}) at {where}; {controls}, "
            f"chance {self.chance[p]:.2f})"
        )


def _mean(parts: list[np.ndarray]) -> float:
    """The mean score of several probes, from sums by group."""
    return float(np.mean([score(part.sum(0)) for part in parts]))


def _ends(parts: list[np.ndarray], level: float) -> tuple[float, float]:
    """The ends of the interval of that mean, over groups."""
    average: Callable[[np.ndarray], np.ndarray] = lambda w: np.mean([score(w @ part) for part in parts], axis=0)  # noqa: E731
    low, high = interval(average, len(parts[0]), level=level)
    return float(low), float(high)


def open_probe(path: str | os.PathLike[str]) -> Probe:
    """Open what `Probe.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        classes = about["classes"]
        return Probe(
            about["site"], tuple(about["layers"]), tuple(about["positions"]),
            None if classes is None else tuple(classes), about["recipe"],
            **{name: arrays[name] for name in (ARRAYS if about.get("format", 1) > 1 else ARRAYS[:-1])},
        )  # fmt: skip
