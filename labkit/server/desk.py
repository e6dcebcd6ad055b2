"""The desk: what is asked goes into the queue and its folder, workers take turns from it, results come back."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from labkit.server.store import Store
from labkit.server.turns import Job, Limits, Refused, Turns, Work


class Worker(Protocol):
    """Something that holds the model. It has to return soon after `stop` is set."""

    def perform(self, body: bytes, *, stop: threading.Event, report: Callable[[dict[str, Any]], None]) -> bytes: ...
    def close(self) -> None: ...


class WorkerDied(Exception):
    """The worker ended while it ran a call, and is there again."""


class Desk:
    """One model's queue with its workers.

    Args:
        workers: each runs one call at a time.
        about: of the model, as JSON: what `GET /v1/model` says.
        files: of its tokenizer.
        key: gives equal calls the same text, and None to calls that are not to be shared. ValueError: not a call.
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
        limits: Limits | None = None,
        store: Store | None = None,
    ) -> None:
        self.workers, self.about, self.files, self.key, self.store = workers, about, files, key, store
        self.listener: Callable[[list[Job]], None] = lambda jobs: None
        self.turns = Turns(limits, changed=lambda jobs: self.listener(jobs), forgotten=self._forgotten)
        self.restored = store.restore(self.turns) if store else 0
        self._deaths: dict[str, int] = {}
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in workers]
        self._threads.append(threading.Thread(target=self._tick, daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self, *, wait: float = 10.0) -> None:
        """Stop what runs, which is put back to the front of the folder's queue, and end the workers."""
        self._ending.set()
        self.turns.close()
        for thread in self._threads:
            thread.join(wait)
        for worker in self.workers:
            worker.close()
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
        return self.turns.submit(
            student, body, id=id, key=key, keep=self.store.accepted if keep and self.store else None
        )

    def keep(self, job: Job) -> None:
        """Write down a job that was asked for without."""
        if self.store:
            self.turns.keep(job, self.store.accepted)

    def _forgotten(self, what: Job | Work) -> None:
        if self.store:
            self.store.forgotten(what)

    # -- working ---------------------------------------------------------------------------------------------------

    def _serve(self, worker: Worker) -> None:
        while (work := self.turns.next()) is not None:
            self._run(worker, work)

    def _run(self, worker: Worker, work: Work) -> None:
        result, error = None, self.store.begins(work) if self.store else None
        try:
            if error is None:
                result = worker.perform(work.body, stop=work.stop, report=partial(self.turns.report, work))
        except WorkerDied as died:
            self._died(work, died)
            return
        except Refused as refused:
            error = refused
        except Exception as raised:
            error = Refused(422, _sentence(raised))
        if self._ending.is_set() and work.stop.is_set():  # it is still in the folder, and runs after the restart
            if self.store:
                self.store.ends(work)
            return
        error = error or self.turns.too_large(result)
        put = self._put(work, result, error)
        self.turns.finish(work, result=result, error=error)
        if not put:  # a client may have been told its id meanwhile
            self._put(work, result, error)
        if self.store:
            self.store.ends(work)

    def _put(self, work: Work, result: bytes | None, error: Refused | None) -> bool:
        if self.store is None or not any(job.kept for job in list(work.jobs)):
            return False
        self.store.finished(work, result=None if error else result, error=error)
        return True

    def _died(self, work: Work, died: WorkerDied) -> None:
        """Work whose worker died runs once more, and not a third time."""
        deaths = self.store.deaths if self.store else self._deaths
        if self.store:
            self.store.died(work)
        else:
            deaths[work.digest] = deaths.get(work.digest, 0) + 1
        if work.overdue:
            self.turns.finish(work, error=Refused(422, self.turns.late(work)))
        elif not work.jobs or deaths[work.digest] >= 2:
            sentence = f"this call ended its worker twice, so it is not run again ({died})"
            self.turns.finish(work, error=Refused(422, sentence))
        else:
            self.turns.again(work)

    def _tick(self) -> None:
        while not self._ending.wait(0.5):
            self.turns.tick()


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:2000]}" if str(error) else type(error).__name__
