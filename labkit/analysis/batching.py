"""How much to send up the blocks at once, and what to do when it was too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from labkit.internals.wavefront import Cancelled

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Did this fail for want of memory, on a GPU or on the CPU?"""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def tokens_at_once(lm: LanguageModel) -> int:
    """How many packed tokens to send up the blocks together, from the memory that is free.

    Enough to keep the matrix units busy and few enough that results come every second or so.
    """
    import psutil

    inner = getattr(lm.config, "intermediate_size", None) or 4 * lm.d_model
    width = 8 * lm.d_model + 3 * int(max(inner) if isinstance(inner, list) else inner)
    size = torch.finfo(lm.dtype).bits // 8
    if lm.device.type == "cuda":
        free, most = torch.cuda.mem_get_info(lm.device)[0], 65536
    else:
        free, most = psutil.virtual_memory().available, 4096
    return int(min(most, max(256, 0.4 * free / (width * size))))


def in_chunks(
    waiting: list[list[T]], work: Callable[[list[T]], np.ndarray], *, stopped: Callable[[], bool]
) -> Iterator[tuple[list[T], np.ndarray]]:
    """Do chunk after chunk, and yield each with its values; ends when `stopped()` is true or the work is cancelled.

    A chunk that memory does not hold is halved and tried again.

    Raises:
        RuntimeError: what the work raised, out of memory only where a chunk of one does not fit.
    """
    waiting = list(waiting)
    while waiting and not stopped():
        chunk = waiting.pop(0)
        try:
            values = work(chunk)
        except Cancelled:
            return
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(chunk) == 1:
                raise
            half = len(chunk) // 2
            waiting[:0] = [chunk[:half], chunk[half:]]
            values = None
        if values is None:  # outside of the handler, whose error holds on to what did not fit
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield chunk, values


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
