"""Draw the pictures of docs/concepts, each for a light and a dark page: python tools/pictures.py

The weights of "what 4 bits are" are the default model's; everything else is drawn by hand here.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDER = Path(__file__).parents[1] / "docs" / "images"
FONT = "font-family='system-ui,-apple-system,Segoe UI,Roboto,DejaVu Sans,sans-serif'"


class Palette(NamedTuple):
    """The colours of one theme. Layers have hues that differ in lightness, too."""

    ink: str
    soft: str
    line: str
    empty: str
    one: str
    other: str
    layers: tuple[str, ...]
    on_layers: str


PALETTES = {
    "light": Palette(
        "#1f2328", "#57606a", "#8c959f", "#eef1f4", "#2166ac", "#b35806",
        ("#1b4f72", "#2e86c1", "#76c7c0", "#f0b429", "#d1495b"), "#ffffff",
    ),
    "dark": Palette(
        "#e6edf3", "#a5b0bb", "#6e7781", "#2d333d", "#79b8ff", "#f0883e",
        ("#3b7dd8", "#62b0f0", "#8fe0d3", "#f2cc60", "#ff7b89"), "#10151c",
    ),
}  # fmt: skip


def text(
    x: float, y: float, what: str, colour: str, *, size: float = 13, anchor: str = "start", bold: bool = False
) -> str:
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' fill='{colour}' font-size='{size}' text-anchor='{anchor}'{weight}>"
        f"{escape(what)}</text>"
    )


def box(x: float, y: float, wide: float, high: float, fill: str, *, edge: str = "none", round_: float = 3) -> str:
    return (
        f"<rect x='{x:.1f}' y='{y:.1f}' width='{wide:.1f}' height='{high:.1f}' rx='{round_}' fill='{fill}' "
        f"stroke='{edge}'/>"
    )


def arrow(points: list[tuple[float, float]], colour: str, *, width: float = 1.5) -> str:
    """A line through points with a head at its end."""
    (x0, y0), (x1, y1) = points[-2:]
    length = np.hypot(x1 - x0, y1 - y0)
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    tip = " ".join(f"{x1 - 7 * dx + side * 4 * dy:.1f},{y1 - 7 * dy - side * 4 * dx:.1f}" for side in (1, -1))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*points[:-1], (x1 - 6 * dx, y1 - 6 * dy)])
    return (
        f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{width}'/>"
        f"<polygon points='{x1:.1f},{y1:.1f} {tip}' fill='{colour}'/>"
    )


def svg(wide: float, high: float, title: str, body: list[str]) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {wide} {high}' width='{wide}' height='{high}' {FONT} "
        f"role='img'><title>{escape(title)}</title>\n" + "\n".join(body) + "\n</svg>\n"
    )


def wavefront(p: Palette) -> str:
    """Left: what one patch can change. Right: the packed tokens of all patched runs, block by block."""
    layers, positions, side, gap = 5, 6, 30, 4
    step = side + gap
    left, bottom = 76, 186
    body = [text(left, 28, "One patch: block 1, position 3", p.ink, bold=True)]
    for layer in range(layers):
        y = bottom - layer * step
        body.append(text(left - 10, y + 20, f"block {layer}", p.soft, size=12, anchor="end"))
        for position in range(positions):
            x = left + position * step
            inside = layer >= 1 and position >= 3
            fill = p.layers[1] if inside else p.empty
            body.append(box(x, y, side, side, fill, edge=p.line if not inside else "none"))
            if (layer, position) == (1, 3):
                body.append(text(x + side / 2, y + 20, "✕", p.on_layers, anchor="middle", bold=True))
    for position in range(positions):
        body.append(
            text(left + position * step + side / 2, bottom + 50, str(position), p.soft, size=12, anchor="middle")
        )
    body.append(text(left + positions * step / 2, bottom + 70, "position", p.soft, size=12, anchor="middle"))
    body += [
        box(left, bottom + 86, 14, 14, p.layers[1]), text(left + 20, bottom + 98, "computed again", p.soft, size=12),
        box(left + 128, bottom + 86, 14, 14, p.empty, edge=p.line),
        text(left + 148, bottom + 98, "read from the stored run", p.soft, size=12),
    ]  # fmt: skip
    left = 400
    unit = 14
    body.append(text(left, 28, "All 15 patches: one pass up the blocks", p.ink, bold=True))
    for layer in range(layers):
        y, x = bottom - layer * step, float(left)
        body.append(text(left - 10, y + 20, f"block {layer}", p.soft, size=12, anchor="end"))
        for joined in range(layer + 1):
            for length in (3, 2, 1):
                fresh = joined == layer
                body.append(
                    box(x, y, length * unit - 2, side, p.layers[joined], edge=p.ink if fresh else "none", round_=2)
                )
                x += length * unit
        body.append(text(x + 8, y + 20, f"{6 * (layer + 1)} tokens", p.soft, size=12))
    said = (
        "Rows that start at position 3, 4 and 5 (3, 2 and 1 tokens long) join at each block,",
        "outlined; those that joined below, in their own colour, go on. 5 calls of a block",
        "instead of 15 full passes, 75 calls.",
    )
    body += [text(left, bottom + 50 + 18 * n, line, p.soft, size=12) for n, line in enumerate(said)]
    return svg(900, 298, "How the wavefront computes a grid of patches in one pass up the blocks", body)


def patch(p: Palette) -> str:
    """Two runs; one activation goes from the clean one into the corrupt one."""
    words = {"clean": ["John", "gave", "a", "drink", "to"], "corrupt": ["Mary", "gave", "a", "drink", "to"]}
    ends = {"clean": "Mary", "corrupt": "John → Mary?"}
    body = []
    for n, (name, tokens) in enumerate(words.items()):
        colour = (p.one, p.other)[n]
        left = 70 + n * 420
        body.append(text(left, 28, f"{name} run", colour, bold=True))
        for column, token in enumerate(tokens):
            x = left + column * 58
            for layer in range(4):
                y = 190 - layer * 42
                body.append(box(x, y, 46, 28, p.empty, edge=colour if (layer, column) == (1, 0) else p.line))
            body.append(text(x + 23, 242, token, p.ink, anchor="middle"))
        body.append(text(left + 4 * 58 + 23, 52, ends[name], colour, anchor="middle", bold=True))
    body += [
        box(70, 148, 46, 28, p.one), box(490, 148, 46, 28, p.one),
        arrow([(116, 162), (124, 141), (470, 141), (489, 158)], p.one, width=2),
        text(420, 130, "copy one activation", p.one, anchor="middle", size=12),
        text(56, 209, "layer 0", p.soft, size=12, anchor="end"), text(56, 83, "3", p.soft, size=12, anchor="end"),
        *(text(x, 276, "after “… went to the store,”", p.soft, size=12) for x in (70, 490)),
    ]  # fmt: skip
    return svg(860, 292, "Denoising: an activation of the clean run is put into the corrupt run", body)


def sites(p: Palette) -> str:
    """The places of one block, along the residual stream."""
    body = []

    def place(x: float, y: float, name: str, *, colour: str = "", wide: float = 92) -> None:
        body.append(box(x - wide / 2, y - 14, wide, 28, p.empty, edge=colour or p.line, round_=6))
        body.append(text(x, y + 4.5, name, p.ink, size=12.5, anchor="middle"))

    top, low = 60, 196
    stream = 300
    body.append(arrow([(20, stream), (960, stream)], p.ink, width=3))
    for x, name in ((80, "resid_pre"), (530, "resid_mid"), (900, "resid_post")):
        place(x, stream, name, colour=p.ink, wide=100)
    body.append(
        text(
            490,
            stream + 40,
            "residual stream: every part reads from it and adds to it",
            p.soft,
            size=12,
            anchor="middle",
        )
    )
    body.append(text(64, 28, "attention", p.one, bold=True))
    body.append(arrow([(120, stream - 14), (120, low + 14)], p.one))
    place(120, low, "attn_in", colour=p.one)
    for n, name in enumerate(("q_pre → q", "k_pre → k", "v")):
        y = top + n * 46
        body.append(arrow([(120, low - 14), (120, y), (150, y)], p.one))
        place(196, y, name, colour=p.one)
    body.append(arrow([(242, top + 10), (290, top + 10)], p.one))
    body.append(arrow([(242, top + 46), (270, top + 46), (290, top + 24)], p.one))
    place(336, top + 14, "scores", colour=p.one)
    body.append(arrow([(382, top + 14), (402, top + 14)], p.one))
    body.append(text(348, top - 8, "softmax", p.soft, size=11))
    place(448, top + 14, "pattern", colour=p.one)
    body.append(arrow([(448, top + 28), (448, top + 78)], p.one))
    body.append(arrow([(242, top + 92), (402, top + 92)], p.one))
    place(448, top + 92, "z", colour=p.one)
    body.append(arrow([(448, top + 106), (448, low - 6)], p.one))
    place(448, low + 8, "head_out", colour=p.one)
    body.append(arrow([(448, low + 22), (448, stream - 54)], p.one))
    place(448, stream - 40, "attn_out", colour=p.one)
    body.append(arrow([(448, stream - 26), (448, stream - 3)], p.one))
    body.append(text(610, 28, "MLP", p.other, bold=True))
    body.append(arrow([(600, stream), (600, low + 14)], p.other))
    place(600, low, "mlp_in", colour=p.other)
    body.append(arrow([(600, low - 14), (600, top + 14), (640, top + 14)], p.other))
    body.append(arrow([(600, low - 14), (600, top + 70), (640, top + 70)], p.other))
    place(686, top + 14, "mlp_gate", colour=p.other)
    place(686, top + 70, "mlp_up", colour=p.other)
    body.append(arrow([(732, top + 14), (752, top + 14), (772, top + 34)], p.other))
    body.append(arrow([(732, top + 70), (752, top + 70), (772, top + 50)], p.other))
    place(820, top + 42, "mlp_act", colour=p.other)
    body.append(arrow([(820, top + 56), (820, low - 6)], p.other))
    place(820, low + 8, "mlp_out", colour=p.other)
    body.append(arrow([(820, low + 22), (820, stream - 3)], p.other))
    return svg(980, 356, "The sites of one block, along the residual stream", body)


def histogram() -> tuple[np.ndarray, np.ndarray]:
    """Counts of the default model's weights, each divided by the largest of its block of 64; the 16 levels of NF4."""
    import torch
    from bitsandbytes.functional import get_4bit_type

    import labkit as lk

    lm = lk.load(bits=32, progress=False)
    counts = np.zeros(161)
    for module in lm.hf.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            blocks = module.weight.detach().reshape(-1, 64)
            scaled = blocks / blocks.abs().amax(1, keepdim=True).clamp_min(1e-12)
            scaled = scaled[scaled.abs() < 1]  # the largest of a block is always at an end
            counts += np.histogram(scaled.numpy(), bins=161, range=(-1, 1))[0]
    return counts / counts.max(), get_4bit_type("nf4", "cpu").numpy()


def four_bits(p: Palette, counts: np.ndarray, levels: np.ndarray) -> str:
    left, wide, floor, high = 40, 820, 250, 190
    at = lambda value: left + (value + 1) / 2 * wide  # noqa: E731
    edges = [-1.0, *((levels[1:] + levels[:-1]) / 2).tolist(), 1.0]
    body = [
        text(left, 26, "Weights of the default model, each divided by the largest of its block of 64", p.ink, bold=True)
    ]
    for n in range(0, 16, 2):
        body.append(box(at(edges[n]), floor - high - 6, at(edges[n + 1]) - at(edges[n]), high + 6, p.empty, round_=0))
    bar = wide / len(counts)
    bars = "".join(
        f"M{left + n * bar:.1f},{floor}v{-high * count:.1f}h{bar - 0.6:.1f}v{high * count:.1f}z"
        for n, count in enumerate(counts)
    )
    body.append(f"<path d='{bars}' fill='{p.one}' opacity='0.75'/>")
    for n, level in enumerate(levels):
        x = at(level)
        body.append(f"<path d='M{x:.1f},{floor - high}V{floor + 8}' stroke='{p.other}' stroke-width='2'/>")
        body.append(
            text(x, floor + 24 + 14 * (n % 2), f"{level:.2f}".replace("-", "−"), p.soft, size=11, anchor="middle")
        )
    body.append(
        text(
            left,
            floor + 60,
            "The 16 levels of NF4 (lines): each weight becomes the level in whose band it lies.",
            p.soft,
            size=12,
        )
    )
    return svg(900, 324, "The weights of the default model, and the 16 levels of NF4", body)


def main() -> None:
    counts, levels = histogram()
    drawn: dict[str, Callable[[Palette], str]] = {
        "wavefront": wavefront, "patch": patch, "sites": sites, "four_bits": lambda p: four_bits(p, counts, levels),
    }  # fmt: skip
    for name, draw in drawn.items():
        for theme, palette in PALETTES.items():
            (FOLDER / f"{name}_{theme}.svg").write_text(draw(palette), "utf-8")


if __name__ == "__main__":
    main()
