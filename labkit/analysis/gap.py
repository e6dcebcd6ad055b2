"""Is there anything to explain? The gap between clean and corrupt, beside what rounding alone does to the metric.

The same prompt in another batch, or through other kernels, gives logits that differ in their last digits: 1e-5 in
float32, some tenths of a logit in bfloat16. Where clean and corrupt are no further apart than that, the scale on which
0 is corrupt and 1 is clean divides by noise, and draws it in full colour. How much it is depends on the model, its
dtype, the prompts and the metric, so it is measured: both prompts are run again, each alone and several times in one
batch through the engine's own layers. On processors that add up a token's numbers in one order whatever stands beside
it, that alone moves nothing; so in half of the batch the embedding has another last bit. What the logits moved by is
put on them again in other orders, so that few runs say how far any metric moves.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.analysis.batching import give_back, is_out_of_memory
from labkit.internals.hooks import hooked
from labkit.internals.unembedding import measured_logits
from labkit.models.fast import by_onednn

if TYPE_CHECKING:
    from labkit.analysis.metrics import Metric
    from labkit.models.language_model import LanguageModel

COPIES = 4  # of each prompt in the batch that it is measured with
ORDERS = 16  # in which a difference of logits is put on them again
FAR = 32  # units of rounding of the largest logit: pairs that are further apart need no measuring
_IN_LOGITS = ("logit_diff", "logprob", "kl")  # metrics that move about as far as logits do


def noise_of(
    lm: LanguageModel, ids: Mapping[str, torch.Tensor], logits: Mapping[str, torch.Tensor], metric: Metric
) -> float | None:
    """How far re-batching alone moves a metric on a pair, in its unit; two small passes, the same number every time.

    Args:
        lm: the model.
        ids: the prompts `clean` and `corrupt`, (1, seq), up to the position that the metric reads.
        logits: of both at that position (vocab,), float32, as they were computed.
        metric: what is measured.

    Returns:
        None where clean and corrupt are so far apart that rounding does not matter; 0.0 for identical prompts.
    """
    if torch.equal(ids["clean"], ids["corrupt"]):
        return 0.0
    values = {name: float(metric.of(logits[name][None])[0]) for name in ids}
    gap = abs(values["clean"] - values["corrupt"])
    if not np.isfinite(gap):
        return None
    largest = max(float(row.abs().max()) for row in logits.values())
    exact = lm.bits != 8 and metric.name in _IN_LOGITS
    if exact and gap > FAR * torch.finfo(lm.dtype).eps * largest:
        return None
    moved = []
    for name, again in _again(lm, ids).items():
        before = logits[name]
        differences = again.to(before.device) - before
        moved.append(metric.of(before + differences) - values[name])
        step = max(1, before.shape[0] // ORDERS)
        for difference in differences:
            shifted = torch.stack([difference.roll(k * step) for k in range(ORDERS)])
            moved.append(metric.of(before + shifted) - values[name])
    found = torch.cat(moved).abs()
    return float(found[found.isfinite()].max()) if bool(found.isfinite().any()) else None


def _again(lm: LanguageModel, ids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each prompt's last logits, computed in other batches: (times, vocab) float32."""
    with lm.busy():
        found = {name: [measured_logits(lm, row)] for name, row in ids.items()}
    if lm.batches:
        try:
            with lm.busy(), by_onednn(lm), hooked(lm, set(), {("embed", 0): _last_bits}):
                rows = measured_logits(lm, torch.cat([row.expand(COPIES, -1) for row in ids.values()])).float()
            for n, name in enumerate(ids):
                found[name].append(rows[n * COPIES : (n + 1) * COPIES])
        except (RuntimeError, MemoryError) as error:  # the single passes have to do
            if not is_out_of_memory(error):
                raise
            give_back()
    return {name: torch.cat(rows) for name, rows in found.items()}


def _last_bits(x: torch.Tensor) -> torch.Tensor:
    """An embedding (batch, ...) of which every other row has another last bit here and there, always the same ones."""
    drawn = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    drawn[::2] = 0
    return (x.float() * (1 + drawn.to(x.device) * torch.finfo(x.dtype).eps / 2)).to(x.dtype)


def too_close(clean: float, corrupt: float, noise: float | None) -> bool:
    """Are two runs no further apart than re-batching alone moves each of them?"""
    gap = abs(clean - corrupt)
    return bool(gap == 0 or (noise is not None and gap <= 2 * noise))


def words(recipe: Mapping[str, Any], clean: float, corrupt: float) -> str:
    """What to say of a pair that is too close, as one clause."""
    metric, noise = recipe["metric"], recipe.get("noise")
    if recipe["clean_ids"] == recipe["corrupt_ids"]:
        return f"clean and corrupt are the same prompt, {metric} {clean:.3g}"
    said = f"clean and corrupt hardly differ: {metric} is {clean:.3g} and {corrupt:.3g}"
    return said + (f", and re-batching alone moves it by up to {noise:.2g}" if noise else "")


def warn(recipe: Mapping[str, Any], clean: float, corrupt: float, *, stacklevel: int = 3) -> None:
    """Tell whoever patches such a pair."""
    warnings.warn(
        f"{words(recipe, clean, corrupt)}. There is nothing to explain on a scale from corrupt (0) to clean (1); "
        "figures show the metric's own unit. Choose prompts on which the model differs",
        stacklevel=stacklevel,
    )
