"""Patterns on demand, scores, weights: each held against its definition, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.attention_maps.base import without_sink
from labkit.attention_maps.head_scores import SCORES, Tally, repeated_tokens
from labkit.attention_maps.patterns import AttentionPatterns

LONG = "The weather was fine, and everybody in the village was out on the green. " * 6


# -- patterns ---------------------------------------------------------------------------------------------------------


def test_patterns_equal_those_of_eager_attention(lm32):
    ids = lm32.encode(LONG)
    lm32.hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            theirs = lm32.hf(ids, output_attentions=True, use_cache=False).attentions
    finally:
        lm32.hf.set_attn_implementation("sdpa")
    patterns = lk.attention(lm32, LONG)
    for layer, pattern in enumerate(theirs):
        np.testing.assert_allclose(patterns.pattern(layer), pattern[0].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(patterns.pattern(7, 4), theirs[7][0, 4].numpy(), rtol=0, atol=1e-5)


def test_small_blocks_and_no_room_to_keep_anything_change_no_pattern(lm32, monkeypatch):
    whole = lk.attention(lm32, LONG)
    small = whole.survey(size=10)
    monkeypatch.setattr("labkit.attention_maps.patterns.BLOCK", 1e5)
    monkeypatch.setattr("labkit.attention_maps.patterns.KEEP", 1)
    cut = lk.attention(lm32, LONG)
    np.testing.assert_allclose(cut.survey(size=10), small, atol=1)  # of 255
    assert not cut._calls
    for name in SCORES:
        np.testing.assert_allclose(cut.grid(name), whole.grid(name), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cut.pattern(3, 2), whole.pattern(3, 2), atol=1e-6)
    assert list(cut._calls) == [3]


def test_one_pass_serves_all_layers_of_a_text(lm4, monkeypatch):
    patterns = lk.attention(lm4, CLEAN)
    passes, plain = [], AttentionPatterns._pass

    def counted(self, see, keep=None):
        passes.append(1)
        plain(self, see, keep=keep)

    monkeypatch.setattr(AttentionPatterns, "_pass", counted)
    patterns.thumbnails()
    for layer in range(lm4.n_layers):
        patterns.pattern(layer, 1)
    patterns.rollout()
    patterns.looks(13, 1)
    assert len(passes) == 1


def test_thumbnails_are_the_strongest_look_in_each_square(lm4):
    patterns = lk.attention(lm4, LONG)
    small = patterns.thumbnails(10)
    length = len(patterns.tokens)
    step = -(-length // 10)
    assert small.shape[2:] == (-(-length // step),) * 2
    for layer, head in ((0, 0), (11, 1), (29, 8)):
        pattern = patterns.pattern(layer, head)
        square = pattern[2 * step : 3 * step, step : 2 * step].max()
        assert abs(small[layer, head, 2, 1] / 255 - square) < 0.01
    assert patterns.thumbnails(10) is small


def test_looks_finds_the_heads_of_one_look(lm4):
    patterns = lk.attention(lm4, CLEAN)
    looks = patterns.looks(13, 1)
    assert looks.shape == (30, 9)
    for layer in (0, 17, 24):
        np.testing.assert_allclose(looks[layer], patterns.pattern(layer)[:, 13, 1], atol=1e-6)
    np.testing.assert_array_equal(patterns.looks(-1, 1), looks)
    with pytest.raises(ValueError, match="positions go from 0 to 13"):
        patterns.looks(14, 0)


@pytest.mark.parametrize("prompt", [[{"role": "user", "content": "Who are you?"}], torch.tensor([[5, 6, 7, 5, 6]])])
def test_messages_and_ids_are_prompts_too(lm4, prompt):
    patterns = lk.attention(lm4, prompt)
    assert [token.id for token in patterns.tokens] == lm4.encode(prompt)[0].tolist()
    scope = {"lm": lm4}
    exec(patterns.code().replace("lm = lk.load(bits=4)\n", ""), scope)
    np.testing.assert_array_equal(scope["patterns"].pattern(2, 2), patterns.pattern(2, 2))


# -- scores -----------------------------------------------------------------------------------------------------------


def scored(pattern: np.ndarray, ids: list[int], *, cut: int = 0) -> dict[str, float]:
    """The scores of one constructed head, fed whole or in blocks of `cut` rows."""
    tally = Tally(torch.tensor(ids), 1000)
    tally.begin(1, torch.device("cpu"))
    block = torch.tensor(pattern, dtype=torch.float32)[None]
    for start in range(0, len(ids), cut or len(ids)):
        tally.add(block[:, start : start + (cut or len(ids))], start)
    return {name: float(values[0]) for name, values in tally.scores().items()}


IDS = [5, 6, 7, 5, 6, 7, 8, 5]


@pytest.mark.parametrize("cut", [0, 3])
@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (lambda i: max(i - 1, 0), {"previous_token": 1, "entropy": 0, "distance": 1, "first_token": 1 / 7}),
        (lambda i: 0, {"first_token": 1, "previous_token": 1 / 7, "distance": 4, "duplicate_token": 2 / 4}),
        (lambda i: {3: 0, 4: 1, 5: 2, 7: 3}.get(i, i), {"duplicate_token": 1, "induction": 0}),
        (lambda i: {3: 1, 4: 2, 5: 3, 7: 4}.get(i, i), {"induction": 1, "duplicate_token": 0}),
        (lambda i: i, {"distance": 0, "previous_token": 0, "duplicate_token": 0, "induction": 0}),
    ],
)
def test_a_constructed_head_scores_what_it_was_made_to(look, expected, cut):
    pattern = np.zeros((8, 8))
    for i in range(8):
        pattern[i, look(i)] = 1
    found = scored(pattern, IDS, cut=cut)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


def test_attention_spread_evenly_has_the_entropy_of_its_width():
    pattern = np.tril(np.ones((8, 8))) / np.arange(1, 9)[:, None]
    found = scored(pattern, IDS)
    assert found["entropy"] == pytest.approx(np.log2(np.arange(2, 9)).mean(), abs=1e-5)
    assert found["distance"] == pytest.approx(np.mean([i / 2 for i in range(1, 8)]), abs=1e-5)


def test_what_no_token_can_show_is_no_number():
    found = scored(np.eye(3), [1, 2, 3])
    assert np.isnan(found["induction"])
    assert np.isnan(found["duplicate_token"])
    assert found["previous_token"] == 0


def test_induction_heads_are_found_on_random_tokens_and_matter_there(lm4):
    """On an induction task: without the heads that score best the model repeats worse than without as many others."""
    patterns = lk.attention(lm4, LONG)
    induction = patterns.grid("repeated_induction")
    assert np.nanmax(induction) > 0.5
    ids = repeated_tokens(lm4, seed=1)
    order = np.argsort(np.nan_to_num(induction), axis=None)[::-1]
    best, others = ([tuple(map(int, divmod(i, 9))) for i in some] for some in (order[:12], order[100:112]))

    def loss(heads):
        logits = lm4.run(ids, write={f"z.{layer}.{head}": torch.zeros(1) for layer, head in heads}).logits[0].float()
        second = logits[24:-1].log_softmax(-1).gather(1, ids[0, 25:, None].to(logits.device))
        return -float(second[1:].mean())

    assert loss(best) > loss(others) + 1 > loss([]) + 0.5


def test_scores_is_a_table_with_columns_of_ones_own(lm4):
    patterns = lk.attention(lm4, CLEAN)
    frame = patterns.scores(own={"at_mary": lambda pattern: pattern[-1, 1]})
    assert list(frame.columns) == ["layer", "head", *SCORES, "at_mary"]
    assert len(frame) == 270
    row = frame.query("layer == 24 and head == 4").iloc[0]
    assert row.at_mary == pytest.approx(patterns.pattern(24, 4)[13, 1])
    best = frame.loc[frame.previous_token.idxmax()]
    assert best.previous_token == pytest.approx(
        patterns.pattern(int(best.layer), int(best["head"])).diagonal(-1).mean()
    )
    with pytest.raises(ValueError, match="there is no score 'nonsense'; use one of previous_token"):
        patterns.grid("nonsense")


# -- weights ----------------------------------------------------------------------------------------------------------


def test_value_weighted_is_the_norm_of_what_each_look_moves(lm32):
    patterns = lk.attention(lm32, CLEAN)
    run = lm32.run(CLEAN, read=["v.5", "pattern.5"])
    weight = lm32.weight("o_proj", 5).unflatten(1, (9, -1))[:, 4]  # (d_model, d_head)
    moved = run["v.5"][0, :, 4 // 3] @ weight.T  # (key, d_model)
    by_hand = run["pattern.5.4"][0] * moved.norm(dim=-1)
    np.testing.assert_allclose(patterns.value_weighted(5, 4), by_hand.numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(patterns.value_weighted(5)[4], patterns.value_weighted(5, 4))


def test_contributions_add_up_to_direct_logit_attribution(lm):
    found = lk.attention(lm, CLEAN).contribution(" Mary", " John")
    direct = lk.direct_logit_attribution(lm, CLEAN, " Mary", " John")
    assert found.values.shape == (30, 9, 14)
    np.testing.assert_allclose(found.heads, direct.heads, atol=2e-3 if lm.bits == 32 else 0.1)
    assert repr(found).startswith("LogitContribution(' Mary' - ' John', 14 tokens; most: ")


def test_rollout_is_the_product_of_half_mixed_layers(lm32):
    patterns = lk.attention(lm32, CLEAN)
    share = np.eye(14)
    for layer in range(6):
        share = (0.5 * np.eye(14) + 0.5 * patterns.pattern(layer).mean(0)) @ share
    np.testing.assert_allclose(patterns.rollout(5), share, atol=1e-5)
    np.testing.assert_allclose(patterns.rollout().sum(-1), 1, atol=1e-4)


def test_without_the_sink_the_rest_sums_to_one():
    pattern = np.array([[1, 0, 0], [0.75, 0.25, 0], [0.5, 0.125, 0.375]], np.float32)
    np.testing.assert_allclose(without_sink(pattern), [[0, 0, 0], [0, 1, 0], [0, 0.25, 0.75]])
    np.testing.assert_allclose(pattern[1], [0.75, 0.25, 0])  # the pattern itself stays


def test_a_figure_says_what_it_shows(lm4):
    patterns = lk.attention(lm4, CLEAN)
    figure = patterns.figure(24, 4)
    assert figure.layout.title.text == "Attention of layer 24, head 4"
    assert figure.data[0].x[1] == "1 ·Mary"
    title = patterns.figure(24, 4, weighting="value", hide_sink=True).layout.title.text
    assert title.replace("<br>", " ").endswith("first token left out")
    with pytest.raises(ValueError, match="use one of pattern, value, rollout"):
        patterns.figure(24, 4, weighting="importance")


# -- files ------------------------------------------------------------------------------------------------------------


def test_what_was_saved_is_opened_without_the_model(lm4, tmp_path):
    patterns = lk.attention(lm4, CLEAN)
    path = patterns.save(tmp_path / "looks.npz", layers=[3, 24])
    saved = lk.open_attention(path)
    assert repr(saved) == "SavedAttention(14 tokens, layers [3, 24] of 30)"
    assert saved.tokens == patterns.tokens
    assert saved.code() == patterns.code()
    np.testing.assert_allclose(saved.pattern(24), patterns.pattern(24), atol=1e-3)
    np.testing.assert_allclose(saved.pattern(-6, -1), patterns.pattern(24, 8), atol=1e-3)
    np.testing.assert_array_equal(saved.thumbnails(), patterns.thumbnails())
    assert saved.scores().equals(patterns.scores())
    assert saved.figure(3, 0).data[0].z.shape == (14, 14)
    with pytest.raises(ValueError, match=r"no pattern of layer 4; it has \[3, 24\]"):
        saved.pattern(4)
    with pytest.raises(ValueError, match="load the model"):
        saved.figure(3, 0, weighting="value")


def test_files_that_hold_no_patterns_are_refused_in_words(lm4, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        lk.open_attention(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    with pytest.raises(ValueError, match="is not attention patterns saved by labkit: it is a zip file"):
        lk.open_attention(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"layers \[40\] have no patterns"):
        lk.attention(lm4, CLEAN).save(tmp_path / "x.npz", layers=[40])
    assert not (tmp_path / "x.npz").exists()


# -- knocking out -----------------------------------------------------------------------------------------------------

HEADS = [(23, 3), (16, 0)]


@pytest.mark.parametrize("how", ["zero", "mean", "other", "other_pattern"])
def test_a_knock_out_is_the_site_written_by_hand(lm, how):
    found = lk.knock_out(lm, CLEAN, heads=HEADS, how=how, other=CORRUPT)
    kind = "pattern" if how == "other_pattern" else "z"
    names = [f"{kind}.{layer}.{head}" for layer, head in HEADS]
    source = lm.run(CORRUPT if how.startswith("other") else CLEAN, read=names)
    value = {"zero": lambda x: x * 0, "mean": lambda x: x.float().mean(1, keepdim=True)}.get(how, lambda x: x)
    by_hand = lm.run(CLEAN, write={name: value(source[name]) for name in names}).logits[0, -1].float()
    torch.testing.assert_close(found.logits_after, by_hand, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        found.logits_before, lm.run(CLEAN).logits[0, -1].float(), rtol=0, atol=0.3 if lm.bits == 4 else 1e-3
    )
    scope = {"lm": lm, "lk": lk}
    exec(found.code().split(lm.code())[1], scope)
    torch.testing.assert_close(scope["found"].logits_after, found.logits_after)


def test_a_knock_out_says_what_changed(lm4):
    found = lk.knock_out(lm4, CLEAN, heads=[(23, 3)])
    before, after = found.logit_diff(" Mary", " John")
    assert after < before - 1
    assert found.kl > 0.05
    assert found.top(3)[0][0][0] == "·Mary"
    frame = found.to_frame()
    assert frame.iloc[0].token == " Mary"
    assert frame.iloc[0].change < 0
    assert repr(found).startswith("KnockOut(23.3: z set to zero; ·Mary ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"heads": []}, "no heads to ablate"),
        ({"heads": [(0, 9)]}, "head 9 is out of range"),
        ({"heads": HEADS, "how": "gently"}, "how must be one of zero, mean, other, other_pattern"),
        ({"heads": HEADS, "how": "other"}, "give other="),
        ({"heads": HEADS, "how": "other", "other": CORRUPT + " a"}, "clean has 14 tokens, corrupt 15"),
    ],
)
def test_a_knock_out_that_cannot_be_is_refused_in_words(lm4, given, said):
    with pytest.raises(ValueError, match=said):
        lk.knock_out(lm4, CLEAN, **given)
