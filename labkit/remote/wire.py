"""Values as bytes and back, with no pickle: JSON for what describes, safetensors for numbers.

    "labkit1\\n"  8 bytes
    length of the JSON, little endian, 8 bytes
    JSON: the value as a tree; an array is its number among the tensors
    safetensors: the tensors, to the end

In the tree plain JSON values stand for themselves and everything else is an object of one key, which says what it is:
`{"tuple": [...]}`, `{"dict": [[key, value], ...]}`, `{"tensor": 0}`, `{"Site": {...}}`. Names are looked up in
`labkit.remote.kinds`; nothing is imported, evaluated or called by a name that came over the wire. A value that is made
of bytes never takes more memory than a small multiple of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import safetensors.torch
import torch

from labkit.elsewhere import refuse_function
from labkit.models.handle import Model

MAGIC = b"labkit1\n"
START = len(MAGIC) + 8
MOST_JSON = 32 << 20
"""Bytes of JSON in one message."""
MOST = 1 << 30
"""Bytes of one message."""
DEEPEST = 60
LONGEST = 1 << 24  # numbers in a range, which takes no bytes on the wire
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_DTYPES = {str(x).removeprefix("torch."): x for x in vars(torch).values() if isinstance(x, torch.dtype)}


@dataclass(frozen=True)
class Kind:
    """A class of objects on the wire.

    Attributes:
        cls: the class itself; what is derived from it is another kind.
        apart: from an object to what it is made of, by name.
        made: from that, and the model that the message is about, to the object. Its errors are the sender's.
        sent: may a client send it? The others only come back.
    """

    cls: type
    apart: Callable[[Any], Mapping[str, Any]]
    made: Callable[[dict[str, Any], Any], Any]
    sent: bool = False


KINDS: dict[str, Kind] = {}
"""By the name of the class; `labkit.remote.kinds` has them all."""


def pack(value: Any, *, lm: Model | None = None) -> bytes:
    """A value as bytes.

    Args:
        value: None, numbers, text, bytes, lists, tuples, dicts, sets, slices, ranges, arrays, tensors, and objects of
            the registered kinds.
        lm: the model that it is about, which stands for itself.

    Raises:
        TypeError: a function, another model, or an object of another kind; the message says what to do.
        ValueError: it is too large.
    """
    packing = _Packing(lm)
    tree = json.dumps(packing.tree(value, 0), allow_nan=False, separators=(",", ":")).encode()
    if len(tree) > MOST_JSON:
        raise ValueError(f"this is {len(tree) >> 20} MB of text and numbers, which is too much to send; ask for less")
    if sum(one.nbytes for one in packing.tensors.values()) > MOST:
        size = sum(one.nbytes for one in packing.tensors.values()) >> 20
        raise ValueError(
            f"this is {size} MB of tensors; at most {MOST >> 20} MB are sent at once. Read fewer sites, or single "
            "positions such as 'resid_pre@-1'"
        )
    return MAGIC + len(tree).to_bytes(8, "little") + tree + safetensors.torch.save(packing.tensors)


def unpack(data: bytes, *, lm: Model | None = None, only_sent: bool = False) -> Any:
    """The value that `pack` packed.

    Args:
        data: the bytes, from anybody.
        lm: the model that the message is about.
        only_sent: refuse objects that no client has a reason to send.

    Raises:
        ValueError: they are no such bytes; the message says why.
    """
    tree, tensors = _opened(data)
    with _in_words():
        return _Unpacking(tensors, lm, only_sent).value(tree, 0)


def outline(data: bytes) -> Any:
    """The tree of a message from a client, of which nothing is made yet: no model is needed.

    Raises:
        ValueError: `unpack` would refuse it for its form, its tensors, or the name of something that no client sends.
    """
    tree, _ = _opened(data)
    with _in_words():
        _named(tree, 0)
    return tree


def _opened(data: bytes) -> tuple[Any, dict[str, torch.Tensor]]:
    """The two parts of a message."""
    if len(data) > MOST + MOST_JSON:
        raise ValueError(f"this message has {len(data) >> 20} MB; the most is {(MOST + MOST_JSON) >> 20}")
    if data[: len(MAGIC)] != MAGIC or len(data) < START:
        raise ValueError("this is no message of labkit's, or one of another version")
    length = int.from_bytes(data[len(MAGIC) : START], "little")
    if length > MOST_JSON or START + length > len(data):
        raise ValueError(f"this message was cut short, or damaged: it says it has {length} bytes of JSON")
    with _in_words():
        tree = json.loads(data[START : START + length].decode("utf-8"), parse_constant=_no_constant)
        return tree, safetensors.torch.load(data[START + length :])


@contextmanager
def _in_words() -> Iterator[None]:
    """Whatever is wrong with a message is said in one sentence."""
    try:
        yield
    except _Refused as error:
        raise ValueError(str(error)) from None
    except (RecursionError, MemoryError):
        raise ValueError("this message is nested too deeply, or asks for too much memory") from None
    except Exception as error:  # whatever is wrong with bytes from anybody, it is a wrong message
        raise ValueError(f"this message is damaged ({type(error).__name__}: {error!s:.200})") from None


class _Refused(Exception):
    """What is said of a message as it is."""


def _named(tree: Any, deep: int) -> None:
    """Refuse a tree that is too deep, or that names what no client sends."""
    if deep > 2 * DEEPEST:
        raise _Refused("this message is nested too deeply")
    parts: Iterable[Any] = tree if isinstance(tree, list) else ()
    if isinstance(tree, dict):
        name, held = _one(tree)
        if name not in _PLAIN:
            _kind(name, only_sent=True)
            if not isinstance(held, dict):
                raise _Refused(f"this message is damaged: {name} without its parts")
            held = list(held.values())
        parts = [held] if isinstance(held, dict) else held if isinstance(held, list) else ()
    for part in parts:
        if isinstance(part, list | dict):
            _named(part, deep + 1)


def _one(tree: dict[str, Any]) -> tuple[str, Any]:
    """What an object is, and what it is made of."""
    if len(tree) != 1:
        raise _Refused(f"this message is damaged: an object with {len(tree)} names")
    ((name, held),) = tree.items()
    return name, held


def _kind(name: str, *, only_sent: bool) -> Kind:
    kind = KINDS.get(name)
    if kind is None:
        raise _Refused(f"this message holds {name!r:.60}, which this version of labkit does not know")
    if only_sent and not kind.sent:
        raise _Refused(f"{name} is a result; it is not taken as an argument")
    return kind


def _no_constant(name: str) -> Any:
    raise _Refused(f"this message is damaged: {name} is no JSON")


class _Packing:
    """A tree, and the tensors in it by number."""

    def __init__(self, lm: Model | None) -> None:
        self.lm = lm
        self.tensors: dict[str, torch.Tensor] = {}

    def tree(self, value: Any, deep: int) -> Any:
        if deep > DEEPEST:
            raise ValueError("this value is nested too deeply to be sent")
        below = lambda one: self.tree(one, deep + 1)  # noqa: E731
        if isinstance(value, Enum):
            value = value.value
        if value is None or isinstance(value, bool | str):
            return value if value is None or isinstance(value, bool) else str(value)
        if isinstance(value, np.generic):
            return {"scalar": self._number(torch.from_numpy(np.array(value)))}
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": str(float(value))}
        if isinstance(value, torch.Tensor):
            return {"tensor": self._number(value)}
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, bytes | bytearray):
            return {"bytes": self._number(torch.from_numpy(np.frombuffer(bytes(value), np.uint8).copy()))}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if (kind := KINDS.get(type(value).__name__)) is not None and type(value) is kind.cls:
            return {type(value).__name__: {name: below(part) for name, part in kind.apart(value).items()}}
        if isinstance(value, Model):
            if value is not self.lm:
                raise TypeError(f"{value.name} is another model than the one that is asked; both would have to be here")
            return {"lm": None}
        if self.lm is not None and value is self.lm.tokenizer:
            return {"tokenizer": None}
        if isinstance(value, list):
            return [below(one) for one in value]
        if isinstance(value, tuple):
            return {"tuple": [below(one) for one in value]}
        if isinstance(value, set | frozenset):
            return {"set": [below(one) for one in sorted(value, key=repr)]}
        if isinstance(value, slice):
            return {"slice": [below(one) for one in (value.start, value.stop, value.step)]}
        if isinstance(value, range):
            return {"range": [value.start, value.stop, value.step]}
        if isinstance(value, Mapping):
            return {"dict": [[below(name), below(one)] for name, one in value.items()]}
        if callable(value):
            refuse_function(value)
        raise TypeError(_why_not(value))

    def _number(self, value: torch.Tensor) -> int:
        if value.is_complex() or value.is_quantized or value.layout != torch.strided:
            raise TypeError(
                f"a tensor of {value.dtype}, {value.layout}, cannot be sent; send a dense one of real numbers"
            )
        number = len(self.tensors)
        # a copy: safetensors takes no two names for one memory, and no views
        self.tensors[str(number)] = value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        return number

    def _array(self, value: np.ndarray) -> Any:
        if value.dtype.kind == "U":
            return {"texts": [list(value.shape), value.ravel().tolist()]}
        if value.dtype.kind not in "biuf":
            raise TypeError(f"an array of {value.dtype} cannot be sent; send numbers, text or booleans")
        native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        return {"array": self._number(torch.from_numpy(native))}


def _why_not(value: Any) -> str:
    return f"{type(value).__name__} cannot be sent to a model that is elsewhere; load a model with lk.load() for this"


class _Unpacking:
    """What a tree stands for."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], lm: Model | None, only_sent: bool) -> None:
        self.tensors, self.lm, self.only_sent = tensors, lm, only_sent

    def value(self, tree: Any, deep: int) -> Any:
        if deep > 2 * DEEPEST:
            raise _Refused("this message is nested too deeply")
        if isinstance(tree, list):
            return [self.value(one, deep + 1) for one in tree]
        if not isinstance(tree, dict):
            return tree
        name, held = _one(tree)
        if (make := _PLAIN.get(name)) is not None:
            return make(self, held, deep + 1)
        kind = _kind(name, only_sent=self.only_sent)
        return kind.made({key: self.value(one, deep + 1) for key, one in held.items()}, self.lm)

    def _many(self, held: Any, deep: int) -> list[Any]:
        if not isinstance(held, list):
            raise _Refused("this message is damaged: a list is missing")
        return [self.value(one, deep) for one in held]

    def _numbers(self, held: Any, deep: int) -> list[int | None]:
        found = self._many(held, deep)
        if len(found) != 3 or not all(one is None or isinstance(one, int) for one in found):
            raise _Refused("this message is damaged: a slice has three whole numbers")
        return found

    def _range(self, held: Any, deep: int) -> range:
        found = range(*self._numbers(held, deep))  # type: ignore[arg-type]
        if len(found) > LONGEST:
            raise _Refused(f"this message has a range of {len(found)} numbers")
        return found

    def _tensor(self, held: Any, deep: int) -> torch.Tensor:
        if type(held) is not int or str(held) not in self.tensors:
            raise _Refused(f"this message is damaged: there is no tensor {held!r:.20}")
        return self.tensors[str(held)]

    def _model(self, held: Any, deep: int) -> Model:
        if self.lm is None:
            raise _Refused("this message is about a model, and there is none")
        return self.lm


_PLAIN: dict[str, Callable[[_Unpacking, Any, int], Any]] = {
    "tuple": lambda self, held, deep: tuple(self._many(held, deep)),
    "set": lambda self, held, deep: set(self._many(held, deep)),
    "dict": lambda self, held, deep: dict(self._many(held, deep)),
    "slice": lambda self, held, deep: slice(*self._numbers(held, deep)),
    "range": _Unpacking._range,
    "float": lambda self, held, deep: _FLOATS[held],
    "dtype": lambda self, held, deep: _DTYPES[held],
    "tensor": _Unpacking._tensor,
    "array": lambda self, held, deep: self._tensor(held, deep).numpy(),
    "scalar": lambda self, held, deep: self._tensor(held, deep).numpy()[()],
    "bytes": lambda self, held, deep: self._tensor(held, deep).numpy().tobytes(),
    "texts": lambda self, held, deep: np.array([str(one) for one in held[1]], dtype=str).reshape(held[0]),
    "lm": _Unpacking._model,
    "tokenizer": lambda self, held, deep: self._model(held, deep).tokenizer,
}
