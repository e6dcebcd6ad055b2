"""How many threads a model computes with: as many as there are free processors.

The threads of a matmul wait for the slowest among them. If one has to share its processor with another program, all of
them wait, and two threads can be ten times slower than one. So while a model runs, PyTorch gets at most as many threads
as there are processors that this process may use (by affinity, by the quota of its container) and that others leave
free. The load of others is measured every fifth of a second, from counters that the system keeps anyway, without
sleeping. There are never more threads than were set with `torch.set_num_threads`, which is restored afterwards.

Threads that sleep while waiting (`OMP_WAIT_POLICY=passive`) would also help on a busy machine, but cost a fifth of the
speed on a quiet one. With no more threads than free processors they gain nothing, so labkit leaves that setting alone.

Each thread of Python in which PyTorch has computed keeps a team of its own. With more threads in all teams than
processors, GNU's OpenMP lets those that wait sleep almost at once, and a pass in small steps takes twice as long: in a
notebook with a widget, which computes in a thread of its own, from then on. So the team is given back when a block
ends; to form the next one takes 0.2 ms.

The number of threads changes the order in which sums are rounded, and nothing else.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch

from labkit.models.container import processor_quota

LOOK = 0.2  # seconds over which the use of processors is measured
STALE = 2.0  # seconds after which what was measured says nothing about now
PAUSE_HARD = 2  # of OpenMP 5.0; the threads of this thread's team end
ENOUGH = 0.6  # of a processor: with less of one left, a thread more costs others in the team more than it gains


def usable() -> int:
    """Processors that this process may use: by affinity, and by the quota of its container in whole processors."""
    quota = processor_quota()
    mine = len(_affinity()) or os.cpu_count() or 1
    return mine if quota is None else max(1, min(mine, int(quota)))


def free() -> float:
    """Processors that this process may use and that are free now, measured over a fifth of a second."""
    begin = _Look.now()
    time.sleep(LOOK)
    return _left(begin, _Look.now())


def threads_for(left: float) -> int:
    """How many threads to use with this many free processors; at least one."""
    return max(1, int(left + 1 - ENOUGH))


@contextmanager
def shared() -> Iterator[None]:
    """PyTorch computes with as many threads as there are free processors, in this thread and for as long as the block
    runs; blocks may be nested."""
    outermost = not _here.depth
    if outermost:
        _here.most = _asked()
        _look_again()
    _here.depth += 1
    try:
        yield
    finally:
        _here.depth -= 1
        if outermost:
            if _here.set is not None and torch.get_num_threads() == _here.set:  # nobody else has set it since
                torch.set_num_threads(_here.most)
            _here.set = None
            _lowered.pop(threading.get_ident(), None)
            give_back()


def give_back() -> None:
    """End the threads of this thread's team, as after a block."""
    for runtime in _openmp():
        runtime.omp_pause_resource_all(PAUSE_HARD)


def look_again() -> None:
    """Adapt to the load of others during a long run; only checks the clock if it is too early."""
    if _here.depth:
        _look_again()


class _Here(threading.local):
    """What PyTorch keeps by thread as well."""

    depth = 0
    known = False
    most = 1  # threads outside of the outermost block
    set: int | None = None  # what that block has set


_here = _Here()
_lowered: dict[int, int] = {}  # by thread in such a block: how many threads it has outside of it


@cache
def _openmp() -> list[ctypes.CDLL]:
    """GNU's OpenMP, each copy that is loaded; none elsewhere than on Linux, or where LLVM's goes by its name."""
    try:
        with open("/proc/self/maps") as file:
            paths = {line.split(maxsplit=5)[-1].strip() for line in file if "libgomp" in line}
    except OSError:
        return []
    found = [ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD) for path in sorted(paths) if os.path.exists(path)]
    return [one for one in found if hasattr(one, "omp_pause_resource_all") and not hasattr(one, "kmp_set_blocktime")]


def _asked() -> int:
    """The threads that PyTorch has in this thread, as the user set them."""
    now = torch.get_num_threads()
    if _here.known:
        return now
    _here.known = True  # a new thread takes over the last number that was set, which may be one of ours
    most = max([now, *_lowered.values()])
    if most > now:
        torch.set_num_threads(most)
    return most


def _look_again() -> None:
    if _here.most == 1:
        return
    now, threads = torch.get_num_threads(), min(_here.most, _machine.threads())
    if now != threads and now in (_here.most, _here.set):  # nobody else has set it since
        _here.set = threads
        _lowered[threading.get_ident()] = _here.most
        torch.set_num_threads(threads)


@dataclass
class _Look:
    """Counters of the system at one moment."""

    at: float  # seconds
    busy: float  # seconds for which the processors that this process may use have worked
    mine: float  # seconds of them that were this process's
    running: int | None  # programs that run or wait for a processor now, anywhere

    @classmethod
    def now(cls) -> _Look:
        mine = time.process_time()
        busy, running = _counters()
        return cls(time.perf_counter(), busy, mine, running)


@dataclass
class _Machine:
    """The last look, and what came of it."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    last: _Look | None = None
    left: float = 1.0

    def threads(self) -> int:
        """How many threads there are free processors for; at least one."""
        with self.guard:
            since = time.perf_counter() - self.last.at if self.last else STALE
            if since >= LOOK:
                look = _Look.now()
                self.left = _guess(look) if self.last is None or since >= STALE else _left(self.last, look)
                self.last = look
            return threads_for(self.left)


_machine = _Machine()


def _left(before: _Look, now: _Look) -> float:
    """Processors that others left free between two looks."""
    seconds = max(now.at - before.at, 1e-3)
    others = max(0.0, now.busy - before.busy - (now.mine - before.mine)) / seconds
    return min(usable(), len(_affinity() or range(os.cpu_count() or 1)) - others)


def _guess(look: _Look) -> float:
    """The same from one look: others that run at this moment keep their processors, down to half of all.

    Half, so that programs that all leave to others what they have come to share evenly.
    """
    mine = len(_affinity()) or os.cpu_count() or 1
    if look.running is None or look.running <= 1 or mine < (os.cpu_count() or 1):
        return usable()
    return min(usable(), max(mine / 2, mine - (look.running - _own_running())))


def _affinity() -> set[int]:
    """The processors that this process may be run on; empty where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _counters() -> tuple[float, int | None]:
    """Seconds of work of the processors that this process may use, and how many programs run or wait to."""
    try:
        with open("/proc/stat") as file:
            lines = [line.split() for line in file]
    except OSError:
        import psutil

        return sum(sum(cpu) - cpu.idle for cpu in psutil.cpu_times(percpu=True)), None
    tick, mine = os.sysconf("SC_CLK_TCK"), {f"cpu{number}" for number in _affinity()}
    rows = [line for line in lines if line[0] in mine] or [line for line in lines if line[0] == "cpu"]
    # user, nice, system, idle, iowait, irq, softirq, steal; what runs at low priority makes way for this process
    columns = [1, 3, 6, 7, 8] if os.getpriority(os.PRIO_PROCESS, 0) <= 0 else [1, 2, 3, 6, 7, 8]
    busy = sum(int(row[column]) for row in rows for column in columns if column < len(row))
    running = next((int(line[1]) for line in lines if line[0] == "procs_running"), None)
    return busy / tick, running


def _own_running() -> int:
    """Threads of this process that run or wait for a processor."""
    count = 0
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/stat") as file:
                count += file.read().rpartition(")")[2].split()[0] == "R"
        except OSError:  # it has ended
            continue
    return max(1, count)
