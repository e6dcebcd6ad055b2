"""How many tokens to send up the blocks at once, and what to do if memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch

from labkit.engine.wavefront import Cancelled
from labkit.models import unpacked_layers as fast
from labkit.models.memory import available

if TYPE_CHECKING:
    from labkit.models.handle import Model

T = TypeVar("T")
R = TypeVar("R")
_SAYS = (
    "out of memory", "can't allocate memory", "alloc_failed", "cannot allocate memory", "std::bad_alloc",
    "could not create a primitive",  # oneDNN, whatever the reason
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Did this run out of memory, on a GPU or on the CPU?"""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAYS)


def free_memory(device: torch.device) -> int:
    """Bytes that a pass can still use on a device; on a GPU also those that PyTorch keeps for reuse."""
    if device.type != "cuda":
        return available(device)
    return available(device) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def tokens_at_once(lm: Model) -> int:
    """How many packed tokens to send up the blocks together, from the memory that is free where they go through.

    Enough to keep the matrix units busy and few enough that results come every second or so. On a GPU that is as many
    as take 2.5 GB, whatever is free: more would not go faster, and the same grid then runs on a smaller card.
    """
    inner = getattr(lm.config, "intermediate_size", None) or 4 * lm.d_model
    width = 8 * lm.d_model + 3 * int(max(inner) if isinstance(inner, list) else inner)
    devices = lm.devices
    room = 0.4 * min(free_memory(device) for device in devices)
    most = 2048  # more do not fit the caches of a CPU between two layers
    if any(device.type == "cuda" for device in devices):
        room, most = min(room, 2.5e9), 65536
    return int(min(most, max(256, room / (width * lm.dtype.itemsize))))


def in_chunks(
    waiting: list[list[T]], work: Callable[[list[T]], R], *, stopped: Callable[[], bool]
) -> Iterator[tuple[list[T], R]]:
    """Do chunk after chunk, and yield each with its result; ends when `stopped()` is true or the work is cancelled.

    A chunk that does not fit in memory is halved, as are all later ones, and tried again.

    Raises:
        RuntimeError: what the work raised; out of memory only if a chunk of one item does not fit.
    """
    waiting = list(waiting)
    while waiting and not stopped():
        chunk = waiting.pop(0)
        try:
            values = work(chunk)
        except Cancelled:
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(chunk) == 1:
                raise
        else:
            yield chunk, values
            continue
        give_back()  # outside of the handler, whose error holds on to what did not fit
        waiting = [part for whole in (chunk, *waiting) for part in halves(whole)]


def chunked(order: list[T], tokens: Callable[[T], int], *, budget: int) -> list[list[T]]:
    """Items in their order, in chunks of about `budget` tokens."""
    chunks: list[list[T]] = []
    filled = 0
    for item in order:
        if not chunks or filled + tokens(item) > budget:
            chunks.append([])
            filled = 0
        chunks[-1].append(item)
        filled += tokens(item)
    return chunks


def halves(chunk: list[T]) -> list[list[T]]:
    """A chunk that was too large, as two; one item stays one."""
    half = len(chunk) // 2
    return [chunk[:half], chunk[half:]] if half else [chunk]


def give_back() -> None:
    """Release memory that is cached for speed only, after a pass that ran out."""
    fast.give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
