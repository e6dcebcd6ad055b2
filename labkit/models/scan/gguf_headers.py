"""Headers of GGUF files: counts, lengths, shapes and places that the file has room for.

Readers of GGUF take counts and lengths from the file and allocate or loop by them, so a false one hangs them or worse
(CVE-2024-21802 and its kin in llama.cpp). Here each is compared with what is left of the file before it is used. Only
strings that matter (the chat template, the licence, the architecture) are kept. The format: the GGUF specification of
ggml, versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from labkit.models.scan.places import Bounded
from labkit.models.scan.rules import inert
from labkit.models.scan.tensor_headers import Lies

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_KEPT = 1 << 20  # bytes of a string that is kept; longer ones are passed over
_MOST = 10_000_000  # entries of anything
LARGEST = {
    "block_count": 10_000, "embedding_length": 10_000_000, "feed_forward_length": 100_000_000,
    "expert_count": 1_000_000, "attention.head_count": 1_000_000, "vocab_size": 100_000_000,
}  # fmt: skip
"""What no model comes near, by the last part of a key."""


@dataclass
class Header:
    """What a GGUF header says.

    Attributes:
        values: numbers and texts by key; arrays are left out.
        tensors: (shape, type, offset) by name.
        absurd: keys whose number is beyond every model.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int, int]] = field(default_factory=dict)
    absurd: list[str] = field(default_factory=list)


class _Reader:
    """Reads numbers and strings, never more than is left of the file."""

    def __init__(self, stream: Bounded, size: int, order: str) -> None:
        self.stream, self.left, self.order = stream, size, order

    def take(self, size: int, what: str) -> bytes:
        self.room(size, what)
        data = self.stream.read(size)
        if len(data) != size:
            raise Lies(f"it ends inside {what}")
        self.left -= size
        return data

    def skip(self, size: int, what: str) -> None:
        self.room(size, what)
        self.stream.seek(size, 1)
        self.left -= size

    def room(self, size: int, what: str) -> None:
        if size > self.left:
            raise Lies(f"{what} takes {size:,} bytes, and {self.left:,} are left of the file")

    def number(self, kind: str, what: str) -> Any:
        size = struct.calcsize("<" + kind)
        return struct.unpack(self.order + kind, self.take(size, what))[0]

    def pass_strings(self, count: int, what: str) -> None:
        """Pass over an array of strings, of which a vocabulary has hundreds of thousands."""
        self.room(8 * count, f"{what} with {count:,} entries")
        if count > _MOST:
            raise Lies(f"{what} has {count:,} entries")
        order: Literal["little", "big"] = "little" if self.order == "<" else "big"
        for _ in range(count):
            length = int.from_bytes(self.stream.read(8), order)
            self.left -= 8 + length
            if self.left < 0:
                raise Lies(f"an entry of {what} takes {length:,} bytes, more than are left of the file")
            if len(self.stream.read(length)) != length:
                raise Lies(f"it ends inside {what}")

    def string(self, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        if length > _KEPT:
            self.skip(length, what)
            return ""
        return self.take(length, what).decode("utf-8", "backslashreplace")


def read(stream: Bounded, size: int) -> Header:
    """Read a header of a file of so many bytes.

    Raises:
        Lies: it does not fit the file.
    """
    first = stream.read(8)
    if first[:4] != b"GGUF" or len(first) < 8:
        raise Lies("it does not begin with GGUF and a version")
    order = "<" if int.from_bytes(first[4:], "little") & 0xFFFF else ">"
    version = int.from_bytes(first[4:], "little" if order == "<" else "big")
    if version not in (2, 3):
        raise Lies(f"it is of version {version:,}; versions 2 and 3 are in use")
    reader = _Reader(stream, size - 8, order)
    tensors, values = reader.number("Q", "a count"), reader.number("Q", "a count")
    if max(tensors, values) > _MOST:
        raise Lies(f"it has a header of {tensors:,} tensors and {values:,} values")
    # the shortest entry of each: an empty name, a type and a value; an empty name, no dimension, a type and a place
    reader.room(13 * values + 24 * tensors, f"a header of {tensors:,} tensors and {values:,} values")
    header = Header()
    for _ in range(values):
        key = reader.string("a key")
        if key in header.values:
            raise Lies(f"it has the key '{inert(key)}' twice")
        header.values[key] = _value(reader, reader.number("I", "a type"), inert(key, limit=60))
        limit = next((most for name, most in LARGEST.items() if key.endswith("." + name)), None)
        if limit is not None and isinstance(header.values[key], int | float) and header.values[key] > limit:
            header.absurd.append(f"{inert(key)} = {header.values[key]:,}")
    for _ in range(tensors):
        _tensor(reader, header)
    alignment = header.values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise Lies(f"its tensors are aligned to {inert(alignment)}, which is no power of two")
    begin = -(-(size - reader.left) // alignment) * alignment
    _check_places(header, max(0, size - begin))
    return header


def _value(reader: _Reader, kind: int, what: str, depth: int = 0) -> Any:
    if kind == _STRING:
        return reader.string(what)
    if kind == _ARRAY:
        of, count = reader.number("I", what), reader.number("Q", what)
        if of in _SIZES:
            reader.skip(_SIZES[of] * count, f"{what} with {count:,} numbers")
        elif of == _STRING:
            reader.pass_strings(count, what)
        elif of == _ARRAY and depth < 4:
            reader.room(12 * count, f"{what} with {count:,} entries")
            for _ in range(count):
                _value(reader, of, what, depth + 1)
        else:
            raise Lies(f"{what} is an array of the unknown type {of:,}")
        return None
    if kind not in _FORMATS:
        raise Lies(f"{what} is of the unknown type {kind:,}")
    return reader.number(_FORMATS[kind], what)


def _tensor(reader: _Reader, header: Header) -> None:
    name = reader.string("the name of a tensor")
    shown = inert(name, limit=60)
    if name in header.tensors:
        raise Lies(f"it has the tensor {shown} twice")
    count = reader.number("I", shown)
    if count > 8:
        raise Lies(f"{shown} has {count:,} dimensions")
    shape = tuple(reader.number("Q", shown) for _ in range(count))
    kind, place = reader.number("I", shown), reader.number("Q", shown)
    header.tensors[name] = (shape, kind, place)


def _check_places(header: Header, room: int) -> None:
    """Are all tensors inside the `room` bytes that follow the header, none on top of another?"""
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    places = []
    for name, (shape, kind, place) in header.tensors.items():
        block, size = sizes.get(kind, (1, 0))
        takes = math.prod(shape) // block * size
        if place + takes > room:
            raise Lies(f"{inert(name)} of shape {shape} ends at byte {place + takes:,} of {room:,}")
        places.append((place, place + takes, name))
    places.sort()
    for (_, end, before), (begin, _, name) in pairwise(places):
        if begin < end:
            raise Lies(f"{inert(name)} overlaps {inert(before)}")
