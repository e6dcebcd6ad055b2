"""What a widget looks like where it is not alive: in a saved notebook, on GitHub and nbviewer, in a terminal.

A widget that is displayed leaves two outputs: the live view, and a picture of it as plain HTML. The picture is hidden
by the block's own css as long as a block is alive on the page, and it is replaced when the widget has something new to
show, without touching the live view.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from labkit.widgets.scales import colour, ink, shade

VIEW = "application/vnd.jupyter.widget-view+json"
_SANS = "font:13px/1.5 system-ui,sans-serif"
_MOST_TOKENS = 600  # in a picture; a saved notebook should stay small
_MOST_CELLS = 256
_MOST_TEXTS = 800  # words in the cells of a picture
_MONO = "font-family:ui-monospace,Menlo,Consolas,monospace"


class Shown:
    """How a widget shows itself: repr as text, a picture as HTML, the live view where there is a front end."""

    _picture: Any = None  # the display handle of the picture, once there is one

    def snapshot(self) -> str:
        """The widget as self-contained HTML without scripts; every text in it is escaped."""
        raise NotImplementedError

    def _view(self) -> dict[str, Any]:
        return {"version_major": 2, "version_minor": 0, "model_id": self.model_id}  # type: ignore[attr-defined]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **_: Any) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": self.snapshot(), VIEW: self._view()}

    def _ipython_display_(self, **_: Any) -> None:
        from IPython.display import display

        display({"text/plain": repr(self), VIEW: self._view()}, raw=True)
        self._picture = display(self._picture_data(), raw=True, display_id=True)

    def _picture_data(self) -> dict[str, str]:
        return {"text/plain": "", "text/html": self.snapshot()}

    def refresh_snapshot(self) -> None:
        """Put the present picture into the notebook in place of the one that was left when it was displayed."""
        if self._picture is not None:
            self._picture.update(self._picture_data(), raw=True)


def card(*parts: str, title: str = "") -> str:
    """The frame around a picture; light, because a saved notebook does not know its reader's theme."""
    head = f'<div style="font-weight:600;margin-bottom:6px">{escape(title)}</div>' if title else ""
    return (
        f'<div class="labkit-snapshot" style="{_SANS};color:#1f2328;background:#fff;padding:8px 10px;max-width:1000px">'
        f"{head}{''.join(parts)}</div>"
    )


def note(text: str) -> str:
    """A line of quiet text."""
    return f'<div style="color:#59636e;margin:4px 0">{escape(text)}</div>'


def token_row(
    tokens: Sequence[str],
    values: np.ndarray | None = None,
    *,
    scale: str = "amount",
    low: float = 0.0,
    high: float = 1.0,
    centre: float | None = None,
    marks: Mapping[str, Iterable[int]] | None = None,
) -> str:
    """Tokens as chips, coloured by their values."""
    differs = set((marks or {}).get("differs", ()))
    chips = []
    for i, token in enumerate(tokens[:_MOST_TOKENS]):
        look = f"{_MONO};white-space:pre;display:inline-block;padding:1px 3px;margin:1px;border-radius:3px"
        if values is not None and i < len(values) and np.isfinite(values[i]):
            rgb = colour(scale, shade(float(values[i]), low, high, centre=centre))
            look += f";background:rgb{rgb};color:{ink(rgb)}".replace(" ", "")
        elif i not in differs:
            look += ";background:#f2f4f6"
        if i in differs:
            look += ";box-shadow:inset 0 -2px #0b66c3;font-weight:600"
        chips.append(f'<span style="{look}">{escape(token)}</span>')
        if token.endswith("⏎"):
            chips.append("<br>")
    if len(tokens) > _MOST_TOKENS:
        chips.append(f" … and {len(tokens) - _MOST_TOKENS} more tokens")
    return f'<div style="margin:3px 0">{"".join(chips)}</div>'


def png(rgb: np.ndarray) -> str:
    """A picture (row, column, 3) uint8 as a data address."""
    rows, columns, _ = rgb.shape
    lines = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(rgb))

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">2I5B", columns, rows, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def painted(values: np.ndarray, *, scale: str, low: float, high: float, centre: float | None = None) -> np.ndarray:
    """An array of numbers as colours, (..., 3) uint8; grey where there is no number."""
    table = np.array([colour(scale, i / 255) for i in range(256)], np.uint8)
    if centre is not None:
        reach = max(high - centre, centre - low) or 1.0
        low, high = centre - reach, centre + reach
    known = np.isfinite(values)
    places = np.clip((np.where(known, values, low) - low) / ((high - low) or 1.0), 0, 1)
    return np.where(known[..., None], table[np.round(places * 255).astype(int)], np.uint8(205)).astype(np.uint8)


def heatmap_svg(
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
    title: str,
    estimated: np.ndarray | None = None,
    texts: Sequence[str] = (),
    ticks: Sequence[tuple[float, str]] = (),
) -> str:
    """A heatmap as inline SVG: the cells are one small PNG, labels and words are text, estimates dotted."""
    rows, columns = values.shape
    worded = len(texts) == rows * columns <= _MOST_TEXTS
    width = min(max(columns * (18 if square else 58 if worded else 34), 160), 820 if worded else 640)
    height = width * rows / columns if square else min(max(rows * 13, 60), 420)
    left = 40 + 7 * max([len(label) for label in row_labels[:200]] + [2])
    bottom = 34 + 6 * max([len(label) for label in column_labels[:200]] + [2])
    picture = painted(_strongest(values, centre or 0.0), scale=scale, low=low, high=high, centre=centre)
    if origin == "bottom":
        picture = picture[::-1]
    if worded:
        height = min(max(rows * 15, 60), 900)
    out = [
        f'<image x="{left}" y="8" width="{width:.0f}" height="{height:.0f}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="{png(picture)}"/>'
    ]
    guessed = estimated is not None and estimated.shape == values.shape and bool(estimated.any())
    if estimated is not None and guessed:
        out.append(_dotted(estimated, left, width / columns, height / rows, origin=origin))
    text = 'font-family="ui-monospace,Menlo,Consolas,monospace" font-size="11" fill="#1f2328"'
    if worded:
        colours = painted(values, scale=scale, low=low, high=high, centre=centre)
        out += _words(texts, colours, left, width / columns, height / rows, upwards=origin == "bottom")
    every = max(1, int(np.ceil(13 * rows / height)))
    for row in range(0, rows, every):
        place = rows - 1 - row if origin == "bottom" else row
        y = 8 + (place + 0.5) * height / rows + 4
        label = row_labels[row] if row < len(row_labels) else str(row)
        out.append(f'<text x="{left - 6}" y="{y:.1f}" text-anchor="end" {text}>{escape(label[:14])}</text>')
    every = max(1, int(np.ceil(13 * columns / width)))
    for column in range(0, columns, every):
        x = left + (column + 0.5) * width / columns + 3
        label = column_labels[column] if column < len(column_labels) else str(column)
        turn = f'transform="rotate(-55 {x:.1f} {height + 20:.0f})"'
        out.append(
            f'<text x="{x:.1f}" y="{height + 20:.0f}" text-anchor="end" {turn} {text}>{escape(label[:14])}</text>'
        )
    quiet = 'font-family="system-ui,sans-serif" font-size="12" fill="#59636e"'
    total = height + bottom + 14
    out.append(
        f'<text x="{left + width / 2:.0f}" y="{total - 4:.0f}" text-anchor="middle" {quiet}>'
        f"{escape(column_axis)}</text>"
    )
    middle = 8 + height / 2
    out.append(
        f'<text x="12" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 12 {middle:.0f})" {quiet}>'
        f"{escape(row_axis)}</text>"
    )
    out.append(_bar(left + width + 18, min(height, 160), scale, low, high, centre, unit, ticks))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 110:.0f}" height="{total:.0f}" role="img" '
        f'aria-label="{escape(title or unit)}{", dotted cells are estimates" if guessed else ""}">{"".join(out)}</svg>'
    )


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
    groups = ['<g font-family="ui-monospace,Menlo,Consolas,monospace" font-size="9" text-anchor="middle">']
    for row in range(rows):
        y = 8 + ((rows - 1 - row if upwards else row) + 0.5) * high + 3
        for column in range(columns):
            text = texts[row * columns + column]
            text = text if len(text) <= room else text[: room - 1] + "…"
            red, green, blue = (int(c) for c in colours[row, column])
            fill = ' fill="#fff"' if ink((red, green, blue)) == "#ffffff" else ""
            groups.append(f'<text x="{left + (column + 0.5) * wide:.0f}" y="{y:.0f}"{fill}>{escape(text)}</text>')
    return [*groups, "</g>"]


def _bar(
    x: float,
    long: float,
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
    words = 'font-family="system-ui,sans-serif" font-size="11" fill="#59636e"'
    marks = given or [(value, f"{value:.3g}") for value in (high, (low + high) / 2, low)]
    ticks = ""
    for value, label in marks:
        place = (high - value) / ((high - low) or 1.0)
        y = 8 + place * long + (9 if place == 0 else 0 if place == 1 else 4)
        ticks += f'<text x="{x + 18:.0f}" y="{y:.0f}" {words}>{escape(label)}</text>'
    return (
        f'<image x="{x:.0f}" y="8" width="12" height="{long:.0f}" preserveAspectRatio="none" href="{address}"/>{ticks}'
        f'<text x="{x + 62:.0f}" y="{8 + long / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(90 {x + 62:.0f} {8 + long / 2:.0f})" {words}>{escape(unit)}</text>'
    )
