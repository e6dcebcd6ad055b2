"""The experts of a mixture, really in 4 bits.

transformers keeps a layer's experts as one tensor (expert, out, in), which bitsandbytes skips: most of a "4-bit"
mixture stays in 16 bits (bitsandbytes issue 1849). Here each expert's matrix is quantised by itself to NF4 with double
quantisation, as it is read from the checkpoint, and the stack takes the tensor's place in the model. What a model
computes with one expert at a time (`weight[expert]`, all tokens of an expert together) dequantises that expert; the
rare model that multiplies with all of them at once gets one layer dequantised meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod
from typing import Any

import torch
from torch import nn

METHOD = "labkit_nf4"
BLOCK, NESTED = 64, 256
_OF_PLAIN = ("load_in_4bit", "_load_in_4bit", "load_in_8bit", "_load_in_8bit", "quant_method")


class PackedExperts(nn.Module):
    """A stack of experts' matrices in NF4 in place of a tensor (expert, out, in).

    Indexing it by a number gives that expert's matrix, dequantised, in `dtype`; any other operation dequantises all of
    them.

    Attributes:
        packed: (expert, bytes) uint8, two weights per byte.
        scales: (expert, blocks) uint8, one for 64 weights; with `offset` and `nested` they give the blocks' maxima.
        nested: (expert, groups) float32, one for 256 scales.
        offset: (expert,) float32.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    nested: torch.Tensor
    offset: torch.Tensor

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: Any = None) -> None:
        super().__init__()
        self.shape, self.dtype = torch.Size(shape), dtype
        blocks = -(-prod(shape[1:]) // BLOCK)
        empty: Any = {"device": device}
        self.register_buffer("packed", torch.empty(shape[0], -(-prod(shape[1:]) // 2), dtype=torch.uint8, **empty))
        self.register_buffer("scales", torch.empty(shape[0], blocks, dtype=torch.uint8, **empty))
        self.register_buffer("nested", torch.empty(shape[0], -(-blocks // NESTED), dtype=torch.float32, **empty))
        self.register_buffer("offset", torch.empty(shape[0], dtype=torch.float32, **empty))

    @classmethod
    def quantise(cls, weight: torch.Tensor) -> PackedExperts:
        """The stack of a tensor (expert, out, in), on its device."""
        stack = cls(tuple(weight.shape), weight.dtype, weight.device)  # type: ignore[arg-type]
        for n, matrix in enumerate(weight):
            stack.put(n, matrix)
        return stack

    def put(self, n: int, matrix: torch.Tensor) -> None:
        """Quantise one expert's matrix (out, in) and put it in its place."""
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(matrix.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
        self.packed[n], self.scales[n] = packed.view(-1), state.absmax
        self.nested[n], self.offset[n] = state.state2.absmax, state.offset

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        return self.packed.device

    def expert(self, n: int) -> torch.Tensor:
        """One expert's matrix (out, in), dequantised."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        nf4, dynamic = _codes(self.device)
        inner = QuantState(absmax=self.nested[n], blocksize=NESTED, code=dynamic, dtype=torch.float32)
        state = QuantState(
            absmax=self.scales[n],
            shape=self.shape[1:],
            code=nf4,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
            offset=self.offset[n],
            state2=inner,
        )
        return dequantize_4bit(self.packed[n].view(-1, 1), state)

    def dense(self) -> torch.Tensor:
        """All of them, (expert, out, in)."""
        return torch.stack([self.expert(n) for n in range(self.shape[0])])

    def view(self, *shape: Any) -> Any:
        """The stack itself where it has that shape already; else a view of all of them."""
        asked = list(shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape)
        if -1 in asked:
            asked[asked.index(-1)] = prod(self.shape) // -prod(asked)
        return self if tuple(asked) == tuple(self.shape) else self.dense().view(*shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        number = index.ndim == 0 and index.dtype != torch.bool if isinstance(index, torch.Tensor) else False
        return self.expert(int(index)) if number or isinstance(index, int) else self.dense()[index]

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not name.startswith("_") and hasattr(torch.Tensor, name):
                return getattr(self.dense(), name)
            raise

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dense = lambda x: x.dense() if isinstance(x, cls) else x  # noqa: E731
        return function(*map(dense, args), **{name: dense(value) for name, value in (kwargs or {}).items()})

    def extra_repr(self) -> str:
        return f"shape={tuple(self.shape)}, nf4, dtype={self.dtype}"


@cache
def _codes(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The 16 values of NF4 and the 256 of its scales' 8-bit code (Dettmers et al. 2023), one copy per device."""
    from bitsandbytes.functional import quantize_4bit

    _, state = quantize_4bit(torch.ones(BLOCK, device=device), quant_type="nf4", compress_statistics=True)
    return state.code, state.state2.code


def fused(hf: nn.Module) -> Iterator[tuple[nn.Module, str, tuple[int, int, int]]]:
    """The module, name and shape (expert, out, in) of every tensor that holds a layer's experts."""
    for module in hf.modules():
        if "expert" not in type(module).__name__.lower():
            continue
        for name, value in module.named_parameters(recurse=False):
            if value.ndim == 3:
                yield module, name, (value.shape[0], value.shape[1], value.shape[2])
            elif value.ndim == 2 and (count := getattr(module, "moe_num_experts", 0)) and value.shape[0] > count:
                yield module, name, (count, value.shape[0] // count, value.shape[1])  # DBRX stacks them end to end


@cache
def register() -> type:
    """Tell transformers about this way to quantise, once; returns its configuration class."""
    from transformers import BitsAndBytesConfig
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizers_utils import get_module_from_name

    @register_quantization_config(METHOD)
    class ExpertsConfig(BitsAndBytesConfig):
        """bitsandbytes' NF4, and the experts of a mixture in NF4 as well."""

        def __init__(self, **settings: Any) -> None:
            settings = {name: value for name, value in settings.items() if name not in _OF_PLAIN}
            super().__init__(load_in_4bit=True, **settings)
            self.quant_method = METHOD

        def to_dict(self) -> dict[str, Any]:
            # without these: by them transformers takes a saved configuration for one of plain bitsandbytes
            own = {name: value for name, value in super().to_dict().items() if name not in _OF_PLAIN}
            return own | {"quant_method": METHOD}

    class Quantise(ConversionOps):
        """A tensor as it is read: experts here, everything else by bitsandbytes."""

        def __init__(self, quantizer: Any, plain: Any) -> None:
            self.quantizer, self.plain = quantizer, plain

        def convert(self, input_dict: dict[str, Any], model: Any = None, **settings: Any) -> dict[str, Any]:
            done: dict[str, Any] = {}
            for target, value in input_dict.items():
                module, name = get_module_from_name(model, target)
                shape = self.quantizer.stacks.get((module, name))
                if shape is None:
                    done |= self.plain.convert({target: value}, model=model, **settings)
                    continue
                value = value[0] if isinstance(value, list) else value
                stack = PackedExperts.quantise(value.view(shape))
                # transformers puts a parameter in its place; the stack follows once all weights are there
                done[target] = nn.Parameter(stack.packed, requires_grad=False)
                self.quantizer.packed[module, name] = stack
                module._is_hf_initialized = True
            return done

    @register_quantizer(METHOD)
    class ExpertsQuantizer(Bnb4BitHfQuantizer):
        def _process_model_before_weight_loading(self, model: Any, device_map: Any, **settings: Any) -> None:
            super()._process_model_before_weight_loading(model, device_map, **settings)
            self.stacks = {(module, name): shape for module, name, shape in fused(model)}
            self.packed: dict[tuple[nn.Module, str], PackedExperts] = {}
            if self.pre_quantized:
                for (module, name), shape in self.stacks.items():
                    dtype = getattr(module, name).dtype
                    _replace(module, name, PackedExperts(shape, dtype, "meta"))

        def param_needs_quantization(self, model: Any, param_name: str, **settings: Any) -> bool:
            if get_module_from_name(model, param_name) in self.stacks:
                return not self.pre_quantized
            return super().param_needs_quantization(model, param_name, **settings)

        def update_weight_conversions(self, weight_conversions: Any, *model: Any) -> Any:
            # a saved model has the names that it had in memory; renaming those of a hub again would break some
            # (newer versions of transformers pass the model)
            return super().update_weight_conversions([] if self.pre_quantized else weight_conversions, *model)

        def get_quantize_ops(self) -> Any:
            return Quantise(self, super().get_quantize_ops())

        def _process_model_after_weight_loading(self, model: Any, **settings: Any) -> Any:
            for (module, name), stack in self.packed.items():
                _replace(module, name, stack.to(getattr(module, name).device))
            self.stacks, self.packed = {}, {}
            return super()._process_model_after_weight_loading(model, **settings)

    return ExpertsConfig


def _replace(module: nn.Module, name: str, stack: PackedExperts) -> None:
    delattr(module, name)
    module.add_module(name, stack)
