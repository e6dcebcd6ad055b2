"""Do findings survive, and what has to be kept: on the default model, and where the answer is known."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from pair import CLEAN, PAIR

import labkit as lk
from labkit.precision.findings import correlation, found, overlap, rounding, sign_changes, verdict
from labkit.precision.keep import _smallest, kept_from

SMALL = Path(__file__).parents[1] / "files" / "small_llama"


@pytest.fixture(scope="module")
def small() -> lk.LanguageModel:
    """A model of four layers that was trained in full precision."""
    return lk.load(SMALL, bits=32, progress=False)


def test_a_model_and_its_copy_have_the_same_findings(small, tmp_path):
    pairs = lk.task("indirect object").pairs(small, n=2)
    names = ["z", "direct attribution", "paths", "edges", "steering"]
    same = lk.compare_findings(small, copy.deepcopy(small), pairs, findings=names, k=3, progress=False)
    frame = same.to_frame()
    assert list(frame.index) == names
    assert (frame.overlap == 1).all()
    assert (frame.sign_changes == 0).all()
    assert (frame.correlation > 0.98).all()
    assert (frame.verdict == "carries over").all()
    assert "z carries over: of the 3 strongest places in" in same.words()
    for name in names:
        assert len(same.own[name]) == len(same.rounded[name]) == 2
    opened = lk.open_findings(same.save(tmp_path / "findings.npz"))
    assert opened.to_frame().equals(frame)
    assert (opened.words(), opened.code(), opened.pairs) == (same.words(), same.code(), same.pairs)
    assert opened.figure().data[0].z.shape == (5, 3)
    assert "findings=['z', 'direct attribution', 'paths', 'edges', 'steering'],\n    k=3," in same.code()
    compile(same.code(), "code", "exec")


def test_what_another_model_finds_does_not_carry_over(small):
    other = copy.deepcopy(small)
    with torch.no_grad():
        for layer in other.hf.model.layers:
            layer.self_attn.o_proj.weight.copy_(layer.self_attn.o_proj.weight.flip(1))
    pairs = lk.task("indirect object").pairs(small, n=2)
    row = lk.compare_findings(other, small, pairs, findings=["z"], k=5, progress=False).to_frame().loc["z"]
    assert row.verdict == "differs"
    assert row.overlap_rounding == 1


def test_rounding_moves_little_in_float32_more_in_bfloat16_and_ends_with_its_block(lm4, lm32):
    for lm, least, most in ((lm32, 0, 1e-3), (lm4, 1e-3, 1)):
        plain = found(lm, "direct attribution", PAIR)
        with rounding(lm):
            other = found(lm, "direct attribution", PAIR)
        assert least <= np.nanmax(np.abs(other - plain)) <= most
        np.testing.assert_array_equal(found(lm, "direct attribution", PAIR), plain)


def test_the_measures_of_agreement():
    a = np.array([3.0, -2.0, 0.5, 0.0, np.nan, 0.0])
    b = np.array([2.5, 2.0, 0.1, 0.0, np.nan, 0.2])
    assert overlap(a, b, 2) == 1
    assert overlap(a, np.array([9.0, 0, 8, 0, np.nan, 1]), 2) == 0.5
    assert sign_changes(a, b, 2) == 0.5
    assert correlation(a, a) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    row = {"overlap": 0.8, "correlation": 0.9, "overlap_rounding": 1.0, "sign_changes": 0.0}
    row |= {"overlap_pairs": 0.7, "correlation_pairs": 0.6}
    assert verdict(row) == "carries over"
    assert verdict(row | {"sign_changes": 0.3}) == "differs"
    assert verdict(row | {"overlap": 0.5}) == "differs"
    assert verdict(row | {"overlap": 0.4, "overlap_pairs": 0.3, "correlation_pairs": 0.2}) == "carries over"
    assert verdict(row | {"overlap": 0.5, "overlap_rounding": 0.5}) == "cannot be told"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"findings": ["colours"]}, "'colours' is no finding; use a kind of site"),
        ({"pairs": []}, "give one or more"),
        ({"k": 0}, "k must be at least 1"),
        ({"pairs": [("When Mary", "When", " Mary", " John")]}, "clean has 3 tokens, corrupt 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(small, settings, said):
    with pytest.raises(ValueError, match=said):
        lk.compare_findings(**{"lm": small, "source": small, "pairs": [PAIR], "progress": False, **settings})


def test_what_is_done_before_an_error_is_on_it(small, monkeypatch):
    def broken(lm, name, pair):
        if name == "edges":
            raise RuntimeError("no memory")
        return found(lm, name, pair)

    monkeypatch.setattr("labkit.precision.findings.found", broken)
    with pytest.raises(RuntimeError, match="no memory") as caught:
        lk.compare_findings(small, small, [PAIR], findings=["direct attribution", "edges"], progress=False)
    assert list(caught.value.findings.own) == ["direct attribution"]


class TestKeep:
    def test_kept_from_gives_a_layer_the_sources_weights(self, lm4, lm32):
        mine, theirs = (lm.hf.model.layers[4].mlp.up_proj for lm in (lm4, lm32))
        x = torch.randn(1, 3, 576, generator=torch.Generator().manual_seed(0)).to(lm4.dtype)
        before = mine(x)
        with kept_from([(mine, theirs)], lm4):
            torch.testing.assert_close(mine(x), x @ theirs.weight.to(lm4.dtype).T)
        torch.testing.assert_close(mine(x), before, rtol=0, atol=0)

    @pytest.mark.long
    def test_the_damaged_part_is_what_is_found(self, lm32, tmp_path):
        """Quantised from a model in which one matrix was destroyed, compared with the whole one."""
        broken = copy.deepcopy(lm32)
        with torch.no_grad():
            broken.hf.model.layers[12].mlp.down_proj.weight.zero_()
        broken.hf.save_pretrained(tmp_path)
        broken.tokenizer.save_pretrained(tmp_path)
        lm = lk.load(tmp_path, progress=False)
        search = lk.what_to_keep(lm, lm32, CLEAN, " Mary", " John", tolerance=1.0, progress=False)
        assert search.enough
        assert "mlp.12" in list(search.effects)[:3]  # a sum over positions, each of which rounding moves by a tenth
        assert search.keep == ["mlp.12"]
        assert abs(search.value - search.source) <= 1.0 < abs(search.without - search.source)
        assert len(search.tried) <= 20
        assert search.code().endswith(f"lm = lk.load({str(tmp_path)!r}, bits=4, keep=['mlp.12'])\n")
        weights = 3 * 576 * 1536
        assert 1.4 * weights < search.bytes < 1.5 * weights
        assert search.to_frame().kept.sum() == 1

    @pytest.mark.long
    def test_what_it_finds_can_be_loaded_and_does_what_it_says(self, lm4, lm32):
        search = lk.what_to_keep(lm4, lm32, CLEAN, " Mary", " John", evaluations=6, progress=False)
        assert len(search.tried) <= 6
        kept = lk.load(keep=search.keep, progress=False) if search.keep else lm4
        logits = kept.run(CLEAN).logits[0, -1].float()
        value = float(logits[kept.encode(" Mary")[0, -1]] - logits[kept.encode(" John")[0, -1]])
        assert value == pytest.approx(search.value, abs=0.4)
        assert kept.memory().total - lm4.memory().total == search.bytes

    def test_the_order_of_the_search(self):
        order = [f"part.{n}" for n in range(16)]

        def search(needed, most=20):
            tried = []

            def near(names):
                tried.append(list(names))
                return set(needed) <= set(names)

            return _smallest(order, near, lambda: len(tried) < most), tried

        for needed in ([], ["part.0"], ["part.0", "part.5"], ["part.2", "part.3", "part.9"]):
            (keep, enough), tried = search(needed)
            assert (keep, enough) == (needed, True)
            assert len(tried) <= 20
        (keep, enough), tried = search(["part.99"])
        assert (keep, enough, len(tried)) == (order, False, 6)
        (keep, enough), tried = search(["part.0", "part.9"], most=7)
        assert enough
        assert {"part.0", "part.9"} <= set(keep)
        assert len(tried) <= 7

    def test_what_cannot_be_searched_is_refused(self, small, lm32, lm4):
        with pytest.raises(ValueError, match=r"no layer of .* is packed in few bits"):
            lk.what_to_keep(lm32, lm32, CLEAN, " Mary", " John", progress=False)
        with pytest.raises(ValueError, match=r"the source .* is itself in 4 bits, so it has nothing better to keep"):
            lk.what_to_keep(lm4, lm4, CLEAN, " Mary", " John", progress=False)
        with pytest.raises(ValueError, match="evaluations must be at least 3"):
            lk.what_to_keep(lm4, lm32, CLEAN, " Mary", evaluations=1)
        with pytest.raises(ValueError, match="n_layers 4 instead of 30"):
            lk.what_to_keep(lm4, small, CLEAN, " Mary", " John", progress=False)
