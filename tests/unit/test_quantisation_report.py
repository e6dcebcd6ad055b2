"""Reports on what a precision costs, against plain transformers and on models with a known difference."""

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pair import PAIR

import labkit as lk
from labkit.models.errors import LoadError
from labkit.precision.passage import PASSAGE

MATRICES = {f"self_attn.{n}_proj" for n in "qkvo"} | {f"mlp.{n}_proj" for n in ("gate", "up", "down")}


SMALL = Path(__file__).parents[1] / "files" / "small_llama"
TEXT = "When Mary and John went to the store, John gave a drink to Mary. The keys to the cabinet are on the table."


@pytest.fixture(scope="module")
def small() -> lk.LanguageModel:
    """A model of four layers that was trained in full precision, so that a report takes a second."""
    return lk.load(SMALL, bits=32, progress=False)


def changed(lm: lk.LanguageModel, layer: int, name: str, factor: float) -> lk.LanguageModel:
    other = copy.deepcopy(lm)
    with torch.no_grad():
        other.hf.model.layers[layer].get_submodule(name).weight.mul_(factor)
    return other


@pytest.mark.long
def test_the_default_model_in_four_and_thirty_two_bits_as_plain_transformers_has_it(lm4, lm32):
    report = lk.quantisation_report({"NF4": lm4, "fp32": lm32}, context=64, progress=False)
    frame = report.to_frame()
    assert (report.reference, set(frame.index)) == ("fp32", {"NF4", "fp32"})
    logits = {}
    ids = lm32.tokenizer(PASSAGE, return_tensors="pt").input_ids
    parts = [part for part in ids.split(64, 1) if part.shape[1] > 1]
    for label, lm in (("NF4", lm4), ("fp32", lm32)):
        with torch.no_grad():
            rows = [lm.hf(part, use_cache=False).logits[0, :-1].double().log_softmax(-1) for part in parts]
        logits[label] = torch.cat(rows)
        target = torch.cat([part[0, 1:] for part in parts])
        expected = math.exp(-float(logits[label].gather(1, target[:, None]).mean()))
        assert frame.perplexity[label] == pytest.approx(expected, rel=1e-3)
    kl = float((logits["fp32"].exp() * (logits["fp32"] - logits["NF4"])).sum(-1).mean())
    assert frame.kl["NF4"] == pytest.approx(kl, rel=0.02)
    assert frame.kl["fp32"] == 0
    same = float((logits["fp32"].argmax(-1) == logits["NF4"].argmax(-1)).double().mean())
    assert frame.top1["NF4"] == pytest.approx(same, abs=0.02)
    assert frame.bytes["NF4"] == lm4.memory().total
    assert (frame.tokens_per_second > 0).all()
    assert frame.load_seconds.isna().all()
    # of a matrix, from the two matrices
    for name, layer in (("self_attn.q_proj", 7), ("mlp.down_proj", 20)):
        a, b = (lm.weight(name, layer, dtype=torch.float32) for lm in (lm4, lm32))
        assert report.weight_errors().loc[name, layer] == pytest.approx(float((a - b).norm() / b.norm()), rel=0.03)
    assert set(report.weight_errors().index) == MATRICES
    assert report.weight_errors().shape == (7, 30)
    assert report.activation_errors().loc["resid_post", 29] > 0.02
    assert report.heads["NF4"].shape == (30, 9)
    assert report.lens["NF4"][-1] == pytest.approx(report.to_frame().top1["NF4"], abs=0.2)
    assert re.match(r"NF4 instead of fp32: 11[1-4]\.\d MB instead of 538.1 MB, perplexity", report.words())
    assert "checkpoint in Q4_1: fp32 is that, dequantised" in report.words()


def test_a_model_in_full_precision_shows_what_4_bits_cost_of_it():
    models = {"NF4": {"bits": 4}, "bf16": {"bits": 16}, "fp32": {"bits": 32}}
    report = lk.quantisation_report(models, name=SMALL, text=TEXT, progress=False)
    frame = report.to_frame()
    assert report.notes == []  # nothing was lost before
    assert (frame.task == 1).all()
    assert frame.perplexity["bf16"] == pytest.approx(frame.perplexity["fp32"], rel=0.01)
    assert 0 <= frame.kl["bf16"] < 0.01 < frame.kl["NF4"] < 0.5
    assert frame.bytes["NF4"] < frame.bytes["bf16"] < frame.bytes["fp32"]
    errors = {label: report.weight_errors(label).to_numpy() for label in ("NF4", "bf16")}
    assert 0.07 < errors["NF4"].min() < errors["NF4"].max() < 0.12  # of a normal distribution NF4 misses about 9 %
    assert errors["bf16"].max() < 2**-8
    sites = {label: report.activation_errors(label).loc["resid_post"] for label in ("NF4", "bf16")}
    assert (sites["bf16"] < sites["NF4"]).all()


def test_a_model_and_its_copy_are_the_same(small):
    report = lk.quantisation_report(
        {"one": small, "two": copy.deepcopy(small)}, text=TEXT, pairs=[PAIR], progress=False
    )
    frame = report.to_frame()
    assert frame.perplexity["one"] == pytest.approx(frame.perplexity["two"], rel=1e-5)
    assert frame.kl["two"] == pytest.approx(0, abs=1e-6)
    assert frame.top1["two"] == 1
    assert report.weight_errors().to_numpy().max() == 0
    assert report.activation_errors().to_numpy().max() < 1e-4
    assert report.heads["two"].max() < 1e-4
    assert report.lens["two"].min() == 1


def test_a_planted_difference_is_found_where_it_is(small):
    report = lk.quantisation_report(
        {"whole": small, "broken": changed(small, 1, "self_attn.k_proj", 0.0)}, text=TEXT, pairs=[], progress=False
    )
    weights, sites = report.weight_errors("broken"), report.activation_errors("broken")
    assert weights.loc["self_attn.k_proj", 1] == pytest.approx(1, abs=1e-6)
    weights.loc["self_attn.k_proj", 1] = 0
    assert weights.to_numpy().max() == 0
    assert sites.loc["k"].tolist()[:2] == pytest.approx([0, 1], abs=1e-4)
    assert sites.loc["resid_post", 0] == pytest.approx(0, abs=1e-4)
    assert sites.loc["resid_post", 1] > 0.01
    assert report.heads["broken"][0].max() < 1e-4
    assert report.heads["broken"][1].min() > 0.05
    assert report.lens["broken"][0] == 1 > report.lens["broken"][1]


def test_it_is_saved_opened_drawn_and_said_as_code(small, tmp_path):
    report = lk.quantisation_report(
        {"a": small, "b": changed(small, 2, "mlp.up_proj", 1.5)}, text="One two three four five six.", pairs=[PAIR],
        progress=False,
    )  # fmt: skip
    opened = lk.open_report(report.save(tmp_path / "report.npz"))
    assert opened.to_frame().equals(report.to_frame())
    assert opened.weight_errors("b").equals(report.weight_errors("b"))
    np.testing.assert_array_equal(opened.heads["b"], report.heads["b"])
    assert (opened.words(), opened.code(), repr(opened)) == (report.words(), report.code(), repr(report))
    for what in ("activations", "weights", "heads", "lens"):
        assert opened.figure(what).data[0].z.shape[1] in (4, 8)
    assert "model_0 = lk.load(" in report.code()
    assert "text='One two three four five six.'" in report.code()
    with pytest.raises(ValueError, match="what must be one of activations, weights, heads, lens; got 'colours'"):
        report.figure("colours")
    with pytest.raises(ValueError, match="there is no precision 'c' to compare; use one of b"):
        report.figure("weights", "c")
    with pytest.raises(ValueError, match=r"a quantisation report, which lk.open_report\(path\) opens"):
        lk.open_grid(tmp_path / "report.npz")


def test_its_code_makes_it_again():
    made = {"NF4": {"bits": 4}, "kept": {"keep": ["down_proj"], "bits": 4}}
    report = lk.quantisation_report(made, name=SMALL, text=TEXT, pairs=[], progress=False)
    names: dict = {}
    exec(report.code(), names)
    again = names["report"].to_frame()
    columns = ["perplexity", "kl", "top1", "bytes"]
    np.testing.assert_allclose(again[columns].to_numpy(), report.to_frame()[columns].to_numpy(), rtol=1e-3, atol=1e-3)
    assert report.rows["kept"]["load_seconds"] > 0


@pytest.mark.parametrize(
    ("models", "more", "said"),
    [
        ({"one": {"bits": 4}}, {}, "a report compares two precisions or more"),
        ({"a": {"bits": 4}, "b": {"bits": 5}}, {}, "b: bits must be 4, 8, 16 or 32; got 5"),
        ({"a": {"bits": 4}, "b": {"bit": 16}}, {}, "b: lk.load has no argument bit"),
        ({"a": {"bits": 4}, "b": {"bits": 16, "keep": ["mlp.0"]}}, {}, "with bits=16 none is quantised"),
        ({"a": {"bits": 4}, "b": {"bits": 32}}, {"context": 1}, "context must be at least 2 tokens; got 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(models, more, said, monkeypatch):
    monkeypatch.setattr("labkit.precision.comparison.load", lambda **_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=said):
        lk.quantisation_report(models, **more, progress=False)


def test_a_reference_that_is_itself_in_four_bits_is_named():
    made = {"FP4": {"bits": 4, "quant_type": "fp4"}, "NF4": {"bits": 4}}
    report = lk.quantisation_report(made, name=SMALL, text=TEXT, pairs=[], progress=False)
    assert "FP4, with which the others are compared, is itself in 4 bits" in report.words()


def test_models_that_do_not_fit_are_refused_before_any_is_measured(monkeypatch):
    """The largest comes first, and they are held one at a time."""
    monkeypatch.setattr("labkit.models.load.available", lambda device: 4_000_000)
    monkeypatch.setattr("labkit.precision.comparison.Measured", lambda *_: pytest.fail("a model was measured"))
    with pytest.raises(LoadError, match=r"in 32 bits needs 4\.4 MB, but cpu has 4\.0 MB free") as caught:
        lk.quantisation_report({"NF4": {"bits": 4}, "fp32": {"bits": 32}}, name=SMALL, text=TEXT, progress=False)
    assert caught.value.report.rows == {}


def test_a_text_shorter_than_the_context_is_refused(small):
    with pytest.raises(ValueError, match=r"the text has \d+ tokens and .* context=500 is more"):
        lk.quantisation_report({"a": small, "b": small}, text="Short.", context=500, progress=False)


def test_what_was_measured_before_an_error_is_on_it(small, lm32):
    with pytest.raises(ValueError, match="not another precision: n_layers 4 and 30") as caught:
        lk.quantisation_report({"whole": lm32, "part": small}, text="One two three.", pairs=[], progress=False)
    assert list(caught.value.report.rows) == ["whole"]
    other = copy.deepcopy(small)
    other.tokenizer = copy.deepcopy(small.tokenizer)
    other.tokenizer.add_tokens([" two three"])
    other.hf.resize_token_embeddings(small.n_vocab + 1, mean_resizing=False)
    with pytest.raises(ValueError, match="another tokenizer than the reference"):
        lk.quantisation_report({"a": small, "b": other}, text="One two three.", pairs=[], progress=False)
