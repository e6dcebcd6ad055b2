"""The matmul of a linear layer in 16 bits, on processors without units for it as well.

A processor with bfloat16 units multiplies 16-bit numbers, accumulates in 32 bits and rounds each sum once. On one
without (AVX2, most laptops) the float32 units compute the same sum here, from the same 16-bit numbers: the result is
the same up to the order of summation. PyTorch's own kernel there does one number at a time, which for one to three
tokens is limited by memory bandwidth anyway, and for many is four times slower than float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

FEW = 3  # tokens: PyTorch's own bfloat16 is as fast up to here (AVX2; layers of 576 x 576 to 8192 x 2048)
CHUNK = 1 << 20  # numbers of a weight that are turned into float32 at once: 4 MB, which stay in the cache of a CPU


@cache
def has_bfloat16() -> bool:
    """Does PyTorch use bfloat16 matmul units on this CPU?"""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` for x (..., in), a weight (out, in) and a bias (out,); what comes out has x's dtype.

    A weight in bfloat16 is multiplied in float32, a part at a time, if x is float32 or the processor has nothing
    faster. A gradient reaches x, but not the weight.
    """
    if not is_slow(x) and x.dtype == weight.dtype:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        out: torch.Tensor = _Product.apply(x, weight)
        return out if bias is None else out + bias.to(x.dtype)
    wide = x if x.dtype == torch.float64 else x.float()
    bias = None if bias is None else bias.to(wide.dtype)
    rows = _rows_at_once(weight)
    if len(weight) <= rows:
        return F.linear(wide, weight.to(wide.dtype), bias).to(x.dtype)
    out = x.new_empty(*x.shape[:-1], len(weight))
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        out[..., part] = F.linear(wide, weight[part].to(wide.dtype), None if bias is None else bias[part])
    return out


def is_slow(x: torch.Tensor) -> bool:
    """Is a matmul of x (..., in) slow in its own dtype, and faster in float32?"""
    many = x.dtype == torch.bfloat16 and x.numel() > FEW * x.shape[-1]
    return many and x.device.type == "cpu" and not has_bfloat16()


def _rows_at_once(weight: torch.Tensor) -> int:
    most = CHUNK if weight.device.type == "cpu" else 16 * CHUNK
    return max(1, most // max(1, weight.shape[1]))


class _Product(torch.autograd.Function):
    """`linear` with a gradient for x, in the same parts; autograd would keep every weight in float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        return linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        wide = torch.float64 if grads[0].dtype == torch.float64 else torch.float32
        rows = _rows_at_once(ctx.weight)
        parts = zip(grads[0].split(rows, -1), ctx.weight.split(rows), strict=True)
        return sum(grad.to(wide) @ weight.to(wide) for grad, weight in parts).to(grads[0].dtype), None
