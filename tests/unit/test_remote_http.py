"""A client of `labkit serve` gets its answers whatever happens on the way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from shared_room import TOKENS, Room, Small, until

from labkit.remote.http import DEAF, HttpTransport


class Proxy:
    """Lets no WebSocket through, the first so many."""

    def __init__(self, refuses: int) -> None:
        self.refuses, self.asked = refuses, 0

    def __call__(self, app: Any) -> Any:
        async def around(scope: Any, receive: Any, send: Any) -> None:
            self.asked += scope["type"] == "websocket"
            if scope["type"] == "websocket" and self.asked <= self.refuses:
                await send({"type": "websocket.close"})
            else:
                await app(scope, receive, send)

        return around


@pytest.mark.parametrize(("refuses", "asked"), [(1, 2), (100, DEAF)])
def test_a_client_gets_its_answers_with_and_without_sockets(tmp_path: Path, refuses: int, asked: int) -> None:
    worker, proxy = Small(), Proxy(refuses)
    with Room(tmp_path, worker, around=proxy) as room, ThreadPoolExecutor() as pool:
        transport = HttpTransport(room.url, TOKENS["ann"])
        for n in range(2):  # one refusal is not the end of sockets
            worker.go.clear()
            said: list[dict[str, Any]] = []
            call = pool.submit(transport.call, b"wait %d" % n, report=said.append)
            until(lambda: bool(said) and proxy.asked >= asked, worker)  # noqa: B023
            assert not call.done()
            worker.go.set()
            assert call.result() == b"answer to wait %d" % n
            assert {"done": 1, "total": 2} in said
        assert (proxy.asked > asked) == (refuses == 1)
        assert transport.call(b"quick", report=said.append) == b"answer to quick"


def test_an_interrupt_brings_what_is_done(room: Room, worker: Small) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(HttpTransport(room.url, TOKENS["ann"]).call, b"wait", report=lambda said: None, stop=stop)
        assert worker.began.acquire(timeout=60)
        stop.set()
        assert call.result() == b"a part of wait"


def test_what_a_call_streams_comes_once_though_it_runs_twice(room: Room, worker: Small) -> None:
    worker.deaths = 1
    said: list[dict[str, Any]] = []
    with ThreadPoolExecutor() as pool:
        call = pool.submit(HttpTransport(room.url, TOKENS["ann"]).call, b"die slowly", report=said.append)
        until(lambda: any("partial" in one for one in said), worker)
        worker.go.set()
        assert call.result() == b"answer to die slowly"
    assert worker.ran == [b"die slowly"] * 2
    assert sum("partial" in one for one in said) == 1


@pytest.mark.parametrize("same", [True, False], ids=["same folder", "another folder"])
def test_a_client_does_not_notice_a_restart(tmp_path: Path, worker: Small, same: bool) -> None:
    with ThreadPoolExecutor() as pool:
        (tmp_path / "other").mkdir()
        with Room(tmp_path, worker) as room:
            call = pool.submit(HttpTransport(room.url, TOKENS["ann"]).call, b"wait", report=lambda said: None)
            assert worker.began.acquire(timeout=60)
            until(lambda: any(job.kept for job in room.desk.turns.unfinished()), worker)
        second = Small()
        second.go.set()
        with Room(tmp_path if same else tmp_path / "other", second, port=room.port) as room:
            assert call.result() == b"answer to wait"
            assert room.desk.restored == same
    assert second.ran == [b"wait"]


def test_a_call_that_its_teacher_stopped_is_not_sent_again(room: Room, worker: Small) -> None:
    with ThreadPoolExecutor() as pool:
        call = pool.submit(HttpTransport(room.url, TOKENS["ann"]).call, b"wait", report=lambda said: None)
        assert worker.began.acquire(timeout=60)
        [job] = room.desk.turns.unfinished()
        room.desk.turns.cancel(job, why="the teacher stopped this call")
        with pytest.raises(Exception, match="the teacher stopped this call"):
            call.result()
    assert worker.ran == [b"wait"]
