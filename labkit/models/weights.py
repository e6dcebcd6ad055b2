"""Reading the weight matrix of a linear layer, whatever holds it.

A 4-bit or 8-bit layer has no plain weight to read, and on CPUs with AVX512-BF16 bitsandbytes repacks it at its first
forward. What a layer does to the identity matrix is its weight by definition, in the very numbers that it computes
with, so that is how a packed one is read: one layer at a time, nothing kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def bias_of(layer: nn.Module) -> torch.Tensor | None:
    """The bias (out,) of a linear layer, or None."""
    bias = getattr(layer, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


def is_plain(layer: nn.Module) -> bool:
    """Is this an ordinary `torch.nn.Linear`, whose weight can be read and indexed as it is?"""
    return type(layer) is nn.Linear and bool(layer.weight.dtype.is_floating_point)


def is_quantised(layer: nn.Module) -> bool:
    """Does this linear layer hold its weight as packed integers (bitsandbytes 4-bit or 8-bit)?"""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, torch.Tensor) and not weight.dtype.is_floating_point and not list(layer.children())


def weight_of(layer: Any, *, dtype: torch.dtype) -> torch.Tensor:
    """The weight (out, in) of a linear layer in the given dtype; a quantised one is dequantised for the call."""
    weight = layer.weight
    if is_plain(layer):
        return weight.detach().to(dtype)
    if weight.dtype.is_floating_point and type(layer).__name__ == "Conv1D":  # GPT-2 keeps (in, out)
        return weight.detach().T.to(dtype)
    columns = getattr(layer, "in_features", None) or weight.shape[1]
    with torch.no_grad():
        out = layer(torch.eye(columns, dtype=dtype, device=weight.device))  # (in, out)
        bias = bias_of(layer)
        return (out if bias is None else out - bias.to(out.dtype)).T
