"""Linear layers that compute faster while labkit runs a pass.

bitsandbytes has a 4-bit kernel for CPUs with AVX512-BF16 only. On any other, and on Apple's GPUs, a 4-bit layer turns
its weight back into numbers in every forward pass, which for a few tokens takes longer than the matmul; and the kernel
does so again for every few tokens, which takes longer than a matmul in 16 bits as soon as there are many. So where
memory has room, weights are kept once they are unpacked, with exactly the numbers the layer computes with. They are
kept outside the model until the memory is needed.

In bfloat16 a CPU without units for it multiplies as `models.bf16_matmul` does. In float32 PyTorch multiplies with MKL,
which on AMD processors leaves the wider half of AVX-512 idle; oneDNN, which comes with PyTorch as well, is about twice
as fast there. Passes that patch use it; a plain one gives what the model gives by itself, to the last digit.

Layers get a `forward` of ours under the model's lock, and lose it when the pass ends.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from labkit.models import heap
from labkit.models.bf16_matmul import has_bfloat16, is_slow, linear
from labkit.models.memory import available, in_words, installed
from labkit.models.quantisation import has_experts
from labkit.models.weights import bias_of, has_kernel, is_plain, weight_of
from labkit.text.warn import warn

# Tokens from which bitsandbytes' CPU kernel is slower than a matmul in 16 bits.
MANY = 32

_models: WeakSet[FastLayers] = WeakSet()


@dataclass(frozen=True)
class Mapped:
    """An unpacked weight, mapped from the cache (`models.shared_weights`), and the packed one that it belongs to."""

    weight: torch.Tensor  # (out, in)
    of: int  # address of the packed weight
    as_of: int  # its version

    def belongs_to(self, packed: torch.Tensor) -> bool:
        """Is this still the packed weight, and has nobody written to it?"""
        return packed.data_ptr() == self.of and packed._version == self.as_of


class _Packed:
    """A 4-bit layer: how it computes while a pass of ours runs, and its weight, once it is kept unpacked."""

    def __init__(self, layer: Any, of: FastLayers) -> None:
        self.layer, self.of = layer, of
        self.kept: torch.Tensor | None = None  # (out, in), in the order oneDNN reads it where that is faster
        self._looked_at(layer.weight)
        self._plain = type(layer).forward
        self.forward: Callable[[torch.Tensor], Any] = self._few_by_kernel if has_kernel(layer) else self._unpacking

    def _looked_at(self, weight: torch.Tensor) -> None:
        """What `kept` is unpacked from; a reference is kept so that its memory is not reused."""
        self._packed, self._version = weight.detach(), weight._version
        self._pointer = self._packed.data_ptr()

    def holds(self) -> bool:
        """Does the layer still have the weight that was looked at?"""
        now = self.layer._parameters["weight"]
        if now is None or now._version != self._version:
            return False
        with torch._C.DisableTorchFunctionSubclass():  # bitsandbytes' parameters are ten times slower to query
            return bool(now.data_ptr() == self._pointer)

    def readable(self) -> torch.Tensor | None:
        """The kept weight (out, in) as anything can read it, or None."""
        if self.kept is None or not self.holds():
            return None
        return self.kept.to_dense() if self.kept.is_mkldnn else self.kept

    def _few_by_kernel(self, x: torch.Tensor) -> Any:
        """What it makes of x (..., in) where bitsandbytes has a kernel, which is for few tokens."""
        few = x.numel() < MANY * x.shape[-1] and not self.of.patching
        if few or not self._keep():
            return self._plain(self.layer, x)
        return self._dense(x, self.kept)

    def _unpacking(self, x: torch.Tensor) -> Any:
        """What it makes of x (..., in) where bitsandbytes has no kernel; by the kept weight from now on."""
        if not x.numel() or _compute_dtype(self.layer) is None:
            return self._plain(self.layer, x)
        if not self._keep():
            self.of.warn()
            return self._dense(x, _unpacked(self.layer))
        self.forward = self.layer.__dict__["forward"] = partial(self._dense, weight=self.kept)
        return self.forward(x)

    def _dense(self, x: torch.Tensor, weight: Any) -> Any:
        if x.requires_grad and torch.is_grad_enabled():
            return self._plain(self.layer, x)
        bias = bias_of(self.layer)
        bias = None if bias is None else bias.to(weight.dtype)
        return (_onednn if weight.is_mkldnn else linear)(x.to(weight.dtype), weight, bias).to(x.dtype)

    def _keep(self) -> bool:
        """Unpack the weight, once, where memory has room for those of all layers. Is it there?"""
        layer, mapped = self.layer, self.of.mapped.get(self.layer)
        if self.kept is None and mapped is not None and mapped.belongs_to(layer.weight):
            self.kept = mapped.weight
        if self.kept is not None or not self.of.has_room():
            return self.kept is not None
        if has_kernel(layer) and not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            # the kernel rounds the scales when it packs; have it do so now, for its numbers are those of the layer
            self._plain(layer, torch.zeros(1, layer.in_features, dtype=torch.bfloat16))
            self._looked_at(layer.weight)
        weight = _unpacked(layer)
        if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and has_bfloat16() and _has_onednn():
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, 2048)
        self.kept = weight
        return True


class FastLayers:
    """What makes the layers of one model faster, and the unpacked weights that are kept for it."""

    def __init__(self) -> None:
        self._layers: list[Any] | None = None
        self._ways: dict[Any, _Packed] = {}
        self.mapped: Mapping[Any, Mapped] = {}  # what all processes of this machine share, by layer
        self._room: bool | None = None  # for all weights unpacked; None: not looked at in this pass
        self._looked = 0.0
        self._used = self._warned = self._experts = False
        self.patching = False  # how many tokens are in a layer at once then depends on what is patched together
        self._name = ""
        _models.add(self)

    def __reduce__(self) -> Any:
        return FastLayers, ()  # a copy of a model keeps its own

    @property
    def size(self) -> int:
        """Bytes of the unpacked weights that are kept."""
        own = [layer for layer, way in [*self._ways.items()] if way.kept is not None and layer not in self.mapped]
        return sum(_size(layer) for layer in own)

    def unpack_all(self) -> dict[Any, torch.Tensor]:
        """The unpacked weight (out, in) of every packed layer that there is room for; in a block of `used`."""
        ways = [(layer, way) for layer, way in self._ways.items() if way._keep()]
        return {layer: way.kept for layer, way in ways if way.kept is not None}

    @contextmanager
    def used(self, hf: Any, dtype: torch.dtype, name: str) -> Iterator[None]:
        """Layers compute in the faster way for as long as the block runs; under the model's lock.

        `weight_of` takes kept weights from here, too.
        """
        if self._used:
            yield
            return
        if self._layers is None:
            self._layers = [layer for layer in hf.modules() if _is_packed(layer) or _is_slow_one(layer)]
            self._experts = dtype == torch.bfloat16 and not has_bfloat16() and has_experts(hf)
        if not self._layers:
            yield
            return
        self._used, self._room, self._name = True, None, name
        ours: list[dict[str, Any]] = []
        try:
            self._look_after()
            ways = self._ways
            with torch._C.DisableTorchFunctionSubclass():  # as in `holds`, once for all
                for layer in self._layers:
                    own = layer.__dict__
                    if "forward" in own:  # something else has modified it
                        continue
                    ours.append(own)
                    way = ways.get(layer)
                    if way is None or not way.holds():
                        if not _is_packed(layer):
                            own["forward"] = partial(_in_float32, layer)
                            continue
                        way = ways[layer] = _Packed(layer, self)
                    own["forward"], own["unpacked"] = way.forward, way.readable
            with _ExpertsInFloat32() if self._experts else nullcontext():
                yield
        finally:
            self._used = False
            for own in ours:
                own.pop("forward", None)
                own.pop("unpacked", None)

    @contextmanager
    def for_patching(self, layers: Iterable[Any]) -> Iterator[None]:
        """Layers compute for patching, under the model's lock: float32 ones go through oneDNN where that is faster,
        and 4-bit ones in one way however many tokens there are, so that a cell's number does not depend on its
        company. `layers` are those that may be float32."""
        heap.keep()
        ours: list[Any] = []
        before, self.patching = self.patching, True
        try:
            for layer in dict.fromkeys(layers) if mkl_is_slow() else ():
                if not is_plain(layer) or "forward" in layer.__dict__:
                    continue
                if layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32:
                    layer.__dict__["forward"] = partial(_plain, layer)
                    ours.append(layer)
            yield
        finally:
            self.patching = before
            for layer in ours:
                layer.__dict__.pop("forward", None)
            self.tidy()

    def tidy(self) -> None:
        """Give idle memory back to the system: much of it, and where many share the weights of a machine any."""
        if self.mapped or heap.idle() > heap.IDLE:
            heap.trim()

    def drop(self) -> None:
        """Release the memory; weights that are needed again are unpacked again."""
        self._ways = {}

    def has_room(self) -> bool:
        """Is there room for all weights unpacked: a share of all memory, and half of what is free?"""
        if self._room is None:
            size = self._size()
            self._room = size <= installed() / 4 and size - self.size <= available(torch.device("cpu")) / 2
        return self._room

    def _size(self) -> int:
        return sum(_size(layer) for layer in self._layers or () if _is_packed(layer))

    def _look_after(self) -> None:
        """Keep nothing where memory runs short; looked at once per second at most."""
        if (now := time.monotonic()) - self._looked < 1:
            return
        self._looked = now
        if self.size and available(torch.device("cpu")) < installed() / 20:
            self.drop()
            self._room = False

    def warn(self) -> None:
        """Warn, once, what it costs that there is no room."""
        if self._warned:
            return
        self._warned = True
        warn(
            f"{self._name} is slow here: there is no 4-bit kernel for this processor and no room to keep the weights "
            "unpacked, so every pass unpacks them again and a token takes about three times as long as in 16 bits. "
            f"Unpacked they take {in_words(self._size())} more, and {in_words(available(torch.device('cpu')))} of "
            f"{in_words(installed())} are free. Free some memory, or use a smaller model."
        )


class _ExpertsInFloat32(TorchFunctionMode):
    """`models.bf16_matmul` for the experts of a mixture, whose matrices belong to no layers."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _MATMULS and not kwargs and all(isinstance(x, torch.Tensor) and x.ndim == 2 for x in args[:2]):
            x, matrix, *bias = args
            if is_slow(x):
                return linear(x, matrix, *bias) if function is F.linear else linear(x, matrix.T)
        return function(*args, **(kwargs or {}))


_MATMULS = (F.linear, torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm)


def kept_unpacked() -> int:
    """Bytes of unpacked weights that all models of this process keep, which they release on request."""
    return sum(fast.size for fast in [*_models])


def give_back() -> None:
    """Release the unpacked weights of all models of this process."""
    for fast in [*_models]:
        fast.drop()


def _is_packed(layer: Any) -> bool:
    """Is this a 4-bit layer that bitsandbytes unpacks before it multiplies?"""
    weight = layer._parameters.get("weight")
    return getattr(weight, "quant_state", None) is not None and weight.device.type in ("cpu", "mps")


def _is_slow_one(layer: Any) -> bool:
    """Is this a layer in bfloat16 on a CPU that has no units for it?"""
    weight = layer._parameters.get("weight")
    if not isinstance(weight, torch.Tensor) or weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    return not has_bfloat16() and (type(layer) is nn.Linear or type(layer).__name__ == "Conv1D")


def _compute_dtype(layer: Any) -> torch.dtype | None:
    """The dtype in which a 4-bit layer computes; None where its first input is yet to decide it."""
    dtype = getattr(layer, "compute_dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else None


def _size(layer: Any) -> int:
    """Bytes of a 4-bit layer's weight, unpacked."""
    return int(layer.in_features * layer.out_features * (_compute_dtype(layer) or torch.bfloat16).itemsize)


def _unpacked(layer: Any) -> torch.Tensor:
    dtype = _compute_dtype(layer)
    assert dtype is not None
    taken = {name: layer.__dict__.pop(name) for name in ("unpacked", "forward") if name in layer.__dict__}
    try:
        return weight_of(layer, dtype=dtype).contiguous()
    finally:
        layer.__dict__ |= taken


def _in_float32(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What a bfloat16 layer makes of x (..., in)."""
    if not is_slow(x) or layer.weight.dtype != x.dtype or layer.weight.device != x.device:
        return type(layer).forward(layer, x)
    weight = layer.weight.T if type(layer).__name__ == "Conv1D" else layer.weight
    return linear(x, weight, layer.bias)


def _plain(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What a float32 layer makes of x (..., in)."""
    if x.dtype != torch.float32 or not x.numel() or (torch.is_grad_enabled() and x.requires_grad):
        return type(layer).forward(layer, x)
    return _onednn(x, layer.weight, layer.bias)


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def mkl_is_slow() -> bool:
    """Is this an AMD processor with AVX-512, and a PyTorch that has oneDNN beside MKL?"""
    both = torch.backends.mkl.is_available() and _has_onednn()
    if not both or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    about = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (about.read_text() if about.exists() else platform.processor())
