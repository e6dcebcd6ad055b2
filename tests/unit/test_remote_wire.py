"""Values go over the wire and come back the same; bytes from anybody give an error or a value, and nothing else."""

from __future__ import annotations

import ast
import json
import math
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import labkit as lk
from labkit.patching.spec import PatchSpec
from labkit.remote import kinds, wire
from labkit.remote.calls import failed, perform
from labkit.remote.wire import pack, unpack
from labkit.text.tokens import Token

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16]
DTYPES += [torch.float32, torch.float64, torch.float8_e4m3fn, torch.uint16]

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20)
sites = st.builds(lk.Site, st.just("z"), st.integers(0, 40), st.none() | st.integers(0, 12), st.none() | st.integers())
keys = st.text(max_size=5) | st.integers() | sites | st.tuples(st.integers(), st.text(max_size=3))
values = st.recursive(
    plain | sites | st.builds(range, st.integers(-9, 9), st.integers(-9, 9)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types, and NaN equal to itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    return bool(a == b)


@given(values)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    assert same(unpack(pack(value)), value)


@given(shapes, st.sampled_from(DTYPES))
def test_a_tensor_of_any_dtype_comes_back_bit_by_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    value = (torch.arange(math.prod(shape)).reshape(shape) % 2).to(dtype)
    (found,) = unpack(pack([value]))
    assert found.dtype == dtype
    assert found.shape == value.shape
    assert torch.equal(found.contiguous().view(torch.uint8), value.view(torch.uint8)) if shape else found == value


@given(shapes, st.sampled_from(["?", "u1", "i4", "<f2", ">f4", "f8", "<U3"]))
def test_an_array_comes_back_with_its_shape_and_its_numbers(shape: tuple[int, ...], dtype: str) -> None:
    value = (np.arange(math.prod(shape)) % 2).reshape(shape).astype(dtype)
    found = unpack(pack({"it": value[..., ::-1] if shape else value}))["it"]
    assert found.dtype.kind == value.dtype.kind
    assert dtype == "<U3" or found.dtype == value.dtype.newbyteorder("=")
    assert found.shape == value.shape
    assert (found == (value[..., ::-1] if shape else value)).all()


def test_what_is_asked_with_comes_back_equal() -> None:
    spec = PatchSpec("a b", "a c", " d", by="prompt", layers=range(3), site="z", progress=False)
    around = PatchSpec("a b", answer=" d", by=lk.Noise("a", samples=3))
    vector = lk.SteeringVector.of([1.0, 2.0], 3, recipe={"about": "two numbers"})
    chat = lk.Chat([{"role": "user", "content": "hi"}], enable_thinking=False)
    pair = lk.PromptPair("a", "b", "c", "d")
    found = unpack(
        pack([spec, around, lk.Mean(["x", "y"]), chat, pair, vector.edit("clamp", high=2.0)]), only_sent=True
    )
    assert found[:2] == [spec, around]
    assert found[2:5] == [lk.Mean(["x", "y"]), chat, pair]
    assert type(found[4]) is lk.PromptPair
    assert torch.equal(found[5].vector.values, vector.values)
    assert found[5].vector.recipe == vector.recipe
    assert (found[5].manner, found[5].high) == ("clamp", 2.0)


@pytest.mark.parametrize("value", [len, lambda x: x, object(), np.array([{}]), torch.ones(2) + 1j, open, iter([])])
def test_what_is_no_data_is_not_sent(value: Any) -> None:
    with pytest.raises(TypeError, match=r"cannot be sent|runs no code of yours"):
        pack({"deep": [value]})


def message(tree: Any, rest: bytes = b"") -> bytes:
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return wire.MAGIC + len(text).to_bytes(8, "little") + text + (rest or pack(None)[wire.START + 4 :])


HOSTILE = {
    "nothing": b"",
    "something else": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "a length beyond the end": wire.MAGIC + (1 << 40).to_bytes(8, "little") + b"{}",
    "a length of everything": wire.MAGIC + b"\xff" * 8 + b"{}",
    "JSON that is none": message(b"{'a': 1"),
    "lists in lists": message(b"[" * 200_000),
    "closed lists in lists": message(b"[" * 3000 + b"]" * 3000),
    "lists in lists that JSON reads": message(b"[" * 200 + b"]" * 200),
    "a number of many digits": message(b"9" * 100_000),
    "NaN": message(b"NaN"),
    "no text": message(b"\xff\xfe"),
    "a kind that is none": message({"Popen": {"args": "true"}}),
    "a kind by its path": message({"os.system": ["true"]}),
    "two kinds": message({"tuple": [], "list": []}),
    "a kind without its parts": message({"Site": {}}),
    "a kind with parts of something else": message({"Site": {"kind": "z", "shell": True}}),
    "a kind that is no object": message({"Site": 3}),
    "a site that is none": message({"Site": {"kind": "z", "layer": None, "head": 3, "position": None}}),
    "a tensor that is not there": message({"tensor": 0}),
    "a tensor by a strange name": message({"tensor": {"dict": []}}),
    "a dtype that is none": message({"dtype": "save"}),
    "a number that is none": message({"float": "1e999"}),
    "keys that are lists": message({"dict": [[[1], 2]]}),
    "a range over everything": message({"range": [0, 10**15, 1]}),
    "texts of no shape": message({"texts": [[10**15], []]}),
    "a model where there is none": message({"lm": None}),
    "tensors that are cut": pack([torch.ones(100)])[:-7],
    "tensors that overlap": message(
        {"tensor": 0},
        (lambda head: len(head).to_bytes(8, "little") + head + bytes(8))(
            b'{"0":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"1":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        ),
    ),
    "a tensor larger than its bytes": message(
        {"tensor": 0},
        (lambda head: len(head).to_bytes(8, "little") + head + bytes(8))(
            b'{"0":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,8]}}'
        ),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_give_one_error_with_a_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=r"^(this message|this is no message|\w+ is a result)"):
        unpack(HOSTILE[name])


@given(st.data())
def test_bytes_that_were_changed_or_cut_give_a_value_or_that_error(data: st.DataObject) -> None:
    whole = bytearray(pack({"a": [torch.ones(3), {2: lk.Site("z", 1)}, "text"], "b": (np.zeros(2), 1.5)}))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for some in (bytes(whole), cut):
        with suppress(ValueError):
            unpack(some)


def test_results_are_no_arguments() -> None:
    token = Token(1, "a", "a")
    assert unpack(pack(token), only_sent=True) == token
    unit = kinds.KINDS["Check"].cls("name", True, "says")
    assert unpack(pack(unit)) == unit
    with pytest.raises(ValueError, match="Check is a result"):
        unpack(pack(unit), only_sent=True)


def test_a_name_stands_for_one_class() -> None:
    assert all(name == kind.cls.__name__ for name, kind in wire.KINDS.items())
    assert len(wire.KINDS) > 40


def test_nothing_in_the_room_imports_by_name_pickles_or_evaluates() -> None:
    for path in Path(wire.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not imported & {"pickle", "dill", "cloudpickle", "marshal", "shelve", "importlib", "subprocess"}, path
        assert not called & {"eval", "exec", "compile", "__import__"}, path


def test_a_server_tells_an_error_from_an_answer_by_its_first_bytes() -> None:
    nobody: Any = None
    error = perform(nobody, b"garbage", stop=threading.Event(), report=print)
    assert "error" in unpack(error)
    assert failed(error)
    for value in (None, "error", {"error": 1}, torch.zeros(3)):
        assert not failed(pack({"result": value, "warnings": ["error"]}))
    assert not failed(b"")
