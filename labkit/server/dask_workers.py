"""Workers on a Dask cluster, which load the model when they first need it."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any

from labkit._version import install_command
from labkit.models.errors import LoadError
from labkit.remote.calls import describe, perform, tokenizer_files
from labkit.server.desk import WorkerDied
from labkit.server.jobs import Refused
from labkit.server.workers import GRACE, POLL, Report
from labkit.shards.executors import workers_of
from labkit.shards.workers import Plan

TRIES = 2  # times that Dask may begin a call whose workers die


class DaskWorker:
    """A place on a cluster. What a worker gets is bytes; the function it runs is that of its own labkit.

    Args:
        client: of the cluster, a `distributed.Client`.
        plan: which model.
    """

    def __init__(self, client: Any, plan: Plan) -> None:
        self.client, self.plan = client, plan
        workers = workers_of(client)
        assert workers is not None
        self._submit = workers.executor.submit
        self._topic = f"labkit-{uuid.uuid4().hex}"  # one for all its calls: the scheduler keeps topics for ever

    def described(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """What the model is, and the files of its tokenizer, from one of the workers.

        Raises:
            ValueError: it cannot be loaded there; the message says why.
        """
        try:
            return self._submit(_described, self.plan).result()
        except (LoadError, ImportError, AttributeError) as error:  # without labkit, or with another version of it
            raise ValueError(f"a worker of the Dask cluster cannot load the model: {error}") from None

    def perform(self, body: bytes, *, stop: threading.Event, report: Report) -> bytes:
        """Run a call on whichever worker is free, and on another one where that dies.

        Raises:
            WorkerDied: those that ran it died, or did not stop when they were asked to; or the scheduler was away.
            Refused: the scheduler does not come back.
        """
        from distributed import Event

        call, begun = uuid.uuid4().hex, 0

        def heard(event: Any) -> None:
            nonlocal begun
            if event[1]["call"] != call:
                return
            if "said" in event[1]:
                report(event[1]["said"])
                return
            begun += 1
            if begun > 1:  # what it streams comes once more
                report({"again": True})

        future: Future[bytes] | None = None
        asked = 0.0
        try:
            stopped = Event(call, client=self.client)
            self.client.subscribe_topic(self._topic, heard)
            future = self._submit(_there, self.plan, body, self._topic, call)
            while True:
                try:
                    return future.result(POLL)
                except TimeoutError:
                    if begun > TRIES:
                        stopped.set()
                        raise WorkerDied("it ended the workers that ran it", times=TRIES) from None
                    if stop.is_set():
                        if not asked:
                            stopped.set()
                        asked += POLL
                        if asked > GRACE:
                            raise WorkerDied(f"it did not stop within {GRACE:.0f} s") from None
        except WorkerDied:
            raise
        except Exception as error:
            if type(error).__name__ == "KilledWorker":
                raise WorkerDied("the workers that ran it died, perhaps out of memory", times=TRIES) from None
            if isinstance(error, CancelledError) or self.client.status != "running":
                self._wait(stop)
                raise WorkerDied("the scheduler of the cluster was away", times=0) from None
            raise
        finally:
            if future is not None:
                future.cancel()
            with suppress(Exception):  # of a scheduler that is gone
                self.client.unsubscribe_topic(self._topic)
                if asked and future is not None and future.done():
                    stopped.clear()

    def _wait(self, stop: threading.Event) -> None:
        """Until the scheduler is there again.

        Raises:
            Refused: the client has given it up.
        """
        while self.client.status == "connecting" and not stop.wait(POLL):
            pass
        if self.client.status != "running":
            raise Refused(
                503, "the Dask cluster of this server is gone; tell your teacher, who starts the server again", after=60
            )

    def close(self) -> None:
        """The cluster stays as it is."""


def places(address: str, plan: Plan) -> list[DaskWorker]:
    """A place for each worker of the cluster whose scheduler has this address.

    Raises:
        ValueError: nobody answers there, or there are no workers, or distributed is not installed.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(f"--dask needs distributed: {install_command('scale')}") from None
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise ValueError(f"no scheduler of Dask answers at {address}: {error}") from None
    if not (workers := client.scheduler_info(n_workers=-1)["workers"]):
        client.close()
        raise ValueError(f"the Dask cluster has no workers yet; start some with `dask worker {address}`, then this")
    return [DaskWorker(client, plan) for _ in workers]


def _described(plan: Plan) -> tuple[dict[str, Any], dict[str, bytes]]:
    lm = plan.model()
    return describe(lm), tokenizer_files(lm)


def _there(plan: Plan, body: bytes, topic: str, call: str) -> bytes:
    """A call on a worker of Dask, which looks now and then whether it is to stop."""
    from distributed import Event, get_worker

    worker, stopped, stop, ended = get_worker(), Event(call), threading.Event(), threading.Event()
    worker.log_event(topic, {"call": call})

    def watch() -> None:
        while not ended.is_set() and not stop.is_set():
            if stopped.wait(timeout=0.5):
                stop.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        return perform(
            plan.model(), body, stop=stop, report=lambda said: worker.log_event(topic, {"call": call, "said": said})
        )
    finally:
        ended.set()
