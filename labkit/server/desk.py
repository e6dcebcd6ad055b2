"""The desk: what is asked goes into the queue and its folder, workers take turns from it, results come back."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from labkit.server.jobs import Job, Limits, Refused, Work
from labkit.server.store import Store
from labkit.server.turns import Turns


class Worker(Protocol):
    """Something that holds the model. It has to return soon after `stop` is set."""

    def perform(self, body: bytes, *, stop: threading.Event, report: Callable[[dict[str, Any]], None]) -> bytes: ...
    def close(self) -> None: ...


class WorkerDied(Exception):
    """The worker ended while it ran a call, and is there again; `times` says how often the call is to blame."""

    def __init__(self, why: str = "", *, times: int = 1) -> None:
        super().__init__(why)
        self.times = times


class Desk:
    """One model's queue with its workers.

    Args:
        workers: each runs one call at a time.
        about: of the model, as JSON: what `GET /v1/model` says.
        files: of its tokenizer.
        key: gives equal calls the same text, and None to calls that are not to be shared. ValueError: not a call.
        failed: is a worker's answer an error, which is for those who wait for it and nobody later?
        limits: what a student may have.
        store: where the queue is kept; None: in memory alone.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        about: dict[str, Any],
        files: dict[str, bytes],
        key: Callable[[bytes], str | None],
        failed: Callable[[bytes], bool] = lambda answer: False,
        limits: Limits | None = None,
        store: Store | None = None,
    ) -> None:
        self.workers, self.about, self.files, self.store = workers, about, files, store
        self.key, self.failed = key, failed
        self.listener: Callable[[list[Job]], None] = lambda jobs: None
        self.turns = Turns(limits, changed=lambda jobs: self.listener(jobs), forgotten=self._forgotten)
        self.restored = store.restore(self.turns) if store else 0
        self._deaths: dict[str, int] = store.deaths if store else {}
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in workers]
        self._threads.append(threading.Thread(target=self._tick, daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self, *, wait: float = 10.0) -> None:
        """Stop what runs, which is the first to run after a restart, and end the workers."""
        self._ending.set()
        for job in self.turns.unfinished():
            self.keep(job)
        self.turns.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(wait)
        for worker in self.workers:
            worker.close()
        for thread in self._threads:  # those whose worker had to be killed
            if thread.ident is not None:
                thread.join(2)
        if self.store:
            self.store.close()

    # -- asking ----------------------------------------------------------------------------------------------------

    def submit(self, student: str, body: bytes, *, once: str, keep: bool) -> Job:
        """Ask for a call; `once`, the client's own name for it, makes asking twice the same as asking once.

        Raises:
            Refused: it is not a call, or a limit is reached.
        """
        try:
            key = self.key(body)
        except Exception as error:  # whatever a stranger's bytes lead to
            raise Refused(400, f"this is not a call of labkit: {_sentence(error)}") from None
        id = hashlib.sha256(f"{student}\n{once}".encode()).hexdigest()
        written = self.store.accepted if keep and self.store else None
        try:
            return self.turns.submit(student, body, id=id, key=key, keep=written)
        except OSError as error:
            raise Refused(503, f"the server cannot write calls down ({error.strerror})", after=60) from None

    def keep(self, job: Job) -> None:
        """Write down a job that was asked for without."""
        if self.store:
            with _said():
                self.turns.keep(job, self.store.accepted)

    def _forgotten(self, what: Job | Work) -> None:
        if self.store:
            with _said():
                self.store.forgotten(what)

    # -- working ---------------------------------------------------------------------------------------------------

    def _serve(self, worker: Worker) -> None:
        while (work := self.turns.next()) is not None:
            self._run(worker, work)

    def _run(self, worker: Worker, work: Work) -> None:
        if self._deaths.get(work.digest, 0) >= 2:
            self._end(work, error=Refused(422, "this call ended its worker or the server twice; it is not run again"))
            return
        result, error = None, None
        try:
            if self.store:
                with _said():
                    self.store.begins(work)
            result = worker.perform(work.body, stop=work.stop, report=partial(self.turns.report, work))
        except WorkerDied as died:
            if not self._ending.is_set():  # when it ends it kills those that do not stop
                self._died(work, died)
                return
        except Refused as refused:
            error = refused
        except Exception as raised:
            error = Refused(422, _sentence(raised))
        if self.store:
            with _said():
                self.store.ends(work)
        else:
            self._deaths.pop(work.digest, None)
        if self._ending.is_set() and (work.stop.is_set() or not (result or error)):
            return  # it is in the folder, and runs after the restart
        self._end(work, result=result, error=error)

    def _end(self, work: Work, *, result: bytes | None = None, error: Refused | None = None) -> None:
        error = error or self.turns.limits.too_large(result)
        shared = result is not None and error is None and not work.stop.is_set() and not self.failed(result)
        put = self._put(work, result, error, shared)
        self.turns.finish(work, result=result, error=error, shared=shared)
        if not put:  # a client may have been told its id meanwhile
            self._put(work, result, error, shared)

    def _put(self, work: Work, result: bytes | None, error: Refused | None, shared: bool) -> bool:
        if self.store is None or not any(job.kept for job in list(work.jobs)):
            return False
        with _said():
            self.store.finished(work, result=None if error else result, error=error, shared=shared)
        return True

    def _died(self, work: Work, died: WorkerDied) -> None:
        """Work whose worker died runs once more, and not a third time."""
        self._deaths[work.digest] = self._deaths.get(work.digest, 0) + died.times
        if self.store:
            with _said():
                self.store.died(work)
        if work.overdue:
            self._end(work, error=Refused(422, self.turns.limits.late()))
        elif not work.jobs or self._deaths[work.digest] >= 2:
            sentence = f"this call ended its worker twice, so it is not run again ({died})"
            self._end(work, error=Refused(422, sentence))
        else:
            self.turns.again(work)

    def _tick(self) -> None:
        while not self._ending.wait(0.5):
            self.turns.tick()


@contextmanager
def _said() -> Iterator[None]:
    """A disk that is full ends no worker: what is asked and answered is in memory, too."""
    try:
        yield
    except OSError as error:
        print(f"labkit serve: cannot write ({error}); a restart would lose what was not written", file=sys.stderr)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:2000]}" if str(error) else type(error).__name__
