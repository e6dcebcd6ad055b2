"""Attribution patching: the gradient estimate of every cell of a grid from one forward and one backward pass.

The effect of putting activation a' in the place of a is estimated as (a' - a) . d metric / d a, with the gradient of
the run that is patched into (Nanda 2023, "Attribution patching"). It is exact where the model is linear in the patched
site, and tends to be furthest off in the early residual stream, where it is not (Kramar et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.internals.run import hooked
from labkit.internals.wavefront import Cell, last_logits
from labkit.models.weights import is_quantised, weight_of

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel


def estimate(
    lm: LanguageModel,
    ids: torch.Tensor,
    source: Mapping[int, torch.Tensor],
    *,
    site: str,
    metric: Callable[[torch.Tensor], torch.Tensor],
    cells: Sequence[Cell],
) -> torch.Tensor:
    """Estimated change of the metric for each cell, float32 (len(cells),).

    Args:
        lm: the model.
        ids: the prompt that is patched into (1, seq).
        source: the site's activation in each layer of the other run, without the batch axis.
        site: its kind.
        metric: logits (rows, vocab) -> (rows,), at the last position.
        cells: what is patched.
    """
    places = {(site, layer) for layer in source}
    start = {("embed", 0): lambda x: x.detach().requires_grad_(True)}
    with lm.lock, torch.enable_grad():
        with hooked(lm, places, start, keep=lambda x: x) as found, _differentiable(lm.hf):
            value = metric(last_logits(lm, ids).float())[0]
        order = sorted(found)
        grads = torch.autograd.grad(value, [found[place] for place in order], allow_unused=True)
    products: dict[int, torch.Tensor] = {}
    for place, grad in zip(order, grads, strict=True):
        here = found[place].detach()[0].float()
        change = source[place[1]].float() - here
        products[place[1]] = torch.zeros_like(here) if grad is None else grad[0].float() * change
    return torch.stack([_sum(products[cell.layer], site, cell) for cell in cells]).cpu()


def _sum(product: torch.Tensor, site: str, cell: Cell) -> torch.Tensor:
    """The part of (position, [head,] width), or (head, query, key) for patterns, that belongs to a cell, summed."""
    if site == "pattern":
        product = product.transpose(0, 1)  # (query, head, key)
    part = product if cell.position is None else product[cell.position, None]
    return part.sum() if cell.head is None else part[:, cell.head].sum()


class _Through(torch.autograd.Function):
    """A quantised layer's own output going forward, its dequantised weight going back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, output: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        ctx.layer = layer
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return grad @ weight_of(ctx.layer, dtype=grad.dtype), None, None


def _differentiable(hf: nn.Module) -> ExitStack:
    """Let gradients through 4-bit and 8-bit layers, whose CPU kernels have none of their own."""

    def hook(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        x = args[0]
        return _Through.apply(x, output.detach(), layer) if x.requires_grad else None

    stack = ExitStack()
    for module in hf.modules():
        if is_quantised(module):
            stack.callback(module.register_forward_hook(hook).remove)
    return stack
