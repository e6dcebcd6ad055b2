"""The colours of PromptLab by what was read, and the reasons for a written token."""

from __future__ import annotations

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
    lab.run()
    assert lab.strip.unit == "probability"
    assert "input_attribution" not in lab.code()


def test_a_direction_or_site_that_does_not_fit_is_refused(lab: lk.PromptLab) -> None:
    with pytest.raises(ValueError, match="a direction has shape"):
        lab.colour_by("short", torch.ones(3), site="resid_post.3")
    with pytest.raises(ValueError, match="must be a head"):
        lab.colour_by("layer", site="pattern.3")
