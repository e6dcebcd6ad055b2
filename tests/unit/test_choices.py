"""Answers of any length are compared by what a plain forward pass gives them, in four ways."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from stopped import stopped

import labkit as lk
from labkit.audits.choices import WAYS

SMALL = Path(__file__).parents[1] / "files" / "small_llama"
PROMPT, ANSWERS = "The capital of France is", [" Paris", " Rome", " the city of London"]


@pytest.fixture(scope="module")
def small() -> lk.LanguageModel:
    return lk.load(SMALL, bits=32, progress=False)


def logprob(lm, prompt, answer):
    """The log-probability of an answer, from transformers in float64."""
    before, whole = lm.encode(prompt), lm.encode(prompt + answer)
    start = before.shape[1]
    assert whole[0, :start].tolist() == before[0].tolist()
    with torch.no_grad():
        logits = lm.hf(whole).logits[0, start - 1 : -1].double()
    return float(logits.log_softmax(-1).gather(1, whole[0, start:, None]).sum()), whole.shape[1] - start


def test_the_four_ways_are_what_they_say(lm32):
    found = lk.choices(lm32, PROMPT, ANSWERS, prior="Answer:")
    assert found.ways == tuple(WAYS)
    sums, counts = zip(*(logprob(lm32, PROMPT, answer) for answer in ANSWERS), strict=True)
    prior = [logprob(lm32, "Answer:", answer)[0] for answer in ANSWERS]
    expected = {
        "raw": np.array(sums),
        "per_token": np.array(sums) / counts,
        "per_byte": np.array(sums) / [len(answer.encode()) for answer in ANSWERS],
        "prior": np.array(sums) - prior,
    }
    frame = found.to_frame()
    for way, values in expected.items():
        assert np.allclose(found.logprobs(way), values, atol=1e-4), way
        shares = np.exp(values) / np.exp(values).sum()
        assert np.allclose(found.probabilities(way), shares, atol=1e-5), way
        assert frame[way].tolist() == found.logprobs(way).tolist()
        assert frame[f"p_{way}"].sum() == pytest.approx(1)
        assert found.best_by(way) == ANSWERS[int(values.argmax())]
    assert found.best == " Paris"
    assert frame.greedy.tolist() == [True, False, False]
    assert frame.tokens.tolist() == list(counts)
    assert list(frame.index) == ANSWERS


def test_without_a_prior_there_are_three_ways(lm4):
    found = lk.choices(lm4, PROMPT, ANSWERS[:2])
    assert found.ways == ("raw", "per_token", "per_byte")
    assert len(found.figure().data) == 3
    with pytest.raises(
        ValueError, match=r"no way 'prior' .* use one of raw, per_token, per_byte; prior= of lk\.choices"
    ):
        found.logprobs("prior")
    with pytest.raises(ValueError, match="no way 'length'"):
        found.best_by("length")
    assert repr(found).startswith("Choices(' Paris' ")


def test_a_disagreement_of_the_ways_is_shown(lm4):
    found = lk.choices(lm4, "He came from", [" London", " the United States of America"])
    assert found.best == " London"
    assert found.best_by("per_byte") == " the United States of America"
    assert "per_byte prefers ' the United States of America'" in repr(found)


def test_chat_ids_and_several_prompts_are_prompts(lm4):
    chat = [{"role": "user", "content": "Is Paris in France? Answer Yes or No."}]
    of_chat = lk.choices(lm4, chat, ["Yes", "No"])
    of_ids = lk.choices(lm4, lm4.encode(chat), ["Yes", "No"])
    assert of_chat.logprobs().tolist() == of_ids.logprobs().tolist()
    ids = lm4.encode(chat)
    with lm4.busy():
        plain = lm4.hf(ids).logits[0, -1].float().log_softmax(-1)
    first = [lm4.tokenizer(answer).input_ids[0] for answer in ("Yes", "No")]
    assert of_chat.logprobs() == pytest.approx(plain[first].tolist(), abs=0.1)
    each = lk.choices(lm4, [PROMPT, "The capital of Italy is"], ANSWERS[:2])
    assert [one.best for one in each] == [" Paris", " Rome"]


def test_the_code_asks_again(small):
    for prompt, prior in (("When Mary and John went to the", "the"), (small.encode("Mary and"), None)):
        found = lk.choices(small, prompt, [" store", " park"], prior=prior)
        scope: dict = {}
        exec(found.code(), scope)
        assert scope["choices"].logprobs().tolist() == found.logprobs().tolist()
        assert scope["choices"].ways == found.ways
        assert ("prior=" in found.code()) == (prior is not None)


def test_an_interrupt_keeps_the_answers_that_were_scored(small, tmp_path):
    answers, prompt = [" store", " park and the store"], "When Mary and John went to the"
    whole = lk.choices(small, prompt, answers)
    with stopped(small, 2), pytest.warns(UserWarning, match="interrupted: 1 of 2 answers are in the choices"):
        part = lk.choices(small, prompt, answers)
    assert part.logprobs()[0] == pytest.approx(whole.logprobs()[0])
    assert np.isnan(part.logprobs()).tolist() == [False, True]
    assert np.isnan(part.probabilities()).all()  # shares of all
    assert "not all were reached" in repr(part)
    with pytest.raises(ValueError, match="1 of 2 answers were not reached; ask again"):
        _ = part.best
    assert part.to_frame().raw.isna().tolist() == [False, True]
    assert part.figure().data
    opened = lk.open_choices(part.save(tmp_path / "part.npz"))
    assert opened.to_frame().equals(part.to_frame())
    with stopped(small, 3), pytest.warns(UserWarning, match="interrupted: 0 of 2"):
        several = lk.choices(small, [prompt] * 3, answers)
    assert [one.finish for one in several] == ["complete", "stopped"]
    with stopped(small, 2, MemoryError("no more")), pytest.raises(MemoryError) as error:
        lk.choices(small, prompt, answers)
    assert error.value.choices.logprobs()[0] == pytest.approx(whole.logprobs()[0])


def test_choices_are_saved_and_opened(small, tmp_path):
    chat_ids = small.encode("When Mary and John went")
    for prompt, prior in (("When Mary and John went to the", "the"), (chat_ids, None)):
        found = lk.choices(small, prompt, [" store", " park and the store"], prior=prior)
        opened = lk.open_choices(found.save(tmp_path / "choices.npz"))
        assert opened.to_frame().equals(found.to_frame())
        assert (repr(opened), opened.code(), opened.best) == (repr(found), found.code(), found.best)


def test_the_figure_has_a_bar_for_each_answer_and_way(small):
    found = lk.choices(small, "When Mary and John went to the", [" store", " park"], prior="the")
    figure = found.figure()
    assert [bar.name for bar in figure.data] == list(WAYS.values())
    assert all(math.isclose(sum(bar.y), 1) for bar in figure.data)
    assert figure.layout.xaxis.title.text == "answer"
    assert figure.layout.yaxis.title.text == "probability among these"


@pytest.mark.parametrize(
    ("answers", "error", "says"),
    [
        ("yes", TypeError, "answers is a list of texts"),
        ([" yes"], ValueError, "give two answers or more"),
        ([" yes", " no", " yes"], ValueError, "more than once: ' yes'"),
        ([" yes", ""], ValueError, "continuation 1 is empty"),
        ([" yes", 3], TypeError, "a continuation is text; number 1 is 3"),
        ([" yes", " no" * 200], ValueError, "room for; shorten it"),
    ],
)
def test_what_is_no_list_of_answers_is_told(small, answers, error, says):
    with pytest.raises(error, match=says):
        lk.choices(small, "Mary", answers)


def test_answers_glued_to_the_prompt_are_warned_of(small):
    with pytest.warns(UserWarning, match="no space between: 'Marywent'. Most words begin with one: ' went'"):
        lk.choices(small, "Mary", ["went", " gave"])
