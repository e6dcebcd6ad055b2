"""Whose turn it is: a fair queue of calls to one model.

Students take turns; the next is the one who has used the least model time since they joined those who wait (start-time
fair queueing: Goyal, Vin and Cheng 1996), so whoever floods the queue waits behind themselves. Equal calls are one
piece of work, done once for all who ask. Nothing here knows of HTTP, files or models.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from labkit.server.jobs import Job, Kept, Limits, Refused, Student, Work, size

LEAST = 0.001  # model seconds that any turn costs, so that turns alternate even when work takes no time
KNOWN = 1000  # jobs of a student that are known, ended ones included
GONE = 10_000  # ids of which it is still known why they are gone


class Turns:
    """The queue of one model. All methods may be called from any thread.

    Args:
        limits: what a student may have.
        clock: seconds.
        changed: called with the jobs about which there is something new, and no lock to wait for.
        forgotten: called with a job that is no longer known, and with work whose result is no longer kept.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[list[Job]], None] = lambda jobs: None,
        forgotten: Callable[[Job | Work], None] = lambda what: None,
    ) -> None:
        self.limits, self.clock = limits or Limits(), clock
        self.changed, self.forgotten = changed, forgotten
        self.students: dict[str, Student] = {}
        self.jobs: dict[str, Job] = {}
        self.done = 0  # pieces of work run to their end
        self._by_key: dict[str, Work] = {}
        self._running: list[Work] = []
        self._gone: OrderedDict[str, tuple[str, str]] = OrderedDict()  # id: (student, why)
        self._kept = Kept(self.limits)
        self._virtual = 0.0
        self._number, self._turn = 0, 0  # of jobs, of turns
        self._closed = False
        self._lock = threading.Condition(threading.RLock())

    # -- asking ----------------------------------------------------------------------------------------------------

    def answer(self, key: str | None) -> bytes | None:
        """The result of an equal call, if one is still kept."""
        with self._lock:
            work = self._by_key.get(key) if key else None
            return work.result if work is not None and work.state == "done" else None

    def submit(
        self,
        student: str,
        body: bytes,
        *,
        id: str,
        key: str | None = None,
        keep: Callable[[Job], None] | None = None,
        again: Work | None = None,
        number: int = 0,
    ) -> Job:
        """Ask for a call. The same id gives the same job; `keep` writes an accepted one down before it can run.

        With `again`, its work, and its `number`, it was accepted before a restart, and no limit refuses it.

        Raises:
            Refused: a limit of this student, or the server's own, is reached.
        """
        with self._lock:
            if (old := self.jobs.get(id)) is not None:
                if old.student != student:
                    raise Refused(404, "there is no such job")
                old.seen = self.clock()
                return old
            if (why := self.why_gone(student, id)) is not None:
                raise Refused(410, why)
            person = self._student(student)
            work = again or (self._by_key.get(key) if key else None)
            if again is None:
                self._check(person, body, new=work is None)
            if work is None:
                work = Work(id, body, key)
            self._number = max(self._number + 1, number)
            job = Job(id, student, work, self._number, self.clock(), kept=again is not None, came=self._turn)
            if keep is not None:
                keep(job)
                job.kept = True
            if key and work.shared:
                self._by_key.setdefault(key, work)
            self.jobs[id] = person.jobs[id] = job
            if len(person.jobs) > KNOWN:
                self._let_go(next(old for old in person.jobs.values() if old.work.ended is not None))
            work.jobs.append(job)
            if work.state == "waiting":
                if not person.waiting and not person.running:
                    person.clock = max(person.clock, self._virtual)
                person.waiting.append(job)
                self._lock.notify_all()
            return job

    def _check(self, person: Student, body: bytes, *, new: bool) -> None:
        limits = self.limits
        if len(body) > limits.body:
            raise Refused(413, f"a call may have {size(limits.body)}, and this one has {size(len(body))}")
        mine = sum(job.student == person.name for work in self._running for job in work.jobs)
        if len(person.waiting) + mine >= limits.jobs:
            raise Refused(
                429, f"you have {limits.jobs} calls waiting or running, which is the limit; wait for one", after=2
            )
        if limits.per_minute is not None and (used := self._last_minute(person)) >= limits.per_minute:
            after = max(1.0, 60 - (self.clock() - person.recent[0][0]))
            raise Refused(
                429,
                f"you used {used:.0f} s of the model in the last minute; the limit is {limits.per_minute:.0f} s. "
                f"Try again in {after:.0f} s",
                after=after,
            )
        if new and sum(len(work.body) for work in self._waiting()) + len(body) > limits.held_bytes:
            raise Refused(503, "the server holds as many calls as it can; try again in a minute", after=60)

    def _last_minute(self, person: Student) -> float:
        while person.recent and person.recent[0][0] <= self.clock() - 60:
            person.recent.popleft()
        return sum(seconds for _, seconds in person.recent)

    def _student(self, name: str) -> Student:
        return self.students.setdefault(name, Student(name))

    def _waiting(self) -> list[Work]:
        found = {id(job.work): job.work for person in self.students.values() for job in person.waiting}
        return list(found.values())

    # -- running ---------------------------------------------------------------------------------------------------

    def next(self, timeout: float | None = None) -> Work | None:
        """The work whose turn it is, which is running from now on; None when none comes in time or at the end."""
        with self._lock:
            if not self._lock.wait_for(lambda: self._closed or self._order(), timeout) or self._closed:
                return None
            person = self._order()[0]
            work = person.waiting[0].work
            self._virtual = person.clock
            person.running += 1
            person.turns += 1
            self._turn += 1
            person.last = self._turn
            work.state, work.began, work.charged = "running", self.clock(), person.name
            self._running.append(work)
            self._leave(work)
            self._tell_all()
            return work

    def _order(self) -> list[Student]:
        """The students who may have a turn, the next one first."""
        able = [person for person in self.students.values() if person.waiting and not person.paused]
        return sorted(able, key=lambda person: (person.running, person.clock, person.last, person.waiting[0].number))

    def _leave(self, work: Work) -> None:
        """Its jobs no longer wait."""
        for job in work.jobs:
            person = self.students[job.student]
            if job in person.waiting:
                person.waiting.remove(job)
                person.longest = max(person.longest, self._turn - job.came - 1)

    def report(self, work: Work, said: dict[str, Any]) -> None:
        """Something about running work for those who wait for it; of progress only the last is kept."""
        with self._lock:
            work.count += 1
            if work.reports and "done" in said and work.reports[-1][1].keys() == said.keys():
                work.reports.pop()
            work.reports.append((work.count, said))
            told = list(work.jobs)
        self.changed(told)

    def finish(
        self, work: Work, *, result: bytes | None = None, error: Refused | None = None, shared: bool = True
    ) -> None:
        """Running work has ended, with a result or an error. One that is not `shared` is for those who wait for it."""
        with self._lock:
            if work not in self._running:
                return
            self._running.remove(work)
            work.ended = self.clock()
            seconds = work.ended - (work.ended if work.began is None else work.began)
            person = self._student(work.charged)
            person.running -= 1
            person.clock += max(seconds, LEAST)
            person.used += seconds
            person.recent.append((work.ended, seconds))
            work.error = error or self.limits.too_large(result)
            work.result = None if work.error else result
            work.state = "failed" if work.error else "done"
            work.note = self.limits.late() if work.overdue else ""
            work.body = b""
            self.done += 1
            if work.state == "failed" or not shared or work.stop.is_set():  # what was stopped is a part of an answer
                self._unshare(work)
            if work.jobs:
                self._put_by(work)
            self._tell_all()
            self._lock.notify_all()
            told = list(work.jobs)
        self.changed(told)

    def again(self, work: Work) -> None:
        """Put running work back to the front, as when its worker died through no fault of its own."""
        with self._lock:
            if work not in self._running:
                return
            self._running.remove(work)
            self.students[work.charged].running -= 1
            work.state, work.began = "waiting", None
            work.reports.clear()
            for job in work.jobs:
                self.students[job.student].waiting.appendleft(job)
            self._lock.notify_all()
            self.report(work, {"again": True})

    def restored(self, job: Job, *, result: bytes | None = None, error: Refused | None = None) -> None:
        """What a job of before a restart had come to."""
        with self._lock:
            self._leave(job.work)
            job.work.result, job.work.error = result, error
            job.work.state, job.work.ended = "failed" if error else "done", self.clock()
            if error is not None or not job.work.shared:
                self._unshare(job.work)
            self._put_by(job.work)

    # -- looking ---------------------------------------------------------------------------------------------------

    def find(self, student: str, id: str) -> Job | None:
        """A student's own job, whose client was heard of just now."""
        with self._lock:
            job = self.jobs.get(id)
            if job is None or job.student != student:
                return None
            job.seen = self.clock()
            return job

    def why_gone(self, student: str, id: str) -> str | None:
        """Why a student's job is not known any more; None where there was none."""
        whose, why = self._gone.get(id, ("", ""))
        return why if whose == student else None

    def keep(self, job: Job, keep: Callable[[Job], None]) -> None:
        """Write a job down that was accepted without, unless it has ended."""
        with self._lock:
            if not job.kept and job.work.ended is None and job.id in self.jobs:
                keep(job)
                job.kept = True

    def ahead(self, job: Job) -> int:
        """About how many pieces of work come before a waiting job: those that run and, in turn, those of others."""
        with self._lock:
            me = self.students[job.student]
            if job not in me.waiting:
                return 0
            place = me.waiting.index(job)
            rank = lambda person: (person.running, person.clock, person.last)  # noqa: E731
            others = (p for p in self.students.values() if p is not me and p.waiting and not p.paused)
            turns = (min(len(other.waiting), place + (rank(other) <= rank(me))) for other in others)
            return len(self._running) + place + sum(turns)

    def unfinished(self) -> list[Job]:
        with self._lock:
            return [job for job in self.jobs.values() if job.work.ended is None]

    def running(self) -> list[Work]:
        with self._lock:
            return list(self._running)

    def everyone(self) -> Iterator[Student]:
        with self._lock:
            yield from sorted(self.students.values(), key=lambda person: person.name)

    # -- ending ----------------------------------------------------------------------------------------------------

    def fetched(self, job: Job) -> None:
        """Its client has the result; it is kept a minute longer, should the answer have been lost on its way."""
        with self._lock:
            job.fetched = job.fetched or self.clock()

    def cancel(self, job: Job, *, why: str = "the call was cancelled") -> None:
        """A waiting job leaves the queue; running work is stopped once nobody wants it any more."""
        with self._lock:
            if job.cancelled or job.id not in self.jobs:
                return
            job.cancelled = True
            work, person = job.work, self.students[job.student]
            work.jobs.remove(job)
            if job in person.waiting:
                person.waiting.remove(job)
            if not work.jobs:
                work.stop.set()
                if work.state != "done":
                    self._unshare(work)
            self._forget(job, why)
            self._tell_all()
        self.changed([job])

    def stop(self, job: Job) -> None:
        """End a job soon, with what is done by then; one that waits, or that others wait for as well, is cancelled."""
        with self._lock:
            if job.state == "running" and job.work.jobs == [job]:
                self._unshare(job.work)
                job.work.stop.set()
            elif job.state in ("waiting", "running"):
                self.cancel(job, why="the call was stopped before there was anything to keep")

    def pause(self, student: str, paused: bool = True) -> None:
        """A paused student's calls wait until they may go on; one that runs is finished."""
        with self._lock:
            self._student(student).paused = paused
            self._lock.notify_all()

    def tick(self) -> None:
        """Stop what runs too long, drop what nobody will fetch, forget what was kept long enough. Call it often."""
        now = self.clock()
        with self._lock:
            for work in self._running:
                if work.began is not None and now - work.began > self.limits.seconds:
                    work.overdue = True
                    work.stop.set()
            jobs = list(self.jobs.values())
            gone = [j for j in jobs if j.work.ended is None and not j.watched and now - j.seen > self.limits.away]
            for job in gone:
                self.cancel(job, why="the call was dropped: its client was not heard of for too long")
            for job in jobs:
                if job.fetched is not None and now - job.fetched > 60 and job.id in self.jobs:
                    self._let_go(job)
            self._trim()
        if gone:
            self.changed(gone)

    def _let_go(self, job: Job) -> None:
        job.work.jobs.remove(job)
        self._forget(job, "its result is no longer kept; ask again")

    def _forget(self, job: Job, why: str) -> None:
        self._gone[job.id] = job.student, why
        if len(self._gone) > GONE:
            self._gone.popitem(last=False)
        self.jobs.pop(job.id, None)
        self.students[job.student].jobs.pop(job.id, None)
        self.forgotten(job)
        if not job.work.jobs and not job.work.key:
            self._drop(job.work)

    def _unshare(self, work: Work) -> None:
        work.shared = False
        if work.key and self._by_key.get(work.key) is work:
            del self._by_key[work.key]

    def _put_by(self, work: Work) -> None:
        self._kept.add(work)
        self._trim()

    def _trim(self) -> None:
        while (work := self._kept.too_much(self.clock())) is not None:
            self._drop(work)

    def _drop(self, work: Work) -> None:
        if self._kept.remove(work):
            self._unshare(work)
            for job in list(work.jobs):
                self._let_go(job)
            self.forgotten(work)

    def _tell_all(self) -> None:
        """How many are ahead has changed for all who wait."""
        self.changed([job for person in self.students.values() for job in person.waiting])

    def close(self) -> None:
        """No more turns; what runs is asked to stop."""
        with self._lock:
            self._closed = True
            for work in self._running:
                work.stop.set()
            self._lock.notify_all()
