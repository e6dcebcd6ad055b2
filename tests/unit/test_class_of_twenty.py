"""A class on one shared model: all finish, whatever four others do, and a server that is killed goes on."""

from __future__ import annotations

import json
import pickle
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import student
import torch
from serving import ROOT, Serving, until

import labkit as lk
from labkit.remote.http import HttpTransport
from labkit.remote.model import RemoteModel
from labkit.remote.wire import MAGIC, pack

SMALL = str(ROOT / "tests/files/small_llama")
JOBS = 8  # calls that a student may have waiting or running

pytestmark = pytest.mark.long


class Recorder(HttpTransport):
    """A connection that keeps what would be sent."""

    def call(self, body: bytes, **how: Any) -> bytes:
        self.bodies = [*getattr(self, "bodies", []), body]
        raise InterruptedError


def bodies(serving: Serving, name: str, pairs: list[lk.PromptPair]) -> list[bytes]:
    """The calls of grids, as a client sends them."""
    lm = RemoteModel(Recorder(serving.url, serving.tokens[name]))
    for pair in pairs:
        with pytest.raises(InterruptedError):
            lk.patch(lm, *pair, progress=False)
    sent: list[bytes] = lm.transport.bodies
    return sent


def message(tree: Any, rest: bytes | None = None) -> bytes:
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return MAGIC + len(text).to_bytes(8, "little") + text + (pack(None)[len(MAGIC) + 12 :] if rest is None else rest)


def called(name: Any, *args: Any, **more: Any) -> dict[str, Any]:
    """The tree of a call."""
    parts = {"call": name, "args": list(args), "kwargs": {"dict": []}, "streams": False, "within": []} | more
    return {"dict": [[key, value] for key, value in parts.items()]}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("somebody-was-here"),)


def garbage(good: bytes) -> dict[str, bytes]:
    """What is no call, by name; `good` is one."""
    weights = (1 << 40).to_bytes(8, "little") + b'{"0":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    return {
        "nothing": b"",
        "a pickle": pickle.dumps(Evil()),
        "a pickle in a message": message(None, pickle.dumps(Evil())),
        "bad JSON": message(b'{"dict": [[1, '),
        "a call that was cut": good[:-3],
        "a call that was cut early": good[:40],
        "a huge length": MAGIC + b"\xff" * 8 + b"{}",
        "bad safetensors": message(called("activations.run.run"), weights),
        "deep lists": message(b"[" * 100_000),
        "no call at all": pack([torch.ones(3)]),
        "a call of nothing": message(called("os.system", "touch somebody-was-here")),
        "a call by a list": message(called(["activations.run.run"])),
        "a kind that is none": message(called("activations.run.run", {"Popen": {"args": "touch somebody-was-here"}})),
        "a result as an argument": message(called("activations.run.run", {"Run": {}})),
        "more than a call": message({"dict": [*called("activations.run.run")["dict"], ["shell", True]]}),
    }


@contextmanager
def silence(serving: Serving, name: str) -> Iterator[None]:
    """Half a request, half a header, a body that never comes, and no HTTP at all; then nothing more."""
    token = f"Host: x\r\nAuthorization: Bearer {serving.tokens[name]}\r\n"
    said = (
        "POST /v1/calls HTT",
        f"POST /v1/calls HTTP/1.1\r\n{token}Content-Le",
        f"POST /v1/calls HTTP/1.1\r\n{token}Content-Length: 1000\r\n\r\nlabkit1\n",
        f"POST /v1/calls HTTP/1.1\r\n{token}Transfer-Encoding: chunked\r\n\r\nffffff\r\nx",
        "\x16\x03\x01\x02\x00\x01\x00",
        "",
    )
    with ExitStack() as open:
        for some in said * 3:
            one = open.enter_context(socket.create_connection(("127.0.0.1", int(serving.port))))
            one.sendall(some.encode("latin-1"))
        yield


def raw(serving: Serving, text: str) -> bytes:
    """The first line of the answer to bytes on a connection."""
    with socket.create_connection(("127.0.0.1", int(serving.port)), timeout=60) as one:
        one.sendall(text.encode("latin-1"))
        return one.recv(100).partition(b"\r\n")[0]


def send_garbage(serving: Serving, name: str, good: bytes) -> None:
    """All of it is refused in words, and none of it takes a turn."""
    with serving.of(name) as web:
        for what, body in garbage(good).items():
            for path in ("/v1/calls?wait=1", "/v1/jobs"):
                refused = web.post(path, content=body)
                assert (refused.status_code, len(refused.json()["error"]) > 20) == (400, True), (what, refused.text)
        for path in ("/", "/v1", "/v1/jobs/../../etc/passwd", "/v1/jobs/%2e%2e%2fqueue.json", "/v1/tokenizer/..%2f..",
                     "/v1/jobs/" + "f" * 64, "/v1/jobs/" + "x" * 8000):  # fmt: skip
            assert web.get(path).status_code == 404, path
        for path in ("/v1/calls?wait=never", "/v1/calls?wait=1e99"):
            assert web.post(path, content=good).status_code == 400
        assert web.post("/v1/jobs", content=bytes(9 << 20)).status_code == 413
        assert web.post("/teacher/stop", data={"work": "0" * 64}).status_code == 401
    head = f"POST /v1/calls HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {serving.tokens[name]}\r\n"
    assert b" 413 " in raw(serving, f"{head}Content-Length: 99999999999999\r\n\r\n")
    for wrong in (f"{head}Content-Length: -1\r\n\r\n", f"{head}X: {'x' * 100_000}\r\n\r\n", "\x00\xff\r\n\r\n"):
        assert b" 400 " in raw(serving, wrong)


def flood(serving: Serving, name: str, calls: list[bytes], enough: threading.Event) -> tuple[int, Counter[str]]:
    """As many calls as one can send: how many were accepted, and what was said of the others."""
    accepted, said, sent = 0, Counter[str](), 0
    with serving.of(name) as web:
        while (sent < 300 or not enough.wait(0.02)) and accepted < len(calls):
            answer = web.post("/v1/jobs", content=calls[accepted])
            sent += 1
            accepted += answer.status_code == 202
            if answer.status_code != 202:
                said[f"{answer.status_code} {answer.json()['error']}"] += 1
    return accepted, said


def started(serving: Serving, name: str, number: int, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, student.__file__, serving.url, serving.tokens[name], str(number), *more]
    return subprocess.Popen(command)


@pytest.mark.parametrize(
    ("many", "model"),
    [
        pytest.param(5, [SMALL, "--bits", "32"], id="a few on a tiny model"),
        pytest.param(20, ["--bits", "4"], id="twenty on the default model"),
    ],
)
def test_a_class_finishes_its_exercise_whatever_four_others_do(
    tmp_path: Path, many: int, model: list[str], request: pytest.FixtureRequest
) -> None:
    here = lk.load(SMALL, bits=32, device="cpu", progress=False) if many < 20 else request.getfixturevalue("lm4")
    pairs = student.pairs(here)
    with Serving(tmp_path, many + 3, model) as serving, ThreadPoolExecutor(many + 1) as pool:
        *honest, flooding, hostile, dying = serving.students
        own = started(serving, honest[0], 0, str(tmp_path / "found.npz")) if many >= 20 else None
        killed = started(serving, dying, many)
        calls = bodies(serving, flooding, pairs[many + 60 :])
        near = honest[1:] if own else honest
        rooms = [lk.connect(serving.url, token=serving.tokens[name]) for name in near]
        enough, begin = threading.Event(), threading.Event()
        flooded = pool.submit(flood, serving, flooding, calls, enough)

        def one(room: lk.LanguageModel, pair: lk.PromptPair) -> tuple[dict[str, Any], float, int]:
            assert begin.wait(300)
            since = time.perf_counter()
            numbers = student.exercise(room, pair)
            return numbers, time.perf_counter() - since, serving.page()[1][2]

        parts = [pool.submit(one, room, pair) for room, pair in zip(rooms, pairs[many - len(near) : many], strict=True)]
        until(lambda: (row := serving.page()[0].get(dying)) and row.now in ("runs", "waits"))
        first = serving.page()[1][2]
        begin.set()
        killed.kill()
        with silence(serving, hostile):
            send_garbage(serving, hostile, calls[-1])
            with pytest.raises(ValueError, match="this token is not known here"):
                lk.connect(serving.url, token=serving.tokens[honest[0]][:-1] + "!")
            found = [part.result(600) for part in parts]
            assert own is None or own.wait(600) == 0
        enough.set()
        accepted, said = flooded.result(600)
        end, (_, _, done) = until(lambda: (now := serving.page())[1][:2] == (0, 0) and now)
    # All have the numbers that they would have alone.
    there = [dict(np.load(tmp_path / "found.npz"))] if own else []
    there += [numbers for numbers, _, _ in found]
    wrong = [n for n, numbers in enumerate(there) if not student.same(student.exercise(here, pairs[n]), numbers)]
    assert not wrong
    # What ran is what honest students asked for, what the flooding one was allowed, and what the dead one had begun.
    assert {name: end[name].turns for name in honest} == dict.fromkeys(honest, student.CALLS)
    assert end[flooding].turns == accepted
    assert hostile not in end
    assert done == sum(row.turns for row in end.values())
    assert set(end) == {*honest, flooding, dying}
    # Whoever floods is told which limit that is. What the queue gives them meanwhile goes by model seconds, which here
    # depend on the machine: test_turns.py has it by a clock of its own.
    assert all(one.startswith(f"429 you have {JOBS} calls waiting or running, which is the limit") for one in said)
    assert said.total() > accepted
    waits = sorted(end[name].longest for name in honest)
    ended = sorted(turn - first for _, _, turn in found)  # in turns of all
    print(f"turns that a call waited at most: {waits}; ended after {ended}")
    print(f"seconds: {sorted(round(one[1], 1) for one in found)}; refused {said.total()}, accepted {accepted}")
    if many >= 20:  # the model is never idle then
        assert ended[-1] <= 3 * statistics.median(ended)


def test_a_server_that_is_killed_goes_on_where_it_was(tmp_path: Path, lm4: lk.LanguageModel) -> None:
    many, queue = 8, tmp_path / "queue"
    pairs = student.pairs(lm4)[:many]
    with ThreadPoolExecutor(many) as pool:
        with Serving(tmp_path, many, ["--bits", "4"]) as serving:
            rooms = [lk.connect(serving.url, token=serving.tokens[name]) for name in serving.students]
            parts = [pool.submit(lambda room, pair: lk.patch(room, *pair, progress=False).values, *both)
                     for both in zip(rooms, pairs, strict=True)]  # fmt: skip
            until(lambda: sum(1 for _ in (queue / "jobs").iterdir()) + serving.page()[1][2] >= many)
            serving.kill()
        kept, done = ({path.name for path in (queue / where).iterdir()} for where in ("jobs", "results"))
        running = list((queue / "running").iterdir())
        assert len(kept - done) >= 3
        assert len(running) == 1
        with serving:  # the same folder, and the same address
            found = [part.result(600) for part in parts]
            rows, now = serving.page()
            again = f"{len(kept)} calls of before the restart are in the queue again"
            assert again in serving.said.read_text()
    here = [lk.patch(lm4, *pair, progress=False).values for pair in pairs]
    assert all((a == b).all() for a, b in zip(here, found, strict=True))
    assert now == (0, 0, len(kept - done))  # each once more or for the first time, and what was done is not done again
    assert all(row.turns <= 1 for row in rows.values())
