"""HeadGrid: one small picture for each head of each layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets as t

from labkit.widgets.base.block import Array, Block, cell, module
from labkit.widgets.base.picture import image, painted, png


class HeadGrid(Block):
    """Layers x heads of thumbnails; layer 0 is at the bottom. Arrow keys move, Enter or a click selects; X, or a click
    with Ctrl or Shift, chooses several.

    Args:
        thumbnails: (layer, head, size, size), uint8; 255 is the strongest.
        title: what is shown.
        scores: (layer, head), float32, a number to show with each head; `score` is what it is.
        order: the heads (layer, head) to show, one after the other; None shows the grid.
        faint: heads that step back.

    Traits:
        selection, hovered: (layer, head) or None.
        chosen: list of (layer, head).
    """

    _esm = module("cell_grid", "head_grid")

    thumbnails = Array(4)
    title = t.Unicode().tag(sync=True)
    scores = Array(2)
    score = t.Unicode().tag(sync=True)
    order: Any = t.List(allow_none=True, default_value=None).tag(sync=True)
    faint: t.List = t.List().tag(sync=True)
    chosen: t.List = t.List().tag(sync=True)
    side = t.Int(0, help="side of a thumbnail in CSS pixels; 0 finds one that fits").tag(sync=True)
    max_height = t.Int(560).tag(sync=True)
    selection = cell().tag(sync=True)
    hovered = cell().tag(sync=True)

    def __init__(self, thumbnails: Any = None, **traits: Any) -> None:
        if thumbnails is not None and np.asarray(thumbnails).dtype != np.uint8:
            raise ValueError(f"thumbnails are uint8, 0 to 255; got {np.asarray(thumbnails).dtype}")
        super().__init__(thumbnails=thumbnails, **traits)

    @t.validate("chosen", "order", "faint")
    def _pairs(self, proposal: Any) -> list[tuple[int, int]] | None:
        """From the browser they come as lists."""
        value = proposal["value"]
        return None if value is None else [(int(layer), int(head)) for layer, head in value]

    def picture(self, *, size: int = 12) -> str:
        """The grid as one image without a frame, for the snapshot of a tool."""
        if self.thumbnails is None:
            return ""
        layers, heads, side, _ = self.thumbnails.shape
        pick = np.linspace(0, side - 1, min(size, side)).round().astype(int)
        small = self.thumbnails[:, :, pick][:, :, :, pick]
        framed = np.pad(small, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=40)[::-1]
        flat = framed.transpose(0, 2, 1, 3).reshape(layers * framed.shape[2], heads * framed.shape[3])
        address = png(painted(flat, scale=self.scale, low=0, high=255))
        about = f"{layers} layers by {heads} heads, layer 0 at the bottom"
        wide, high = max(60, 20 * heads), max(60, 20 * heads) * flat.shape[0] / flat.shape[1]
        body = f'<image width="{wide}" height="{high:.0f}" class="x" preserveAspectRatio="none" href="{address}"/>'
        return image(body, wide, high, f"{self.title or 'Patterns'}: {about}")

    def code(self) -> str:
        """The Python that makes the same grid."""
        shape = "" if self.thumbnails is None else f"  # uint8 {self.thumbnails.shape}"
        return f"import labkit as lk\n\nlk.HeadGrid(thumbnails, title={self.title!r}){shape}\n"

    def __repr__(self) -> str:
        if self.thumbnails is None:
            return "HeadGrid(empty)"
        return f"HeadGrid({self.thumbnails.shape[0]} layers x {self.thumbnails.shape[1]} heads)"
