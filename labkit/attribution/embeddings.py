"""Runs from embeddings of one's own, and the gradient of what is measured of them there."""

from __future__ import annotations

from collections.abc import Callable

import torch

from labkit.activations.gradients import differentiable
from labkit.activations.hooks import Edit, Place, hooked
from labkit.activations.unembedding import measured_tail
from labkit.language_model import LanguageModel


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
        with hooked(lm, set(), embedded(lm, x)), differentiable(lm.hf):
            values = measure(measured_tail(lm, ids.expand(len(x), -1), count))
        parts = values.sum(0).unbind()
        grads = [torch.autograd.grad(part, x, retain_graph=part is not parts[-1])[0].float() for part in parts]
    return values.detach(), torch.stack(grads)
