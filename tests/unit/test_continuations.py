"""Continuations have the log-probabilities of a plain forward pass, and are cut into tokens where the harness cuts."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
from conformance import tokenizer
from shrink import tiny

import labkit as lk
from labkit.generation import continuations
from labkit.generation.continuations import ContinuationJob, score_continuations
from labkit.text.continuation import encode_continuations
from labkit.text.encode import TooLong

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " Rome"),
    ("The capital of France is", " the city of Paris, of course."),
    ("", "The cat sat on the mat."),
    ("", " The cats sits on the mat, 你好."),
    ("When Mary and John went to the store,", " John gave a drink to Mary"),
]


@pytest.fixture(scope="module")
def small():
    return lk.load(Path(__file__).parents[1] / "files" / "small_llama", bits=32, progress=False)


def naive(lm, context, added):
    """The log-probabilities of some ids after others, by one pass of transformers in float64."""
    with torch.no_grad():
        logits = lm.hf(torch.tensor([[*context, *added]])).logits[0, len(context) - 1 : -1].double()
    found = logits.log_softmax(-1).gather(1, torch.tensor(added)[:, None])[:, 0]
    return found.numpy(), bool((logits.argmax(-1) == torch.tensor(added)).all())


def test_they_are_those_of_a_plain_forward_batched_and_one_by_one(lm32):
    together = score_continuations(lm32, PAIRS)
    for pair, ids, found in zip(PAIRS, encode_continuations(lm32, PAIRS), together, strict=True):
        logprobs, greedy = naive(lm32, *ids)
        (alone,) = score_continuations(lm32, [pair])
        for one in (found, alone):
            assert one.tokens == ids[1]
            assert one.logprobs.dtype == np.float32
            assert np.abs(one.logprobs - logprobs).max() < 1e-4
            assert one.greedy == greedy
            assert one.n_bytes == len(pair[1].encode())
        assert found.logprob == pytest.approx(logprobs.sum(), abs=1e-4)
        assert found.per_token * len(found.tokens) == pytest.approx(found.logprob)
        assert found.per_byte * found.n_bytes == pytest.approx(found.logprob)
    assert [one.greedy for one in together[:2]] == [True, False]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_size_of_a_batch_changes_nothing(lm4, batch):
    for one, other in zip(score_continuations(lm4, PAIRS, batch=batch), score_continuations(lm4, PAIRS), strict=True):
        assert np.allclose(one.logprobs, other.logprobs, atol=0.05)  # bfloat16
        assert one.tokens == other.tokens


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_16_bits_are_read_in_float32(name):
    hf = tiny(name)
    if name == "gemma2":
        hf.config._attn_implementation = "eager"
    with torch.no_grad():
        hf.get_output_embeddings().weight.mul_(40)
    lm = lk.wrap(hf.to(torch.bfloat16).eval(), tokenizer())
    pairs = [("a b c", " d e"), ("f g", " h i j k")]
    cap = getattr(hf.config, "final_logit_softcapping", None)
    for (context, added), found in zip(encode_continuations(lm, pairs), score_continuations(lm, pairs), strict=True):
        with torch.no_grad():
            hidden = hf.base_model(input_ids=torch.tensor([[*context, *added]])).last_hidden_state[0]
            logits = hidden.float() @ hf.get_output_embeddings().weight.float().T
            logits = logits if cap is None else torch.tanh(logits / cap) * cap
            rounded = hf(torch.tensor([[*context, *added]])).logits[0]
        exact, coarse = (
            x[len(context) - 1 : -1].float().log_softmax(-1).gather(1, torch.tensor(added)[:, None])[:, 0].numpy()
            for x in (logits, rounded)
        )
        assert np.abs(found.logprobs - exact).max() < 2e-3 * max(1, np.abs(exact).max())
        assert np.abs(found.logprobs - exact).max() < np.abs(coarse - exact).max()


def test_spaces_at_the_end_of_a_context_move_to_the_continuation(lm32):
    (one,), (other,) = (score_continuations(lm32, [pair]) for pair in (("It is ", "Paris"), ("It is", " Paris")))
    assert one.tokens == other.tokens
    assert one.logprob == other.logprob
    assert (one.n_bytes, other.n_bytes) == (5, 6)  # as they were given
    (context, added), (first, rest) = encode_continuations(lm32, [("Q: a\n\n", "b"), (" \n", "b")])
    assert lm32.tokenizer.decode([*context, *added]) == "Q: a\n\nb"
    assert lm32.tokenizer.decode(context) == "Q: a"
    assert lm32.tokenizer.decode(rest) == " \nb"  # nothing is left of the context
    assert first == (lm32.tokenizer.bos_token_id,)


def test_a_continuation_that_shares_a_token_with_its_context_is_what_comes_after_it(lm32):
    of = lm32.tokenizer
    (context, added), *_ = encode_continuations(lm32, [("The capital of Fran", "ce is")])
    whole = of("The capital of France is").input_ids
    alone = of("The capital of Fran").input_ids
    assert whole[: len(alone)] != alone  # so the two do share one
    assert context == tuple(alone)
    assert added == tuple(whole[len(alone) :])


def with_template(lm, single):
    """The model with a tokenizer that adds special tokens."""
    changed = copy.deepcopy(lm.tokenizer)
    bos, eos = changed.bos_token, changed.eos_token
    special = [(token, changed.convert_tokens_to_ids(token)) for token in {bos, eos}]
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single=single.format(bos=bos, eos=eos), special_tokens=special
    )
    return lk.wrap(lm.hf, changed)


def test_there_is_one_bos_and_no_eos_that_a_tokenizer_appends(lm32):
    lm = with_template(lm32, "{bos} $A {eos}")
    bos = lm.tokenizer.bos_token_id
    plain = [lm32.tokenizer(text).input_ids for text in ("The cat", " sat")]
    pairs = [("The cat", " sat"), (f"{lm.tokenizer.bos_token}The cat", " sat"), ("", "The cat")]
    usual, spelt, empty = encode_continuations(lm, pairs)
    assert usual == spelt == ((bos, *plain[0]), tuple(plain[1]))
    assert empty == ((bos,), tuple(plain[0]))


def test_an_empty_context_is_bos_or_else_eos(lm32):
    lm = lk.wrap(lm32.hf, copy.deepcopy(lm32.tokenizer))
    text = lm.tokenizer("The cat").input_ids
    lm.tokenizer.bos_token = None
    assert encode_continuations(lm, [("", "The cat")]) == [((lm.tokenizer.eos_token_id,), tuple(text))]
    spelt = f"{lm.tokenizer.eos_token}The cat"  # stands for the context then
    assert encode_continuations(lm, [("", spelt)]) == [((lm.tokenizer.eos_token_id,), tuple(text))]
    lm.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither BOS nor EOS"):
        encode_continuations(lm, [("", "The cat")])
    assert score_continuations(lm, [("The", " cat")])[0].tokens == tuple(text[1:])


def test_chat_and_ids_keep_their_tokens(lm4):
    chat = [{"role": "user", "content": "Name a city."}]
    ids = lm4.encode(chat)
    of_chat, of_ids = encode_continuations(lm4, [(chat, "Paris"), (ids, "Paris")])
    assert of_chat == of_ids
    assert of_chat[0] == tuple(ids[0].tolist())
    assert lm4.tokenizer.decode(of_chat[1]) == "Paris"


def test_answers_of_one_token_share_a_pass(small):
    small.anatomy  # noqa: B018 — found by passes of its own
    rows = []
    handle = small.hf.get_input_embeddings().register_forward_hook(lambda m, args, out: rows.append(args[0].shape[0]))
    try:
        answers = [" Mary", " John", " Tom"]
        found = score_continuations(small, [("When Mary and John went", answer) for answer in answers])
        assert sum(rows) == 1
        apart = [score_continuations(small, [("When Mary and John went", answer)])[0] for answer in answers]
    finally:
        handle.remove()
    assert [len(one.tokens) for one in found] == [1, 1, 1]
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in apart], abs=1e-6)
    assert sum(np.exp(one.logprob) for one in found) < 1


def test_what_is_done_is_kept_and_not_done_again(small, monkeypatch):
    pairs = [
        ("", f"{name} went to the {place} again") for name in ("Mary", "John") for place in ("store", "park", "school")
    ]
    pairs += [("When Mary and John went to the", f" {place}") for place in ("store", "park")]
    whole = score_continuations(small, pairs)
    job = ContinuationJob(small, pairs, batch=2)
    real, passes = continuations.measured_tail, []

    def counted(lm, ids, count):
        if len(passes) == 2:
            passes.append(None)
            raise KeyboardInterrupt
        passes.append(ids)
        return real(lm, ids, count)

    monkeypatch.setattr(continuations, "measured_tail", counted)
    with pytest.raises(KeyboardInterrupt):
        for _ in job.steps():
            pass
    done = job.done
    assert 0 < done < job.total == len(pairs)
    for _ in job.steps():
        pass
    assert job.done == job.total
    assert sum(len(ids) for ids in passes if ids is not None) <= len(pairs)
    for one, other in zip(job.found, whole, strict=True):
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-5)


@pytest.mark.parametrize(
    ("pairs", "error", "says"),
    [
        ([("a", " b"), ("a", "")], ValueError, "continuation 1 is empty"),
        ([("a", 3)], TypeError, "a continuation is text; number 0 is 3"),
        ([(3, " b")], TypeError, "a prompt is text"),
        ([("The capital of Franc", "e")], ValueError, "has no tokens of its own"),
    ],
)
def test_what_cannot_be_scored_is_told_before_anything_runs(lm4, pairs, error, says):
    with pytest.raises(error, match=says):
        ContinuationJob(lm4, pairs)


def test_a_pair_that_is_too_long_is_told_by_how_much(small):
    ids = small.encode("Mary")
    room = small.context - ids.shape[1]
    word = " went"
    assert len(score_continuations(small, [("Mary", word * (room + 1))])[0].tokens) == room + 1  # the last needs none
    with pytest.raises(TooLong, match=r"3 more than .*'s context of 128 has room for; shorten it by 3 tokens"):
        ContinuationJob(small, [("Mary", word * (room + 4))])
    with pytest.raises(ValueError, match="batch must be at least 1 row; got 0"):
        ContinuationJob(small, [("Mary", word)], batch=0)
