"""Memory that glibc keeps for the next request: what it takes to have it used again, and to give it back."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any

import torch

IDLE = 100 << 20
"""Bytes that may be kept for the next grid. More of it lies in pieces between what is used, and each new size of a
matrix adds to them: a notebook of ten grids kept 200 MB."""


@cache
def keep() -> None:
    """Have what layers take and give back used again, instead of fresh pages each time: a tenth of a grid's time.

    glibc gives idle memory back to the system when it is more than twice the largest block that was ever freed, up to
    32 MB; so one of that size is freed here, which was never written to.
    """
    torch.empty((32 << 20) - 8192, dtype=torch.uint8)


def trim() -> None:
    """Give idle memory back to the system: about a millisecond."""
    if (trim := glibc("malloc_trim")) is not None:
        trim(0)


def idle() -> int:
    """Bytes that nothing uses; 0 where the C library does not say."""
    if (look := glibc("mallinfo2")) is None:
        return 0
    look.restype = _Heap
    return int(look().fordblks)


@cache
def glibc(name: str) -> Any:
    """A function of glibc's; None with another C library, or an older glibc."""
    return getattr(ctypes.CDLL(None), name, None) if platform.system() == "Linux" else None


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]
