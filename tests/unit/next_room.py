"""A server in the next thread: what goes over the wire does, and nothing else."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import labkit as lk
from labkit.remote.calls import describe, perform, tokenizer_files

SMALL = Path(__file__).parents[1] / "files" / "small_llama"
CLEAN = "After Susan and William sat down in the museum, William handed a box to"
CORRUPT = "After Susan and William sat down in the museum, Susan handed a box to"
PAIR = (CLEAN, CORRUPT, " Susan", " William")


class NextRoom:
    """Bytes to a thread and back, with what happened on the way."""

    def __init__(self, lm: lk.LanguageModel) -> None:
        self.lm = lm
        self.calls: list[bytes] = []
        self.reports: list[dict[str, Any]] = []
        self.on_report: Callable[[dict[str, Any]], None] = self.reports.append

    def describe(self) -> dict[str, Any]:
        return json.loads(json.dumps(describe(self.lm)))

    def tokenizer_files(self) -> dict[str, bytes]:
        return tokenizer_files(self.lm)

    def call(
        self, body: bytes, *, report: Callable[[dict[str, Any]], None], stop: threading.Event | None = None
    ) -> bytes:
        self.calls.append(body)
        stop = stop or threading.Event()
        coming: queue.SimpleQueue[Any] = queue.SimpleQueue()

        taken = threading.Event()

        def tell(told: dict[str, Any]) -> None:
            taken.clear()
            coming.put(json.dumps(told))
            taken.wait()  # so that what a test does at a report happens at that point of the work

        def work() -> None:
            coming.put(perform(self.lm, body, stop=stop, report=tell))

        threading.Thread(target=work, daemon=True).start()
        while True:
            try:
                told = coming.get()
                if isinstance(told, bytes):
                    return told
                report(json.loads(told))
                self.on_report(json.loads(told))
            except KeyboardInterrupt:
                stop.set()
            finally:
                taken.set()
