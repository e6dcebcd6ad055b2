"""Several pairs patched together: their rows share each pass up the blocks.

A short prompt's grid is too small to keep a machine busy: every block runs on a few hundred tokens. Pairs of the same
length share a pass, each row with the run of its own pair, and the numbers change by rounding at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from labkit.engine.batching import chunked, in_chunks, tokens_at_once
from labkit.engine.wavefront import Wavefront
from labkit.patching.pair_runs import engine_kind
from labkit.patching.patch import PatchJob


def steps_together(jobs: Sequence[PatchJob]) -> Iterator[int]:
    """Do the work of several jobs on one model; yields how many cells of all are done after every chunk.

    Jobs that cannot share a pass (estimates, runs that cannot be restarted, a length or site of their own, several
    runs each) are done one after another, so any mixture gives the same grids. A cancelled job ends the call; `steps`
    or another call resumes it.

    Raises:
        ValueError: the jobs are not all on one model.
    """
    if len({id(job.lm) for job in jobs}) > 1:
        raise ValueError("jobs that run together must all be on the same model")
    try:
        groups: dict[tuple[str, int], list[PatchJob]] = {}
        for job in jobs:
            if job.method == "exact" and job.waiting() and not job.ready():
                return
            shared = job.one_lane and job.method == "exact" and job.engine == "wavefront"
            groups.setdefault((job.site if shared else "", job.at if shared else id(job)), []).append(job)
        for group in groups.values():
            for _ in _jointly(group) if len(group) > 1 else group[0].steps():
                yield sum(job.done for job in jobs)
            if any(job.waiting() for job in group):
                return
    finally:
        for job in jobs:
            job.go_on()


def _jointly(jobs: list[PatchJob]) -> Iterator[None]:
    lm, length = jobs[0].lm, jobs[0].at + 1
    lanes = [job.lanes()[0] for job in jobs]
    wavefront = Wavefront(lanes, site=engine_kind(jobs[0].site))
    tokens = lambda item: length - lanes[item[0]].start_of(jobs[item[0]].cells[item[1]])  # noqa: E731
    stopped = lambda: any(job.cancelled for job in jobs)  # noqa: E731
    cells = [(n, i) for n, job in enumerate(jobs) for i in job.waiting()]

    def work(chunk: list[tuple[int, int]]) -> np.ndarray:
        rows = wavefront([replace(jobs[n].cells[i], lane=n) for n, i in chunk], cancelled=stopped)
        values = np.empty(len(chunk), np.float32)
        for n in {n for n, _ in chunk}:
            mine = [row for row, (lane, _) in enumerate(chunk) if lane == n]
            values[mine] = jobs[n].read(rows[mine])
        return values

    chunks = chunked(cells, tokens, budget=tokens_at_once(lm))
    for chunk, values in in_chunks(chunks, work, stopped=stopped):
        for (n, i), value in zip(chunk, values.tolist(), strict=True):
            jobs[n].grid.values.reshape(-1)[i] = value
        yield
