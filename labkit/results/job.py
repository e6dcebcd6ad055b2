"""Work with a progress bar that may end early: what is done is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Protocol

from tqdm.auto import tqdm

from labkit.elsewhere import PIECES, interrupted, tell_progress
from labkit.text.warn import warn


class Job(Protocol):
    """Work in steps, of which `done` of `total` parts are done."""

    @property
    def total(self) -> int: ...
    @property
    def done(self) -> int: ...
    def steps(self) -> Iterator[Any]: ...


def finish(job: Job, doing: str, *, unit: str, kept: str, progress: bool) -> None:
    """Take a job through its steps. An interrupt ends it with a warning; an error carries what was done.

    `kept` names the attribute of the job that has its result so far, and of an error that ended it.
    """
    with tqdm(total=job.total, initial=job.done, desc=doing, unit=unit, disable=not progress, leave=False) as bar:
        token = PIECES.set(threading.Event())
        try:
            for _ in job.steps():
                bar.update(job.done - bar.n)
                tell_progress(job.done, job.total)
                if interrupted():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            warn(f"interrupted: {job.done} of {job.total} {unit}s are in the {kept}")
        except Exception as error:
            if interrupted():  # a call to a model elsewhere that was ended has nothing to give
                warn(f"interrupted: {job.done} of {job.total} {unit}s are in the {kept}")
                return
            setattr(error, kept, getattr(job, kept))
            error.add_note(f"{job.done} of {job.total} {unit}s were done; they are in this error's `{kept}`")
            raise
        finally:
            PIECES.reset(token)
