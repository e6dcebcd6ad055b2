"""What is in the queue: students, their jobs, the work that these wait for, and what a student may have."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["waiting", "running", "done", "failed", "cancelled"]
REPORTS = 2000  # how many reports of a call are kept for whoever looks later


class Refused(Exception):
    """What a student is told instead of an answer: a sentence, a status of HTTP, after how many seconds to retry."""

    def __init__(self, status: int, sentence: str, *, after: float | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.after = status, sentence, after


@dataclass(frozen=True)
class Limits:
    """What one student may have.

    Attributes:
        jobs: how many may wait or run at a time.
        body: bytes of a call.
        result: bytes of a result.
        seconds: model time of one call.
        per_minute: model seconds within a minute; None for as many as turns allow.
        away: seconds after which a call is dropped whose client does not come back.
        keep_seconds: how long results are kept.
        keep_bytes: of all results together; whoever keeps most loses theirs first.
        held_bytes: of all calls that wait together.
    """

    jobs: int = 8
    body: int = 8 << 20
    result: int = 64 << 20
    seconds: float = 120.0
    per_minute: float | None = None
    away: float = 180.0
    keep_seconds: float = 1800.0
    keep_bytes: int = 512 << 20
    held_bytes: int = 512 << 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"the limit {name} is {value}; it has to be more than 0")

    def late(self) -> str:
        """What is said of work that was stopped for the time it took."""
        return (
            f"the call was stopped after {self.seconds:.0f} s of the model, the limit for one call. Ask for "
            "less: fewer layers, positions or tokens"
        )

    def too_large(self, result: bytes | None) -> Refused | None:
        """What is said instead of a result that is larger than the limit."""
        if result is None or len(result) <= self.result:
            return None
        return Refused(
            413,
            f"the result has {size(len(result))}, and a result may have {size(self.result)}. Read fewer "
            "sites, layers or positions",
        )


@dataclass(eq=False)
class Work:
    """One call to run, for everyone who asked for it."""

    name: str  # what its result is filed under
    body: bytes
    key: str | None
    state: State = "waiting"
    jobs: list[Job] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    began: float | None = None
    ended: float | None = None
    overdue: bool = False
    note: str = ""  # what its clients should know of a result
    charged: str = ""  # the student whose turn it was
    result: bytes | None = None
    error: Refused | None = None
    shared: bool = True  # may others who ask the same have its result?
    reports: deque[tuple[int, dict[str, Any]]] = field(default_factory=lambda: deque(maxlen=REPORTS))
    count: int = 0  # reports so far

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256(self.body).hexdigest()

    @property
    def weight(self) -> int:
        """About how much memory it takes once it has ended."""
        return 2000 + len(self.result or b"") + len(self.body)

    def since(self, number: int) -> list[dict[str, Any]]:
        """The reports after the first `number`."""
        return [said for n, said in self.reports if n > number]


@dataclass(eq=False)
class Job:
    """What one student asked for."""

    id: str
    student: str
    work: Work
    number: int  # in order of arrival
    seen: float  # when its client was last heard of
    kept: bool = False  # is it on disk?
    fetched: float | None = None
    watched: int = 0  # clients that listen now
    cancelled: bool = False
    came: int = 0  # the number of turns that there had been

    @property
    def state(self) -> State:
        return "cancelled" if self.cancelled else self.work.state


@dataclass
class Student:
    name: str
    clock: float = 0.0  # virtual time: model seconds used, never behind those who already wait
    used: float = 0.0  # model seconds in all
    turns: int = 0
    last: int = 0  # the number of their last turn
    longest: int = 0  # turns that one of their jobs waited, at most
    paused: bool = False
    running: int = 0
    waiting: deque[Job] = field(default_factory=deque)
    jobs: OrderedDict[str, Job] = field(default_factory=OrderedDict)  # all that are known, the oldest first
    recent: deque[tuple[float, float]] = field(default_factory=deque)  # (when, model seconds) of the last minute


class Kept:
    """The results that are kept: not too long, and not too many of any one student.

    Args:
        limits: `keep_seconds` and `keep_bytes`.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._works: OrderedDict[str, Work] = OrderedDict()
        self.bytes = 0

    def add(self, work: Work) -> None:
        self._works[work.name] = work
        self.bytes += work.weight

    def remove(self, work: Work) -> bool:
        """Was it there?"""
        if self._works.pop(work.name, None) is None:
            return False
        self.bytes -= work.weight
        return True

    def too_much(self, now: float) -> Work | None:
        """One to forget: it is too old, or there are too many, and it is of whoever keeps most."""
        if not self._works:
            return None
        oldest = next(iter(self._works.values()))
        if now - (oldest.ended or 0) > self.limits.keep_seconds:
            return oldest
        if self.bytes <= self.limits.keep_bytes:
            return None
        by: dict[str, int] = {}
        for work in self._works.values():
            by[work.charged] = by.get(work.charged, 0) + work.weight
        most = max(by, key=lambda name: by[name])
        theirs = [work for work in self._works.values() if work.charged == most]
        return next((work for work in theirs if all(job.fetched for job in work.jobs)), theirs[0])


def size(bytes: int) -> str:
    return f"{bytes / (1 << 20):.1f} MB" if bytes >= 1 << 20 else f"{bytes:,} bytes"
