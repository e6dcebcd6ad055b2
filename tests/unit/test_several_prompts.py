"""A list of prompts gives a list of results, each the one that its prompt gives alone."""

import threading

import numpy as np
import pytest
import torch
from pair import CLEAN, CORRUPT

import labkit as lk

CHAT = [{"role": "user", "content": "Hi there"}]
TEXTS = ["The cat sat on the", CLEAN]


def test_scores_of_a_list_are_those_of_each(lm4):
    found = lk.score(lm4, [*TEXTS, CHAT, torch.tensor([[5, 6, 7]])], alternatives=3)
    assert [one.logprob for one in found[:2]] == [lk.score(lm4, text).logprob for text in TEXTS]
    assert found[2].logprob == lk.score(lm4, CHAT).logprob
    assert [t.id for t in found[3].prompt] == [5, 6, 7]
    assert {one.record.alternatives for one in found} == {3}
    scope: dict = {}
    exec(found[1].code(), scope)
    assert scope["score"].logprob == found[1].logprob
    assert isinstance(lk.score(lm4, text=TEXTS), list)


def test_texts_of_a_list_are_those_of_each(lm4):
    found = lm4.generate([TEXTS[0], CHAT], max_new_tokens=5)
    assert [one.text for one in found] == [lm4.generate(one, max_new_tokens=5).text for one in (TEXTS[0], CHAT)]
    assert isinstance(lm4.generate(CHAT, max_new_tokens=1), lk.Generation)  # a list of messages is one prompt
    assert len(lm4.generate([CHAT, CHAT], max_new_tokens=2)) == 2


def test_a_stop_ends_the_whole_list(lm4):
    stop, seen = threading.Event(), []

    def on_token(token):
        seen.append(token)
        if len(seen) == 3:
            stop.set()

    found = lm4.generate([TEXTS[0]] * 5, max_new_tokens=20, stop=stop, on_token=on_token)
    assert [one.finish for one in found] == ["stopped"]


def test_rows_of_ids_are_prompts(lm4):
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    assert [one.logprob for one in lk.score(lm4, ids)] == [lk.score(lm4, row[None]).logprob for row in ids]
    assert [one.record.ids for one in lm4.generate(ids, max_new_tokens=2)] == [
        lm4.generate(row, max_new_tokens=2).record.ids for row in ids
    ]


def test_lenses_patterns_and_attributions_of_a_list(lm4):
    lenses = lk.logit_lens(lm4, [CLEAN, CORRUPT], positions=[-1], follow=" Mary")
    np.testing.assert_array_equal(lenses[1].ranks, lk.logit_lens(lm4, CORRUPT, positions=[-1], follow=" Mary").ranks)
    patterns = lk.attention(lm4, [CLEAN, CHAT])
    assert [len(one.tokens) for one in patterns] == [14, len(lm4.tokens(CHAT))]
    shares = lk.direct_logit_attribution(lm4, [CLEAN, CORRUPT], " Mary", foil=" John")
    np.testing.assert_array_equal(shares[0].mlp, lk.direct_logit_attribution(lm4, CLEAN, " Mary", " John").mlp)


def test_an_error_names_its_prompt_and_keeps_those_before_it(lm4):
    with pytest.raises(ValueError, match="single token") as caught:
        lk.score(lm4, [TEXTS[0], "a", TEXTS[1]])
    assert "prompt 2 of 3" in caught.value.__notes__[0]
    assert [one.logprob for one in caught.value.results] == [lk.score(lm4, TEXTS[0]).logprob]


@pytest.mark.parametrize(
    "call",
    [
        lambda lm: lm.tokens(TEXTS),
        lambda lm: lm.encode((CHAT, CHAT)),
        lambda lm: lm.tree(TEXTS, max_new_tokens=2),
        lambda lm: lk.patch(lm, TEXTS, TEXTS, " Mary", " John", progress=False),
        lambda lm: lk.knock_out(lm, torch.ones(2, 3, dtype=torch.long), heads=[(0, 0)]),
    ],
)
def test_what_takes_one_prompt_says_so(lm4, call):
    with pytest.raises(ValueError, match=r"one prompt at a time; got 2\. .*lk\.score"):
        call(lm4)


@pytest.mark.parametrize("prompt", [[], [1, 2, 3], [["a"]], ["a", 3], None])
def test_what_is_no_prompt_is_told(lm4, prompt):
    for call in (lk.score, lk.logit_lens):
        with pytest.raises(TypeError, match="a prompt is text, a list of chat messages, or token ids"):
            call(lm4, prompt)
