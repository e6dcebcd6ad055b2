"""Checkpoints stored in 8-bit floats or MXFP4, read as if they were stored in 16 bits: a tensor at a time.

FP8 (DeepSeek-V3 and R1, and what compressed-tensors and FBGEMM write) keeps a weight as 8-bit floats and a scale for
the whole of it, for each row or for each block of rows and columns. MXFP4 (gpt-oss; OCP Microscaling Formats, 2023)
keeps the experts as 4-bit floats with an 8-bit exponent for 32 of them. The numbers are dequantised as a tensor is
read, so whatever reads them (16 bits, 32, or NF4 on the way into memory) never holds more than one tensor of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from labkit.models.errors import LoadError
from labkit.models.sources.tensors import Tensor

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_KIND = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
# scales of activations and of the cache, and shapes: of no use once weights are dequantised
_DROPPED = re.compile(
    r"\.(activation_scale|input_scale(_ub)?|output_scale|qscale_act|[kvq]_scale|weight_shape|act_scale)$"
    r"|_activation_scale$|_input_scale$"
)


def expanded(tensors: Mapping[str, Tensor], *, dtype: torch.dtype, stored: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, dequantised as they are read.

    Args:
        tensors: as they are stored, by name.
        dtype: of what is dequantised.
        stored: the checkpoint's `quantization_config`.

    Raises:
        LoadError: a quantised tensor has no scale, or one that does not belong to its shape.
    """
    block = stored.get("weight_block_size")
    nibbles = stored.get("quant_method") in ("fp8", "mxfp8")  # their int8 tensors are pairs of 4-bit floats
    plain = {name: tensor for name, tensor in tensors.items() if not _DROPPED.search(name)}
    found: dict[str, Tensor] = {}
    for name in list(plain):
        if name.endswith("_blocks") and (scales := plain.pop(f"{name[:-7]}_scales", None)) is not None:
            found[name[:-7]] = _mxfp4(plain.pop(name), scales, dtype)
    for name in [name for name, tensor in plain.items() if _is_packed(name, tensor)]:
        weight, scale, zero = plain.pop(name), _take_scale(plain, name), plain.pop(f"{name}_zero_point", None)
        if scale is None:
            raise LoadError(f"the checkpoint has {name} in {weight.kind} but no scale for it; it is incomplete")
        found[name] = _scaled(name, weight, scale, zero, dtype, block, nibbles=nibbles and weight.kind == "I8")
    for name in [name for name in plain if name.endswith(("_blocks", "_scales", "weight_scale_inv", "weight_scale"))]:
        raise LoadError(f"the checkpoint has {name} but not the tensor that belongs to it; it is incomplete")
    return plain | found


_SCALES = ("{}_scale_inv", "{}_scale", "{stem}.scale", "{stem}.qscale_weight")


def _is_packed(name: str, tensor: Tensor) -> bool:
    packed = tensor.kind.startswith(("F8_E4", "F8_E5")) or tensor.kind == "I8"
    return packed and not name.endswith(("_scale", "_scale_inv", "_zero_point", ".scale"))


def _take_scale(tensors: dict[str, Tensor], name: str) -> Tensor | None:
    keys = [pattern.format(name, stem=name.removesuffix(".weight")) for pattern in _SCALES]
    return next((tensors.pop(key) for key in keys if key in tensors), None)


def _scaled(
    name: str,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    dtype: torch.dtype,
    block: Any,
    *,
    nibbles: bool,
) -> Tensor:
    """A weight (..., out, in) times its scales."""
    shape = (*weight.shape[:-1], weight.shape[-1] * 2) if nibbles else weight.shape

    def read() -> torch.Tensor:
        packed, by = weight.read(), _grid(name, _numbers(scale), shape, block)
        less = None if zero is None else _grid(name, zero.read().float(), shape, block)
        out = torch.empty(shape, dtype=dtype)
        # the matrices of a stack of experts one after another, each in float32 for a moment
        rows = prod(shape[:-2])
        flat, stack = out.view(rows, *shape[-2:]), packed.view(rows, *packed.shape[-2:])
        for n in range(rows):
            matrix = _fp4(stack[n]) if nibbles else stack[n].float()
            if less is not None:
                matrix = matrix - _spread(less[n % len(less)], shape, block)
            flat[n] = matrix * _spread(by[n % len(by)], shape, block)
        return out

    return Tensor(shape, _KIND[dtype], read)


def _numbers(scale: Tensor) -> torch.Tensor:
    """Scales as float32; bytes and E8M0 are exponents of two."""
    read = scale.read()
    if scale.kind in ("U8", "F8_E8M0"):
        return (read.view(torch.uint8).float() - 127).exp2()
    return read.float()


def _grid(name: str, scale: torch.Tensor, shape: tuple[int, ...], block: Any) -> torch.Tensor:
    """Scales as (matrices or 1, rows or blocks of rows, columns or blocks of columns)."""
    rows, columns = shape[-2:] if len(shape) > 1 else (1, shape[-1])
    matrices = prod(shape[:-2])
    if scale.numel() == 1:
        return scale.reshape(1, 1, 1)
    if scale.ndim == 1 and len(scale) in (matrices, rows):
        return scale.reshape(-1, 1, 1) if len(scale) == matrices else scale.reshape(1, -1, 1)
    if scale.ndim == 2 and len(shape) > 2 and tuple(scale.shape) == (matrices, rows):
        return scale.reshape(matrices, rows, 1)
    if scale.ndim < 2:
        raise LoadError(f"the scale of {name} has the shape {tuple(scale.shape)}, the weight {tuple(shape)}")
    grid = scale.reshape(-1, *scale.shape[-2:])
    for size, count, of in zip((rows, columns), grid.shape[-2:], block or (None, None), strict=True):
        if size % count and (of is None or -(-size // of) != count):
            raise LoadError(f"the scale of {name} has the shape {tuple(scale.shape)}, the weight {tuple(shape)}")
    return grid


def _spread(grid: torch.Tensor, shape: tuple[int, ...], block: Any) -> torch.Tensor:
    """One matrix's scales repeated over the rows and columns of their blocks; what is not divided stays 1 wide."""
    for axis, size in enumerate(shape[-2:]):
        count = grid.shape[axis]
        of = (block or (None, None))[axis]
        if count in (1, size):
            continue
        each = of if of is not None and -(-size // of) == count else size // count  # the last block may be cut
        grid = grid.repeat_interleave(each, axis).narrow(axis, 0, size)
    return grid


def _fp4(packed: torch.Tensor) -> torch.Tensor:
    """Pairs of 4-bit floats, the lower half first: (..., n) bytes to (..., 2n) float32."""
    values = torch.tensor(_E2M1)
    bits = packed.contiguous().view(torch.uint8)
    return torch.stack([values[(bits & 15).long()], values[(bits >> 4).long()]], -1).flatten(-2)


def _mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Blocks (expert, out, groups, 16) and exponents (expert, out, groups) as (expert, in, out), as gpt-oss has it."""
    experts, outside, groups, half = blocks.shape
    shape = (experts, groups * half * 2, outside)
    if scales.shape != blocks.shape[:-1]:
        raise LoadError(f"MXFP4 blocks of shape {blocks.shape} have exponents of shape {scales.shape}")

    def read() -> torch.Tensor:
        packed, exponents = blocks.read(), scales.read()
        out = torch.empty(shape, dtype=dtype)
        for n in range(experts):
            power = (exponents[n].float() - 127).exp2()[..., None]  # (out, groups, 1)
            out[n] = (_fp4(packed[n]) * power).flatten(1).T
        return out

    return Tensor(shape, _KIND[dtype], read)
