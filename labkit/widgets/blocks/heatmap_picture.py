"""A heatmap as a drawing for saved notebooks: the cells are one small PNG, labels and words are text."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from labkit.widgets.base.colour_scales import ink
from labkit.widgets.base.picture import image, painted, png, xml

_MOST_CELLS = 256
_MOST_TEXTS = 800  # words in the cells of a picture


def heatmap_picture(
    values: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    scale: str,
    low: float,
    high: float,
    centre: float | None,
    row_axis: str,
    column_axis: str,
    unit: str,
    origin: str,
    square: bool,
    about: str,
    estimated: np.ndarray | None = None,
    texts: Sequence[str] = (),
    ticks: Sequence[tuple[float, str]] = (),
) -> str:
    """A heatmap as an image; estimated cells are dotted, and `about` says what it shows."""
    rows, columns = values.shape
    worded = len(texts) == rows * columns <= _MOST_TEXTS
    width = min(max(columns * (18 if square else 58 if worded else 34), 160), 820 if worded else 640)
    height = width * rows / columns if square else min(max(rows * 13, 110), 420)
    left = 40 + 7 * max([len(label) for label in row_labels[:200]] + [2])
    bottom = 34 + 6 * max([len(label) for label in column_labels[:200]] + [2])
    picture = painted(_strongest(values, centre or 0.0), scale=scale, low=low, high=high, centre=centre)
    if origin == "bottom":
        picture = picture[::-1]
    if worded:
        height = min(max(rows * 15, 110), 900)
    out = [
        f'<image x="{left}" y="8" width="{width:.0f}" height="{height:.0f}" preserveAspectRatio="none" '
        f'class="x" href="{png(picture)}"/>'
    ]
    guessed = estimated is not None and estimated.shape == values.shape and bool(estimated.any())
    if estimated is not None and guessed:
        out.append(_dotted(estimated, left, width / columns, height / rows, origin=origin))
    if worded:
        colours = painted(values, scale=scale, low=low, high=high, centre=centre)
        out += _words(texts, colours, left, width / columns, height / rows, upwards=origin == "bottom")
    every = max(1, int(np.ceil(13 * rows / height)))
    for row in range(0, rows, every):
        place = rows - 1 - row if origin == "bottom" else row
        y = 8 + (place + 0.5) * height / rows + 4
        label = row_labels[row] if row < len(row_labels) else str(row)
        out.append(f'<text x="{left - 6}" y="{y:.1f}" class="s e">{xml(label[:14])}</text>')
    every = max(1, int(np.ceil(13 * columns / width)))
    for column in range(0, columns, every):
        x = left + (column + 0.5) * width / columns + 3
        label = column_labels[column] if column < len(column_labels) else str(column)
        turn = f'transform="rotate(-55 {x:.1f} {height + 20:.0f})"'
        out.append(f'<text x="{x:.1f}" y="{height + 20:.0f}" class="s e" {turn}>{xml(label[:14])}</text>')
    total = height + bottom + 14
    out.append(f'<text x="{left + width / 2:.0f}" y="{total - 4:.0f}" class="q c">{xml(column_axis)}</text>')
    middle = 8 + height / 2
    turn = f'transform="rotate(-90 12 {middle:.0f})"'
    out.append(f'<text x="12" y="{middle:.0f}" class="q c" {turn}>{xml(row_axis)}</text>')
    out.append(_bar(left + width + 18, min(height, 160), total / 2, scale, low, high, centre, unit, ticks))
    about += "; dotted cells are estimates" if guessed else ""
    return image("".join(out), left + width + 110, total, about)


def _dotted(estimated: np.ndarray, left: float, wide: float, high: float, *, origin: str) -> str:
    """Dots over the cells that are estimates, and a line that says so."""
    rows = len(estimated)
    path = []
    for row in range(rows):
        y = 8 + (rows - 1 - row if origin == "bottom" else row) * high
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


def _strongest(values: np.ndarray, centre: float) -> np.ndarray:
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


def _words(
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


def _bar(
    x: float,
    long: float,
    middle: float,
    scale: str,
    low: float,
    high: float,
    centre: float | None,
    unit: str,
    given: Sequence[tuple[float, str]] = (),
) -> str:
    if centre is not None:
        reach = max(high - centre, centre - low) or 1.0
        low, high = centre - reach, centre + reach
    steps = np.linspace(high, low, 64)[:, None]
    address = png(painted(steps, scale=scale, low=low, high=high))
    marks = given or [(value, f"{value:.3g}") for value in (high, (low + high) / 2, low)]
    ticks = ""
    for value, label in marks:
        place = (high - value) / ((high - low) or 1.0)
        y = 8 + place * long + (9 if place == 0 else 0 if place == 1 else 4)
        ticks += f'<text x="{x + 18:.0f}" y="{y:.0f}" class="q">{xml(label)}</text>'
    return (
        f'<image x="{x:.0f}" y="8" width="12" height="{long:.0f}" preserveAspectRatio="none" href="{address}"/>{ticks}'
        f'<text x="{x + 62:.0f}" y="{middle:.0f}" class="q c" '
        f'transform="rotate(90 {x + 62:.0f} {middle:.0f})">{xml(unit)}</text>'
    )
