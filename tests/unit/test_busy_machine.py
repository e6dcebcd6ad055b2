"""Threads by what the machine has free: never more than were asked for, and no faster or slower answers for it."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.models import processors
from labkit.models.processors import _guess, _left, _Look, free, look_again, shared, threads_for, usable
from labkit.widgets.base.job_queue import JobQueue


@pytest.fixture
def two_threads():
    """Two threads, on a machine that has them or not."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def left(monkeypatch, two_threads) -> dict[str, float]:
    """Processors that others leave; the test sets `left["now"]`."""
    now = {"now": 1.0}
    monkeypatch.setattr(processors._machine, "threads", lambda: threads_for(now["now"]))
    return now


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2, reason="needs two processors")
@pytest.mark.alone
def test_with_one_of_two_cores_kept_busy_layers_compute_with_one_thread():
    """Two threads would wait for each other at every layer: a small matmul took four times as long as with one."""
    script = Path(__file__).with_name("one_core_busy.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[2])}
    out = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout.splitlines()[-1])
    for name, (threads, median) in found["busy"].items():
        print(f"{name}: {median / found['quiet'][name][1]:.2f} times as long, {found['quiet'][name][0]} threads before")
        assert threads == [1], name


@pytest.mark.parametrize(
    ("free_now", "threads"), [(2.0, 2), (1.7, 2), (1.5, 1), (1.0, 1), (0.2, 1), (7.4, 7), (-0.3, 1)]
)
def test_a_processor_that_is_half_taken_gets_no_thread(free_now, threads):
    assert threads_for(free_now) == threads


def test_what_others_take_is_all_work_but_ours(monkeypatch):
    monkeypatch.setattr(processors, "_affinity", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(processors, "processor_quota", lambda: None)
    before = _Look(at=10.0, busy=100.0, mine=7.0, running=None)
    assert _left(before, _Look(at=10.5, busy=101.5, mine=8.0, running=None)) == pytest.approx(3.0)
    assert _left(before, _Look(at=10.5, busy=101.0, mine=8.1, running=None)) == 4  # counters are coarse
    monkeypatch.setattr(processors, "processor_quota", lambda: 2.5)
    assert usable() == 2
    assert _left(before, _Look(at=10.5, busy=101.5, mine=8.0, running=None)) == 2
    assert _left(before, _Look(at=10.5, busy=102.5, mine=8.0, running=None)) == pytest.approx(1.0)


def test_at_first_sight_others_that_run_get_at_most_half(monkeypatch):
    monkeypatch.setattr(processors, "_affinity", lambda: set(range(8)))
    monkeypatch.setattr(processors, "processor_quota", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(processors, "_own_running", lambda: 1)
    looks = {running: _guess(_Look(0.0, 0.0, 0.0, running)) for running in (None, 1, 2, 4, 9, 100)}
    assert looks == {None: 8, 1: 8, 2: 7, 4: 5, 9: 4, 100: 4}


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="counters of Linux")
def test_a_program_that_never_pauses_is_seen():
    cpu = min(os.sched_getaffinity(0))
    hog = subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, [{cpu}])\nwhile True: pass"])
    try:
        looks = [free() for _ in range(10)]
    finally:
        hog.kill()
        hog.wait()
    assert sorted(looks)[5] <= usable() - 0.6


def test_a_model_runs_on_the_processors_that_are_left(lm32, left):
    seen = []
    note = {"resid_pre.3": lambda x: (seen.append(torch.get_num_threads()), x)[1]}
    lm32.run(CLEAN, write=note)
    left["now"] = 2.0
    lm32.run(CLEAN, write=note)
    assert seen == [1, 2]
    assert torch.get_num_threads() == 2


def test_a_long_run_follows_what_others_do(lm32, left):
    left["now"] = 2.0
    threads = []

    def on_token(token) -> None:
        threads.append(torch.get_num_threads())
        left["now"] = 1.0 if len(threads) % 2 else 2.0

    lm32.generate(CLEAN, max_new_tokens=4, on_token=on_token)
    assert threads == [2, 1, 2, 1]
    assert torch.get_num_threads() == 2


def test_threads_are_never_more_than_were_set(lm32, left):
    left["now"] = 64.0
    torch.set_num_threads(1)
    with lm32.busy():
        look_again()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1


def test_what_was_set_is_restored_after_an_error_and_after_blocks_in_blocks(lm32, left):
    def fail() -> None:
        with lm32.busy():
            with lm32.busy():
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == 2


def test_what_the_user_sets_meanwhile_stays(lm32, left):
    left["now"] = 2.0
    with lm32.busy():
        torch.set_num_threads(3)
        look_again()
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 3


def test_a_thread_that_starts_meanwhile_has_as_many_as_the_user_set(left):
    """PyTorch gives a new thread the last number that was set anywhere, and it keeps that."""
    seen = []

    def other() -> None:
        with shared():
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    with shared():
        assert torch.get_num_threads() == 1
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [1, 2]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads of Linux")
def test_a_thread_gives_its_team_back(lm32, left):
    """Teams that wait would make those of other threads, as of a notebook beside a widget's, sleep at every step."""
    left["now"], teams = 2.0, []

    def tasks() -> set[str]:
        return set(os.listdir("/proc/self/task"))

    def work(*_) -> None:
        begin = tasks()
        torch.ones(1 << 20).cos()
        teams.append(tasks() - begin)

    def in_a_block() -> None:
        with shared():
            work()
        ended(teams[-1])

    def ended(team: set[str]) -> None:
        assert len(team) == 1
        for _ in range(500):  # a thread that has ended stays in the list for a moment
            if not team & tasks():
                return
            time.sleep(0.01)
        raise AssertionError("the team is still there")

    with ThreadPoolExecutor(1) as one:
        one.submit(in_a_block).result()
        one.submit(in_a_block).result()
    jobs = JobQueue(lm32, background=True)  # of a widget
    jobs.ask(work)
    jobs.wait()
    ended(teams[-1])


def test_the_number_of_threads_changes_rounding_and_nothing_else(lm32, left):
    grids = []
    for now in (1.0, 2.0):
        left["now"] = now
        grids.append(lk.patch(lm32, CLEAN, CORRUPT, " Mary", " John", site="z", progress=False))
    assert abs(grids[0].values - grids[1].values).max() < 1e-4
