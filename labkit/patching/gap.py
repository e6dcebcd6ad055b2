"""Is there anything to explain? The gap between clean and corrupt, compared with the effect of rounding on the metric.

The same prompt in another batch, or through other kernels, gives logits that differ in their last digits: 1e-5 in
float32, some tenths of a logit in bfloat16. Where clean and corrupt are no further apart than that, the scale from 0
(corrupt) to 1 (clean) divides by noise, and shows it in full colour. How large it is depends on the model, its dtype,
the prompts and the metric, so it is measured: both prompts are run again, several times in one batch, with another last
digit in the embeddings each time. That moves the metric about as far as a grid's own batches do, whichever kernels this
machine has: on some, the plain pass alone gives the same digits in every batch. In float32 next to nothing is left of
rounding; there a gap of logits is checked against how far the logits of the vocabulary lie apart, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from labkit.activations.hooks import hooked
from labkit.activations.metrics import Metric
from labkit.activations.unembedding import measured_end
from labkit.engine.recorded_run import several_alike
from labkit.language_model import LanguageModel
from labkit.patching.source_model import run_names
from labkit.text.warn import warn

TIMES, TOKENS = 8, 1024  # each prompt is run again so often, less often where that were more tokens
FAR = 16  # units of rounding of the largest logit: pairs that are further apart need no measuring
SMALL = 0.02  # of the standard deviation of the logits over the vocabulary: a gap of logits below it is none


@dataclass(frozen=True)
class Measured:
    """How far rounding alone moves a metric, and the smallest gap worth explaining, in its unit."""

    noise: float
    least: float


def measured(
    models: Mapping[str, LanguageModel],
    lanes: Sequence[tuple[Mapping[str, torch.Tensor], int]],
    logits: Mapping[str, torch.Tensor],
    metric: Metric,
) -> Measured | None:
    """How far rounding alone moves a metric on a pair: one small pass, the same number every time.

    Args:
        models: that of each run; the same one, or two.
        lanes: the prompts `clean` and `corrupt`, (1, seq), up to the last position that the metric reads, and how many
            it reads; several where what follows them is forced.
        logits: of both at those positions (reads, vocab), float32, as they were computed.

    Returns:
        None if clean and corrupt are so far apart that rounding does not matter.
    """
    one_model = models["clean"] is models["corrupt"]
    if one_model and all(torch.equal(ids["clean"], ids["corrupt"]) for ids, _ in lanes):
        return Measured(0.0, 0.0)
    values = {name: float(metric.of(rows)[0]) for name, rows in logits.items()}
    gap = abs(values["clean"] - values["corrupt"])
    if not np.isfinite(gap):
        return None
    largest = max(float(row.abs().max()) for row in logits.values())
    kind = metric.kind if metric.kind is not None and metric.kind.moves_like_logits else None
    bounded = all(lm.bits != 8 for lm in models.values()) and kind is not None
    if bounded and gap > FAR * max(torch.finfo(lm.dtype).eps for lm in models.values()) * largest:
        return None
    times = max(2, min(TIMES, TOKENS // max(ids["clean"].shape[1] for ids, _ in lanes)))
    again: dict[str, list[torch.Tensor]] = {name: [] for name in logits}
    for ids, count in lanes:
        together = one_model and ids["clean"].shape == ids["corrupt"].shape
        for some in [ids] if together else [{name: row} for name, row in ids.items()]:
            for name, rows in _again(models[next(iter(some))], some, times, count).items():
                again[name].append(rows.to(logits[name].device))
    moved = [metric.of(torch.cat(rows, 1).flatten(0, 1)) - values[name] for name, rows in again.items()]
    found = torch.cat(moved).abs()
    noise = float(found[found.isfinite()].max()) if bool(found.isfinite().any()) else 0.0
    small = SMALL * float(logits["clean"].std()) if kind is not None and "clean" not in kind.needs else 0.0
    return Measured(noise, max(2 * noise, small))


def _again(lm: LanguageModel, ids: Mapping[str, torch.Tensor], times: int, count: int) -> dict[str, torch.Tensor]:
    """Each prompt's last logits (times, count, vocab), float32, with embeddings rounded another way each time."""
    rounded = other_digits(seed=0)
    rows = torch.cat([row.expand(times, -1) for row in ids.values()])
    passes = rows.split(len(rows) if several_alike(lm) else 1)
    with lm.busy():
        found = []
        for some in passes:
            with hooked(lm, set(), {("embed", 0): rounded}):
                found.append(measured_end(lm, some, count))
    return dict(zip(ids, torch.cat(found).split(times), strict=True))


def other_digits(*, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """An edit of an activation that gives it other last digits, the same ones for the same seed."""
    draw = torch.Generator().manual_seed(seed)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        digits = torch.rand(x.shape, generator=draw, dtype=torch.float64).to(wide) - 0.5
        return (wide * (1 + torch.finfo(x.dtype).eps * digits)).to(x.dtype)

    return rounded


def too_close(clean: float, corrupt: float, least: float | None) -> bool:
    """Are two runs so close that there is nothing to explain? `least` is None if that need not be measured."""
    return bool(abs(clean - corrupt) <= (least or 0.0))


def words(recipe: Mapping[str, Any], clean: float, corrupt: float) -> str:
    """The message for a pair that is too close, as one clause."""
    metric, noise, names = recipe["metric"], recipe.get("noise"), run_names(recipe)
    if "source" not in recipe and recipe["clean_ids"] == recipe["corrupt_ids"]:
        return f"clean and corrupt are the same prompt, {metric} {clean:.3g}"
    said = f"{names['clean']} and {names['corrupt']} hardly differ: {metric} is {clean:.3g} and {corrupt:.3g}"
    return said + (f", and re-batching or rounding alone moves it by up to {noise:.2g}" if noise else "")


def warn_of(recipe: Mapping[str, Any], clean: float, corrupt: float) -> None:
    """Warn whoever patches such a pair."""
    names = run_names(recipe)
    warn(
        f"{words(recipe, clean, corrupt)}. There is nothing to explain on a scale from {names['corrupt']} (0) to "
        f"{names['clean']} (1); figures show the metric's own unit. Choose prompts on which "
        + ("the models differ" if "source" in recipe else "the model differs")
    )
