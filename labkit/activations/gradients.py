"""Gradients of a metric at any place of a forward pass, from one forward and one backward pass.

The graph begins at the first place that is asked for: what comes before it runs as in any other pass. Nothing is added
up in the weights' `.grad`, and no flag of theirs is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.activations.hooks import Edit, Place, hooked
from labkit.models.bf16_matmul import linear
from labkit.models.weights import is_quantised, weight_of

if TYPE_CHECKING:
    from labkit.models.handle import Model


def gradients(
    lm: Model,
    places: Sequence[Place],
    measure: Callable[[], torch.Tensor],
    *,
    edits: Mapping[Place, Edit] | None = None,
    reads: Mapping[Place, Callable[[torch.Tensor], torch.Tensor]] | None = None,
) -> tuple[torch.Tensor, dict[Place, torch.Tensor], dict[Place, torch.Tensor]]:
    """The metric of each row, and at each place the activation and the gradient of the row's metric.

    Args:
        places: whole activations of a layer; the gradient at each counts all that it does further up, also by way of
            the others.
        measure: runs the model and gives the metric of each row (rows,).
        edits: what is written meanwhile; the gradient is at what was written.
        reads: what else is read, as in `hooked`.

    Raises:
        ValueError: no gradient reaches the metric.
    """
    edits, reads, found = edits or {}, reads or {}, {}

    def through(place: Place, x: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(True)
        x = edits[place](x) if place in edits else x
        if not x.requires_grad:
            x = x.detach().requires_grad_(True)
        elif place[0] != "resid_mid":  # which lies in the residual stream itself, as nothing that is made of it does
            x = x.clone()
        found[place] = x
        return x

    both: dict[Place, Edit] = {**edits, **{place: partial(through, place) for place in places}}
    with lm.busy(gradients=True), hooked(lm, reads, both), differentiable(lm.hf):
        torch.set_grad_enabled(False)  # until the first place
        values = measure()
        if not values.requires_grad:
            raise ValueError(
                "no gradient reaches this metric: it has steps, as a rank has, or nothing that it depends on"
            )
        grads = torch.autograd.grad(values.sum(), [found[place] for place in places], allow_unused=True)
    at = {}
    for place, grad in zip(places, grads, strict=True):
        x = found[place] = found[place].detach()
        grad = torch.zeros_like(x) if grad is None else grad
        at[place] = grad.masked_fill(x == -torch.inf, 0.0) if place[0] == "scores" else grad
    return values.detach(), found, at


class _Through(torch.autograd.Function):
    """A quantised layer's own output going forward, its dequantised weight going back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, output: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        ctx.layer = layer
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return linear(grad, weight_of(ctx.layer, dtype=grad.dtype).T), None, None


def differentiable(hf: nn.Module) -> ExitStack:
    """Let gradients through 4-bit and 8-bit layers, whose CPU kernels have none of their own.

    A layer itself sees an input without a gradient and so does what it does in any other pass: bitsandbytes adds biases
    in place. Its hooks here are the last before it and the first after it, so that other hooks see the gradient.
    """
    inputs: dict[nn.Module, torch.Tensor] = {}

    def before(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args[0].requires_grad:
            return None
        inputs[layer] = args[0]
        return (args[0].detach(), *args[1:])

    def after(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        x = inputs.pop(layer, None)
        return None if x is None else _Through.apply(x, output.detach(), layer)

    stack = ExitStack()
    for module in hf.modules():
        if is_quantised(module):
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after, prepend=True).remove)
    return stack
