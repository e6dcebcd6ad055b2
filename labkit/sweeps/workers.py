"""What a worker does with the pairs of a shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from labkit.language_model import LanguageModel
from labkit.patching.grid import PatchGrid
from labkit.patching.joint import steps_together
from labkit.patching.patch import PatchJob
from labkit.shards.workers import Plan
from labkit.sweeps.store import Results

TOGETHER = 8  # pairs that share a pass up the blocks


def each(plan: Plan, pairs: Sequence[tuple[int, Sequence[Any]]]) -> Iterator[tuple[int, PatchGrid | str]]:
    """The pairs' numbers with their grids, as they are done; for a pair that fails, with an error message."""
    lm = plan.model()
    for start in range(0, len(pairs), TOGETHER):
        jobs: dict[int, PatchJob] = {}
        for number, pair in pairs[start : start + TOGETHER]:
            try:
                jobs[number] = PatchJob(lm, *pair, **plan.settings)
            except Exception as error:
                yield number, f"{type(error).__name__}: {error}"
        with suppress(Exception):  # a pair that fails among others is found when each continues alone
            steps = steps_together(list(jobs.values()))
            while _next(lm, steps):
                for number in [n for n, job in jobs.items() if job.grid.complete]:
                    yield number, jobs.pop(number).grid
        for number, job in jobs.items():
            try:
                steps = job.steps()
                while _next(lm, steps):
                    pass
            except Exception as error:
                yield number, f"{type(error).__name__}: {error}"
            else:
                yield number, job.grid


def _next(lm: LanguageModel, steps: Iterator[int]) -> bool:
    """One step of a job; threads that share a model take turns. False at the end."""
    with lm.lock:
        return next(steps, None) is not None


def whole_shard(plan: Plan, pairs: Sequence[tuple[int, Sequence[Any]]]) -> Results:
    """A whole shard; this is what runs on a worker."""
    return dict(each(plan, pairs))
