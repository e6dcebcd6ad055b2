"""Reading the weight matrix of a linear layer, however it is stored.

A 4-bit or 8-bit layer has no plain weight to read. A 4-bit one is dequantised, also where bitsandbytes has repacked it,
as it does on CPUs with AVX512-BF16 at a layer's first forward, with scales that it rounds. What a layer does to the
identity matrix is its weight by definition, with exactly the numbers it computes with, so 8-bit layers are read that
way: one at a time, nothing kept. So is a layer with an adapter around it (LoRA): its weight is the merged one, as it
computes now, whichever adapters are on.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from difflib import get_close_matches
from math import prod
from typing import Any

import torch
from torch import nn

from labkit.models.compiled import plain_name
from labkit.models.devices import is_away, present, runs_on
from labkit.models.narrow_embeddings import NarrowLinear
from labkit.models.packed_experts import PackedExperts


def bias_of(layer: Any) -> torch.Tensor | None:
    """The bias (out,) of a linear layer, or None."""
    if list(layer.children()):
        with torch.no_grad(), present(layer):
            found = layer.forward(_like(layer, 1).zero_())[0]
        return found if bool(found.any()) else None
    bias = getattr(layer, "bias", None)
    if isinstance(bias, torch.Tensor) and bias.device.type == "meta":
        with present(layer):
            return layer.bias.detach()
    return bias if isinstance(bias, torch.Tensor) else None


def is_plain(layer: nn.Module) -> bool:
    """Is this an ordinary `torch.nn.Linear`, whose weight is there to be read and indexed as it is?"""
    if type(layer) not in (nn.Linear, NarrowLinear):
        return False
    return bool(layer.weight.dtype.is_floating_point) and not is_away(layer)


def is_quantised(layer: nn.Module) -> bool:
    """Does this linear layer hold its weight as packed integers (bitsandbytes 4-bit or 8-bit)?"""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, torch.Tensor) and not weight.dtype.is_floating_point and not list(layer.children())


def width_in(layer: Any) -> int:
    """The input width of a linear layer, however its weight is stored; GPT-2 stores it as (in, out)."""
    if list(layer.children()):
        return int(getattr(layer, "in_features", None) or width_in(_inner(layer)))
    return int(getattr(layer, "in_features", None) or layer.weight.shape[0])


def _inner(layer: nn.Module) -> Any:
    """The linear layer in an adapter, the largest in it."""
    linear = [m for m in layer.modules() if is_linear(m)]
    return max(linear, key=lambda m: prod(size_of(m)))


def is_linear(module: nn.Module) -> bool:
    """Is it one linear layer, with nothing around it?"""
    weight = getattr(module, "weight", None)
    return not list(module.children()) and isinstance(weight, torch.Tensor) and weight.ndim == 2


def size_of(linear: Any) -> tuple[int, ...]:
    """The input and output widths of a linear layer, in any order; a packed weight has another shape."""
    return (linear.in_features, linear.out_features) if isinstance(linear, nn.Linear) else tuple(linear.weight.shape)


def _like(layer: Any, rows: int) -> torch.Tensor:
    """Zeros (rows, in) as input for the layer in an adapter."""
    weight = _inner(layer).weight
    dtype = weight.dtype if weight.dtype.is_floating_point else getattr(_inner(layer), "compute_dtype", None)
    return torch.zeros(rows, width_in(layer), dtype=dtype or torch.float32, device=runs_on(layer))


def weight_of(layer: Any, *, dtype: torch.dtype) -> torch.Tensor:
    """The weight (out, in) of a linear layer in the given dtype; a quantised one is dequantised for the call."""
    if is_away(layer):
        with present(layer):
            return weight_of(layer, dtype=dtype)
    lent = layer.__dict__.get("unpacked")  # by `models.unpacked_layers`
    if lent is not None and (kept := lent()) is not None:
        return kept.to(dtype)
    if list(layer.children()):  # an adapter and the layer in it
        with torch.no_grad():
            units = _like(layer, width_in(layer)).fill_diagonal_(1)
            return (layer.forward(units) - layer.forward(units[:1] * 0)).T.to(dtype)
    weight = layer.weight
    if is_plain(layer):
        return weight.detach().to(dtype)
    state = getattr(weight, "quant_state", None)
    if state is not None and getattr(state, "packing_format_for_cpu", False):
        return _repacked(weight.data, state).to(dtype)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        state = copy(state)
        state.dtype = getattr(layer, "compute_dtype", None) or dtype  # the numbers it computes with
        return dequantize_4bit(weight.data, state).to(dtype)
    if weight.dtype.is_floating_point and type(layer).__name__ == "Conv1D":  # GPT-2 keeps (in, out)
        return weight.detach().T.to(dtype)
    columns = getattr(layer, "in_features", None) or weight.shape[1]
    with torch.no_grad():
        # `forward`, not a call: hooks on the layer are for the model's own passes
        out = layer.forward(torch.eye(columns, dtype=dtype, device=weight.device))  # (in, out)
        bias = bias_of(layer)
        return (out if bias is None else out - bias.to(out.dtype)).T


def has_kernel(layer: Any) -> bool:
    """Does bitsandbytes compute a 4-bit layer with its kernel for CPUs with AVX512-BF16?"""
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        return True
    return layer.weight.device.type == "cpu" and bool(getattr(layer, "support_avx512bf16_for_cpu", False))


def _repacked(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """The weight (out, in), bfloat16, of a layer that bitsandbytes has packed for its CPU kernel.

    Bytes lie in groups of 32 outputs and, within one, of two inputs: two bytes for each of the first 16 outputs in
    their low bits, and for each of the others in the high ones. The kernel multiplies numbers and scales in bfloat16.
    """
    out, width = state.shape
    code = state.code.to(torch.bfloat16)
    pairs = packed.reshape(-1).view(torch.int16).view(out // 32, width // 2, 16).transpose(1, 2).contiguous()
    index = pairs.view(torch.uint8).to(torch.int32)  # (group, 16, in)
    weight = torch.stack([code[index & 15], code[index >> 4]], 1).view(out, -1, state.blocksize)
    return weight.mul_(state.absmax.T.unsqueeze(-1)).view(out, width)


def named(
    block: nn.Module,
    name: str,
    where: str,
    adapted: Collection[nn.Module],
    expert: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """A matrix of one layer by the end of its name; see `Model.weight`. `where` is what errors call the layer."""
    matrices = matrices_of(block, adapted)
    found = [full for full in matrices if full == name or full.endswith(f".{name}")]
    if len(found) > 1:
        raise ValueError(f"{where} has several weights named {name!r}: {', '.join(found)}. Give one of these")
    if not found:
        parts = sorted({part for full in matrices for part in (full, full.split(".")[-1])})
        near = get_close_matches(name, parts, 1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        has = f"it has {', '.join(matrices)}" if matrices else "it has none that is a matrix"
        raise ValueError(f"{where} has no weight named {name!r}; {has}{hint}")
    owner, own = matrices[found[0]]
    with present(owner):
        matrix = getattr(owner, own) if own else owner
        if isinstance(matrix, nn.Module) and not isinstance(matrix, PackedExperts):
            if expert is not None:
                raise ValueError(f"{found[0]} is not in a mixture of experts; leave expert out")
            return weight_of(matrix, dtype=dtype).clone()
        if expert is not None and not -len(matrix) <= expert < len(matrix):
            raise ValueError(f"expert {expert} is out of range; {found[0]} has experts 0 to {len(matrix) - 1}")
        if expert is not None:
            return matrix[expert % len(matrix)].detach().to(dtype).clone()
        return (matrix.dense() if isinstance(matrix, PackedExperts) else matrix.detach()).to(dtype).clone()


def matrices_of(block: nn.Module, adapted: Collection[nn.Module]) -> dict[str, tuple[nn.Module, str]]:
    """A layer's matrices by name: a linear layer or packed experts, or a module and its stack of experts' name."""
    found: dict[str, tuple[nn.Module, str]] = {}
    hidden = {part for module in adapted for part in module.modules()} - set(adapted)
    for compiled_name, module in block.named_modules():
        name = plain_name(compiled_name)
        if module in hidden:
            continue
        if module in adapted or isinstance(module, PackedExperts | nn.Linear) or type(module).__name__ == "Conv1D":
            found[name] = module, ""
        for own, value in module.named_parameters(recurse=False):
            if value.ndim == 3 and "expert" in type(module).__name__.lower():
                found[f"{name}.{own}" if name else own] = module, own
    return found
