"""Workers: processes that hold the model and run calls.

A process of its own, so that a call that takes all memory, or ends its process, leaves the queue and everybody else's
calls alone. Between it and the server go frames over a pipe, one line of JSON and then bytes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from typing import Any

from labkit.remote.calls import describe, perform, tokenizer_files
from labkit.server.desk import WorkerDied
from labkit.shards.workers import Plan, plan_for

Report = Callable[[dict[str, Any]], None]
GRACE = 20.0  # seconds that a call has to end after it was asked to
POLL = 0.05


class ProcessWorker:
    """A process with the model, and another one where it died.

    Args:
        plan: which model.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.about: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self._closed = self._ready = False
        self._pipe, self._process = self._begun()

    def ready(self) -> None:
        """Wait until it has the model.

        Raises:
            ValueError: it cannot be loaded; the message says why.
        """
        while not self._ready:
            try:
                said, data = _taken(self._pipe)
            except (EOFError, OSError):
                raise WorkerDied("its process ended while it loaded the model") from None
            if "failed" in said:
                raise ValueError(said["failed"])
            if "file" in said:
                self.files[said["file"]] = data
            else:
                self.about, self._ready = said["about"], True

    def perform(self, body: bytes, *, stop: threading.Event, report: Report) -> bytes:
        """Run a call there.

        Raises:
            WorkerDied: the process ended, or did not stop when it was asked to.
        """
        try:
            self.ready()
            _give(self._pipe, {"call": True}, body)
            asked = 0.0
            while True:
                if self._pipe.poll(POLL):
                    said, data = _taken(self._pipe)
                    if "done" in said:
                        return data
                    report(said["report"])
                if stop.is_set():
                    if not asked:
                        _give(self._pipe, {"stop": True})
                    asked += POLL
                    if asked > GRACE:
                        raise WorkerDied(f"it did not stop within {GRACE:.0f} s")
        except (EOFError, OSError):
            self._again()
            raise WorkerDied("its process ended, perhaps out of memory") from None
        except WorkerDied:
            self._again()
            raise

    def close(self) -> None:
        """End it, whatever it does."""
        self._closed = True
        self._process.kill()
        self._process.join(5)
        with suppress(OSError):
            self._pipe.close()

    def _begun(self) -> tuple[Connection, SpawnProcess]:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.plan), daemon=True, name="labkit worker")
        process.start()
        theirs.close()
        return pipe, process

    def _again(self) -> None:
        if not self._closed:
            self._process.kill()
            self._process.join(5)
            self._pipe.close()
            self._ready = False
            self._pipe, self._process = self._begun()


def _work(pipe: Connection, plan: Plan) -> None:
    """What the process does: it loads the model, and runs calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the pipe
    sending = threading.Lock()

    def give(said: dict[str, Any], data: bytes = b"") -> None:
        with sending:
            _give(pipe, said, data)

    try:
        lm = plan.model()
        for name, data in tokenizer_files(lm).items():
            give({"file": name}, data)
        give({"about": describe(lm)})
    except Exception as error:
        give({"failed": str(error) or type(error).__name__})
        return
    calls: SimpleQueue[tuple[bytes, threading.Event]] = SimpleQueue()

    def listen() -> None:
        stop = threading.Event()
        try:
            while True:
                said, data = _taken(pipe)
                if "stop" in said:
                    stop.set()
                else:
                    stop = threading.Event()
                    calls.put((data, stop))
        except (EOFError, OSError):
            os._exit(0)  # the server is gone, and nobody waits for what runs here

    threading.Thread(target=listen, daemon=True).start()
    while True:
        body, stop = calls.get()
        give({"done": True}, perform(lm, body, stop=stop, report=lambda said: give({"report": said})))


def _give(pipe: Connection, said: dict[str, Any], data: bytes = b"") -> None:
    pipe.send_bytes(json.dumps(said).encode() + b"\n" + data)


def _taken(pipe: Connection) -> tuple[dict[str, Any], bytes]:
    said, _, data = pipe.recv_bytes().partition(b"\n")
    return json.loads(said), data


def plan_of(name: str | None, *, bits: int | None, threads: int | None = None) -> Plan:
    """Which model workers load, and how many threads each uses; by default as many as are free."""
    return plan_for({"name": name, "bits": bits}, {}, call="serve", threads=threads)
