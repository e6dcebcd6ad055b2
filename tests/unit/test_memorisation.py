"""Memorisation: a text that was learned by heart is found, and what the numbers are made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pieces import of_bytes
from stopped import stopped
from transformers import LlamaConfig, LlamaForCausalLM

import labkit as lk
from labkit.audits.memorisation import KINDS
from labkit.datasets.public_domain import OPENINGS

KNOWN = "the grey owl counts seven coins by the mill"
UNKNOWN = "a red fox hides two letters under my chair"


@pytest.fixture(scope="module")
def learned() -> lk.LanguageModel:
    """A tiny model that has read one sentence until it knew it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    hf, tokenizer = LlamaForCausalLM(config), of_bytes()
    ids = torch.tensor([tokenizer(KNOWN).input_ids])
    optimiser = torch.optim.AdamW(hf.parameters(), lr=1e-2)
    for _ in range(120):
        loss = hf(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    return lk.wrap(hf.eval(), tokenizer)


@pytest.fixture(scope="module")
def found(lm4) -> lk.Memorisation:
    return lk.memorisation(lm4, tokens=12, progress=False)


def test_a_text_that_was_learned_by_heart_is_continued_word_for_word_and_another_is_not(learned):
    found = lk.memorisation(learned, [KNOWN, UNKNOWN], given=8, progress=False)
    assert found.exact == ["the grey owl counts seven coins ..."]
    assert found.run.tolist()[0] == 20
    assert found.run[1] < 3
    assert found.hits[0] == 1
    true, _, other = found.logprobs[0]
    assert true > -0.2
    assert other < true - 2
    assert "1 of 2 texts are continued word for word" in found.words()


def test_the_exact_run_is_what_greedy_writing_gets_right(lm4, found):
    for n, one in enumerate(OPENINGS):
        written = [token.id for token in lm4.generate(one.start, max_new_tokens=12).tokens]
        start = lm4.encode(one.start).shape[1]
        whole = lm4.encode(one.start + one.continuation)[0].tolist()
        assert whole[:start] == lm4.encode(one.start)[0].tolist()
        true = whole[start : start + 12]
        same = next((k for k, (a, b) in enumerate(zip(written, true, strict=False)) if a != b), len(true))
        assert abs(found.run[n] - same) <= 1, one.title  # with a cache, two nearly equal logits may change places
        assert found.tokens[n] == len(true) == 12


def test_log_probabilities_are_means_over_the_tokens_of_a_continuation(lm32):
    text = OPENINGS[0].start + OPENINGS[0].continuation
    found = lk.memorisation(lm32, [text, text[::-1]], given=10, tokens=8, progress=False)
    ids = lm32.encode(text)
    score = lk.score(lm32, ids[:, :18])
    logprobs = [math.log(token.probability) for token in score.tokens[10:]]
    assert found.logprobs[0, 0] == pytest.approx(float(np.mean(logprobs)), abs=1e-3)
    assert np.isnan(found.logprobs[:, 1]).all()  # own texts have no paraphrase
    assert "paraphrase" not in found.words()


def test_continuations_are_compared_with_paraphrases_and_with_each_other(found, tmp_path):
    assert np.isfinite(found.logprobs).all()
    for over in KINDS[1:]:
        mean, low, high = found.advantage(over)
        assert low < mean < high
    assert found.advantage("another's")[1] > 0  # even a small model prefers what makes sense
    assert "95 % interval" in found.words()
    assert "says little about the book" in found.words()
    assert list(found.to_frame().columns) == ["run", "tokens", "hits", *KINDS]
    assert len(found.figure().data) == 3
    assert found.code() == "import labkit as lk\n\nlm = lk.load(bits=4)\nfound = lk.memorisation(lm, tokens=12)\n"
    assert "16 texts" in repr(found)
    opened = lk.open_memorisation(found.save(tmp_path / "found.npz"))
    assert opened.to_frame().equals(found.to_frame())
    assert (opened.words(), opened.code()) == (found.words(), found.code())
    with pytest.raises(ValueError, match="over must be one of paraphrase, another's; got 'shuffled'"):
        found.advantage("shuffled")


def test_the_built_in_works_are_old_enough_and_long_enough(lm4):
    assert len(OPENINGS) >= 12
    assert len({one.title for one in OPENINGS}) == len(OPENINGS)
    for one in OPENINGS:
        assert one.year < 1900  # so 95 years after publication, whatever country counts from it
        assert one.died < 1926 - 1  # and more than 100 years after the author
        assert str(one.year) in one.why
        assert str(one.died) in one.why
        lengths = [len(lm4.tokenizer(text).input_ids) for text in (one.continuation, one.paraphrase)]
        assert min(lengths) >= 16, one.title
        assert one.continuation != one.paraphrase


def test_an_interrupt_keeps_the_texts_that_were_measured_and_the_result_says_so(learned, tmp_path):
    texts = [KNOWN, UNKNOWN, "an old map of the town shows where the river went before"]
    lk.memorisation(learned, texts, given=8, tokens=40, progress=False)  # what is looked at once per model
    with stopped(learned, 10**6) as passes:
        whole = lk.memorisation(learned, texts, given=8, tokens=40, progress=False)
    assert passes[0] > 2
    for after in range(1, passes[0] + 1):
        with stopped(learned, after), pytest.warns(UserWarning, match="continuations are in the memorisation"):
            found = lk.memorisation(learned, texts, given=8, tokens=40, progress=False)
        done = found.done
        assert not np.isfinite(found.logprobs[:, [0, 2]]).all()
        assert found.run[done].tolist() == whole.run[done].tolist()
        np.testing.assert_allclose(found.logprobs[done, 0], whole.logprobs[done, 0], atol=1e-5)
        assert found.to_frame().index.tolist() == np.array(found.titles)[done].tolist()
        assert (f"{(~done).sum()} texts were not measured." in found.words()) == (0 < done.sum() < 3)
        assert len(found.figure().data[0].x) == done.sum()
        opened = lk.open_memorisation(found.save(tmp_path / "found.npz"))
        assert (opened.words(), repr(opened), opened.code()) == (found.words(), repr(found), found.code())
    with stopped(learned, 2, MemoryError("no more")), pytest.raises(MemoryError) as error:
        lk.memorisation(learned, texts, given=8, tokens=40, progress=False)
    assert isinstance(error.value.memorisation, lk.Memorisation)


@pytest.mark.parametrize(
    ("texts", "settings", "says"),
    [
        ("one text", {}, "put this one into brackets"),
        ([], {}, "there are no texts"),
        ([KNOWN], {"tokens": 0}, "must be at least 1"),
        ([KNOWN, "short"], {"given": 5}, "'short' has no token after the 5 that are given"),
        ([KNOWN * 3], {"given": 120, "tokens": 9}, "longer than the 128 tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(learned, texts, settings, says):
    with pytest.raises(ValueError, match=says):
        lk.memorisation(learned, texts, progress=False, **settings)
