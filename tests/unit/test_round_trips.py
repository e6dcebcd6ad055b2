"""What is written down is read back the same: sites, chats, code and files, whatever they hold."""

from __future__ import annotations

import datetime
import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import labkit as lk
from labkit.activations.site_kinds import HEAD_KINDS, KINDS
from labkit.activations.sites import Site
from labkit.results import file
from labkit.text.as_code import LM, WIDTH, as_code, as_python
from labkit.text.prompts import packed, unpacked

# -- sites -------------------------------------------------------------------------------------------------------------

numbers = st.none() | st.integers(-200, 200)


@st.composite
def sites(draw: Any, kind: str) -> Site:
    layer = draw(numbers)
    head = draw(numbers) if layer is not None and kind in HEAD_KINDS else None
    return Site(kind, layer, head, draw(numbers))


def test_a_head_without_its_layer_is_refused() -> None:
    """`z.3` would be read as layer 3."""
    with pytest.raises(ValueError, match="head 3 of z in which layer"):
        Site("z", head=3)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_a_site_is_read_as_it_is_written(kind: str, data: st.DataObject) -> None:
    site = data.draw(sites(kind))
    assert Site.parse(str(site)) == Site.parse(f" {site}\n") == Site.parse(site) == site


@given(st.sampled_from([kind for kind in KINDS if kind not in HEAD_KINDS]), st.integers(), st.integers())
def test_a_head_where_there_are_none_is_refused(kind: str, layer: int, head: int) -> None:
    with pytest.raises(ValueError, match=f"{kind} has no heads"):
        Site.parse(f"{kind}.{layer}.{head}")


@given(st.lists(st.sampled_from([*"ab_.@-019 ", "resid_pre", "z", "pattern"]), max_size=6).map("".join))
def test_any_other_text_is_a_site_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        site = Site.parse(text)
        assert Site.parse(str(site)) == site


# -- chats -------------------------------------------------------------------------------------------------------------

texts = st.text(max_size=8)
contents = texts | texts.map(lambda text: [{"type": "text", "text": text}])
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": contents}),
    min_size=1, max_size=3,
)  # fmt: skip
endings: list[dict[str, bool]] = [
    {}, {"continue_final_message": True}, {"continue_final_message": False}, {"add_generation_prompt": True},
    {"continue_final_message": False, "add_generation_prompt": True},
]  # fmt: skip
jsons = st.booleans() | st.integers(-9, 9) | texts | st.lists(texts, max_size=2)


@st.composite
def chats(draw: Any) -> lk.Chat:
    date = draw(st.none() | st.dates(datetime.date(1900, 1, 1)) | st.just("2025-07-26"))
    more = draw(st.dictionaries(st.sampled_from(["enable_thinking", "thinks", "style"]), jsons, max_size=2))
    return lk.Chat(draw(messages), date=date, **draw(st.sampled_from(endings)), **more)


@given(chats())
def test_a_chat_comes_back_from_json_and_from_its_repr(chat: lk.Chat) -> None:
    back = lk.Chat.from_dict(json.loads(json.dumps(chat.to_dict())))
    assert back == chat
    assert (back.is_open, back.opens_turn) == (chat.is_open, chat.opens_turn)
    assert not (chat.is_open and chat.opens_turn)
    assert unpacked(json.loads(json.dumps(packed(chat)))) == chat
    assert eval(repr(chat), {"lk": lk}) == chat
    assert lk.Chat(chat) == chat


@given(chats())
def test_what_is_done_to_the_dictionary_of_a_chat_does_not_change_the_chat(chat: lk.Chat) -> None:
    before, told = repr(chat), chat.to_dict()
    told["chat"][0]["content"] = "other"
    told["style"] = "other"
    assert repr(chat) == before


# -- code --------------------------------------------------------------------------------------------------------------

ids = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(lambda ids: torch.tensor([ids]))
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    plain | ids | chats(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(values)
def test_a_value_in_code_is_that_value(value: Any) -> None:
    assert same(eval(as_python(value), {"torch": torch, "lk": lk}), value)


@given(st.lists(values, max_size=3), st.dictionaries(st.sampled_from(["clean", "over", "at"]), values))
def test_a_call_in_code_is_that_call(given: list[Any], settings: dict[str, Any]) -> None:
    said: list[Any] = []
    code = as_code("import labkit as lk\n", "found = take", LM, *given, **settings)
    scope = {"lm": "the model", "take": lambda *args, **kwargs: said.extend((list(args), kwargs))}
    exec(code, scope)
    assert same(said[0], ["the model", *given])
    assert list(said[1]) == list(settings)
    assert same(list(said[1].values()), list(settings.values()))
    assert code.startswith("import torch") == ("torch.tensor(" in code)
    lines = [line for line in code.splitlines() if line.startswith("found = take")]
    assert all(len(line) <= WIDTH for line in lines)


# -- files -------------------------------------------------------------------------------------------------------------

words = st.text("abcdefg_é ", min_size=1, max_size=6)
abouts = st.dictionaries(
    words,
    st.recursive(
        st.none() | st.booleans() | st.integers(-99, 99) | st.floats(allow_nan=False) | texts,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)
types = st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_])
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
arrays = st.dictionaries(
    st.text("abcdefg", min_size=1, max_size=4),
    st.tuples(shapes, types, st.integers(0, 9)).map(
        lambda made: (np.random.default_rng(made[2]).normal(size=made[0]) * 9).astype(made[1])
    ),
    max_size=3,
)


@pytest.mark.parametrize("kind", file.KINDS)
@given(about=abouts, held=arrays)
def test_a_file_of_any_kind_opens_with_what_was_saved(
    kind: str, about: dict[str, Any], held: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{kind.replace(' ', '-')}.npz"
    assert file.save_arrays(path, kind, about, **held) == path
    told, opened = file.open_arrays(path, kind)
    assert told == {"kind": kind, "format": file.KINDS[kind].newest, **about}
    assert {name: (array.dtype, array.shape) for name, array in opened.items()} == {
        name: (array.dtype, array.shape) for name, array in held.items()
    }
    assert all(np.array_equal(opened[name], held[name]) for name in held)
    for other in file.KINDS.keys() - {kind}:
        with pytest.raises(ValueError, match="it holds") as error:
            file.open_arrays(path, other)
        assert f"{file.KINDS[kind].words}, which {file.KINDS[kind].opener}" in str(error.value)
    assert list(path.parent.glob(f"{path.name}*")) == [path]
