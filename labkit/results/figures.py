"""The heatmap that all results share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LETTER = 6.4  # pixels of a letter in a cell
_NARROW, _BESIDE = 748, 160  # pixels of an output in a narrow notebook, and of what stands beside the cells


def heatmap(
    values: np.ndarray,
    *,
    x: Sequence[Any],
    y: Sequence[Any],
    axes: tuple[str, str],
    title: str,
    unit: str,
    hover: str,
    size: tuple[int, int],
    colours: str = "RdBu",
    ends: tuple[float, float] | None = None,
    slanted: bool = True,
    words: Sequence[Sequence[str]] | None = None,
    **more: Any,
) -> go.Figure:
    """A plotly heatmap with its colour bar.

    Args:
        values: (rows, columns); NaN is left blank.
        x, y: labels of the columns and of the rows.
        axes: what the columns are, and what the rows are.
        unit: of the values, at the colour bar.
        hover: the note of a cell at the pointer.
        size: width and height in pixels.
        colours, ends: the colour scale, and the values at its ends.
        slanted: write the labels of the columns at an angle.
        words: what is written into the cells (rows, columns), as much as fits; `%{hovertext}` in the note is all of it.
        more: other arguments of `plotly.graph_objects.Heatmap`.
    """
    import plotly.graph_objects as go

    low, high = ends or (None, None)
    fits = max(30, (size[0] - 60) // 7)  # characters in a line of the title
    whole = re.sub("(?<= ') ", "\u00a0", title)  # a token is not broken at its own space
    lines = [line for part in whole.split("<br>") for line in wrap(part, fits)]
    bar = {"title": {"text": unit, "side": "right"}}
    if words is not None:
        beside = 110 + _LETTER * max((len(str(label)) for label in y), default=0)  # labels and colour bar, in pixels
        room = max(2, int((size[0] - beside) / max(1, len(x)) / _LETTER))
        cut = [[word if len(word) <= room else word[: room - 1] + "…" for word in row] for row in words]
        more |= {"text": [_escaped(row) for row in cut], "hovertext": [_escaped(row) for row in words]}
        more |= {"texttemplate": "%{text}", "textfont": {"size": 11}}
    drawn = go.Heatmap(
        z=values, x=_escaped(x), y=_escaped(y), zmin=low, zmax=high, colorscale=colours, colorbar=bar,
        hoverongaps=False, hovertemplate=f"{hover}<extra></extra>", **more,
    )  # fmt: skip
    return go.Figure(drawn).update_layout(
        title={"text": "<br>".join(_escaped(lines)), "font": {"size": 14}},
        xaxis={"title": axes[0], "type": "category", "tickangle": -45 if slanted else 0},
        yaxis={"title": axes[1], "type": "category"},
        width=size[0],
        height=size[1],
        margin={"t": 40 + 20 * len(lines)},
    )


def width_for(columns: int, *, least: int, most: int) -> int:
    """How wide a heatmap is, in pixels: as wide as a narrow notebook, if its columns get from `least` to `most`."""
    return _BESIDE + columns * min(most, max(least, (_NARROW - _BESIDE) // max(1, columns)))


def _escaped(words: Sequence[Any]) -> list[Any]:
    """Without what plotly would read as tags, such as `<|im_end|>`, and leave out."""
    return [escape(word, quote=False) if isinstance(word, str) else word for word in words]


def of_patching(
    values: np.ndarray,
    over: tuple[str, ...],
    labels: tuple[Sequence[Any], Sequence[Any]],
    *,
    nothing: float,
    least: float,
    title: str,
    unit: str,
    hover: str = "",
    hatched: np.ndarray | None = None,
    **more: Any,
) -> go.Figure:
    """The effects of patching: white for none, with equal colour steps on both sides.

    Args:
        values: (rows, columns), NaN where not computed.
        over, labels: the two axes, rows first, and what is written along them.
        nothing: the value of the patched run.
        least: values closer than this to `nothing` are not drawn in full colour.
        hover: the note of a cell besides its value.
        hatched: (rows, columns) bool, cells that can have no value, as a position that has no partner.
    """
    reach = max(least, float(np.nanmax(np.abs(values - nothing), initial=0.0)))
    rows, columns = values.shape
    if hatched is not None and hatched.any():
        title += "<br>Hatched: no partner in the other prompt"
    figure = heatmap(
        values, x=labels[1], y=labels[0], axes=(over[1], over[0]), title=title, unit=unit,
        ends=(nothing - reach, nothing + reach), slanted=over[1] == "position",
        hover=f"{over[0]} %{{y}}<br>{over[1]} %{{x}}<br>%{{z:.3f}}{hover}",
        size=(max(520, 120 + 34 * columns), max(320, 180 + 14 * rows)), **more,
    )  # fmt: skip
    return figure if hatched is None else hatch(figure, hatched)


def hatch(figure: go.Figure, where: np.ndarray) -> go.Figure:
    """Strike out cells (rows, columns) of a heatmap, each run of rows in a column as one box with slanted lines.

    The boxes are shapes: a trace on an axis of categories would add its numbers to them.
    """
    for column in np.flatnonzero(where.any(0)).tolist():
        edges = np.flatnonzero(np.diff(np.concatenate([[False], where[:, column], [False]]).astype(int)))
        left, right = column - 0.5, column + 0.5
        for first, stop in edges.reshape(-1, 2).tolist():
            lines = "".join(f"M{left},{row - 0.5}L{right},{row + 0.5}" for row in range(first, stop))
            ends = {"x0": left, "x1": right, "y0": first - 0.5, "y1": stop - 0.5}
            figure.add_shape(type="rect", **ends, fillcolor="#eee", line_width=0, name="no partner")
            figure.add_shape(type="path", path=lines, line={"color": "#888", "width": 1}, name="no partner")
    return figure
