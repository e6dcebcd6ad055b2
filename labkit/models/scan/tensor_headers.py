"""Headers of safetensors files: do they say the truth about the file?

A file begins with the length of its header (8 bytes), then the header, JSON that gives each tensor's dtype, shape and
place among the bytes that follow. These places have to cover those bytes without a gap and without overlap, and fit
dtype and shape; the safetensors library demands the same. No import of torch: a scan answers sooner without it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from labkit.models.scan.rules import inert

LONGEST = 100_000_000
"""Bytes of a header; the safetensors library reads no longer one."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64, "C128": 128, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class Lies(Exception):
    """A header that does not fit its file; the message says how."""


def parse(text: bytes) -> dict[str, Any]:
    """The entries of a header by the names of their tensors, without `__metadata__`.

    Raises:
        Lies: it is not what a header is.
    """
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise Lies("its header is nested without end") from None
    except ValueError as error:
        raise Lies(f"its header cannot be read: {inert(error)}") from None
    if not isinstance(entries, dict):
        raise Lies("its header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Lies("its __metadata__ is not text by name")
    return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise Lies(f"its header has '{inert(twice)}' twice")
    return held


def check(entries: dict[str, Any], room: int) -> list[str]:
    """Compare a header with the `room` bytes that follow it.

    Returns:
        The names of tensors whose dtype is unknown, so that their size was not checked.

    Raises:
        Lies: they do not fit.
    """
    places, unknown = [], []
    for name, entry in entries.items():
        begin, end, shape, dtype = _entry(name, entry)
        if end > room:
            raise Lies(f"{inert(name)} lies at bytes {begin:,} to {end:,} of {room:,}")
        if dtype not in BITS:
            unknown.append(name)
        elif (bits := math.prod(shape) * BITS[dtype]) != 8 * (end - begin):
            raise Lies(
                f"{inert(name)} of shape {inert(shape)} in {dtype} takes {bits // 8:,} bytes, not {end - begin:,}"
            )
        places.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(places):
        if begin != reached:
            what = "overlaps the tensor before it" if begin < reached else "leaves a gap before it"
            raise Lies(f"{inert(name)} {what}: it begins at byte {begin:,}, not {reached:,}")
        reached = end
    if reached != room:
        raise Lies(f"its tensors end at byte {reached:,} of {room:,}; what follows belongs to none")
    return unknown


def _entry(name: str, entry: Any) -> tuple[int, int, list[int], str]:
    """What a header says of one tensor: begin, end, shape, dtype."""
    fits = isinstance(entry, dict) and {"dtype", "shape", "data_offsets"} <= entry.keys()
    numbers = lambda held: isinstance(held, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in held)  # noqa: E731
    if not fits or not isinstance(entry["dtype"], str) or not numbers(entry["shape"]):
        raise Lies(f"its header says of {inert(name)} no dtype and shape")
    places = entry["data_offsets"]
    if not numbers(places) or len(places) != 2 or places[0] > places[1]:
        raise Lies(f"its header says of {inert(name)} that it lies at {inert(places)}")
    return places[0], places[1], entry["shape"], entry["dtype"]


def lengths(first: bytes, size: int) -> int:
    """The length of the header from a file's first 8 bytes and its size.

    Raises:
        Lies: there is no room for it.
    """
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or not 2 <= length <= size - 8:
        raise Lies(f"its header should have {length:,} bytes, and the file has {size:,}")
    if length > LONGEST:
        raise Lies(f"its header has {length:,} bytes; no reader takes more than {LONGEST:,}")
    return length


def twice(files: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """(tensor, file, other file) for every tensor that two files hold."""
    holder: dict[str, str] = {}
    for file, entries in files.items():
        for name in entries:
            if (other := holder.setdefault(name, file)) != file:
                yield name, file, other
