"""Model work off the UI thread: one worker thread per model, one job at a time, in the order of requests.

A `JobQueue` takes the requests of one widget. A new request cancels the older one of the same queue; requests of other
widgets wait their turn. A job is stopped through an event and keeps what it has done. In Colab, where updates from
other threads are not displayed, and on request, the work runs in the calling thread instead.
"""

from __future__ import annotations

import atexit
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from labkit.models.processors import give_back

Work = Callable[[threading.Event], None]


@dataclass(eq=False)
class Job:
    """One piece of work: `stop` asks it to end, `finished` says that it has, `error` is what it raised."""

    work: Work
    stop: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.work(self.stop)
        except BaseException as error:
            self.error = error
            if not isinstance(error, Exception):
                raise  # an interrupt is for the caller; the work was told to stop and keep its results
        finally:
            self.finished.set()


class _Worker:
    """The thread of one model. It ends when the model is gone, and when Python does."""

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.now: Job | None = None
        self.thread = threading.Thread(target=self._loop, name="labkit", daemon=True)
        self.thread.start()

    def _loop(self) -> None:
        while (job := self.waiting.get()) is not None:
            self.now = job
            job.run()
            give_back()  # what is computed around the model's passes forms a team as well
            self.now = job = None  # a job holds its widget and model; do not keep them while waiting


_workers: weakref.WeakKeyDictionary[Any, _Worker] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def _worker_of(lm: Any) -> _Worker:
    with _guard:
        if lm not in _workers:
            _workers[lm] = worker = _Worker()
            weakref.finalize(lm, worker.waiting.put, None)
        return _workers[lm]


@atexit.register
def _leave() -> None:
    """Do not let Python exit during a matmul."""
    for worker in list(_workers.values()):
        if (job := worker.now) is not None:
            job.stop.set()
        worker.waiting.put(None)
        worker.thread.join(timeout=3)


def in_background(asked: bool | None = None) -> bool:
    """Does model work run in a thread of its own? By default everywhere but in Colab."""
    return "google.colab" not in sys.modules if asked is None else asked


class JobQueue:
    """The requests of one widget for work on one model."""

    def __init__(self, lm: Any, *, background: bool | None = None) -> None:
        self.lm = lm
        self.background = in_background(background)
        self.last: Job | None = None

    def ask(self, work: Work) -> Job:
        """Do this as soon as the model is free; earlier requests of this queue are cancelled."""
        self.stop()
        job = self.last = Job(work)
        if self.background:
            _worker_of(self.lm).waiting.put(job)
        else:
            job.run()
        return job

    def stop(self) -> None:
        """Ask the present job to end; it keeps what it has done."""
        if self.last is not None:
            self.last.stop.set()

    @property
    def busy(self) -> bool:
        return self.last is not None and not self.last.finished.is_set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the last request is done.

        Raises:
            TimeoutError: it took longer than `timeout` seconds; it keeps running.
            Exception: what the work raised.
        """
        job = self.last
        if job is None:
            return
        try:
            if not job.finished.wait(timeout):
                raise TimeoutError(f"still working after {timeout:g} s; wait longer, or call stop()")
        except KeyboardInterrupt:
            job.stop.set()
            raise
        if job.error is not None:
            raise job.error
