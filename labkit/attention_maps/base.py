"""Patterns from a model or a file: what can be read of them, and how one head is drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from labkit.activations.attention_interface import AttentionCall, pattern_of
from labkit.language_model import LanguageModel
from labkit.results.figures import heatmap
from labkit.text.tokens import Token

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

UNITS = {"pattern": "attention", "value": "norm of the weighted value", "rollout": "share that comes from the token"}


def weighted(
    patterns: Patterns, layer: int, head: int, weighting: str = "pattern", *, hide_sink: bool = False
) -> np.ndarray:
    """One head (query, key) float32: its `pattern`, the pattern weighted by `value`, or the `rollout` up to its layer.

    Raises:
        ValueError: there is no such weighting, or this model's heads do not allow it.
    """
    if weighting == "pattern":
        shown = patterns.pattern(layer, head)
    elif weighting in UNITS:
        if not hasattr(patterns, "rollout"):
            raise ValueError("a saved file holds patterns only; load the model and use lk.attention to weight them")
        shown = patterns.value_weighted(layer, head) if weighting == "value" else patterns.rollout(layer)  # type: ignore[attr-defined]
    else:
        raise ValueError(f"there is no weighting {weighting!r}; use one of {', '.join(UNITS)}")
    return without_sink(shown, renormalise=weighting != "value") if hide_sink else shown


def without_sink(pattern: np.ndarray, *, renormalise: bool = True) -> np.ndarray:
    """A pattern (..., query, key) without its first key; rows sum to 1 again, unless nothing was left."""
    rest = pattern.copy()
    rest[..., 0] = 0
    if not renormalise:
        return rest
    left = rest.sum(-1, keepdims=True)
    return np.divide(rest, left, out=np.zeros_like(rest), where=left > 1e-6)


class Patterns(ABC):
    """What can be read of patterns, whether they come from a model or a file.

    Attributes:
        tokens: the prompt's tokens.
        layers: the layers with patterns; not all of them in a hybrid.
        n_layers, n_heads: how many layers the model has, and how many heads per layer, at most.
    """

    tokens: list[Token]
    layers: list[int]
    n_layers: int
    n_heads: int

    @abstractmethod
    def pattern(self, layer: int, head: int | None = None) -> np.ndarray:
        """The pattern of a layer (head, query, key), or of one head (query, key), float32; rows sum to 1, less a sink's
        share.

        Raises:
            ValueError: layer or head out of range.
        """

    @abstractmethod
    def code(self) -> str:
        """The Python that computes the same patterns."""

    def figure(self, layer: int, head: int, *, weighting: str = "pattern", hide_sink: bool = False) -> go.Figure:
        """A plotly heatmap of one head: queries down, keys across.

        Args:
            layer, head: which one.
            weighting: `pattern`, or of a model's patterns `value` or `rollout` (up to this layer, all heads).
            hide_sink: leave the first token out and renormalise the rest.
        """
        shown = weighted(self, layer, head, weighting, hide_sink=hide_sink)
        labels = [f"{n} {token.display}" for n, token in enumerate(self.tokens)]
        side = min(1100, max(420, 180 + 20 * len(labels)))
        what = {"pattern": "Attention of", "value": "Value-weighted attention of", "rollout": "Rollout to"}[weighting]
        name = f"layer {layer}" if weighting == "rollout" else f"layer {layer}, head {head}"
        figure = heatmap(
            shown,
            x=labels,
            y=labels,
            axes=("key: the token looked at", "query: the token that looks"),
            title=f"{what} {name}" + (", first token left out" if hide_sink else ""),
            unit=UNITS[weighting],
            hover="from %{y}<br>to %{x}<br>%{z:.3f}",
            size=(side, side),
            colours="Blues",
            ends=(0, 1 if weighting == "pattern" else float(shown.max())),
        )
        return figure.update_yaxes(autorange="reversed")


class ModelPatterns(Patterns):
    """Patterns with their model and the attention calls they come from.

    Attributes:
        lm, ids: the model, and the prompt's ids (1, seq).
    """

    lm: LanguageModel
    ids: torch.Tensor

    @abstractmethod
    def call(self, layer: int) -> AttentionCall:
        """The queries, keys and values that a layer's attention was called with."""

    @abstractmethod
    def before_projection(self, layer: int) -> torch.Tensor:
        """The input of the output projection at the last token, (head, d_head)."""

    @abstractmethod
    def blocks(self, call: AttentionCall, heads: slice = slice(None)) -> Iterator[tuple[int, torch.Tensor]]:
        """The pattern of a call in blocks of queries: where each begins, and (head, query, key) up to its last."""


def rows_of(call: AttentionCall, start: int, stop: int, heads: slice = slice(None)) -> torch.Tensor:
    """Query rows `start` to `stop` - 1 of a pattern: (head, query, key) float32, without keys after them."""
    causal = call.mask is None and call.q.shape[2] == call.k.shape[2]
    with torch.no_grad():
        return pattern_of(call.part(heads=heads, queries=slice(start, stop), keys=stop if causal else None))[0]


def frame_of(grids: Mapping[str, np.ndarray], layers: Sequence[int]) -> pd.DataFrame:
    """Grids (layer, head) as one row per head."""
    import pandas as pd

    n_heads = next(iter(grids.values())).shape[1]
    places = [(layer, head) for layer in layers for head in range(n_heads)]
    frame = pd.DataFrame(places, columns=["layer", "head"])
    for name, grid in grids.items():
        frame[name] = np.array([grid[at] for at in places], np.float32)
    return frame
