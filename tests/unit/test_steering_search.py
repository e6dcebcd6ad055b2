"""The search over layers and strengths: a planted layer, what it measures, what it refuses and what it keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from loud import tokenizer

import labkit as lk
from labkit.audits import steering_search as searching
from labkit.course.steering import NEGATIVE, POSITIVE
from labkit.engine import steered_run
from labkit.engine.recorded_run import Unsupported

PAIRS = [("My week at work was great", "My week at work was terrible"), ("Her new job is good", "Her new job is bad")]
NEUTRAL = "The sun rises in the east and sets in the west."
SETTINGS = {"prompts": PAIRS, "neutral": NEUTRAL, "layers": [6, 18], "strengths": [0.5, 2.0], "random": 2}


@pytest.fixture(scope="module")
def search(lm4: lk.LanguageModel) -> lk.SteeringSearch:
    return lk.steering_search(lm4, POSITIVE, NEGATIVE, **SETTINGS, progress=False)


# -- a planted layer ---------------------------------------------------------------------------------------------------

GOOD, BAD, WANTED, UNWANTED, QUESTION, PLANTED = 100, 101, 102, 103, 104, 2
SIGN, DIRECTION, ANSWER, ASKS = range(4)  # coordinates of the residual stream


def plant(folder: Path, bits: int) -> lk.LanguageModel:
    """A model of six layers in which a direction matters after layer 2 and nowhere else.

    Attention of layer 2 takes the sign of GOOD or BAD from earlier positions to the last and writes it along DIRECTION.
    A neuron of layer 3, open at QUESTION alone, makes of it an answer. No other layer reads or writes these; each moves
    noise about, so that the two sides differ after every layer.
    """
    hf = checkpoint(folder, tokenizer(), num_hidden_layers=6, num_key_value_heads=4, tie_word_embeddings=False)
    draw = torch.Generator().manual_seed(0)
    noise = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    with torch.no_grad():
        for layer in hf.model.layers:
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, *layer.mlp.children()):
                if hasattr(part, "weight"):
                    part.weight.zero_()
            layer.self_attn.v_proj.weight.copy_(0.1 * noise(64, 64))
            layer.self_attn.o_proj.weight.copy_(0.1 * noise(64, 64))
            layer.self_attn.v_proj.weight[:, :4] = 0
            layer.self_attn.o_proj.weight[:4] = 0
        carries = hf.model.layers[PLANTED].self_attn
        carries.v_proj.weight[:16], carries.o_proj.weight[:, :16] = 0, 0
        carries.v_proj.weight[0, SIGN], carries.o_proj.weight[DIRECTION, 0] = 2.0, 2.0
        reads = hf.model.layers[PLANTED + 1].mlp
        reads.gate_proj.weight[0, ASKS], reads.up_proj.weight[0, DIRECTION] = 2.0, 2.0
        reads.down_proj.weight[ANSWER, 0] = 0.02
        embed, head = hf.model.embed_tokens.weight, hf.lm_head.weight
        embed.copy_(noise(*embed.shape))
        embed[:, :4] = 0
        embed[GOOD, SIGN], embed[BAD, SIGN], embed[QUESTION, ASKS] = 8.0, -8.0, 8.0
        head.copy_(0.3 * noise(*head.shape))
        head[:, :4] = 0
        head[[WANTED, UNWANTED]] = 0
        head[WANTED, ANSWER], head[UNWANTED, ANSWER] = 1.0, -1.0
    hf.save_pretrained(folder)
    return lk.load(folder, bits=bits, progress=False)


@pytest.mark.parametrize("bits", [32, 4])
def test_a_planted_layer_is_found_and_random_directions_do_not_reach_the_frontier(bits, tmp_path):
    lm = plant(tmp_path / "model", bits)
    sides = [[torch.tensor([[n, side, n + 1, n + 2]]) for n in range(20, 60, 8)] for side in (GOOD, BAD)]
    pairs = [
        tuple(torch.tensor([[n, n + 3, QUESTION, end]]) for end in (WANTED, UNWANTED)) for n in range(120, 160, 10)
    ]
    neutral = torch.arange(170, 200)[None]
    settings = {"strengths": [0.125, 0.25, 0.5], "random": 5, "progress": False}
    search = lk.steering_search(lm, *sides, prompts=pairs, neutral=neutral, **settings)
    assert search.layers == tuple(range(6))
    assert search.done.all()
    assert {one.layer for one in search.frontier} == {PLANTED}
    for one in search.frontier:
        assert one.beats_random
        assert one.effect > 2 * one.random.max()
    elsewhere = [n for n, layer in enumerate(search.layers) if layer != PLANTED]
    assert np.abs(search.effects[elsewhere, :, 0]).max() < 0.01 * search.frontier[-1].effect
    assert search.best(1.0).layer == PLANTED
    assert "it is more than they do" in search.words()
    frame = search.to_frame()
    assert set(frame[frame.frontier].index.get_level_values("layer")) == {PLANTED}
    assert not frame[frame.frontier].index.get_level_values("direction").str.startswith("random").any()


# -- what is measured --------------------------------------------------------------------------------------------------


def test_effect_and_damage_are_those_of_whole_steered_passes(lm32):
    search = lk.steering_search(lm32, POSITIVE, NEGATIVE, **SETTINGS, progress=False)
    ids = {text: lm32.encode(text) for pair in PAIRS for text in pair}

    def measured() -> tuple[list[float], torch.Tensor]:
        scores = {}
        for text, tokens in ids.items():
            logprobs = lm32.run(tokens).logits[0, :-1].log_softmax(-1)
            scores[text] = float(logprobs.gather(1, tokens[0, 1:, None])[-1])  # the last word is one token
        odds = [scores[a] - scores[b] for a, b in PAIRS]
        return odds, lm32.run(NEUTRAL).logits[0, :-1].double().log_softmax(-1)

    plain, clean = measured()
    np.testing.assert_allclose(search.plain, plain, atol=1e-3)
    target = lm32.encode(NEUTRAL)[0, 1:, None]
    assert search.perplexity == pytest.approx(float((-clean.gather(1, target).mean()).exp()), rel=1e-3)
    for n, layer in enumerate(search.layers):
        vector = search.vector(layer)
        assert torch.equal(vector.values, lk.steering_vector(lm32, POSITIVE, NEGATIVE, layer).values)
        for m, strength in enumerate(search.strengths):
            with lm32.steer(vector, strength):
                odds, other = measured()
            np.testing.assert_allclose(search.effects[n, m, 0], np.subtract(odds, plain), atol=2e-3)
            perplexity, kl = search.damage[n, m, 0]
            assert kl == pytest.approx(float((clean.exp() * (clean - other)).sum(-1).mean()), rel=1e-3, abs=1e-4)
            assert perplexity == pytest.approx(float((-other.gather(1, target).mean()).exp()), rel=1e-3)


def test_whole_passes_give_what_restarted_ones_give(lm32, monkeypatch):
    """For architectures that cannot be restarted midway."""
    settings = SETTINGS | {"layers": [18], "random": 1}
    fast = lk.steering_search(lm32, POSITIVE, NEGATIVE, **settings, progress=False)

    def cannot(*_):
        raise Unsupported("not this one")

    monkeypatch.setattr(steered_run, "record", cannot)
    slow = lk.steering_search(lm32, POSITIVE, NEGATIVE, **settings, progress=False)
    np.testing.assert_allclose(slow.effects, fast.effects, atol=2e-3)
    np.testing.assert_allclose(slow.damage, fast.damage, rtol=2e-3, atol=1e-4)


def test_random_directions_are_as_long_and_choose_their_best_setting_too(search):
    assert search.done.shape == (2, 2, 3)
    assert search.done.all()
    most = search.effects[:, :, 1:].mean(-1).max((0, 1)).clip(0)
    np.testing.assert_allclose(search.reached([1e9])[:, 0], most)
    assert (search.reached([0.0]) == 0).all()
    kl = np.sort(search.damage[..., 1].ravel())
    band = search.reached(kl)
    assert (np.diff(band, axis=1) >= 0).all()


def test_the_frontier_has_no_setting_that_another_beats(search):
    front = search.frontier
    effects, kl = search.effects[:, :, 0].mean(-1), search.damage[:, :, 0, 1]
    for one in front:
        cell = search.layers.index(one.layer), search.strengths.index(one.strength)
        assert (one.effect, one.kl) == pytest.approx((effects[cell], kl[cell]))
        assert not ((kl <= kl[cell]) & (effects > effects[cell])).any()
    beaten = [(e, k) for e, k in zip(effects.ravel(), kl.ravel(), strict=True)]
    for effect, damage in beaten:
        assert effect <= 0 or any(one.effect >= effect - 1e-6 and one.kl <= damage + 1e-6 for one in front)
    assert search.best(1e9) == front[-1]
    with pytest.raises(
        ValueError, match="no setting has an effect for a damage of at most 0 nats per token: the least"
    ):
        search.best(0.0)
    with pytest.raises(ValueError, match="no direction of layer 7; there is one of 6, 18"):
        search.vector(7)


def test_half_of_the_pairs_give_the_directions_where_no_prompts_are_given(lm4):
    settings = SETTINGS | {"prompts": None, "layers": [18], "strengths": [1], "random": 1}
    search = lk.steering_search(lm4, POSITIVE, NEGATIVE, **settings, progress=False)
    gave = search.vector(18).recipe
    assert len(gave["positive"]) == len(gave["negative"]) == 3
    assert search.effects.shape[-1] == 2
    assert [POSITIVE.index(a) for a in gave["positive"]] == [NEGATIVE.index(b) for b in gave["negative"]]
    assert search.best(1e9).effect > 0


def test_the_effect_can_be_any_metric_of_the_logits(lm4):
    good, bad = (lm4.tokenizer(word).input_ids[0] for word in (" good", " bad"))

    def mood(logits):
        return logits[:, good] - logits[:, bad]

    settings = {"prompts": ["My week was"], "layers": [18], "strengths": [1.0], "neutral": NEUTRAL, "random": 1}
    search = lk.steering_search(lm4, POSITIVE, NEGATIVE, effect=mood, **settings, progress=False)
    plain = lm4.run("My week was").logits[0, -1].float()
    assert search.plain[0] == pytest.approx(float(plain[good] - plain[bad]), abs=0.1)
    with lm4.steer(search.vector(18)):
        steered = lm4.run("My week was").logits[0, -1].float()
    moved = float(steered[good] - steered[bad]) - search.plain[0]
    assert search.effects[0, 0, 0, 0] == pytest.approx(moved, abs=0.25)
    scope = {"mood": mood}
    exec(search.code().replace("\n)", "\n    progress=False,\n)"), scope)
    np.testing.assert_array_equal(scope["search"].effects, search.effects)
    named = lk.steering_search(lm4, POSITIVE, NEGATIVE, effect="kl", **settings, progress=False)
    assert named.plain[0] == pytest.approx(0, abs=1e-5)
    assert named.effects[0, 0, 0, 0] > 0.01


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"positive": []}, "there are no positive prompts"),
        ({"positive": [NEGATIVE[1], *POSITIVE[1:]]}, "a prompt is both positive and negative: 'What an awful day'"),
        ({"prompts": None, "positive": POSITIVE[:3], "negative": NEGATIVE[:3]}, "give at least 4, .* 3 positive and 3"),
        ({"prompts": None, "positive": POSITIVE[:4]}, "got 4 positive and 5 negative"),
        ({"prompts": []}, "prompts must be a list .* not empty"),
        ({"prompts": ["My week was"]}, "prompt 0 must be a pair .* Prompts alone need effect="),
        ({"prompts": [(POSITIVE[0], "The film was bad")]}, "would both give the direction and test it: 'The film was"),
        ({"prompts": [("Good day", "Bad day")]}, "pair 0 differs from its first token on"),
        ({"prompts": [("My week", "My week was")]}, "one text is the beginning of the other"),
        ({"strengths": []}, "strengths must be one number or more"),
        ({"strengths": "1"}, "strengths must be one number or more"),
        ({"strengths": 2.0}, "strengths must be one number or more"),
        ({"strengths": [1.0, "2"]}, "strengths must be finite numbers other than 0; got '2'"),
        ({"strengths": [0.0]}, "other than 0; got 0.0"),
        ({"strengths": [float("nan")]}, "other than 0; got nan"),
        ({"strengths": [True]}, "other than 0; got True"),
        ({"layers": [3, 30]}, "layers 0 to 29"),
        ({"layers": []}, "names no layer"),
        ({"random": 0}, "random must be a whole number of directions, which judge the effect, at least 1; got 0"),
        ({"method": "svm"}, "'mean_difference' or 'pca'"),
        ({"method": "pca", "positive": POSITIVE[:4]}, "as many positive as negative prompts"),
        ({"effect": "logit_diff", "prompts": ["My week was"]}, "needs an answer, which differs between prompts"),
        ({"effect": "joy", "prompts": ["My week was"]}, "there is no metric 'joy'"),
        ({"effect": "kl", "prompts": None}, "effect= is measured after prompts"),
        ({"neutral": "The"}, "the neutral text is a single token"),
        ({"neutral": ""}, "empty"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_words(lm4, settings, says, monkeypatch):
    monkeypatch.setattr(searching, "SearchJob", None)  # nothing is measured
    given = {"positive": POSITIVE, "negative": NEGATIVE} | SETTINGS | settings
    with pytest.raises(ValueError, match=says):
        lk.steering_search(lm4, given.pop("positive"), given.pop("negative"), **given, progress=False)


def test_layers_that_do_not_tell_the_sides_apart_have_no_direction(tmp_path):
    """The planted model's last tokens are the same, and its layers below look back at nothing."""
    lm = plant(tmp_path / "model", 32)
    with torch.no_grad():
        for layer in lm.hf.model.layers[:PLANTED]:
            layer.self_attn.o_proj.weight.zero_()
    sides = [[torch.tensor([[20, side, 21, 22]])] for side in (GOOD, BAD)]
    pairs = [tuple(torch.tensor([[120, QUESTION, end]]) for end in (WANTED, UNWANTED))]
    settings = {"prompts": pairs, "neutral": torch.arange(170, 180)[None], "random": 1, "progress": False}
    search = lk.steering_search(lm, *sides, **settings)
    assert search.layers == (2, 3, 4, 5)
    assert search.frontier[-1].low == search.frontier[-1].effect  # there is a single prompt
    with pytest.raises(ValueError, match="the same activations at every layer"):
        lk.steering_search(lm, *sides, **settings, layers=[0, 1])


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_an_interrupt_keeps_what_was_measured(lm4, monkeypatch):
    real, calls = searching.SearchJob._measured, []

    def measured(self, cells):
        calls.append(cells)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, cells)

    monkeypatch.setattr(searching.SearchJob, "_measured", measured)
    with pytest.warns(UserWarning, match="interrupted: 8 of 12 settings are in the search"):
        search = lk.steering_search(lm4, POSITIVE, NEGATIVE, **SETTINGS, progress=False)
    assert search.done[:, :, 0].all()  # the directions come first
    assert int(search.done.sum()) == 8
    assert len(search.to_frame()) == 8
    assert "4 settings are not measured" in search.words()
    assert "8 of 12 settings measured" in repr(search)
    assert search.figure().data
    assert not lm4.hf._forward_hooks


def test_an_error_has_what_was_measured(lm4, monkeypatch):
    real, calls = searching.SearchJob._measured, []

    def measured(self, cells):
        calls.append(cells)
        if len(calls) == 2:
            raise RuntimeError("the disk is on fire")
        return real(self, cells)

    monkeypatch.setattr(searching.SearchJob, "_measured", measured)
    with pytest.raises(RuntimeError, match="on fire") as error:
        lk.steering_search(lm4, POSITIVE, NEGATIVE, **SETTINGS, progress=False)
    assert int(error.value.search.done.sum()) == 2
    assert error.value.search.best(1e9).layer == 6


def test_it_is_saved_opened_and_repeated_by_its_code(search, tmp_path):
    again = lk.open_steering_search(search.save(tmp_path / "search.npz"))
    assert repr(again) == repr(search)
    assert again.words() == search.words()
    np.testing.assert_array_equal(again.effects, search.effects)
    assert torch.equal(again.vector(18).values, search.vector(18).values)
    scope: dict = {}
    exec(again.code(), scope)
    np.testing.assert_array_equal(scope["search"].effects, search.effects)
    exec(again.vector(18).code(), scope)
    assert torch.equal(scope["vector"].values, search.vector(18).values)
    with pytest.raises(ValueError, match=r"it holds a search for where to steer, which lk\.open_steering_search"):
        lk.open_steering_vector(tmp_path / "search.npz")


def test_the_figure_has_layers_frontier_and_band(search):
    names = [trace.name for trace in search.figure().data]
    assert names == [None, "best of 2 random directions", "layer 6", "layer 18", "frontier"]
    front = search.figure().data[-1]
    assert list(front.y) == sorted(front.y)
    assert list(front.x) == sorted(front.x)
