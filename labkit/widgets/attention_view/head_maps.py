"""HeadMaps: one head large, or two with their difference, or what a layer's heads write to a logit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from labkit.attention_maps.base import UNITS, weighted, without_sink
from labkit.attention_maps.patterns import AttentionPatterns
from labkit.attention_maps.weighting import LogitContribution
from labkit.widgets.base.tool import link, row
from labkit.widgets.blocks.head_picture import attention_map, put, put_window

THUMBNAIL_BYTES = 560_000  # all thumbnails together, so that the first payload stays below a megabyte
KEPT = 6  # matrices shown last
Side = tuple[str, list[str], np.ndarray]  # title, token labels, (query, key)


class HeadMaps:
    """Up to three heatmaps in a row, `box`, that share a window."""

    def __init__(self) -> None:
        self.heatmap, self.other, self.difference = attention_map(), attention_map(), attention_map(difference=True)
        for other in (self.other, self.difference):
            link(self.heatmap, window=other)
        self.heatmap.observe(lambda _: self._show_window(), "window")
        self.box = row(self.heatmap, wide=True)
        self.box.layout.flex = "1 1 420px"
        self._made: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()
        self._shown: list[np.ndarray] = []  # of each heatmap that is there

    def forget(self) -> None:
        """Another text is read."""
        self._made.clear()
        self._shown = []

    def matrix(
        self, patterns: AttentionPatterns, head: tuple[int, int], weighting: str, *, hide_sink: bool
    ) -> np.ndarray:
        """One head, weighted, (query, key) float32; the last ones are kept."""
        place = (head[0], 0) if weighting == "rollout" else head
        key = (id(patterns), place, weighting, hide_sink)
        if key not in self._made:
            shown = weighted(patterns, *place, weighting, hide_sink=hide_sink)
            self._made[key] = shown[:, : len(patterns.tokens)]
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]

    def show(self, sides: Sequence[Side], weighting: str) -> bool:
        """One side, or two and their difference. False if there is none, as their lengths differ."""
        plain, unit = weighting == "pattern", UNITS[weighting]
        high = 1.0 if plain else max(float(matrix.max(initial=0)) for *_, matrix in sides) or 1.0
        self.box.children = [self.heatmap, self.other, self.difference][: 1 if len(sides) == 1 else 3]
        self._shown = [matrix for *_, matrix in sides]
        for heatmap, (title, labels, matrix) in zip((self.heatmap, self.other), sides, strict=False):
            put(heatmap, matrix, (labels, labels), title=title, unit=unit, high=high)
        if len(sides) == 1:
            return True
        (_, labels, one), (_, _, other) = sides
        self.difference.row_axis = self.heatmap.row_axis
        if one.shape != other.shape:
            self.difference.values, self.difference.title = None, ""
            return False
        gap = one - other
        self._shown.append(gap)
        reach = 1.0 if plain else float(np.abs(gap).max(initial=0)) or 1.0
        put(self.difference, gap, (labels, labels), title="First minus second", unit="difference", high=reach)
        return True

    def show_contributions(self, found: LogitContribution, layer: int, *, hide_sink: bool) -> np.ndarray:
        """Heads of a layer x keys of the last token, in logits; returns what is shown, (head, key)."""
        values = found.values[layer]
        values = without_sink(values, renormalise=False) if hide_sink else values
        self._shown, self.difference.selection = [], None
        self.box.children, self.difference.row_axis = [self.difference], "head"
        labels = [f"head {n}" for n in range(len(values))], [token.display for token in found.tokens]
        title = f"Layer {layer}: what each head adds to {found.what} from the last token"
        reach = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
        put(self.difference, values, labels, title=title, unit="logits", high=reach)
        return values

    def _show_window(self) -> None:
        """The numbers of the part that is looked at, where the whole is pooled; taken from what is shown already."""
        for heatmap, matrix in zip((self.heatmap, self.other, self.difference), self._shown, strict=False):
            with heatmap.hold_sync():
                put_window(heatmap, matrix)


def telling_head(thumbnails: np.ndarray) -> tuple[int, int]:
    """A head worth seeing first: it looks at something, and not only at the first token or at itself."""
    size = thumbnails.shape[-1]
    elsewhere = np.tril(np.ones((size, size), bool), -1)
    elsewhere[:, 0] = False
    if not elsewhere.any():
        return (0, 0)
    strength = thumbnails[..., elsewhere].mean(-1)
    layer, head = np.unravel_index(int(strength.argmax()), strength.shape)
    return int(layer), int(head)


def thumbnail_side(layers: int, heads: int) -> int:
    """Rows and columns of a thumbnail: as many as all heads together leave room for."""
    return max(4, min(24, int(np.sqrt(THUMBNAIL_BYTES / (layers * heads)))))
