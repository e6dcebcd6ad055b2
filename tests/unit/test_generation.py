"""Generation: transformers' own text, with what else could have been said."""

import threading

import pytest
import torch
from pair import CLEAN

from labkit.text.encode import TooLong


def test_greedy_text_is_that_of_transformers(lm):
    ids = lm.encode(CLEAN)
    with lm.busy():  # the same layers: without a 4-bit kernel bitsandbytes' own round otherwise
        theirs = lm.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    ours = lm.generate(CLEAN, max_new_tokens=12)
    assert [t.id for t in ours.tokens] == theirs[0, ids.shape[1] :].tolist()
    assert ours.finish in ("length", "eos")


def test_probabilities_are_those_of_a_plain_forward(lm32):
    ours = lm32.generate(CLEAN, max_new_tokens=8)
    ids = torch.cat([lm32.encode(CLEAN), torch.tensor([[t.id for t in ours.tokens]])], 1)
    p = lm32.run(ids).logits[0].softmax(-1)
    for n, token in enumerate(ours.tokens):
        row = p[13 + n]
        assert token.probability == pytest.approx(float(row[token.id]), abs=1e-4)
        assert [id for id, _, _ in token.alternatives[:3]] == row.topk(3).indices.tolist()
        assert token.alternatives[0][2] == pytest.approx(float(row.max()), abs=5e-4)  # kept in half precision


def test_the_same_seed_gives_the_same_text_and_leaves_other_random_numbers_alone(lm4):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, two = (lm4.generate("Once upon a time", temperature=1.0, seed=3, max_new_tokens=15) for _ in range(2))
    assert one.text == two.text
    assert torch.equal(torch.rand(3), expected)
    assert lm4.generate("Once upon a time", temperature=1.0, seed=4, max_new_tokens=15).text != one.text


def test_a_drawn_seed_is_told_so_that_code_repeats_the_text(lm4):
    first = lm4.generate("Once upon a time", temperature=1.0, max_new_tokens=10)
    names: dict = {}
    exec(first.code(), names)
    assert names["generation"].text == first.text


def test_stop_ends_within_one_token_and_keeps_what_there_is(lm4):
    stop, seen = threading.Event(), []

    def on_token(token):
        seen.append(token)
        if len(seen) == 5:
            stop.set()

    generation = lm4.generate("Once upon a time", max_new_tokens=50, stop=stop, on_token=on_token)
    assert generation.finish == "stopped"
    assert 5 <= len(generation.tokens) <= 6
    assert generation.tokens == seen


def test_a_failing_callback_leaves_the_model_as_it_was(lm4):
    before = lm4.run(CLEAN).logits
    with pytest.raises(RuntimeError, match="mine"):
        lm4.generate(CLEAN, on_token=lambda token: (_ for _ in ()).throw(RuntimeError("mine")))
    assert torch.equal(lm4.run(CLEAN).logits, before)


@pytest.mark.parametrize(
    ("prompt", "settings", "says"),
    [
        ("", {}, "the prompt is empty"),
        (CLEAN, {"temperature": -1}, "temperature must be from 0"),
        (CLEAN, {"temperature": 1e-6}, "use 0 for that"),
        (CLEAN, {"top_p": 0}, "top_p must be above 0"),
        (CLEAN, {"top_p": float("nan")}, "top_p must be above 0"),
        (CLEAN, {"top_k": -1}, "top_k must be at least 0"),
        (CLEAN, {"min_p": 1.5}, "min_p must be from 0 to 1"),
        (CLEAN, {"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        (CLEAN, {"stop_strings": [""]}, "at least one character"),
        (CLEAN, {"max_new_tokens": 0}, "max_new_tokens"),
        (CLEAN, {"max_new_tokens": 9000}, "822 more than the 8192"),
        (CLEAN, {"top_p": 0.9, "min_p": 0.1}, "top_p and min_p would have no effect"),
        (["a", 3], {}, "a prompt is text"),
    ],
)
def test_wrong_input_is_told(lm4, prompt, settings, says):
    with pytest.raises((ValueError, TypeError), match=says):
        lm4.generate(prompt, **settings)


@pytest.mark.parametrize("settings", [{"temperature": 0.7, "top_k": 5}, {"temperature": 1.3, "min_p": 0.1}])
def test_sampling_draws_only_from_what_the_settings_leave(lm4, settings):
    for seed in range(2):
        for token in lm4.generate("Once upon a time", seed=seed, max_new_tokens=12, **settings).tokens:
            assert token.rank <= settings.get("top_k", 99)
            # the cut is at a share of the likeliest after temperature: p ** (1 / T)
            warm = (token.probability / float(token.top_probabilities[0])) ** (1 / settings["temperature"])
            assert warm >= settings.get("min_p", 0) - 1e-3


def test_a_repetition_penalty_lets_fewer_words_come_again_and_leaves_probabilities_the_models_own(lm4):
    prompt = "la la la la la la"
    plain, varied = (lm4.generate(prompt, max_new_tokens=20, repetition_penalty=p) for p in (1.0, 1.8))
    assert len(set(varied.record.ids)) > len(set(plain.record.ids))
    assert varied.tokens[0].top_ids.tolist() == plain.tokens[0].top_ids.tolist()
    assert max(token.rank for token in varied.tokens) > 1


@pytest.mark.parametrize("string", [" by", "the ci", "city w"])
def test_a_stop_string_ends_the_text_also_in_the_middle_of_a_token_and_over_several(lm4, string):
    whole = lm4.generate("Once upon a time", max_new_tokens=24).text
    at = whole.find(string)
    assert at >= 0, whole
    stopped = lm4.generate("Once upon a time", max_new_tokens=24, stop_strings=["never said", string])
    assert stopped.finish == "stop_string"
    assert whole.startswith(stopped.text)
    assert at + len(string) <= len(stopped.text) < at + len(string) + 8


def test_a_stop_string_in_the_prompt_stops_nothing(lm4):
    assert lm4.generate("A list of words: a, b,", max_new_tokens=5, stop_strings=["list"]).finish == "length"


def test_the_beginning_of_a_prompt_that_is_too_long_is_left_out_on_request(lm4):
    with pytest.raises(TooLong, match="truncate_left=True") as caught:
        lm4.generate(" a" * 8190, max_new_tokens=5)
    assert caught.value.over == 3
    assert len(lm4.generate(" a" * 30, max_new_tokens=2, truncate_left=True).prompt) == 30


def test_what_was_written_before_a_failure_is_in_the_error(lm4):
    seen = []

    def fail(token):
        seen.append(token)
        if len(seen) == 3:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as caught:
        lm4.generate(CLEAN, on_token=fail)
    assert caught.value.generation.tokens == seen
    assert caught.value.generation.finish == "failed"


def test_an_interrupt_keeps_what_was_written(lm4):
    def interrupt(token):
        if token.token.text == " and":
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="2 tokens written so far are kept"):
        generation = lm4.generate(CLEAN, on_token=interrupt)
    assert generation.text == " Mary and"
    assert generation.finish == "stopped"


def test_token_ids_as_a_prompt_are_repeated_by_code(lm4):
    first = lm4.generate(lm4.encode(CLEAN), max_new_tokens=4)
    names: dict = {"lm": lm4}
    exec(first.code().replace("lm = lk.load(bits=4)\n", ""), names)
    assert names["generation"].text == first.text


def test_tokens_show_spaces_bytes_and_specials_as_what_they_are(lm4):
    shown = [t.display for t in lm4.tokens(" a\n\t😀<|im_end|>")]
    assert shown[0].startswith("·")
    assert any("⏎" in text for text in shown)
    assert any(text.startswith("‹") for text in shown)
    assert shown[-1] == "<|im_end|>"
    assert not any("\ufffd" in text for text in shown)
    assert lm4.tokens("<|im_end|>")[0].special
