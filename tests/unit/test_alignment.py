"""Two prompts side by side: every token has its column, and what is offered makes them fit better."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pieces import of_pieces, text_model

from labkit.text.alignment import SideBySide, begins, side_by_side

NAMES = ("Mary", "John", "Anna", "Peter")
WORDS = [f" {word}" for word in (*NAMES, "gave", "to", "a", "the", "dog", "store", "drink")]
PIECES = of_pieces("Mary", "John", *WORDS, "anne", "ible", bos="<s>")
LM = text_model(PIECES, near=[[" Mary", " John", " Anna", " Peter"], [" dog", " store", " drink"]])

words = st.lists(st.sampled_from([*WORDS, " Maryanne", " Johnible", " x"]), min_size=1, max_size=8).map("".join)


def check(held: SideBySide, clean: str, corrupt: str) -> None:
    for side, tokens, prompt in ((0, held.clean, clean), (1, held.corrupt, corrupt)):
        assert "".join(token.text for token in tokens) == prompt
        assert [column[side] for column in held.columns if column[side] is not None] == list(range(len(tokens)))
    assert (None, None) not in held.columns
    apart = [
        n for n, (i, j) in enumerate(held.columns)
        if i is None or j is None or held.clean[i].id != held.corrupt[j].id
    ]  # fmt: skip
    assert held.differ == apart
    assert held.fits == (len(held.clean) == len(held.corrupt))


@given(words, words)
def test_every_token_has_its_column_and_those_that_differ_are_named(clean: str, corrupt: str) -> None:
    held = side_by_side(LM, clean, corrupt)
    check(held, clean, corrupt)
    assert side_by_side(LM, clean, clean).differ == []
    if held.fits:
        assert held.fix is None
        assert all(i == j for i, j in held.columns)
    else:
        assert f"{len(held.clean)} tokens" in held.words
        assert f"corrupt {len(held.corrupt)}" in held.words


@given(words, words)
def test_what_is_offered_leaves_fewer_tokens_without_a_partner(clean: str, corrupt: str) -> None:
    fix = side_by_side(LM, clean, corrupt).fix
    assume(fix is not None)
    assert fix is not None
    prompts = {"clean": clean, "corrupt": corrupt}
    assert fix.text != prompts[fix.prompt]
    before = side_by_side(LM, **prompts)
    after = side_by_side(LM, **(prompts | {fix.prompt: fix.text}))
    alone = lambda held: sum(None in column for column in held.columns)  # noqa: E731
    assert alone(after) < alone(before)


def test_a_word_of_two_tokens_is_replaced_by_one_of_its_kind_and_form() -> None:
    held = side_by_side(LM, " gave John a dog", " gave Maryanne a dog")
    assert held.columns == [(0, 0), (None, 1), (1, 2), (2, 3), (3, 4)] or held.columns[1:3] == [(1, 1), (None, 2)]
    assert held.fix is not None
    assert (held.fix.prompt, held.fix.text) == ("corrupt", " gave Mary a dog")
    assert held.fix.words == "write ' Mary' for ' Maryanne'"
    assert "at position 1, ' John' is 1 token, ' Maryanne' is 2 tokens (·Mary + anne)" in held.words
    turned = side_by_side(LM, " gave Maryanne a dog", " gave John a dog")
    assert turned.fix is not None
    assert (turned.fix.prompt, turned.fix.text) == ("clean", " gave Mary a dog")
    assert side_by_side(LM, " gave John a dog", " gave Maryanne a dog", suggest=False).fix is None
