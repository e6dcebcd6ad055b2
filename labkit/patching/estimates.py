"""Attribution patching: the gradient estimate of every place of many sites from one forward and one backward pass.

The effect of replacing activation a by a' is estimated as (a' - a) . d metric / d a, with the gradient of the patched
run (Nanda 2023, "Attribution patching"). It is exact where the model is linear in the patched site, and tends to be
worst in the early residual stream, where it is not (Kramar et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkit.activations.gradients import gradients
from labkit.activations.hooks import Edit, Place
from labkit.activations.metrics import Metric
from labkit.activations.unembedding import measured_end
from labkit.engine.cells import by_unit
from labkit.language_model import LanguageModel
from labkit.models.devices import Copies


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
    (count,) = metric.reads
    measure = lambda: metric(measured_end(lm, ids, count, metric.columns)[0])  # noqa: E731
    _, found, grads = gradients(lm, places, measure, edits=edits)
    effects: dict[str, dict[int, torch.Tensor]] = {kind: {} for kind in source}
    copies = Copies()
    for kind, layer in places:
        here = found[kind, layer][0].float()
        change = source[kind][layer].to(here.device).float() - here
        product = grads[kind, layer][0].float() * change
        if kind == "scores":  # what is not seen in both
            product = product.nan_to_num(0.0)
        effects[kind][layer] = torch.from_numpy(copies.of(by_unit(product, kind).sum(-1)))
    copies.done()
    return effects
