"""Attribution patching: the gradient estimate of every place of many sites from one forward and one backward pass.

The effect of replacing activation a by a' is estimated as (a' - a) . d metric / d a, with the gradient of the patched
run (Nanda 2023, "Attribution patching"). It is exact where the model is linear in the patched site, and tends to be
worst in the early residual stream, where it is not (Kramar et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from labkit.activations.hooks import Edit, Place, hooked
from labkit.activations.unembedding import measured_end, measured_tail
from labkit.engine.cells import by_unit
from labkit.language_model import LanguageModel
from labkit.models.bf16_matmul import linear
from labkit.models.weights import is_quantised, weight_of
from labkit.patching.metrics import Metric


def estimates(
    lm: LanguageModel,
    ids: torch.Tensor,
    source: Mapping[str, Mapping[int, torch.Tensor]],
    *,
    metric: Metric,
    edits: Mapping[Place, Edit] | None = None,
) -> dict[str, dict[int, torch.Tensor]]:
    """Estimated change of the metric for every place of some kinds of site, from one forward and one backward pass.

    Args:
        ids: the prompt that is patched into (1, seq).
        source: by kind and layer the activation of the other run, without the batch axis.
        metric: read at the last position, or at as many as it reads.
        edits: what is written in the run that is patched.

    Returns:
        By kind and layer (position, unit), float32 on the CPU; units are heads, neurons or experts, and one where a
        site is a whole vector.

    Raises:
        ValueError: the metric has no gradient.
    """
    places = [(kind, layer) for kind, layers in source.items() for layer in layers]
    edits = edits or {}
    first = edits.get(("embed", 0), lambda x: x)
    start = {**edits, ("embed", 0): lambda x: first(x.detach()).requires_grad_(True)}
    with lm.busy(gradients=True):
        with hooked(lm, set(places), start, keep=lambda x: x) as found, _differentiable(lm.hf):
            (count,) = metric.reads
            value = metric(measured_end(lm, ids, count, metric.columns)[0])[0]
        if not value.requires_grad:
            raise ValueError("no gradient reaches this metric (a rank has none), so patching cannot be estimated")
        grads = torch.autograd.grad(value, [found[place] for place in places], allow_unused=True)
    effects: dict[str, dict[int, torch.Tensor]] = {kind: {} for kind in source}
    for (kind, layer), grad in zip(places, grads, strict=True):
        here = found[kind, layer].detach()[0].float()
        change = source[kind][layer].to(here.device).float() - here
        product = torch.zeros_like(here) if grad is None else grad[0].float() * change
        effects[kind][layer] = by_unit(product, kind).sum(-1).cpu()
    return effects


def embedded(lm: LanguageModel, x: torch.Tensor) -> dict[Place, Edit]:
    """The writes that put embeddings x (rows, seq, d_model) into a run.

    If x is float32 and the model is not, so is the whole residual stream up to the final norm. Quantised layers take
    that, and the rounding of 16 bits, which gradients have no notion of, is then left out between them.
    """
    writes: dict[Place, Edit] = {("embed", 0): lambda own: x}
    if x.dtype != lm.dtype:
        writes["resid_post", lm.n_layers - 1] = lambda own: own.to(lm.dtype)
    return writes


def of_embeddings(
    lm: LanguageModel,
    ids: torch.Tensor,
    x: torch.Tensor,
    measure: Callable[[torch.Tensor], torch.Tensor],
    *,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is measured of runs with other embeddings, and its gradient there, from one forward pass.

    Args:
        ids: of the prompt (1, seq); layers that look at ids see these.
        x: what takes the place of the embeddings, (rows, seq, d_model), as `embedded` puts it there.
        measure: from the logits (rows, count, vocab) of the last `count` positions, float32, to (rows, parts).

    Returns:
        (rows, parts) and (parts, rows, seq, d_model), float32 on the model's device; a backward pass for each part.
    """
    x = x.detach().clone().requires_grad_(True)
    with lm.busy(gradients=True):
        with hooked(lm, set(), embedded(lm, x)), _differentiable(lm.hf):
            values = measure(measured_tail(lm, ids.expand(len(x), -1), count))
        parts = values.sum(0).unbind()
        grads = [torch.autograd.grad(part, x, retain_graph=part is not parts[-1])[0].float() for part in parts]
    return values.detach(), torch.stack(grads)


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


def _differentiable(hf: nn.Module) -> ExitStack:
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
