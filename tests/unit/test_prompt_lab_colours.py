"""The colours of PromptLab by what was read, and the reasons for a written token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pair import CLEAN

import labkit as lk


@pytest.fixture
def lab(lm4: lk.LanguageModel) -> lk.PromptLab:
    return lk.PromptLab(lm4, CLEAN, max_new_tokens=4, background=False)


def shown_ids(lab: lk.PromptLab) -> torch.Tensor:
    column = lab.columns[0]
    return torch.cat([column.tree.ids.cpu(), torch.tensor([column.record.ids])], 1)


def test_tokens_are_coloured_by_a_direction_around_zero(lab: lk.PromptLab) -> None:
    lab.run()
    before, direction = lab.strip.values, torch.randn(lab.lm.d_model, generator=torch.Generator().manual_seed(0))
    lab.colour_by("random", direction, site="resid_post.3")
    lab.colours.menu.value = "random"
    lab.wait()
    read = lab.lm.run(shown_ids(lab), read=["resid_post.3"])["resid_post.3"][0].float().cpu()
    np.testing.assert_allclose(lab.strip.values, (read @ direction).numpy(), rtol=1e-2, atol=1e-2)
    assert (lab.strip.scale, lab.strip.centre, lab.strip.low) == ("effect", 0.0, -lab.strip.high)
    assert "resid_post.3" in lab.code()
    assert "coloured by random" in lab.snapshot()
    lab.colours.menu.value = ""
    np.testing.assert_array_equal(lab.strip.values, before)
    assert lab.strip.scale == "surprise"
    assert "resid_post" not in lab.code()


def test_a_first_token_of_another_order_does_not_set_the_scale(lab: lk.PromptLab) -> None:
    lab.run()
    first = lab.lm.run(shown_ids(lab), read=["resid_post.15"])["resid_post.15"][0, 0]
    lab.colour_by("first", first, site="resid_post.15")
    lab.colours.menu.value = "first"
    lab.wait()
    sizes = np.abs(lab.strip.values)
    assert sizes[0] > 5 * sizes[1:].max()
    assert lab.strip.high == pytest.approx(sizes[1:].max())


def test_a_head_says_how_much_of_a_written_token_goes_to_the_prompt(lab: lk.PromptLab) -> None:
    lab.run()
    lab.colour_by("head", site="pattern.3.1")
    lab.colours.menu.value = "head"
    lab.wait()
    at = lab.columns[0].offset
    assert np.isnan(lab.strip.values[:at]).all()
    pattern = lab.lm.run(shown_ids(lab), read=["pattern.3.1"])["pattern.3.1"][0].float().cpu().numpy()
    np.testing.assert_allclose(lab.strip.values[at:], pattern[at:, :at].sum(-1), atol=1e-2)


def test_a_written_token_shows_where_it_looked_and_why_it_was_written(lab: lk.PromptLab) -> None:
    lab.run()
    lab.strip.selection = 0
    assert lab.colours._line.layout.display == "none"
    at = lab.strip.selection = lab.columns[0].offset + 1
    assert lab.colours._line.layout.display is None
    lab.colours.looked_button.click()
    lab.wait()
    assert np.nansum(lab.strip.values) == pytest.approx(1.0, abs=1e-2)
    assert np.isnan(lab.strip.values[at + 1 :]).all()
    lab.colours.why_button.click()
    lab.wait()
    ids = shown_ids(lab)
    found = lk.input_attribution(lab.lm, ids[:, :at], written=[int(ids[0, at])], progress=False)
    np.testing.assert_allclose(lab.strip.values[:at], found.values, atol=1e-2)
    assert np.isnan(lab.strip.values[at:]).all()
    assert "lk.input_attribution" in lab.code()
    lab.colours.menu.value = ""
    assert lab.strip.unit == "probability"
    lab.colours.why_button.click()
    lab.wait()
    assert lab.strip.unit.startswith("nats")
    lab.run()
    assert lab.strip.unit == "probability"
    assert "input_attribution" not in lab.code()


def test_a_direction_or_site_that_does_not_fit_is_refused(lab: lk.PromptLab) -> None:
    with pytest.raises(ValueError, match="a direction has shape"):
        lab.colour_by("short", torch.ones(3), site="resid_post.3")
    with pytest.raises(ValueError, match="must be a head"):
        lab.colour_by("layer", site="pattern.3")


def run_code(lab: lk.PromptLab) -> np.ndarray:
    """The values that the code of what is shown gives, beside the model that is loaded already."""
    scope: dict[str, Any] = {"lm": lab.lm, "lk": lk}
    exec(lab.colours.code(), scope)
    return np.asarray(scope["values"], np.float32)


@pytest.fixture(scope="module")
def probe(lm4: lk.LanguageModel) -> lk.Probe:
    texts = [f"{name} is {how}" for name in ("Mary", "John", "Tom", "Anna") for how in ("kind", "cruel")]
    kept = lk.collect(lm4, texts, read=["resid_post.3", "resid_post.9"], positions="last", progress=False)
    labels = [text.split()[-1] for text in texts]
    return lk.probe(kept, labels, groups=[text.split()[0] for text in texts], folds=2, controls=1, progress=False)


def test_the_code_of_a_colouring_gives_what_is_shown(lab: lk.PromptLab) -> None:
    lab.run()
    lab.colour_by("kind", lk.steering_vector(lab.lm, ["She is kind"], ["She is cruel"], 9))
    lab.colour_by("head", site="pattern.3.1")
    for name in ("kind", "head"):
        lab.colours.menu.value = name
        lab.wait()
        np.testing.assert_allclose(run_code(lab), lab.strip.values, rtol=1e-2, atol=1e-2)
    assert "lk.steering_vector" not in lab.code()
    lab.colours.menu.value = "kind"
    assert "resid_post.9" in lab.code()
    assert "lk.steering_vector" in lab.code()
    assert lab.code().count("lk.load(") == 1


def test_the_code_of_a_direction_given_as_numbers_says_what_is_missing(lab: lk.PromptLab) -> None:
    lab.run()
    lab.colour_by("mine", torch.ones(lab.lm.d_model), site="resid_post.3")
    lab.colours.menu.value = "mine"
    lab.wait()
    with pytest.raises(ValueError, match=f"put in the {lab.lm.d_model} numbers that lab.colour_by\\('mine'"):
        run_code(lab)


def test_a_new_text_and_a_branch_keep_the_colouring(lab: lk.PromptLab) -> None:
    lab.colour_by("ones", torch.ones(lab.lm.d_model), site="resid_post.3")
    lab.run()
    lab.colours.menu.value = "ones"
    lab.prompt = "Two plus two is"
    for act in (lab.start, lambda: lab.branch(1, " five"), lambda: lab.show_run(0)):
        act()
        lab.wait()
        read = lab.lm.run(shown_ids(lab), read=["resid_post.3"])["resid_post.3"][0].float().cpu()
        np.testing.assert_allclose(lab.strip.values, read.sum(-1).numpy(), rtol=1e-2, atol=1.0)
        assert (lab.strip.scale, lab.colours.shown_by) == ("effect", "ones")
    lab.measure = "entropy"
    assert (lab.strip.scale, lab.colours.menu.value, lab.colours.shown_by) == ("surprise", "", "")


def test_a_probe_colours_with_its_bias(lab: lk.PromptLab, probe: lk.Probe) -> None:
    lab.prompt = "Mary is kind"
    lab.colour_by("kindness", probe, site="resid_post.9")
    lab.run()
    lab.colours.menu.value = "kindness"
    lab.wait()
    vector = probe.direction(9)
    read = lab.lm.run(shown_ids(lab), read=["resid_post.9"])["resid_post.9"][0].float().cpu()
    wanted = (read @ vector.values).numpy() + probe.bias(9)
    np.testing.assert_allclose(lab.strip.values, wanted, rtol=1e-2, atol=1.0)
    assert "probe.direction(9)" in lab.code()
    lab.colour_by("best", probe)
    assert lab.colours.shades["best"].site == f"resid_post.{probe.best}"
    with pytest.raises(ValueError, match="name one of its layers"):
        lab.colour_by("other", probe, site="mlp_out.9")


def test_a_session_brings_the_colouring_back(lab: lk.PromptLab, tmp_path: Path) -> None:
    lab.run()
    lab.colour_by("kind", lk.steering_vector(lab.lm, ["She is kind"], ["She is cruel"], 9))
    lab.colour_by("head", site="pattern.3.1")
    lab.colours.menu.value = "kind"
    lab.wait()
    back = lk.PromptLab(lab.lm, background=False).open_session(lab.save_session(tmp_path / "mine.json"))
    back.wait()
    assert back.colours.shown_by == "kind"
    np.testing.assert_array_equal(back.strip.values, lab.strip.values)
    np.testing.assert_array_equal(back.colours.shades["kind"].direction, lab.colours.shades["kind"].direction)
    assert back.code() == lab.code()
    back.colours.menu.value = "head"
    back.wait()
    assert back.colours.shown_by == "head"


def test_a_session_opens_without_colours_that_do_not_fit_and_refuses_broken_ones(
    lab: lk.PromptLab, tmp_path: Path
) -> None:
    lab.run()
    lab.colour_by("mine", torch.ones(lab.lm.d_model), site="resid_post.3")
    file = lab.save_session(tmp_path / "mine.json")
    whole = json.loads(file.read_text())
    whole["settings"]["colours"]["shades"]["mine"]["direction"] = [1.0]
    file.write_text(json.dumps(whole))
    back = lk.PromptLab(lab.lm, background=False).open_session(file)
    assert (len(back.runs), back.colours.shades) == (1, {})
    assert "without the colours mine" in back.status.text
    del whole["settings"]["colours"]["shades"]["mine"]["site"]
    file.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="a session of PromptLab"):
        back.open_session(file)
    assert len(back.runs) == 1
