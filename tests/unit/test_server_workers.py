"""The workers of `labkit serve`: a process with the model, and a Dask cluster; and what happens when one dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from next_room import NextRoom
from serving import ROOT, Serving, until

import labkit as lk
from labkit.remote.calls import failed, key, perform
from labkit.remote.model import RemoteModel
from labkit.remote.wire import unpack
from labkit.server import workers
from labkit.server.dask_workers import places
from labkit.server.desk import Desk, WorkerDied
from labkit.server.jobs import Job
from labkit.server.workers import ProcessWorker, plan_of

SMALL = str(ROOT / "tests/files/small_llama")
TEXT = "After Susan and William sat down in the museum, William handed a box to"
CORRUPT = "After Susan and William sat down in the museum, Susan handed a box to"
PAIR = (TEXT, CORRUPT, " Susan", " William")
MANY = 12  # prompts to continue in one call: long enough to be interrupted

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are killed as on Linux")


@pytest.fixture(scope="module")
def here() -> lk.LanguageModel:
    return lk.load(SMALL, bits=32, device="cpu", progress=False)


@pytest.fixture(scope="module")
def calls(here: lk.LanguageModel) -> Callable[[int], list[bytes]]:
    """So many long calls, as a client sends them."""

    def made(many: int) -> list[bytes]:
        away = RemoteModel(room := NextRoom(here))
        for n in range(many):
            away.generate([f"{n} {TEXT}"] * MANY, max_new_tokens=60, on_token=lambda _: None)
        return room.calls

    return made


def texts(answer: bytes | None, lm: lk.LanguageModel) -> list[str]:
    assert answer is not None
    return [one.text for one in unpack(answer, lm=lm)["result"]]


def alone(lm: lk.LanguageModel, body: bytes) -> list[str]:
    return texts(perform(lm, body, stop=threading.Event(), report=lambda said: None), lm)


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessWorker]:
    worker = ProcessWorker(plan_of(SMALL, bits=32, threads=1))
    worker.ready()
    yield worker
    worker.close()


@pytest.fixture
def desk(process: ProcessWorker) -> Iterator[Desk]:
    desk = Desk([process], about={}, files={}, key=key, failed=failed)
    close, process.close = process.close, lambda: None  # type: ignore[method-assign]
    desk.start()
    yield desk
    desk.close()
    process.close = close  # type: ignore[method-assign]


def reports(job: Job) -> list[str]:
    return [name for said in job.work.since(0) for name in said]


def test_a_call_whose_process_is_killed_is_done_by_the_next_one(
    desk: Desk, process: ProcessWorker, here: lk.LanguageModel, calls: Callable[[int], list[bytes]]
) -> None:
    first, second = (desk.submit(name, body, once="1", keep=False)
                     for name, body in zip(("ann", "bob"), calls(2), strict=True))  # fmt: skip
    bodies = first.work.body, second.work.body
    until(lambda: "partial" in reports(first))
    os.kill(process._process.pid or 0, signal.SIGKILL)
    until(lambda: first.work.ended and second.work.ended)
    assert "again" in reports(first)
    assert [texts(job.work.result, here) for job in (first, second)] == [alone(here, body) for body in bodies]


def test_a_call_that_ends_its_process_twice_is_refused_and_the_others_go_on(
    desk: Desk, process: ProcessWorker, here: lk.LanguageModel, calls: Callable[[int], list[bytes]]
) -> None:
    deadly, other = calls(2)
    killed, waits = desk.submit("eve", deadly, once="2", keep=False), desk.submit("ann", other, once="2", keep=False)
    for _ in range(2):
        until(lambda: killed.state == "running" and "partial" in reports(killed))
        pid = process._process.pid
        os.kill(pid or 0, signal.SIGKILL)
        until(lambda pid=pid: process._process.pid != pid)
    until(lambda: killed.work.ended and waits.work.ended)
    assert "ended its worker twice" in str(killed.work.error)
    assert texts(waits.work.result, here) == alone(here, other)


def test_a_process_that_does_not_stop_is_ended(
    process: ProcessWorker, calls: Callable[[int], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "GRACE", 0.5)
    stop, pid = threading.Event(), process._process.pid or 0

    def report(said: dict[str, Any]) -> None:
        os.kill(pid, signal.SIGSTOP)  # as one that hangs
        stop.set()

    with pytest.raises(WorkerDied, match="did not stop"):
        process.perform(calls(1)[0], stop=stop, report=report)
    assert process._process.pid != pid


# -- Dask ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_scheduler_that_is_not_there_is_refused_in_words() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(ValueError, match="no scheduler of Dask answers at nowhere:1"):
        places("nowhere:1", plan_of(SMALL, bits=32))


@pytest.mark.long
def test_a_class_is_served_by_two_workers_of_dask_of_which_one_is_killed(
    tmp_path: Path, here: lk.LanguageModel
) -> None:
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        dask = ["--bits", "32", "--dask", cluster.scheduler_address]
        with Serving(tmp_path, 3, [SMALL, *dask]) as serving, ThreadPoolExecutor(3) as pool:
            ann, bob, eve = (lk.connect(serving.url, token=serving.tokens[name]) for name in serving.students)
            pids, came = client.run(os.getpid), threading.Event()
            long = pool.submit(ann.generate, [TEXT] * MANY, max_new_tokens=60, on_token=lambda _: came.set())
            assert came.wait(120)
            ((there, _),) = [(where, tasks) for where, tasks in client.processing().items() if tasks]
            others = pool.submit(lambda: lk.patch(bob, *PAIR, progress=False).values)
            os.kill(pids[there], signal.SIGKILL)
            grids = [others.result(300), lk.patch(eve, *PAIR, site="z", progress=False).values]
            written = [one.text for one in long.result(300)]
            rows, (_, _, done) = serving.page()
            assert serving.process.poll() is None
    assert written == [here.generate(TEXT, max_new_tokens=60).text] * MANY
    for site, grid in zip(("resid_pre", "z"), grids, strict=True):
        assert np.array_equal(lk.patch(here, *PAIR, site=site, progress=False).values, grid, equal_nan=True)
    assert (done, [row.turns for row in rows.values()]) == (3, [1, 1, 1])
