"""Token text: nothing of a text is lost in its tokens, and whatever they stand for can be seen."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pieces import as_written, of_bytes, of_pieces, sentencepiece
from tokenizers import AddedToken
from transformers.convert_slow_tokenizer import bytes_to_unicode

from labkit.text.tokens import VISIBLE, Token, bytes_of, describe, split_characters, visible

BYTE = of_bytes()
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="".join(VISIBLE.values())), max_size=12)
mixed = st.text("aé你😀 \n\t\u00a0", max_size=12)


def ids_of(text: str) -> list[int]:
    return list(BYTE(text).input_ids)


def hidden_again(shown: str) -> str:
    return shown.translate({ord(mark): text for text, mark in VISIBLE.items()})


def bytes_shown(display: str) -> bytes:
    """What a display stands for: its text, and the bytes that it has in hexadecimal."""
    parts = re.split("‹([0-9A-F ]+)›", display)
    return b"".join(bytes.fromhex(p) if n % 2 else hidden_again(p).encode() for n, p in enumerate(parts))


@given(texts | mixed)
def test_a_text_that_is_made_visible_is_still_that_text(text: str) -> None:
    shown = visible(text)
    assert hidden_again(shown) == text
    assert not set(shown) & (set(VISIBLE) - {" "})
    assert shown.strip(" ") == shown
    assert shown.replace(" ", "").count("·") == len(text) - len(text.strip(" "))


@given(texts | mixed)
def test_tokens_spell_their_text_also_where_a_character_is_split(text: str) -> None:
    ids = ids_of(text)
    assert b"".join(bytes_of(BYTE, ids)) == text.encode()
    tokens = describe(BYTE, ids)
    assert [token.id for token in tokens] == ids
    assert b"".join(bytes_shown(token.display) for token in tokens) == text.encode()


@given(mixed)
def test_each_part_of_a_split_character_says_what_it_is_a_part_of(text: str) -> None:
    wide = re.finditer(r"[^\x00-\x7f]+", text)
    runs = [(len(text[: run.start()].encode()), run[0]) for run in wide]
    expected = {at: run.strip() for start, run in runs if run.strip() for at in range(start, start + len(run.encode()))}
    assert split_characters(BYTE, ids_of(text)) == expected


@pytest.mark.parametrize("left_out", [slice(0, -1), slice(1, None)])
def test_a_character_that_is_not_whole_is_not_guessed(left_out: slice) -> None:
    assert split_characters(BYTE, ids_of("😀")[left_out]) == {}
    assert split_characters(BYTE, ids_of("é") + ids_of("a") + ids_of("😀")[left_out]) == {0: "é", 1: "é"}


@given(st.binary(min_size=1, max_size=6))
def test_a_token_of_any_bytes_shows_its_text_as_text_and_the_rest_in_hexadecimal(held: bytes) -> None:
    one = as_written("a" if held != b"a" else "b", "".join(bytes_to_unicode()[byte] for byte in held))
    (token,) = describe(one, [1])
    assert bytes_of(one, [1]) == [held]
    try:
        text = held.decode()
    except UnicodeDecodeError:
        assert bytes_shown(token.display) == held
    else:
        assert (token.text, token.display) == (text, visible(text))


def test_every_byte_of_a_byte_level_vocabulary_is_known() -> None:
    every = as_written(*bytes_to_unicode().values())
    order = list(bytes_to_unicode())
    assert bytes_of(every, range(256)) == [bytes([byte]) for byte in order]
    assert [token.display for token in describe(every, [order.index(0xE2), order.index(ord(" "))])] == ["‹E2›", "·"]


def test_text_and_parts_of_characters_in_one_token_are_told_apart() -> None:
    words = as_written("Ġthe", "ĠðŁĺ", "ĢĠaâĢ", "þ")
    assert [token.display for token in describe(words, range(4))] == ["·the", "·‹F0 9F 98›", "‹80›·a‹E2 80›", "‹FE›"]
    assert bytes_of(words, range(3)) == [b" the", b" \xf0\x9f\x98", b"\x80 a\xe2\x80"]
    assert split_characters(words, [0, 1, 2]) == {1: "😀 a", 2: "😀 a"}


def test_the_space_that_a_tokenizer_drops_from_the_first_token_is_kept() -> None:
    words = sentencepiece("▁the", "cat", "▁▁▁")
    ids = words.convert_tokens_to_ids(["▁the", "▁", "cat", "▁▁▁", "<0xE2>", "<0x98>", "<0x83>"])
    assert [token.text for token in describe(words, ids)][:3] == [" the", " ", "cat"]
    assert [token.display for token in describe(words, ids)] == ["·the", "·", "cat", "··", "‹E2›", "‹98›", "‹83›"]
    assert bytes_of(words, ids)[-3:] == [b"\xe2", b"\x98", b"\x83"]
    assert split_characters(words, ids) == dict.fromkeys((4, 5, 6), "☃")


def test_special_tokens_are_those_that_the_tokenizer_says() -> None:
    words = of_pieces(" Mary", bos="<s>")
    words.add_tokens([AddedToken("<call>", special=True), AddedToken("<plain>", special=False)])
    ids = words.convert_tokens_to_ids(["<s>", " Mary", "<call>", "<plain>"])
    begin, mary, call, plain = describe(words, ids)
    assert (begin.special, mary.special, call.special, plain.special) == (True, False, True, False)
    assert (begin.text, begin.display, call.display, plain.display) == ("<s>", "<s>", "<call>", "<plain>")
    assert (mary.text, mary.display, str(mary)) == (" Mary", "·Mary", "·Mary")


class Odd:
    """A tokenizer with entries that stand for nothing or cannot be told."""

    all_special_ids: tuple[int, ...] = ()
    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012
    raw = ("", "…", "▁x")

    def convert_ids_to_tokens(self, id: int) -> str | None:
        return self.raw[id] if id < len(self.raw) else None

    def decode(self, ids: list[int], *, clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces
        return ("", "\ufffd", " x")[ids[0]]


def test_what_stands_for_nothing_or_is_unknown_is_shown_all_the_same() -> None:
    assert describe(Odd(), [0, 1, 2, 7]) == [
        Token(0, "", "∅"), Token(1, "\ufffd", "‹1›"), Token(2, " x", "·x"), Token(7, "", "‹7›")
    ]  # fmt: skip
    assert describe(Odd(), []) == []
    assert bytes_of(Odd(), [0, 1, 2]) == [b"", b"", b" x"]


def test_a_token_cannot_be_changed_and_is_a_key() -> None:
    token = Token(1, " a", "·a")
    assert token.special is False
    assert {token: 1}[Token(1, " a", "·a")] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        token.id = 2  # type: ignore[misc]
