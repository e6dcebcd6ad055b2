"""Generation: transformers' own text, with what else could have been said."""

import threading

import pytest
import torch
from pair import CLEAN


def test_greedy_text_is_that_of_transformers(lm):
    ids = lm.encode(CLEAN)
    with torch.no_grad():
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
        assert token.alternatives[0][2] == pytest.approx(float(row.max()), abs=1e-4)


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
        (CLEAN, {"temperature": -1}, "temperature is 0 or more"),
        (CLEAN, {"top_p": 0}, "top_p above 0"),
        (CLEAN, {"max_new_tokens": 0}, "max_new_tokens"),
        (CLEAN, {"max_new_tokens": 9000}, "more than the 8192"),
        (["a", 3], {}, "a prompt is text"),
    ],
)
def test_wrong_input_is_told(lm4, prompt, settings, says):
    with pytest.raises((ValueError, TypeError), match=says):
        lm4.generate(prompt, **settings)


def test_tokens_show_spaces_bytes_and_specials_as_what_they_are(lm4):
    shown = [t.display for t in lm4.tokens(" a\n\t😀<|im_end|>")]
    assert shown[0].startswith("·")
    assert any("⏎" in text for text in shown)
    assert any(text.startswith("‹") for text in shown)
    assert shown[-1] == "<|im_end|>"
    assert not any("\ufffd" in text for text in shown)
    assert lm4.tokens("<|im_end|>")[0].special
