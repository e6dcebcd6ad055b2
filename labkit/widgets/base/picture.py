"""Drawings in saved notebooks: SVG inside an `<img>`, with a text that says what it shows.

JupyterLab cleans the HTML of a notebook that its reader has not trusted: inline `<svg>` goes, and so do styles that it
does not know; an `<img>` whose source is a data: address stays. In there an SVG is a document of its own. It has no
fonts, colours or theme of the page, so each brings its background, in light colours that read on any page.
"""

from __future__ import annotations

import base64
import re
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np

from labkit.widgets.base.colour_scales import colour

MONO = "ui-monospace,Menlo,Consolas,monospace"
WIDE = 720  # of a picture that is as wide as it may be, in pixels: a narrow notebook does not make it smaller
INK, QUIET = "#1f2328", "#59636e"
_ADVANCE, _LINE, _SIZE = 7.9, 24, 13  # of the fixed-width text, in pixels
_MOST_ALT = 600  # characters
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_STYLE = (
    f"text{{font:11px system-ui,sans-serif;fill:{INK};white-space:pre}}.q{{fill:{QUIET}}}"
    f".m,.t text{{font:{_SIZE}px {MONO}}}.s{{font:11px {MONO}}}.w{{font:9px {MONO};text-anchor:middle}}"
    ".b,.t .b{font-weight:600}.e{text-anchor:end}.c{text-anchor:middle}.x{image-rendering:pixelated}"
)


def image(body: str, wide: float, high: float, about: str) -> str:
    """SVG elements as an `<img>`. `about` is what a screen reader says, and what shows where pictures do not.

    Classes for text: `m` fixed width, `s` small and fixed, `q` quiet, `b` bold, `e` ends at x, `c` is centred there.
    """
    svg = drawing(body, wide, high)
    address = base64.b64encode(svg.encode()).decode()
    words = " ".join(about.split())
    words = words if len(words) <= _MOST_ALT else words[: _MOST_ALT - 1] + "…"
    return f'<img alt="{xml(words)}" width="{wide:.0f}" src="data:image/svg+xml;base64,{address}">'


def drawing(body: str, wide: float, high: float) -> str:
    """SVG elements as a document of its own."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:.0f}" height="{high:.0f}" '
        f'viewBox="0 0 {wide:.0f} {high:.0f}"><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{body}</svg>'
    )


def xml(text: str) -> str:
    """A text as it may stand in XML and HTML: escaped, and without the characters that XML has no way to write."""
    return escape(_NOT_XML.sub("\ufffd", text))


def columns_of(text: str) -> int:
    """How many columns of fixed-width type a text takes: two for what East Asian fonts set wide, none for accents."""
    wide = {"W": 2, "F": 2}
    return sum(0 if unicodedata.combining(c) else wide.get(unicodedata.east_asian_width(c), 1) for c in text)


def cut(text: str, columns: int) -> str:
    """A text, or as much of it as goes into so many columns."""
    if columns_of(text) <= columns:
        return text
    while text and columns_of(text) >= columns:
        text = text[:-1]
    return text + "…"


def chips(
    tokens: Sequence[str], fills: Sequence[str | None], inks: Sequence[str], differs: set[int], rest: str = ""
) -> tuple[str, float, float]:
    """Tokens one after the other, as lines of text: (SVG elements, width, height)."""
    x, y, right, out = 4.0, 4, 60.0, []
    for n, token in enumerate(tokens):
        shown = cut(token, int((WIDE - 20) / _ADVANCE))
        wide = _ADVANCE * columns_of(shown) + 6
        if x + wide > WIDE - 4 and x > 4:
            x, y = 4.0, y + _LINE
        if fills[n] is not None:
            out.append(f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{_LINE - 3}" rx="3" fill="{fills[n]}"/>')
        if n in differs:
            out.append(f'<path d="M{x:.1f} {y + _LINE - 4}h{wide:.1f}" stroke="#0b66c3" stroke-width="2"/>')
        look = ' class="b"' if n in differs else ""
        ink_ = "" if inks[n] == INK else f' style="fill:{inks[n]}"'
        foreign = max(shown, default="") > "\xff"
        fit = f' textLength="{wide - 6:.1f}" lengthAdjust="spacingAndGlyphs"' if foreign else ""
        out.append(f'<text x="{x + 3:.1f}" y="{y + 15}"{look}{ink_}{fit}>{xml(shown)}</text>')
        x += wide + 2
        right = max(right, x)
        if token.endswith("⏎"):
            x, y = 4.0, y + _LINE
    if rest:
        y += _LINE if x > 4 else 0
        out.append(f'<text x="4" y="{y + 15}" class="q">{xml(rest)}</text>')
        right = max(right, 8 + 6.5 * len(rest))
    return f'<g class="t">{"".join(out)}</g>', min(WIDE, right + 4), y + _LINE + 2


def pairs(
    columns: Sequence[tuple[str | None, str | None]],
    differs: set[int],
    special: set[int],
    labels: Sequence[str],
    rest: str,
) -> str:
    """Two texts, token above token, as an image; None where a text has no token."""
    x, y, right, out = 4.0, 4, 60.0, []
    for n, pair in enumerate(columns):
        shown = [None if text is None else cut(text, 60) for text in pair]
        wide = _ADVANCE * max([columns_of(text) for text in shown if text is not None], default=1) + 8
        if x + wide > WIDE - 4 and x > 4:
            x, y = 4.0, y + 2 * _LINE + 8
        for row, text in enumerate(shown):
            at = y + row * (_LINE - 2)
            box = f'x="{x:.1f}" y="{at}" width="{wide:.1f}" height="{_LINE - 4}" rx="3"'
            if text is None:
                out.append(f'<rect {box} fill="none" stroke="#d5dae0" stroke-dasharray="3"/>')
                continue
            out.append(f'<rect {box} fill="#f2f4f6"/>')
            if n in differs:
                out.append(f'<path d="M{x:.1f} {at + _LINE - 5}h{wide:.1f}" stroke="#0b66c3" stroke-width="2"/>')
            look = "m" + " b" * (n in differs) + " q" * (n in special)
            out.append(f'<text x="{x + 4:.1f}" y="{at + 15}" class="{look}">{xml(text)}</text>')
        x += wide + 2
        right = max(right, x)
    if rest:
        y += 2 * _LINE + 8
        out.append(f'<text x="4" y="{y + 15}" class="q">{xml(rest)}</text>')
    rows = ("".join(pair[row] or "" for pair in columns).replace("·", " ") for row in (0, 1))
    about = "; ".join(f"{label}: {text}" for label, text in zip([*labels, "", ""], rows, strict=False))
    places = ", ".join(map(str, sorted(differs)))
    about += f"; they differ at {'position' if len(differs) == 1 else 'positions'} {places}" if differs else ""
    return image("".join(out), min(WIDE, max(right, 7 * len(rest)) + 4), y + 2 * _LINE + 4, about)


def lines(rows: Sequence[tuple[int, str, str, str]], about: str) -> str:
    """Lines of text, each (how far in, a name, something quiet, the text), as an image."""
    out, right = [], 200.0
    for n, (depth, name, quiet, text) in enumerate(rows):
        room = int((WIDE - 20 - 18 * depth) / 6.4)
        name, quiet = cut(name, room), cut(quiet, max(1, room - len(name)))
        text = cut(text, max(1, room - columns_of(name) - columns_of(quiet)))
        parts = f'<tspan class="b">{xml(name)}</tspan> <tspan class="q">{xml(quiet)}</tspan> {xml(text)}'
        out.append(f'<text x="{4 + 18 * depth}" y="{16 + 19 * n}">{parts}</text>')
        right = max(right, 24 + 18 * depth + 7 * columns_of(name + quiet + text))
    return image("".join(out), min(WIDE, right), 19 * len(rows) + 8, about)


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
