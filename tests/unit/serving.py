"""A real `labkit serve` in a process of its own, which can be killed and begun again, and what its teacher sees."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from labkit.server.tokens import make_tokens

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"<tr><td>([\w-]+)<td>(\S+?)" + r'<td class="n">([\d.]*)' * 5)


def until(true: Callable[[], Any]) -> Any:
    """What is true at last."""
    for _ in range(6000):
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came about")


class Row(NamedTuple):
    """A student on the teacher's page."""

    now: str
    waiting: int
    turns: int
    longest: int  # turns that one of their calls waited, at most


class Serving:
    """A server with a class.

    Args:
        folder: for its tokens, its queue, and what it says.
        students: how many there are.
        model: what to serve, with its options.
    """

    def __init__(self, folder: Path, students: int, model: Sequence[str]) -> None:
        self.folder, self.model, self.port = folder, model, "0"
        self.file = make_tokens(folder / "class.txt", students)
        words = [line.split() for line in self.file.read_text().splitlines() if not line.startswith("#")]
        self.tokens = {word[0]: word[1] for word in words}
        self.students = [name for name in self.tokens if name != "teacher"]
        self.said, self.url = folder / "said.txt", ""

    def __enter__(self) -> Serving:
        command = [sys.executable, "-m", "labkit.cli", "serve", *self.model, "--tokens", str(self.file)]
        command += ["--port", self.port, "--keep", str(self.folder / "queue")]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        with self.said.open("w") as said:
            self.process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        while not (found := re.search(r"The teacher's page: (\S+:(\d+))/teacher", self.said.read_text())):
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.05)
        self.url, self.port = found[1], found[2]
        self.web = httpx.Client(base_url=self.url, timeout=60)
        while True:
            try:
                assert self.web.post("/teacher/login", data={"token": self.tokens["teacher"]}).status_code == 303
                return self
            except httpx.TransportError:
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self.web.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)

    def kill(self) -> None:
        """As a power cut does."""
        self.process.kill()
        self.process.wait(60)

    def of(self, name: str) -> httpx.Client:
        """The connection of a student who has no labkit."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.tokens[name]}"}, timeout=60)

    def page(self) -> tuple[dict[str, Row], tuple[int, int, int]]:
        """The students by name, and how many calls run, wait and are done."""
        text = self.web.get("/teacher").text
        now = re.search(r"(\d+) running, (\d+) waiting, (\d+) done", text)
        assert now, text
        rows = {name: Row(state, int(waiting or 0), int(turns), int(longest))
                for name, state, waiting, _, _, turns, longest in ROW.findall(text)}  # fmt: skip
        return rows, (int(now[1]), int(now[2]), int(now[3]))
