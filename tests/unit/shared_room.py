"""A real `labkit serve` on a free port, in a thread, whose worker needs no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from labkit.server.app import build
from labkit.server.command import configured, listening
from labkit.server.desk import Desk, Worker, WorkerDied
from labkit.server.jobs import Limits
from labkit.server.store import Store
from labkit.server.tokens import Door, TokenFile

TOKENS = {name: f"{name}-{'0123456789' * 2}" for name in ("ann", "bob", "teacher")}
ODD = "<script>alert('&')</script>"


class Small:
    """Answers at once; to `wait` when the test lets it go, or with a part when it is stopped.

    Args:
        deaths: how often it dies of a call `die`.
    """

    def __init__(self, *, deaths: int = 99) -> None:
        self.go, self.began, self.deaths = threading.Event(), threading.Semaphore(0), deaths
        self.ran: list[bytes] = []

    def perform(self, body: bytes, *, stop: threading.Event, report: Callable[[dict[str, Any]], None]) -> bytes:
        self.ran.append(body)
        report({"done": 1, "total": 2})
        self.began.release()
        if body.startswith(b"die slowly"):
            report({"partial": "cGFydA==", "text": "part"})
            assert self.go.wait(60)
        if body.startswith(b"die") and self.ran.count(body) <= self.deaths:
            raise WorkerDied("out of memory")
        while body.startswith(b"wait") and not self.go.wait(0.01):
            if stop.is_set():
                return b"a part of " + body
        if body.startswith(b"large"):
            return bytes(5000)
        return (b"error: " if b"error" in body else b"answer to ") + body

    def close(self) -> None:
        self.go.set()


def until(true: Callable[[], bool], worker: Small) -> None:
    """Wait until something is true; whoever waits for the worker is let go where it never is."""
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    worker.go.set()
    raise AssertionError("it never came about")


def key(body: bytes) -> str | None:
    if body.startswith(b"garbage"):
        raise ValueError("it is garbage")
    return body.hex() if body.startswith(b"same") else None


class Room:
    """A server with a class of two, and its teacher.

    Args:
        folder: for its tokens and its queue.
        worker: of its desk.
        port: 0 for a free one.
        base: what everything is under.
        door: who may come in, instead of the class.
        around: what stands between the network and the application, as a proxy does.
    """

    def __init__(
        self,
        folder: Path,
        worker: Worker,
        *,
        port: int = 0,
        base: str = "",
        around: Callable[[Any], Any] = lambda app: app,
        door: Door | None = None,
        **limits: Any,
    ) -> None:
        self.tokens = folder / "class.txt"
        if not self.tokens.exists():
            lines = [f"{name} {token}" for name, token in TOKENS.items()]
            self.tokens.write_text("\n".join([*lines[:-1], f"{lines[-1]} teacher", f"{ODD} {'x' * 20}"]))
            self.tokens.chmod(0o600)
        self.desk = Desk(
            [worker],
            about={"name": "small <model>"},
            files={"tokenizer.json": b"{}"},
            key=key,
            failed=lambda answer: answer.startswith(b"error"),
            limits=Limits(**limits),
            store=Store(folder / "queue", model="small"),
        )
        self.bound = listening("127.0.0.1", port)
        self.port = self.bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}{base}"
        self.server = configured(around(build(self.desk, door or TokenFile(self.tokens), base=base)))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]}, daemon=True)

    def __enter__(self) -> Room:
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()

    def of(self, name: str = "ann", **headers: str) -> httpx.Client:
        """The connection of a student."""
        token = {"Authorization": f"Bearer {TOKENS[name]}"} if name else {}
        return httpx.Client(base_url=self.url, headers=token | headers, timeout=60, verify=False)


def ask(room: Room, body: bytes, name: str = "ann", *, once: str | None = None) -> str:
    """The id of a call that a student put into the queue."""
    headers = {"Idempotency-Key": once} if once else {}
    with room.of(name, **headers) as client:
        answer = client.post("/v1/jobs", content=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def answer(room: Room, id: str, name: str = "ann") -> Any:
    """What comes of it at last."""
    with room.of(name) as client:
        while (found := client.get(f"/v1/jobs/{id}", params={"wait": 30})).status_code == 202:
            pass
    return found
