"""The refusal direction: found where it was planted, with sign and layer, and not found where there is none."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from pieces import of_bytes
from stopped import stopped
from transformers import LlamaConfig, LlamaForCausalLM

import labkit as lk
from labkit.audits.openers import asking, check_disjoint, log_odds, opener_ids, opener_logprobs
from labkit.audits.refusal import RefusalJob, _Test
from labkit.datasets.refusals import ANSWERS, PAIRS, PHRASES, REFUSALS

SMALL = Path(__file__).parents[1] / "files" / "small_llama"
OWN = {"refusals": ["N"], "answers": ["Y"], "controls": 3, "new_tokens": 0, "progress": False}


def planted(*, gain: float = 40.0) -> lk.LanguageModel:
    """Four layers of which one does something: layer 1 averages over the prompt, and turns a `z` in it into a direction
    (dimension 0) that makes `N` likelier than `Y`.
    """
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=1,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    hf, tokenizer = LlamaForCausalLM(config).eval(), of_bytes()
    draw = torch.Generator().manual_seed(0)
    (z,), (yes,), (no,) = (tokenizer(letter).input_ids for letter in "zYN")
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if "norm" not in name:
                weight.zero_()
        hf.model.embed_tokens.weight[:, 2:] = torch.randn(256, 30, generator=draw)
        hf.model.embed_tokens.weight[z, 1] = 4.0
        hf.lm_head.weight[:, 2:] = 0.1 * torch.randn(256, 30, generator=draw)
        hf.lm_head.weight[no, 0], hf.lm_head.weight[yes, 0] = 1.0, -1.0
        attention = hf.model.layers[1].self_attn
        attention.v_proj.weight.copy_(torch.eye(32))
        attention.v_proj.weight[0, 0], attention.v_proj.weight[0, 1] = 0.0, 1.0
        attention.o_proj.weight.copy_(torch.eye(32))
        attention.o_proj.weight[0, 0] = gain
    return lk.wrap(hf, tokenizer)


def requests(count: int = 20) -> list[tuple[str, str]]:
    """Pairs of letters at random, of one length, the second with one `z` in it."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        plain, other = ("".join(draw.choices("abcdefghijklmnopqrstuvwxy ", k=20)) for _ in range(2))
        place = draw.randrange(20)
        found.append((plain, other[:place] + "z" + other[place + 1 :]))
    return found


@pytest.fixture(scope="module")
def found() -> lk.Refusal:
    return lk.refusal_direction(planted(), requests(), **OWN)


def test_a_planted_direction_is_found_with_its_layer_and_sign(found):
    assert found.layer == 1  # nothing of the request is at the last position before
    assert sorted(found.directions) == [1, 2]
    unit = found.vector.values / found.vector.norm
    assert float(unit[0]) > 0.95
    added, without = found.effect("add"), found.effect("project_out")
    assert added.found
    assert added.low > 1
    assert without.found
    assert without.high < -1
    assert np.all(found.apart > 0)
    assert found.gap[1] > 1
    assert "the model tells the two apart" in found.words()
    assert found.words().count(": an effect.") == 2
    assert "it does not" not in found.words()


def test_projected_out_the_model_no_longer_tells_the_two_apart(found):
    frame = found.to_frame()
    left = frame.log_odds["project_out", "direction"] - frame.log_odds["none", "answered"]
    assert abs(left) < 0.2 * found.gap[0]


def test_with_the_sides_exchanged_the_direction_points_the_other_way_and_nothing_is_claimed():
    other = lk.refusal_direction(planted(), [(b, a) for a, b in requests()], **OWN)
    assert float(other.vector.values[0]) < 0
    assert other.effect("add").mean < -1
    assert not other.effect("add").found
    assert not other.effect("project_out").found
    assert "does not refuse more, so there is little to find" in other.words()
    assert other.words().count("not an effect that can be told from theirs") == 2


def test_shuffled_labels_give_nothing():
    lm, alarms = planted(), 0
    for seed in range(10):
        draw = random.Random(seed)
        pairs = [pair if draw.random() < 0.5 else pair[::-1] for pair in requests()]
        shuffled = lk.refusal_direction(lm, pairs, **{**OWN, "controls": 2})
        alarms += shuffled.effect("add").found or shuffled.effect("project_out").found
    assert alarms <= 1


def test_where_nothing_is_planted_nothing_is_found():
    none = lk.refusal_direction(planted(gain=0.0), requests(), **OWN)
    assert not none.effect("add").found
    assert not none.effect("project_out").found
    assert none.words().count("not an effect that can be told from theirs") == 2


def test_equal_sides_have_no_direction_and_the_result_says_so(tmp_path):
    same = lk.refusal_direction(planted(), [(text, text) for text, _ in requests(4)], **OWN)
    assert same.layer is None
    assert "there is no direction" in same.words()
    assert "no direction" in repr(same)
    for ask in (lambda: same.vector, lambda: same.effect("add")):
        with pytest.raises(ValueError, match="same activations for both sides"):
            ask()
    opened = lk.open_refusal(same.save(tmp_path / "same.npz"))
    assert (opened.layer, opened.words()) == (None, same.words())
    assert same.figure().data


def test_controls_are_as_long_and_have_other_directions(found):
    frame = found.to_frame()
    assert list(frame.loc["add"].index) == [
        "direction",
        *(f"{kind} {n}" for kind in ("random", "shuffled") for n in range(3)),
    ]
    assert found.effect("add").controls.shape == (6,)
    assert np.all(found.effect("add").controls < found.effect("add").mean)
    assert frame.kl["none", "answered"] == 0
    assert frame.perplexity.gt(1).all()


def test_it_is_saved_opened_drawn_and_repeated(found, tmp_path):
    opened = lk.open_refusal(found.save(tmp_path / "refusal.npz"))
    assert (repr(opened), opened.words(), opened.code()) == (repr(found), found.words(), found.code())
    assert opened.to_frame().equals(found.to_frame())
    assert torch.equal(opened.vector.values, found.vector.values)
    fig = found.figure()
    assert len(fig.data[0].x) == len(found.directions)
    assert "layer 1" in fig.layout.title.text
    assert found.code() == opened.directions[1].code().rsplit("vector = ", 1)[0]
    compile(found.code(), "code", "exec")


# -- interrupted ----------------------------------------------------------------------------------------------------


def test_an_interrupt_at_any_time_keeps_what_was_measured(found, tmp_path):
    settings = {**OWN, "new_tokens": 2}
    lm = planted()
    lk.refusal_direction(lm, requests(), **settings)  # what is looked at once per model
    with stopped(lm, 10**6) as passes:
        whole = lk.refusal_direction(lm, requests(), **settings)
    for after in range(6, passes[0], passes[0] // 8):
        with (
            stopped(lm, after),
            pytest.warns(UserWarning, match=r"interrupted: \d+ of 18 conditions are in the refusal"),
        ):
            part = lk.refusal_direction(lm, requests(), **settings)
        done = part.done
        assert done.sum() < len(done)
        np.testing.assert_allclose(part.log_odds[done], whole.log_odds[done], atol=1e-5)
        tried = np.isfinite(part.choice).all(1)
        np.testing.assert_allclose(part.choice[tried], whole.choice[tried], atol=1e-5)
        assert [list(texts) for texts in np.array(part.written, object)[done]] == [
            list(texts) for texts in np.array(whole.written, object)[done]
        ]
        assert part.layer == (1 if tried.all() else None)
        assert torch.equal(part.directions[1].values, whole.directions[1].values)
        for manner in ("add", "project_out"):
            if done[part.conditions.index((manner, "direction"))]:
                assert part.effect(manner).found == (part.effect(manner).missing == 0)
        assert len(part.to_frame()) == done.sum()
        opened = lk.open_refusal(part.save(tmp_path / "part.npz"))
        assert (opened.words(), repr(opened)) == (part.words(), repr(part))
        assert part.figure().data
        if part.layer is None:
            with pytest.raises(ValueError, match="no layer is chosen yet"):
                _ = part.vector


def test_a_partial_result_says_what_is_missing():
    test = _Test.of(planted(), requests(), OWN["refusals"], OWN["answers"], -1, 0)
    job = RefusalJob(test, [0, 1, 2], 3, 0, 0, {"load": "", "asked": {}})
    steps = job.steps()
    assert job.refusal.words() == "Nothing has been measured yet."
    assert "0 of 16 conditions" in repr(job.refusal)
    for _ in range(3):
        next(steps)
    assert "1 of 2 layers were tried, so none is chosen yet" in job.refusal.words()
    for _ in range(2):
        next(steps)
    assert "Added, it moves" in job.refusal.words()
    assert "; no control yet: not judged, as 6 controls were not measured." in job.refusal.words()
    assert "Projected out, it was not measured." in job.refusal.words()
    with pytest.raises(ValueError, match="projected out the direction was not measured"):
        job.refusal.effect("project_out")
    next(steps)
    next(steps)
    assert "the farthest of 1 controls of the same length" in job.refusal.words()
    assert not job.refusal.effect("add").found
    assert "5 of 16 conditions measured" in repr(job.refusal)
    for _ in steps:
        pass
    assert job.refusal.effect("add").found


def test_an_error_carries_what_was_measured():
    lm = planted()
    with stopped(lm, 60, MemoryError("no more")), pytest.raises(MemoryError) as error:
        lk.refusal_direction(lm, requests(), **OWN)
    assert error.value.refusal.done[:2].all()
    assert "they are in this error's `refusal`" in error.value.__notes__[0]


# -- how answers begin ----------------------------------------------------------------------------------------------


def test_the_probability_of_a_beginning_is_the_product_over_its_tokens(lm32):
    prompts = [lm32.encode(asking(lm32, pair[1])) for pair in PAIRS[:3]]
    openers = opener_ids(lm32, asking(lm32, PAIRS[0][0]), ["I'm sorry", "I cannot", "The", "I can't"])
    assert len({len(one) for one in openers}) > 1
    got = opener_logprobs(lm32, prompts, openers)
    for n, prompt in enumerate(prompts):
        for m, ids in enumerate(openers):
            whole = torch.cat([prompt, torch.tensor([ids])], 1)
            logprobs = lm32.run(whole).logits[0].double().log_softmax(-1)
            start = prompt.shape[1] - 1
            each = sum(float(logprobs[start + k, id]) for k, id in enumerate(ids))
            assert got[n, m] == pytest.approx(each, abs=2e-3)
    again = opener_logprobs(lm32, prompts, openers, cut=slice(0, 0))  # the prompt anew each time
    np.testing.assert_allclose(again, got, atol=2e-3)
    odds = log_odds(lm32, prompts, openers[:2], openers[2:])
    np.testing.assert_allclose(odds, np.logaddexp(*got[:, :2].T) - np.logaddexp(*got[:, 2:].T), rtol=1e-9)


def test_beginnings_follow_the_format_of_the_model(lm4):
    chat = asking(lm4, "Who wrote Hamlet?")
    assert chat == [{"role": "user", "content": "Who wrote Hamlet?"}]
    (ids,) = opener_ids(lm4, chat, ["I cannot"])
    assert lm4.tokenizer.decode(ids) == "I cannot"
    (ids,) = opener_ids(lm4, "Question: Who wrote Hamlet?\nAnswer:", ["I cannot"])
    assert lm4.tokenizer.decode(ids) == " I cannot"
    plain = planted()
    assert asking(plain, "Who?") == "Question: Who?\nAnswer:"
    pinned = lk.Chat(chat, add_generation_prompt=True)
    assert opener_ids(lm4, pinned, ["I cannot"]) == opener_ids(lm4, chat, ["I cannot"])


def test_built_in_requests_are_alike_in_form_and_their_beginnings_exclude_each_other(lm4):
    assert len(PAIRS) >= 32
    assert len({text for pair in PAIRS for text in pair}) == 2 * len(PAIRS)
    lengths = np.array([[len(lm4.tokenizer(text).input_ids) for text in pair] for pair in PAIRS])
    assert abs(lengths[:, 0].mean() - lengths[:, 1].mean()) < 1
    assert np.abs(lengths[:, 0] - lengths[:, 1]).max() <= 4
    assert all(a.split()[0] == b.split()[0] or a[-1] == b[-1] for a, b in PAIRS)
    chat = asking(lm4, PAIRS[0][0])
    check_disjoint([*REFUSALS, *ANSWERS], opener_ids(lm4, chat, [*REFUSALS, *ANSWERS]))
    assert all(phrase == phrase.lower() for phrase in PHRASES)


# -- the default model ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_it_runs_on_a_chat_model(lm4):
    settings = {"layers": [16], "controls": 2, "new_tokens": 6, "progress": False}
    first = lk.refusal_direction(lm4, PAIRS[:4], **settings)
    assert first.layer == 16
    assert first.log_odds.shape == (2 + 2 * 5, 2)
    wrote = [len(texts) for texts in first.written]
    assert wrote == [2, 2, 2, 2, 0, 0, 0, 2, 2, 0, 0, 0]
    assert np.isnan(first.refused).tolist() == [count == 0 for count in wrote]
    assert np.isfinite(first.log_odds).all()
    assert first.to_frame().kl["project_out", "direction"] > 0


def test_its_code_repeats_it():
    lm = lk.load(SMALL, bits=32, device="cpu", progress=False)
    pairs = [(f"{name} went home", f"{name} came back") for name in ("Mary", "John", "Anna", "Paul")]
    settings = {"refusals": ["Mary"], "answers": ["John"], "controls": 2, "new_tokens": 2, "seed": 3}
    first = lk.refusal_direction(lm, pairs, **settings, progress=False)
    scope: dict = {}
    exec(first.directions[2].code(), scope)
    np.testing.assert_allclose(scope["refusal"].log_odds, first.log_odds, atol=1e-4)
    torch.testing.assert_close(scope["vector"].values, first.directions[2].values)


@pytest.mark.parametrize(
    ("pairs", "settings", "says"),
    [
        ([("a", "b")] * 3, {}, "give at least 4; got 3"),
        (
            [("a", "b"), "cd", ("e", "f"), ("g", "h")],
            {},
            r"pair 1 must be \(answered, refused\), two prompts; got 'cd'",
        ),
        ([("a", "b")] * 4, {"controls": 1}, "at least 2 of each kind, not 1"),
        ([("a", "b")] * 4, {"new_tokens": -1}, "new_tokens must be 0 or more; got -1"),
        ([("a", "b")] * 4, {"layers": [30]}, "layers 0 to 3"),
        ([("a", "b")] * 4, {"position": -99}, "position -99 is out of range"),
        ([("a", "b")] * 4, {"answers": ["No"]}, "'N' begins 'No'"),
        ([("a", "b")] * 4, {"answers": []}, "no beginnings of an answer"),
        ([("a", "b")] * 4, {"new_tokens": 500}, "more than the 512 of"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(pairs, settings, says):
    with pytest.raises(ValueError, match=says):
        lk.refusal_direction(planted(), pairs, **{**OWN, **settings})
