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
        _keep_the_heap()
        self._dtype = lm.dtype
        with lm.lock:  # while another thread has the model, its layers may be in use as fast ones
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
                layer.forward = lambda x, layer=layer: _plain(layer, x)
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
                layer.dequantised = lambda layer=layer: _readable(self._weight(layer))
            yield
        finally:
            for layer in self._packed:
                layer.__dict__.pop("dequantised", None)

    def drop(self) -> None:
        """Give the memory back; weights that are needed again are dequantised again."""
        self._weights.clear()

    def _weight(self, layer: Any) -> torch.Tensor:
        """The weight of a 4-bit layer, dequantised when first asked for: (out, in), or in the order oneDNN reads it."""
        if layer not in self._weights:
            taken = {name: layer.__dict__.pop(name) for name in ("dequantised", "forward") if name in layer.__dict__}
            try:
                weight = weight_of(layer, dtype=self._computes(layer)).contiguous()
            finally:
                layer.__dict__ |= taken
            ordered = weight.dtype == torch.bfloat16 and _has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
            self._weights[layer] = torch.ops.mkldnn._reorder_linear_weight(weight, 2048) if ordered else weight
        return self._weights[layer]

    def _computes(self, layer: Any) -> torch.dtype:
        """The dtype in which a 4-bit layer computes."""
        dtype = getattr(layer, "compute_dtype", None)
        return dtype if isinstance(dtype, torch.dtype) else self._dtype

    def _dense(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """What a 4-bit layer makes of x (..., in), with its dequantised weight."""
        weight, bias = self._weight(layer), bias_of(layer)
        bias = None if bias is None else bias.to(weight.dtype)
        return (_onednn if weight.is_mkldnn else F.linear)(x.to(weight.dtype), weight, bias).to(x.dtype)


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _is_ours(layer: Any) -> bool:
    """Is this a linear layer that computes on the CPU, and that nobody else has laid hands on?"""
    weight = layer._parameters.get("weight")
    if weight is None or "forward" in layer.__dict__ or not isinstance(layer, nn.Linear):
        return False
    return weight.device.type == "cpu"


def _plain(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What a float32 layer makes of x (..., in)."""
    if x.dtype != torch.float32 or not x.numel() or (torch.is_grad_enabled() and x.requires_grad):
        return type(layer).forward(layer, x)
    return _onednn(x, layer.weight, layer.bias)


def _readable(weight: torch.Tensor) -> torch.Tensor:
    """A weight (out, in) that anything can read."""
    return weight.to_dense() if weight.is_mkldnn else weight


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def mkl_is_slow() -> bool:
    """Is this an AMD processor with AVX-512, and a PyTorch that has oneDNN beside MKL?"""
    if not (torch.backends.mkl.is_available() and _has_onednn()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    about = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (about.read_text() if about.exists() else platform.processor())


@cache
def _keep_the_heap() -> None:
    """Have what layers take and give back used again, instead of fresh pages each time: a tenth of a grid's time.

    glibc gives idle memory back to the system when it is more than twice the largest block that was ever freed, up to
    32 MB; so one of that size is freed here, which was never written to.
    """
    torch.empty((32 << 20) - 8192, dtype=torch.uint8)
