"""The queue of a shared model is fair, and says no in words."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.server.jobs import Limits, Refused, Work
from labkit.server.turns import Turns


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def a_turn(turns: Turns, clock: Clock, seconds: float = 1.0) -> Work:
    work = turns.next(0)
    assert work is not None
    clock.now += seconds
    turns.finish(work, result=b"r")
    return work


def test_whoever_floods_the_queue_waits_behind_themselves(clock: Clock) -> None:
    turns = Turns(Limits(jobs=50), clock=clock)
    for n in range(50):
        turns.submit("flood", b"f%d" % n, id=f"f{n}")
    for n in range(3):
        turns.submit("ann", b"a%d" % n, id=f"a{n}")
    order = [a_turn(turns, clock).charged for _ in range(8)]
    assert order.count("ann") == 3
    assert order.index("ann") <= 1
    assert set(order[6:]) == {"flood"}


def test_short_calls_get_more_turns_than_long_ones(clock: Clock) -> None:
    turns = Turns(clock=clock)
    for n in range(6):
        turns.submit("long", b"l%d" % n, id=f"l{n}")
        turns.submit("short", b"s%d" % n, id=f"s{n}")
    order = []
    for _ in range(8):
        work = turns.next(0)
        assert work is not None
        clock.now += 5 if work.charged == "long" else 1
        turns.finish(work, result=b"")
        order.append(work.charged)
    assert order.count("short") == 6


def test_whoever_comes_late_has_no_time_saved_up(clock: Clock) -> None:
    turns = Turns(clock=clock)
    for n in range(8):
        turns.submit("early", b"e%d" % n, id=f"e{n}")
    for _ in range(4):
        a_turn(turns, clock)
    for n in range(4):
        turns.submit("late", b"l%d" % n, id=f"l{n}")
    assert [a_turn(turns, clock).charged for _ in range(6)].count("early") == 3


def test_with_calls_of_equal_length_a_flood_gets_one_turn_more_than_a_class_and_nobody_waits_longer(
    clock: Clock,
) -> None:
    turns, names = Turns(Limits(jobs=300), clock=clock), [f"s{n}" for n in range(20)]
    for n in range(300):
        turns.submit("flood", b"f%d" % n, id=f"f{n}")
    for call in range(3):
        for name in names:
            turns.submit(name, f"{name} {call}".encode(), id=f"{name} {call}")
        while any(turns.students[name].waiting for name in names):
            a_turn(turns, clock)
    assert turns.students["flood"].turns <= 3 + 1
    assert max(turns.students[name].longest for name in names) <= 20


@pytest.mark.parametrize("seed", range(20))
def test_while_a_call_waits_a_flood_gets_no_more_than_its_student_had_before_and_one_call(
    clock: Clock, seed: int
) -> None:
    """In model seconds, however long calls take and whenever they come; in turns there is no such bound."""
    rng = np.random.default_rng(seed)
    turns, calls = Turns(Limits(jobs=300), clock=clock), 3
    for n in range(300):
        turns.submit("flood", b"f%d" % n, id=f"f{n}")
    comes = {f"s{n}": float(rng.exponential(5)) for n in range(20)}  # when a student asks next
    before = dict.fromkeys(comes, 0.0)  # what their call before took
    asked = dict.fromkeys(comes, 0)
    waits: dict[str, list[float]] = {}  # what the flood has got while a student's call waits
    most = 0
    while comes or waits:
        for name in [name for name, when in comes.items() if when <= clock.now]:
            del comes[name]
            turns.submit(name, f"{name} {asked[name]}".encode(), id=f"{name} {asked[name]}")
            asked[name] += 1
            waits[name] = []
        seconds = float(10 ** rng.uniform(-2, 1))  # a thousandfold: small reads, grids, and a busy machine
        who = a_turn(turns, clock, seconds).charged
        if who == "flood":
            for flood in waits.values():
                flood.append(seconds)
            continue
        flood = waits.pop(who)
        assert sum(flood[:-1]) <= before[who] + 1e-9
        most, before[who] = max(most, len(flood)), seconds
        if asked[who] < calls:
            comes[who] = clock.now + float(rng.exponential(0.5))
    assert most > 1  # or the bound says nothing


def test_the_same_call_of_thirty_students_is_done_once(clock: Clock) -> None:
    turns = Turns(clock=clock)
    jobs = [turns.submit(f"s{n}", b"same", id=f"j{n}", key="k") for n in range(30)]
    a_turn(turns, clock)
    assert turns.next(0) is None
    assert {job.work.result for job in jobs} == {b"r"}
    assert turns.answer("k") == b"r"


def test_one_who_cancels_leaves_the_others_their_answer(clock: Clock) -> None:
    turns = Turns(clock=clock)
    first, second = (turns.submit(name, b"same", id=name, key="k") for name in ("ann", "bob"))
    work = turns.next(0)
    assert work is not None
    turns.cancel(first)
    assert not work.stop.is_set()
    turns.cancel(second)
    assert work.stop.is_set()
    with pytest.raises(Refused, match="cancelled") as refused:
        turns.submit("ann", b"same", id="ann", key="k")  # sent again, it is not run again
    assert refused.value.status == 410


def test_limits_are_refused_with_a_sentence(clock: Clock) -> None:
    turns = Turns(Limits(jobs=2, body=4, per_minute=10), clock=clock)
    with pytest.raises(Refused, match="may have 4 bytes") as refused:
        turns.submit("ann", b"12345", id="0")
    assert refused.value.status == 413
    turns.submit("ann", b"1", id="1")
    turns.submit("ann", b"2", id="2")
    with pytest.raises(Refused, match="2 calls waiting or running") as refused:
        turns.submit("ann", b"3", id="3")
    assert refused.value.status == 429
    turns.submit("bob", b"3", id="4")  # nobody else is refused
    a_turn(turns, clock, 12)
    with pytest.raises(Refused, match="12 s of the model in the last minute"):
        turns.submit("ann", b"5", id="5")
    clock.now += 61
    turns.submit("ann", b"5", id="5")


def test_a_call_that_takes_too_long_is_stopped_and_its_part_is_shared_with_nobody(clock: Clock) -> None:
    turns = Turns(Limits(seconds=5), clock=clock)
    job = turns.submit("ann", b"1", id="1", key="k")
    work = turns.next(0)
    assert work is not None
    clock.now += 6
    turns.tick()
    assert work.stop.is_set()
    turns.finish(work, result=b"part")
    assert job.work.result == b"part"
    assert "after 5 s" in job.work.note
    assert turns.answer("k") is None


def test_a_call_whose_client_is_gone_is_dropped(clock: Clock) -> None:
    turns = Turns(Limits(away=10), clock=clock)
    turns.submit("gone", b"1", id="1")
    turns.submit("here", b"2", id="2")
    clock.now += 11
    assert turns.find("here", "2") is not None
    turns.tick()
    assert a_turn(turns, clock).charged == "here"
    assert turns.next(0) is None


def test_whoever_keeps_most_results_loses_theirs_first(clock: Clock) -> None:
    turns = Turns(Limits(jobs=50, keep_bytes=10 * 2002), clock=clock)
    mine = turns.submit("ann", b"a", id="a")
    for n in range(20):
        turns.submit("flood", b"%d" % n, id=f"{n}")
    for _ in range(21):
        a_turn(turns, clock)
    assert turns.find("ann", "a") is mine
    assert turns.find("flood", "0") is None
    assert "no longer kept" in str(turns.why_gone("flood", "0"))


def test_a_student_sees_only_their_own_jobs_and_a_paused_one_waits(clock: Clock) -> None:
    turns = Turns(clock=clock)
    turns.submit("ann", b"1", id="1")
    assert turns.find("bob", "1") is None
    turns.pause("ann")
    assert turns.next(0) is None
    turns.pause("ann", False)
    assert a_turn(turns, clock).charged == "ann"
