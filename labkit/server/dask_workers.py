"""Workers on a Dask cluster, which load the model when they first need it."""

from __future__ import annotations

import threading
import uuid
from typing import Any

from labkit.remote.calls import describe, perform, tokenizer_files
from labkit.server.desk import WorkerDied
from labkit.server.workers import POLL, Report
from labkit.shards.executors import workers_of
from labkit.shards.workers import Plan


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

    def described(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """What the model is, and the files of its tokenizer, from one of the workers."""
        return self._submit(_described, self.plan).result()

    def perform(self, body: bytes, *, stop: threading.Event, report: Report) -> bytes:
        """Run a call on whichever worker is free.

        Raises:
            WorkerDied: those that ran it died.
        """
        from distributed import Event

        topic = f"labkit-{uuid.uuid4().hex}"
        stopped, asked = Event(topic, client=self.client), False
        self.client.subscribe_topic(topic, lambda event: report(event[1]))
        try:
            future = self._submit(_there, self.plan, body, topic)
            while True:
                try:
                    return future.result(POLL)
                except TimeoutError:
                    if stop.is_set() and not asked:
                        stopped.set()
                        asked = True
        except Exception as error:
            if type(error).__name__ != "KilledWorker":
                raise
            raise WorkerDied("the workers that ran it died, perhaps out of memory") from None
        finally:
            self.client.unsubscribe_topic(topic)

    def close(self) -> None:
        """The cluster stays as it is."""


def _described(plan: Plan) -> tuple[dict[str, Any], dict[str, bytes]]:
    lm = plan.model()
    return describe(lm), tokenizer_files(lm)


def _there(plan: Plan, body: bytes, topic: str) -> bytes:
    """A call on a worker of Dask, which looks now and then whether it is to stop."""
    from distributed import Event, get_worker

    worker, stopped, stop, ended = get_worker(), Event(topic), threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.is_set() and not stop.is_set():
            if stopped.wait(timeout=0.5):
                stop.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        return perform(plan.model(), body, stop=stop, report=lambda said: worker.log_event(topic, said))
    finally:
        ended.set()
