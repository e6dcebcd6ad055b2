"""Who does the shards: the threads or processes of an executor, or the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch

from labkit.elsewhere import needs_weights
from labkit.models.processors import usable
from labkit.text.warn import warn

P = TypeVar("P")
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Workers:
    """Where shards are sent.

    Attributes:
        executor: what they are submitted to.
        count: how many there are by now.
        threads: how many each process may use; None: as many as it uses by itself.
    """

    executor: Executor
    count: Callable[[], int]
    threads: int | None = None


def workers_of(executor: Any, lm: Any = None) -> Workers | None:
    """The workers of an executor or of a Dask client; None for this thread.

    Raises:
        Elsewhere: workers for `lm`, whose weights are elsewhere.
        TypeError: it is neither.
        ValueError: its processes are forked.
    """
    if executor is None:
        return None
    needs_weights("executor= computes in several places at once", lm, instead="leave it out, the server has its own")
    if type(executor).__module__.split(".")[0] == "distributed":
        if not hasattr(executor, "get_executor"):
            raise TypeError(f"give the Client of the cluster, distributed.Client(...), not {executor!r:.80}")
        if not executor.scheduler_info()["workers"]:
            warn("the Dask cluster has no workers yet; waiting for the first")
        # Dask itself keeps its workers to one thread
        return Workers(executor.get_executor(pure=False), lambda: len(executor.ncores()))
    if not isinstance(executor, Executor):
        raise TypeError(f"executor must be a concurrent.futures.Executor or a distributed.Client; got {executor!r:.80}")
    count = int(getattr(executor, "_max_workers", 1))
    context = getattr(executor, "_mp_context", None)
    if context is None:
        return Workers(executor, lambda: count)
    if context.get_start_method() == "fork":
        raise ValueError(
            "a forked process cannot use a model safely. Create the executor with ProcessPoolExecutor(n, "
            "mp_context=multiprocessing.get_context('spawn'))"
        )
    return Workers(executor, lambda: count, max(1, usable() // count))


def shards_done(
    workers: Workers, work: Callable[[P, T], R], plan: P, todo: Mapping[int, T], *, all_at_once: bool = True
) -> Iterator[tuple[int, R | Exception]]:
    """The shards' numbers with their results, in whichever order they come back.

    For a shard that killed its workers it is an error that says so; any other error is raised.

    Args:
        work: what is done with a shard, on a worker.
        plan: what it needs besides; the same for every shard.
        todo: what each shard is made of.
        all_at_once: submit every shard now. Otherwise two per worker wait, so that few results are in memory.
    """
    rest = iter(todo.items())
    waiting: dict[Future[R], int] = {}  # a future holds its result, so those yielded are not kept

    def submit() -> None:
        room = None if all_at_once else max(0, 2 * max(1, workers.count()) - len(waiting))
        for number, items in islice(rest, room):
            waiting[workers.executor.submit(work, plan, items)] = number

    submit()
    try:
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), _result(future)
            submit()
    finally:
        for future in waiting:
            future.cancel()


def _result(future: Future[Any]) -> Any:
    """The result of a worker, or the error of one that ran out of memory or died."""
    try:
        return future.result()
    except (MemoryError, torch.OutOfMemoryError) as error:
        return RuntimeError(f"{type(error).__name__}: {error}")
    except Exception as error:
        if type(error).__name__ != "KilledWorker":  # distributed's, which may not be installed
            raise
        return RuntimeError(f"the workers that ran it died, perhaps out of memory ({error})")
