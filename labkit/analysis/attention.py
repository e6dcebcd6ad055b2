"""Attention patterns on demand: one layer at a time is computed and kept, never all of them at full size at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from labkit.internals.sites import checked, layers_with, n_heads_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from labkit.models.language_model import LanguageModel, Prompt

KEEP = 256e6  # bytes of float16 patterns to keep; all layers of a short text, a few of a long one


def attention(lm: LanguageModel, prompt: Prompt) -> AttentionPatterns:
    """The attention patterns of a prompt, computed by layer when they are asked for.

    Raises:
        ValueError: a bad prompt, or a model whose attention cannot be seen.
    """
    return AttentionPatterns(lm, prompt)


class AttentionPatterns:
    """Where every head of every layer looks.

    Attributes:
        tokens: the prompt's tokens.
        layers: those that have patterns; in a hybrid not all do.
        n_layers, n_heads: how many layers the model has, and how many heads a layer, at most.
    """

    def __init__(self, lm: LanguageModel, prompt: Prompt) -> None:
        checked(lm, "pattern")
        self.lm, self.prompt = lm, prompt
        self.ids = lm.encode(prompt)
        self.tokens = lm.tokens(self.ids)
        self.layers = layers_with(lm, "pattern")
        self.n_layers, self.n_heads = lm.n_layers, n_heads_of(lm, "pattern")
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()  # the layers looked at last
        self._most = max(1, int(KEEP / (2 * self.n_heads * len(self.tokens) ** 2)))
        self._lock = threading.Lock()

    def pattern(self, layer: int, head: int | None = None) -> np.ndarray:
        """The pattern of a layer (head, query, key), or of one head (query, key), float32; rows sum to 1.

        Raises:
            ValueError: layer or head out of range.
        """
        site = checked(self.lm, f"pattern.{layer}" + ("" if head is None else f".{head}"))
        assert site.layer is not None
        with self._lock:
            if site.layer not in self._kept:
                found = self.lm.run(self.ids, read=[f"pattern.{site.layer}"])[f"pattern.{site.layer}"]
                self._kept[site.layer] = found[0].half().cpu().numpy()
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(site.layer)
            layer_pattern = self._kept[site.layer]
        return (layer_pattern if site.head is None else layer_pattern[site.head]).astype(np.float32)

    def thumbnails(self, size: int = 24) -> np.ndarray:
        """Small pictures of all heads, uint8 (layer, head, size, size), 255 = all attention; from one forward pass.

        Cells are pooled by their maximum, so that a lone bright cell does not vanish. A prompt shorter than `size`
        gives pictures of its own length. Layers without attention are black.
        """
        size = min(size, len(self.tokens))
        small = np.zeros((self.n_layers, self.n_heads, size, size), np.uint8)

        def shrink(layer: int, pattern: torch.Tensor) -> torch.Tensor:
            # each layer is pooled as it passes; no layer's full pattern outlives it
            pooled = F.adaptive_max_pool2d(pattern[0], size)
            small[layer, : len(pooled)] = (pooled * 255).round().to(torch.uint8).cpu().numpy()
            return pattern

        self.lm.run(self.ids, write={f"pattern.{layer}": partial(shrink, layer) for layer in self.layers})
        return small

    def figure(self, layer: int, head: int) -> go.Figure:
        """A plotly heatmap of one head: queries down, keys across."""
        import plotly.graph_objects as go

        labels = [f"{n} {token.display}" for n, token in enumerate(self.tokens)]
        figure = go.Figure(
            go.Heatmap(
                z=self.pattern(layer, head),
                x=labels,
                y=labels,
                zmin=0,
                zmax=1,
                colorscale="Blues",
                colorbar={"title": {"text": "attention", "side": "right"}},
                hovertemplate="from %{y}<br>to %{x}<br>%{z:.3f}<extra></extra>",
            )
        )
        side = max(420, 180 + 20 * len(labels))
        figure.update_layout(
            title=f"Attention of layer {layer}, head {head}",
            xaxis={"title": "key: the token looked at", "tickangle": -45, "type": "category"},
            yaxis={"title": "query: the token that looks", "autorange": "reversed", "type": "category"},
            width=side,
            height=side,
        )
        return figure

    def code(self) -> str:
        """The Python that computes the same patterns."""
        prompt = self.prompt if isinstance(self.prompt, str | list) else self.ids[0].tolist()
        return f"{self.lm.code()}patterns = lk.attention(lm, {prompt!r})\n"

    def __repr__(self) -> str:
        return f"AttentionPatterns({len(self.tokens)} tokens, {self.n_layers} layers x {self.n_heads} heads)"
