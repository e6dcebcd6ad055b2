"""Linear layers that compute faster on a CPU for as long as a grid of patches is made.

A 4-bit kernel on a CPU turns a weight back into numbers again for every few tokens, which takes a third of its time:
right for a forward pass, whose memory stays small, and wasteful for a grid, in which every layer sees tens of thousands
of tokens. Such a grid keeps the numbers until it is done, where memory has room for them.

In float32 PyTorch multiplies with MKL, which on AMD processors leaves the wider half of AVX-512 idle. oneDNN, which
comes with PyTorch as well, does not, and is about twice as fast there.

Both compute with the very same weights; only the order in which products are summed is another.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from labkit.models.memory import available, installed
from labkit.models.weights import bias_of, is_plain, weight_of

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel


class FastLayers:
    """The layers of a model's blocks on the CPU that have a faster way to compute, where it pays.

    Args:
        lm: the model.
        tokens: how many tokens will go through each block in all, as far as is known.
    """

    def __init__(self, lm: LanguageModel, *, tokens: int = 0) -> None:
        self._dtype = lm.dtype
        layers = list(dict.fromkeys(m for b in lm.anatomy.blocks for m in b.module.modules() if _is_ours(m)))
        self._plain: list[Any] = [
            m for m in layers if mkl_is_slow() and is_plain(m) and m.weight.dtype == torch.float32
        ]
        packed: list[Any] = [m for m in layers if getattr(m.weight, "quant_state", None) is not None]
        size = sum(m.in_features * m.out_features * self._computes(m).itemsize for m in packed)
        # Dequantising a layer takes as long as some `in_features` tokens do, and saves a third of what they take. Of
        # memory a part of all there is, not only of what is free: so the same grid goes the same way each time.
        pays = tokens >= 10 * lm.d_model and size <= min(installed() / 8, available(torch.device("cpu")) / 2)
        self._packed = packed if pays else []
        self._weights: dict[Any, torch.Tensor] = {}
        self._places: dict[Any, torch.Tensor] = {}

    def __len__(self) -> int:
        """How many layers compute so."""
        return len(self._packed) + len(self._plain)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The layers compute in the faster way for as long as the block runs, under the model's lock."""
        try:
            for layer in self._packed:
                layer.forward = lambda x, layer=layer: self._dense(layer, x)
            for layer in self._plain:
                layer.forward = lambda x, layer=layer: _onednn(layer, x)
            with self.lent():
                yield
        finally:
            for layer in (*self._packed, *self._plain):
                layer.__dict__.pop("forward", None)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """`weight_of` takes dequantised weights from here for as long as the block runs."""
        try:
            for layer in self._packed:
                layer.dequantised = lambda layer=layer: self._weight(layer)
            yield
        finally:
            for layer in self._packed:
                layer.__dict__.pop("dequantised", None)

    def drop(self) -> None:
        """Give the memory back; weights that are needed again are dequantised again."""
        self._weights.clear()
        self._places.clear()

    def _weight(self, layer: Any) -> torch.Tensor:
        """The weight (out, in) of a 4-bit layer, dequantised when it is first asked for."""
        if not self._places:
            # One piece of memory for all: strewn among what a pass takes and gives back, they would keep the heap from
            # being used again, and a fifth of the time would go into fresh pages.
            for dtype in set(map(self._computes, self._packed)):
                layers = [m for m in self._packed if self._computes(m) == dtype]
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
        """The dtype in which a 4-bit layer computes."""
        dtype = getattr(layer, "compute_dtype", None)
        return dtype if isinstance(dtype, torch.dtype) else self._dtype

    def _dense(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """What a 4-bit layer makes of x (..., in), with its dequantised weight."""
        weight, bias = self._weight(layer), bias_of(layer)
        return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).to(x.dtype)


def _is_ours(layer: Any) -> bool:
    """Is this a linear layer that computes on the CPU, and that nobody else has laid hands on?"""
    weight = layer._parameters.get("weight")
    if weight is None or "forward" in layer.__dict__ or not isinstance(layer, nn.Linear):
        return False
    return weight.device.type == "cpu"


def _onednn(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What a float32 layer makes of x (..., in), without gradients."""
    if x.dtype != torch.float32 or not x.numel() or (torch.is_grad_enabled() and x.requires_grad):
        return type(layer).forward(layer, x)
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")


@cache
def mkl_is_slow() -> bool:
    """Is this an AMD processor with AVX-512, and a PyTorch that has oneDNN beside MKL?"""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    about = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (about.read_text() if about.exists() else platform.processor())
