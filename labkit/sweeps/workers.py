"""What a worker does with the pairs of a shard."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from labkit.elsewhere import interrupted, is_elsewhere, where_the_model_is
from labkit.language_model import LanguageModel
from labkit.patching.grid import PatchGrid
from labkit.patching.joint import steps_together
from labkit.patching.patch import PatchJob
from labkit.shards.workers import Plan
from labkit.sweeps.store import Results

TOGETHER = 8  # pairs that share a pass up the blocks
Some = Sequence[tuple[int, Sequence[Any]]]
"""Pairs with their numbers."""
Settings = Mapping[str, Any]


def each(plan: Plan, pairs: Some) -> Iterator[tuple[int, PatchGrid | str]]:
    """The pairs' numbers with their grids, as they are done; for a pair that fails, with an error message."""
    lm = plan.model()
    return (_there if is_elsewhere(lm) else _here)(lm, pairs, plan.settings)


def _here(
    lm: LanguageModel, pairs: Some, settings: Settings, *, stopped: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, PatchGrid | str]]:
    for start in range(0, len(pairs), TOGETHER):
        jobs: dict[int, PatchJob] = {}
        for number, pair in pairs[start : start + TOGETHER]:
            try:
                jobs[number] = PatchJob(lm, *pair, **settings)
            except Exception as error:
                yield number, f"{type(error).__name__}: {error}"
        with suppress(Exception):  # a pair that fails among others is found when each continues alone
            steps = steps_together(list(jobs.values()))
            while not stopped() and _next(lm, steps):
                for number in [n for n, job in jobs.items() if job.grid.complete]:
                    yield number, jobs.pop(number).grid
        for number, job in jobs.items():
            try:
                steps = job.steps()
                while not stopped() and _next(lm, steps):
                    pass
                if stopped() and not job.grid.complete:
                    return
            except Exception as error:
                yield number, f"{type(error).__name__}: {error}"
            else:
                yield number, job.grid


def _there(lm: LanguageModel, pairs: Some, settings: Settings) -> Iterator[tuple[int, PatchGrid | str]]:
    """A call for as many pairs as share a pass, so that others have their turn; those that do not fit into the time of
    a call are asked for again, one by one."""
    waiting, size = list(pairs), TOGETHER
    while waiting:
        some = waiting[:size]
        found = _grids(lm, some, settings)
        if not found and len(some) == 1 and not interrupted():
            found = {some[0][0]: "it takes longer than one call may; choose fewer layers, heads or positions"}
        if len(found) < len(some):
            size = 1
        waiting = [(number, pair) for number, pair in waiting if number not in found]
        yield from found.items()
        if interrupted():
            raise KeyboardInterrupt


@where_the_model_is
def _grids(
    lm: LanguageModel, pairs: Some, settings: Settings, *, stop: threading.Event | None = None
) -> dict[int, PatchGrid | str]:
    """What there is of each pair when all are done, or at `stop`."""
    found: dict[int, PatchGrid | str] = {}
    stopped = (stop or threading.Event()).is_set
    for number, result in _here(lm, pairs, settings, stopped=stopped):
        found[number] = result
    return found


def _next(lm: LanguageModel, steps: Iterator[int]) -> bool:
    """One step of a job; threads that share a model take turns. False at the end."""
    with lm.lock:
        return next(steps, None) is not None


def whole_shard(plan: Plan, pairs: Some) -> Results:
    """A whole shard; this is what runs on a worker."""
    return dict(each(plan, pairs))
