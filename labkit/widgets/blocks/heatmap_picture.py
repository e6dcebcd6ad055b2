"""The parts of a heatmap as a drawing for saved notebooks: its cells, the dots and words in them, its colour bar."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from labkit.widgets.base.colour_scales import ink
from labkit.widgets.base.picture import painted, png, xml

_MOST_CELLS = 256


def dotted(estimated: np.ndarray, left: float, wide: float, high: float, *, upwards: bool) -> str:
    """Dots over the cells that are estimates."""
    rows = len(estimated)
    path = []
    for row in range(rows):
        y = 8 + (rows - 1 - row if upwards else row) * high
        edges = np.flatnonzero(np.diff(np.pad(estimated[row].astype(bool), 1).astype(np.int8)))
        path += [
            f"M{left + a * wide:.1f} {y:.1f}h{(b - a) * wide:.1f}v{high:.1f}h{(a - b) * wide:.1f}z"
            for a, b in edges.reshape(-1, 2).tolist()
        ]
    name = f"dots{zlib.crc32(estimated.tobytes()):08x}"
    return (
        f'<defs><pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse">'
        '<circle cx="1.5" cy="1.5" r="1" fill="#fff"/><circle cx="4.5" cy="4.5" r="1" fill="#1f2328" opacity=".7"/>'
        f'</pattern></defs><path fill="url(#{name})" d="{"".join(path)}"/>'
    )


def strongest(values: np.ndarray, centre: float) -> np.ndarray:
    """At most 256 rows and columns: of the cells that become one, the value farthest from the centre."""
    for axis in (0, 1):
        step = -(-values.shape[axis] // _MOST_CELLS)
        if step == 1:
            continue
        room = [(0, 0), (0, 0)]
        room[axis] = (0, -values.shape[axis] % step)
        padded = np.pad(values, room, constant_values=np.nan)
        shape = [*padded.shape]
        shape[axis : axis + 1] = [shape[axis] // step, step]
        most, least = (f.reduce(padded.reshape(shape), axis=axis + 1) for f in (np.fmax, np.fmin))
        values = np.where(np.abs(most - centre) >= np.abs(least - centre), most, least)
    return values


def words(
    texts: Sequence[str], colours: np.ndarray, left: float, wide: float, high: float, *, upwards: bool
) -> list[str]:
    """A word in each cell, cut to what fits; `colours` (row, column, 3)."""
    rows, columns, _ = colours.shape
    room = max(1, int((wide - 4) / 5.5))
    groups = []
    for row in range(rows):
        y = 8 + ((rows - 1 - row if upwards else row) + 0.5) * high + 3
        for column in range(columns):
            text = texts[row * columns + column]
            text = text if len(text) <= room else text[: room - 1] + "…"
            red, green, blue = (int(c) for c in colours[row, column])
            fill = ' style="fill:#fff"' if ink((red, green, blue)) == "#ffffff" else ""
            groups.append(
                f'<text x="{left + (column + 0.5) * wide:.0f}" y="{y:.0f}" class="w"{fill}>{xml(text)}</text>'
            )
    return groups


def bar(
    x: float, long: float, middle: float, look: dict[str, Any], unit: str, ticks: Sequence[tuple[float, str]]
) -> str:
    """The colour bar: `look` is the scale and its ends, as `painted` takes them."""
    low, high, centre = look["low"], look["high"], look["centre"]
    if centre is not None:
        reach = max(high - centre, centre - low) or 1.0
        low, high = centre - reach, centre + reach
    steps = np.linspace(high, low, 64)[:, None]
    address = png(painted(steps, scale=look["scale"], low=low, high=high))
    marks = ticks or [(value, f"{value:.3g}") for value in (high, (low + high) / 2, low)]
    labels = ""
    for value, label in marks:
        place = (high - value) / ((high - low) or 1.0)
        y = 8 + place * long + (9 if place == 0 else 0 if place == 1 else 4)
        labels += f'<text x="{x + 18:.0f}" y="{y:.0f}" class="q">{xml(label)}</text>'
    return (
        f'<image x="{x:.0f}" y="8" width="12" height="{long:.0f}" preserveAspectRatio="none" href="{address}"/>{labels}'
        f'<text x="{x + 62:.0f}" y="{middle:.0f}" class="q c" '
        f'transform="rotate(90 {x + 62:.0f} {middle:.0f})">{xml(unit)}</text>'
    )
