"""Two prompts side by side: every token has its column, and what is offered makes them fit better."""

from __future__ import annotations

import dataclasses
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
LM = text_model(PIECES, [" John", " Mary", " Anna", " Peter"], [" dog", " store", " drink"])

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
    assert held.columns == [(0, 0), (1, 1), (None, 2), (2, 3), (3, 4)]
    assert held.differ == [1, 2]
    assert held.fix is not None
    assert (held.fix.prompt, held.fix.text) == ("corrupt", " gave Mary a dog")
    assert held.fix.words == "replace ' Maryanne' with ' Mary'"
    assert "at position 1, ' John' is 1 token, ' Maryanne' is 2 tokens (·Mary + anne)" in held.words
    turned = side_by_side(LM, " gave Maryanne a dog", " gave John a dog")
    assert turned.fix is not None
    assert (turned.fix.prompt, turned.fix.text) == ("clean", " gave Mary a dog")
    assert side_by_side(LM, " gave John a dog", " gave Maryanne a dog", suggest=False).fix is None
    for found, name in ((held, "fix"), (held.fix, "text")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(found, name, None)


def test_prompts_that_fit_say_where_they_differ_and_whether_there_is_a_bos() -> None:
    said = side_by_side(LM, " a dog to Mary", " a dog to John").words
    assert said.startswith("4 tokens each, no BOS")
    assert said.endswith("at position 3.")
    assert side_by_side(LM, "<s> a dog", "<s> a store").words.startswith("3 tokens each, BOS")
    assert "the same" in side_by_side(LM, " a", " a").words
    six, seven = (side_by_side(LM, " a" * n + " to", " the" * n + " to") for n in (6, 7))
    assert six.words.endswith("position 0, 1, 2, 3, 4, 5.")
    assert seven.words.endswith("position 0, 1, 2, 3, 4, 5….")


def test_a_bos_is_the_first_token_of_a_tokenizer_that_has_one() -> None:
    bos, other = side_by_side(LM, "<s> a", " a<s>").clean, side_by_side(LM, " a<s>", " a").clean
    assert begins(LM, bos)
    assert not begins(LM, other)
    assert not begins(LM, [])
    assert not begins(text_model(of_pieces(" a")), bos)


@pytest.mark.parametrize(("clean", "corrupt"), [("", ""), (" a dog", ""), ("", " a dog")])
def test_while_one_prompt_is_empty_the_other_is_shown(clean: str, corrupt: str) -> None:
    held = side_by_side(LM, clean, corrupt)
    check_sides = [(0 if clean else None, 0 if corrupt else None), (1 if clean else None, 1 if corrupt else None)]
    assert held.columns == (check_sides if clean or corrupt else [])
    assert (held.differ, held.fix, held.fits) == ([], None, False)


def test_the_prompt_that_cannot_be_used_is_named() -> None:
    short = text_model(PIECES, context=3)
    with pytest.raises(ValueError, match=r"^clean: .* 4 tokens"):
        side_by_side(short, " a a a a", " a")
    with pytest.raises(ValueError, match=r"^corrupt: .* 4 tokens"):
        side_by_side(short, " a", " a a a a")


def test_a_word_too_many_is_taken_out_with_its_space() -> None:
    for clean, corrupt, name in ((" gave a dog to", " gave dog to", "clean"), (" dog to", " dog the to", "corrupt")):
        held = side_by_side(LM, clean, corrupt)
        shorter = min(clean, corrupt, key=len)
        assert held.fix is not None
        assert (held.fix.prompt, held.fix.text) == (name, shorter)
        assert held.fix.words == f"remove {' a' if name == 'clean' else ' the'!r} from {name}"
        assert f"{'corrupt' if name == 'clean' else 'clean'} has no tokens there" in held.words
    ends = side_by_side(LM, " dog a store", " dog")
    assert ends.fix is not None
    assert (ends.fix.text, ends.fix.words) == (" dog", "remove ' a store' from clean")


def test_a_mismatch_is_told_in_whole_words() -> None:
    later = side_by_side(LM, " a Mary to", " a Maryanne to")  # the first token of the name is the same
    assert "at position 1, ' Mary' is 1 token, ' Maryanne' is 2 tokens (·Mary + anne)." in later.words
    turned = side_by_side(LM, " a Maryanne to", " a Mary to")
    assert "at position 1, ' Maryanne' is 2 tokens (·Mary + anne), ' Mary' is 1 token." in turned.words
    first = side_by_side(LM, " Maryibleanne to", " Johnanne to")  # the last one is
    assert "at position 0, ' Maryibleanne' is 3 tokens (·Mary + ible + anne), ' Johnanne' is 2 tokens" in first.words
    assert first.fix is None  # no one word has two tokens
    end = side_by_side(LM, " Maryibleanne", " Johnanne")
    assert "' Maryibleanne' is 3 tokens" in end.words
    apart = side_by_side(LM, " Mary a dog", " Mary the store to")  # what begins with a space is a word of its own
    assert "at position 1, ' a dog' is 2 tokens (·a + ·dog), ' the store to' is 3 tokens" in apart.words
    letters = side_by_side(LM, "Mary", "Maryanneanne")
    assert "at position 0, 'Mary' is 1 token, 'Maryanneanne' is 3 tokens" in letters.words


def test_long_mismatches_are_told_in_short() -> None:
    six, seven = (side_by_side(LM, " dog", " a" * n).words for n in (6, 7))
    assert "6 tokens (·a + ·a + ·a + ·a + ·a + ·a)" in six
    assert seven.endswith("is 7 tokens.")
    assert len(side_by_side(LM, " dog", " store" * 30).words) < 150


def test_a_special_token_is_no_part_of_a_word_and_is_left_where_it_is() -> None:
    named = text_model(of_pieces(" a", bos="Begin"))
    held = side_by_side(named, " a", " aBegin")
    assert "at position 1, clean has no tokens there, 'Begin' is 1 token." in held.words
    assert held.fix is None


def test_what_is_offered_stands_where_the_word_stood_also_after_a_bos() -> None:
    adding = text_model(of_pieces(*WORDS, "anne", bos="<s>", adds_bos=True), [" John", " Mary"])
    for begin in ("", "<s>"):
        held = side_by_side(adding, f"{begin} gave John a", f"{begin} gave Maryanne a")
        assert [token.special for token in held.clean] == [True, False, False, False]
        assert held.fix is not None
        assert held.fix.text == f"{begin} gave Mary a"


def offered(monkeypatch: pytest.MonkeyPatch, *words: str, old: str = " Maryanne", most: int = 80, **change: Any) -> Any:
    """What is offered for a word of two tokens, where these words are like the one of the other prompt."""
    monkeypatch.setattr("labkit.text.alignment._CANDIDATES", most)
    lm = text_model(of_pieces(" John", "John", *words, *([] if "anne" in words else ["anne"])), [" John", *words])
    for name, value in change.items():
        setattr(lm, name, value)
    held = side_by_side(lm, "a John.", f"a{old}.")
    assert len(held.clean) < len(held.corrupt)
    return held.fix and held.fix.words.split("'")[3]


def test_what_is_offered_is_a_word_of_the_same_form_the_most_alike_in_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered(monkeypatch, " Anna", " Mary", " Peter") == " Mary"
    assert offered(monkeypatch, " Peter", " Maria", " Marina") == " Maria"
    assert offered(monkeypatch, "Mary", " mary", " Mary.", " Peter") == " Peter"
    assert offered(monkeypatch, " Ma", " Peter") == " Peter"
    assert offered(monkeypatch, " Ma") is None
    assert offered(monkeypatch, " Mar") == " Mar"
    assert offered(monkeypatch, " peter", old=" maryanne") == " peter"
    assert offered(monkeypatch, " Mary", old=" Mariannanne") == " Mary"


def test_no_more_is_looked_at_than_costs_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(of_pieces(" John", "John", " Mary", "anne"))
    for work, found in ((size**2, " Mary"), (size**2 - 1, None)):
        monkeypatch.setattr("labkit.text.alignment._MOST_WORK", work)
        assert offered(monkeypatch, " Mary") == found
    assert offered(monkeypatch, " Mary", embedding=torch.zeros(size, 2, 2)) is None


def test_words_of_a_kind_are_those_whose_embeddings_point_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = of_pieces(" John", "John", " Mary", " Peter", "anne")
    john, _, mary, peter, _ = range(5)
    table = torch.zeros(len(pieces), 3)
    table[john], table[mary], table[peter] = torch.tensor([[1.0, 0, 0], [20.0, 99, 0], [0.5, 0.1, 0]])
    assert offered(monkeypatch, " Mary", " Peter", most=2, embedding=table) == " Peter"
    assert offered(monkeypatch, " Mary", " Peter", most=3, embedding=table) == " Mary"
    assert offered(monkeypatch, " Mary", " Peter", most=3, embedding=table.half()) == " Mary"
