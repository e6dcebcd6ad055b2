"""Does a preference go when the heads that carry it are ablated, and what does that cost?

Heads write their average over a neutral text, whatever they read (mean ablation). The same is done with as many random
heads of the same layers: only what these do not do is due to the heads chosen. Beside the preference two measures of
quality are taken under each ablation: the perplexity of the neutral text, and how often a benchmark is right.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.activations.sites import checked
from labkit.audits.ablation_result import AuditAblation, Heads
from labkit.audits.audit import AuditJob
from labkit.audits.benchmark import BenchmarkJob
from labkit.audits.heads import at_mean
from labkit.audits.result import Audit
from labkit.generation.continuations import score_continuations
from labkit.generation.score import score
from labkit.precision.passage import PASSAGE
from labkit.results.job import finish
from labkit.results.recipe import made_with
from labkit.text.prompts import as_json, asked

if TYPE_CHECKING:
    import pandas as pd

    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt

MINI = "mini"
CHECKED = 4  # pairs that are scored again to see that an audit's scores are this model's
APART = 0.5, 0.02  # nats, and share of the log-probability, by which rounding may change one


def audit_without(
    lm: LanguageModel,
    audit: Audit,
    heads: Sequence[tuple[int, int]],
    *,
    categories: Sequence[str] | None = None,
    controls: int = 3,
    text: Prompt = PASSAGE,
    quality: str | os.PathLike[str] | pd.DataFrame | None = MINI,
    quality_limit: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AuditAblation:
    """Audit a model again with some heads ablated, and with as many random ones, and measure what that costs.

    Args:
        lm: the model, one of those that were audited. What the audit has of it is not scored again.
        audit: whose pairs are scored again.
        heads: (layer, head) each, such as `lk.audit_heads(...).heads()`.
        categories: only these.
        controls: how many times random heads of the same layers are ablated instead.
        text: a neutral one, over which the heads' mean is taken and whose perplexity is measured.
        quality: on what else quality is measured: data of `lk.benchmark` in which one choice is right, such as `blimp`;
            by default labkit's own 64 pairs of an acceptable and an unacceptable sentence. None: perplexity alone.
        quality_limit: at most so many items of every category of these (in BLiMP: of every paradigm).
        data_dir: the folder in which a published set is, as for `lk.benchmark`.
        seed: of the random heads.
        progress: show a progress bar.

    Returns:
        An `AuditAblation`; after an interrupt, or as `ablation` on an error, with what was scored until then.

    Raises:
        FileNotFoundError: no copy of the data for `quality`.
        ValueError: no heads, one that the model does not have, an unknown category, or data without right answers;
            before anything has run.
    """
    job = AblationJob(
        lm, audit, heads, categories=categories, controls=controls, text=text, quality=quality,
        quality_limit=quality_limit, data_dir=data_dir, seed=seed,
    )  # fmt: skip
    finish(job, "ablating", unit="text", kept="ablation", progress=progress)
    return job.ablation


class AblationJob:
    """One audit and one benchmark after the other, so that they can be watched and stopped."""

    def __init__(
        self,
        lm: LanguageModel,
        audit: Audit,
        heads: Sequence[tuple[int, int]],
        *,
        categories: Sequence[str] | None = None,
        controls: int = 3,
        text: Prompt = PASSAGE,
        quality: str | os.PathLike[str] | pd.DataFrame | None = MINI,
        quality_limit: int | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        if not heads:
            raise ValueError("no heads to ablate; give at least one (layer, head)")
        if controls < 0 or (quality_limit is not None and quality_limit < 1):
            raise ValueError(
                f"controls must be 0 or more, and quality_limit at least 1; got controls={controls}, "
                f"quality_limit={quality_limit}"
            )
        for layer, head in heads:
            checked(lm, f"z.{layer}.{head}")
        chosen = list(dict.fromkeys((int(layer), int(head)) for layer, head in heads))
        draw = random.Random(seed)
        drawn = [_others(lm, chosen, draw) for _ in range(controls)]
        self.lm, self._text = lm, text
        given: dict[str, Any] = {} if quality is None else {"limit": quality_limit, "data_dir": data_dir}
        notes, benchmark = [], None
        try:
            benchmark = None if quality is None else BenchmarkJob(lm, quality, **given)
        except Exception as error:  # a tokenizer may have no tokens for these texts
            if not isinstance(quality, str) or quality != MINI:
                raise
            notes.append(f"Quality was measured by perplexity alone: {error}.")
        if benchmark is not None and benchmark.data.measure != "accuracy":
            raise ValueError(
                f"{benchmark.data.name} has no right answers: it measures a preference. Give quality='mini' or "
                "'blimp', or data of your own whose choices are right or wrong"
            )
        named = quality is None or isinstance(quality, str | os.PathLike)
        recipe = {
            **made_with(lm), "categories": None if categories is None else list(categories), "controls": controls,
            "text": None if isinstance(text, str) and text == PASSAGE else as_json(asked(lm, text)),
            "quality": (None if quality is None else str(quality)) if named else "...",
            "quality_limit": quality_limit, "data_dir": None if data_dir is None else os.fspath(data_dir), "seed": seed,
        }  # fmt: skip
        self._begun = AuditAblation(chosen, drawn, recipe, notes=notes)
        count = 2 + controls
        self._jobs = [AuditJob(lm, audit.pairs, categories=categories, normalise=audit.normalise) for _ in range(count)]
        self._benchmarks = [] if benchmark is None else [benchmark, *(benchmark.again() for _ in range(count - 1))]
        self._known = _scores(lm, audit, categories)

    @property
    def total(self) -> int:
        return sum(2 * job.total for job in self._jobs) + sum(job.total for job in self._benchmarks)

    @property
    def done(self) -> int:
        return sum(2 * job.done for job in self._jobs) + sum(job.done for job in self._benchmarks)

    @property
    def ablation(self) -> AuditAblation:
        """What is scored so far."""
        kept = self._begun
        quality = [job.benchmark for job in self._benchmarks[: len(kept.audits)]]
        named = [replace(one, model=name) for one, name in zip(quality, kept.names, strict=True)] if quality else []
        return replace(kept, audits=[*kept.audits], surprisals=[*kept.surprisals], quality=named)

    def steps(self) -> Iterator[Any]:
        """For the whole model, without the chosen heads and without random ones: perplexity, the pairs of the audit,
        and the benchmark."""
        kept = self._begun
        for n, heads in enumerate([[], kept.heads, *kept.controls]):
            with at_mean(self.lm, heads, text=self._text) if heads else nullcontext():
                if n == len(kept.audits):
                    surprisal = score(self.lm, self._text).record.measure("surprisal")[1:]  # bits
                    kept.surprisals.append((np.log(2) * surprisal).astype(np.float32))
                    kept.audits.append(self._jobs[n].audit)
                    if n == 0:
                        self._reuse()
                for steps in (self._jobs[n].steps(), *(one.steps() for one in self._benchmarks[n : n + 1])):
                    for _ in steps:
                        yield n

    def _reuse(self) -> None:
        """Take what the audit has of the whole model, if it is what this model gives."""
        whole = self._jobs[0].audit
        if self._known is None:
            return
        logprobs, lengths = self._known
        scored = np.flatnonzero(np.isfinite(logprobs).all(1))
        some = scored[np.linspace(0, len(scored) - 1, min(CHECKED, len(scored)), dtype=int)] if len(scored) else scored
        texts = [side for n in some for side in (whole.pairs[n].stereotype, whole.pairs[n].other)]
        again = np.array([found.logprob for found in score_continuations(self.lm, texts)]).reshape(-1, 2)
        if (np.abs(again - logprobs[some]) <= APART[0] + APART[1] * np.abs(again)).all():
            whole.logprobs[0], whole.lengths[0] = logprobs, lengths
            whole.__dict__.pop("rows", None)


def _scores(lm: LanguageModel, audit: Audit, categories: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Log-probabilities (pair, 2) and lengths (pair, 2, 2) that an audit has of a model; None if it is not in it."""
    loads = [audit.recipe.get("load"), *audit.recipe.get("others", ())]
    if lm.code() not in loads:
        return None
    mine = [n for n, pair in enumerate(audit.pairs) if categories is None or pair.category in categories]
    model = loads.index(lm.code())
    return audit.logprobs[model, mine], audit.lengths[model, mine]


def _others(lm: LanguageModel, heads: Heads, draw: random.Random) -> Heads:
    """As many random heads of the same layers, none of them chosen where there are others."""
    picked: Heads = []
    for layer in sorted({layer for layer, _ in heads}):
        mine = [head for at, head in heads if at == layer]
        free = [head for head in range(lm.n_heads) if head not in mine]
        picked += [(layer, head) for head in draw.sample(free, min(len(mine), len(free)))]
    return picked
