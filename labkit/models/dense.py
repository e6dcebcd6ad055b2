"""4-bit layers with their weights dequantised once, for a long computation on a CPU.

A 4-bit kernel on a CPU turns a weight back into numbers again for every few tokens, which takes a third of its time:
right for a forward pass, whose memory stays small, and wasteful for a grid of patches, in which every layer sees tens
of thousands of tokens. Such a grid keeps the numbers until it is done, where memory has room for them. They are the
very numbers that the kernel computes with; only the order in which products are summed is another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from labkit.models.memory import available, installed
from labkit.models.weights import bias_of, weight_of

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel

TILES = (1024, 512, 256, 128)
"""Tokens that are multiplied at once: PyTorch prepares each new size of product for half a millisecond, so these are
all there are, and what is left over goes through the 4-bit kernel."""


class DenseLayers:
    """The 4-bit layers of a model's blocks that lie on the CPU, where it pays to keep their weights dequantised.

    Args:
        lm: the model.
        tokens: how many tokens will go through each block in all.
    """

    def __init__(self, lm: LanguageModel, *, tokens: int) -> None:
        self._dtype = lm.dtype
        layers: list[Any] = list(dict.fromkeys(m for b in lm.anatomy.blocks for m in b.module.modules() if _on_cpu(m)))
        size = sum(layer.in_features * layer.out_features * self._computes(layer).itemsize for layer in layers)
        # Dequantising a layer takes as long as some `in_features` tokens do, and saves a third of what they take. Of
        # memory a part of all there is, not only of what is free: so the same grid goes the same way each time.
        pays = tokens >= 10 * lm.d_model and size <= min(installed() / 8, available(torch.device("cpu")) / 2)
        self._layers = layers if pays else []
        self._weights: dict[Any, torch.Tensor] = {}
        self._places: dict[Any, torch.Tensor] = {}

    def __len__(self) -> int:
        """How many layers compute so."""
        return len(self._layers)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The layers compute with dequantised weights for as long as the block runs, under the model's lock."""
        try:
            for layer in self._layers:
                layer.forward = lambda x, layer=layer: self._linear(layer, x)
            with self.lent():
                yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """`weight_of` takes the weights from here for as long as the block runs."""
        try:
            for layer in self._layers:
                layer.dequantised = lambda layer=layer: self._weight(layer)
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("dequantised", None)

    def drop(self) -> None:
        """Give the memory back; weights that are needed again are dequantised again."""
        self._weights.clear()
        self._places.clear()

    def _weight(self, layer: Any) -> torch.Tensor:
        """The weight (out, in) of a layer, dequantised when it is first asked for."""
        if not self._places:
            # One piece of memory for all: strewn among what a pass takes and gives back, they would keep the heap from
            # being used again, and a fifth of the time would go into fresh pages.
            for dtype in set(map(self._computes, self._layers)):
                layers = [m for m in self._layers if self._computes(m) == dtype]
                sizes = [m.in_features * m.out_features for m in layers]
                parts = torch.empty(sum(sizes), dtype=dtype).split(sizes)
                shaped = [part.view(m.out_features, m.in_features) for m, part in zip(layers, parts, strict=True)]
                self._places |= dict(zip(layers, shaped, strict=True))
        if layer not in self._weights:
            lent, computes = layer.__dict__.pop("dequantised", None), layer.__dict__.pop("forward", None)
            try:
                place = self._places[layer]
                self._weights[layer] = place.copy_(weight_of(layer, dtype=place.dtype))
            finally:
                layer.__dict__ |= {k: v for k, v in (("dequantised", lent), ("forward", computes)) if v is not None}
        return self._weights[layer]

    def _computes(self, layer: Any) -> torch.dtype:
        """The dtype in which a layer computes."""
        dtype = getattr(layer, "compute_dtype", None)
        return dtype if isinstance(dtype, torch.dtype) else self._dtype

    def _linear(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        rows, done = x.flatten(0, -2), 0
        if len(rows) < TILES[-1]:
            return type(layer).forward(layer, x)
        weight, bias = self._weight(layer), bias_of(layer)
        bias = None if bias is None else bias.to(weight.dtype)
        rows = rows.to(weight.dtype)
        out = rows.new_empty(len(rows), len(weight))
        for tile in TILES:
            for _ in range((len(rows) - done) // tile):
                part = slice(done, done := done + tile)
                if bias is None:
                    torch.mm(rows[part], weight.T, out=out[part])
                else:
                    torch.addmm(bias, rows[part], weight.T, out=out[part])
        if done < len(rows):
            out[done:] = type(layer).forward(layer, rows[done:])
        return out.view(*x.shape[:-1], -1).to(x.dtype)


def _on_cpu(layer: Any) -> bool:
    """Is this a 4-bit layer of bitsandbytes that computes on the CPU, and that nobody else has laid hands on?"""
    weight = layer._parameters.get("weight")
    if weight is None or getattr(weight, "quant_state", None) is None or "forward" in layer.__dict__:
        return False
    return weight.device.type == "cpu" and hasattr(layer, "in_features")
