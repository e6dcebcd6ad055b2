"""Examples: where a unit is strong over many texts, and what it does in the rest of its distribution."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.results.figures import heatmap, width_for
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.text.as_code import Name, as_code, changed

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "examples"
USUAL = {"of": None, "top": 10, "each": 3, "context": 8, "seed": 0}
_NUMBERS = ("value", "values")


@dataclass(frozen=True)
class Example:
    """One token of a text, with those around it, as far as they were collected.

    Attributes:
        text: the number of the text in the collection.
        position: of the token, counted from the first of its text.
        value: the unit's number there, float32.
        positions: of the tokens around it and its own, in order.
        tokens: these, as they are displayed.
        values: the unit's number at each.
    """

    text: int
    position: int
    value: float
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def at(self) -> int:
        """Where among `tokens` the token is."""
        return self.positions.index(self.position)

    @property
    def token(self) -> str:
        return self.tokens[self.at]

    def __str__(self) -> str:
        """The tokens, the one in question in brackets; … where positions were left out."""
        parts: list[str] = []
        for n, token in enumerate(self.tokens):
            if n and self.positions[n] != self.positions[n - 1] + 1:
                parts.append("…")
            parts.append(f"[{token}]" if n == self.at else token)
        return "".join(parts)


@dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """Where a head, a neuron or a direction is strong over a collection, and examples of its whole distribution.

    Attributes:
        unit: what it is, such as `mlp_act.5.123`.
        measure: what the numbers are: `activation`, `norm`, `projection`, or an expert's `weight`.
        rows, texts: how many there are; rows that are NaN are left out.
        zeros, positive: the shares of rows that are 0, and above 0.
        mean, std: of all rows.
        quantiles: exact ones, by their share from 0 (least) to 1 (most), with 0.01, 0.1, ..., 0.9, 0.99, 0.999.
            Quantile q of n numbers is the one that has `floor(q * n)` before it.
        top: in the texts in which it is strongest, the token where it is; strongest first.
        deciles: for each decile, from the lowest, a random sample. A row is in the first whose upper end is above it,
            so that of deciles with equal ends, as of a neuron that is mostly 0, all but one are empty.
        recipe: what repeats it.
    """

    unit: str
    measure: str
    rows: int
    texts: int
    zeros: float
    positive: float
    mean: float
    std: float
    quantiles: dict[float, float]
    top: tuple[Example, ...]
    deciles: tuple[tuple[Example, ...], ...]
    recipe: dict[str, Any]

    def groups(self) -> Iterator[tuple[str, Example]]:
        """Every example with what it is an example of: `top`, or `decile 10`, the highest, to `decile 1`."""
        yield from (("top", one) for one in self.top)
        for n in reversed(range(len(self.deciles))):
            yield from ((f"decile {n + 1}", one) for one in self.deciles[n])

    def to_frame(self) -> pd.DataFrame:
        """One row per example: its `group` (`top`, `decile 10` to `decile 1`), `value`, `text`, `position`, `token`,
        and the `context`, with the token in brackets."""
        import pandas as pd

        rows = [
            (group, one.value, one.text, one.position, one.token, str(one)) for group, one in self.groups()
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["group", "value", "text", "position", "token", "context"])

    def figure(self) -> go.Figure:
        """The examples as rows of tokens, each coloured by the unit's number there."""
        every = list(self.groups())
        reach = max([abs(place - one.position) for _, one in every for place in one.positions], default=0)
        offsets = list(range(-reach, reach + 1))
        values = np.full((len(every), len(offsets)), np.nan)
        words = [["" for _ in offsets] for _ in every]
        labels = []
        for row, (group, one) in enumerate(every):
            labels.append(f"{group} · text {one.text}@{one.position} · {one.value:.3g}")
            for place, token, value in zip(one.positions, one.tokens, one.values, strict=True):
                column = place - one.position + reach
                values[row, column] = value
                words[row][column] = token
        most = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
        signed = bool((values < 0).any())
        labels = [f"{label}{chr(0x200B) * labels[:n].count(label)}" for n, label in enumerate(labels)]  # none twice
        figure = heatmap(
            values,
            x=[f"{offset:+d}" if offset else "token" for offset in offsets],
            y=labels,
            axes=("tokens before and after", "example"),
            title=f"{self.unit}: {self.measure} over {self.rows:,} rows of {self.texts:,} texts",
            unit=self.measure,
            hover="%{y}<br>%{hovertext}<br>%{z:.4g}",
            size=(max(640, 140 + width_for(len(offsets), least=50, most=66)), max(320, 160 + 22 * len(every))),
            colours="RdBu" if signed else "Blues",
            ends=(-most, most) if signed else (0.0, most),
            slanted=False,
            words=words,
        )
        return figure.update_yaxes(autorange="reversed")

    def code(self) -> str:
        """The Python that finds them again."""
        unit = Name("direction") if self.recipe["direction"] else self.recipe["unit"]
        before = self.recipe["collection"] + self.recipe["direction"]
        return as_code(before, "found = lk.examples", Name("collected"), unit, **changed(USUAL, self.recipe))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_examples` reads it."""
        every = [*self.top, *(one for some in self.deciles for one in some)]
        about = {
            name: getattr(self, name)
            for name in ("unit", "measure", "rows", "texts", "zeros", "positive", "mean", "std", "recipe")
        }
        about |= {
            "shares": list(self.quantiles),
            "groups": [len(self.top), *map(len, self.deciles)],
            "examples": [{k: v for k, v in vars(one).items() if k not in _NUMBERS} for one in every],
        }
        return save_arrays(
            path, FILE, about,
            quantiles=np.array(list(self.quantiles.values()), np.float32),
            value=np.array([one.value for one in every], np.float32),
            values=np.array([value for one in every for value in one.values], np.float32),
        )  # fmt: skip

    def __repr__(self) -> str:
        most = ""
        if self.top:
            first = self.top[0]
            most = f", {first.value:.3g} at {first.token!r} (text {first.text}, position {first.position})"
        middle, high = self.quantiles[0.5], self.quantiles[0.99]
        return (
            f"Examples({self.unit}: {self.measure} over {self.rows:,} rows of {self.texts:,} texts; median "
            f"{middle:.3g}, 99 % up to {high:.3g}{most}; {self.positive:.0%} above 0)"
        )


def open_examples(path: str | os.PathLike[str]) -> Examples:
    """Open what `Examples.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        shares, groups, told = about.pop("shares"), about.pop("groups"), about.pop("examples")
        ends = np.cumsum([len(one["positions"]) for one in told])[:-1]
        values = np.split(arrays["values"], ends) if told else []
        if not len(told) == len(values) == len(arrays["value"]) == sum(groups):
            raise ValueError("its examples are incomplete")
        every = [
            Example(
                one["text"], one["position"], float(value), tuple(one["positions"]), tuple(one["tokens"]),
                tuple(near.tolist()),
            )
            for one, value, near in zip(told, arrays["value"], values, strict=True)
        ]  # fmt: skip
        places = np.cumsum([0, *groups]).tolist()
        parts = [tuple(every[start:stop]) for start, stop in pairwise(places)]
        quantiles = dict(zip(shares, arrays["quantiles"].tolist(), strict=True))
        about = {name: value for name, value in about.items() if name not in ("kind", "format")}
        return Examples(**about, quantiles=quantiles, top=parts[0], deciles=tuple(parts[1:]))
