"""A pair on which a model hardly differs is told, and its effects keep the metric's own unit."""

import warnings

import numpy as np
import pytest
from pair import CLEAN, CORRUPT

import labkit as lk

SAME = (CLEAN, CLEAN, " Mary", " John")


@pytest.fixture(scope="module")
def alike(lm4):
    """A grid over the same prompt twice."""
    with pytest.warns(UserWarning, match="the same prompt"):
        return lk.patch(lm4, *SAME, layers=[3, 20], progress=False)


def test_a_pair_that_differs_is_not_warned_of(lm4):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*nothing to explain")
        grid = lk.patch(lm4, CLEAN, CORRUPT, " Mary", " John", layers=[3, 20], progress=False)
    assert not grid.too_close
    assert grid.figure().data[0].colorbar.title.text == "0 = corrupt, 1 = clean"


def test_the_same_prompt_twice_has_nothing_to_explain_and_its_own_unit(alike):
    assert alike.too_close
    figure = alike.figure()
    assert figure.data[0].colorbar.title.text == "logits"
    np.testing.assert_array_equal(np.asarray(figure.data[0].z), alike.values)


def test_what_rounding_moves_is_measured_where_the_runs_are_close(lm4, lm32):
    close = "The teacher told the boy that he", "The teacher told the girl that he", " was", " is"
    with pytest.warns(UserWarning, match="clean and corrupt hardly differ.*nothing to explain"):
        grid = lk.patch(lm4, *close, layers=[12, 13], progress=False)
    assert abs(grid.clean - grid.corrupt) <= 2 * grid.noise
    assert np.abs(np.asarray(grid.figure().data[0].z)).max() <= np.abs(grid.values).max()
    exact = lk.patch(lm32, *close, layers=[12], progress=False)  # in float32 the same gap is no rounding
    assert not exact.too_close


def test_every_function_on_a_pair_says_so_once(lm32):
    calls = (
        lambda: lk.attribution_patch(lm32, *SAME, sites=["z", "mlp_out"]),
        lambda: lk.path_patch(lm32, *SAME, senders=["z.3.1"], progress=False),
        lambda: lk.edge_attribution(lm32, *SAME, steps=1, progress=False),
    )
    for call in calls:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            call()
        assert sum("nothing to explain" in str(w.message) for w in told) == 1


def test_patch_lab_says_so_and_draws_the_metric_s_own_unit(lm4):
    lab = lk.PatchLab(lm4, *SAME, background=False)
    lab.run()
    assert "nothing to explain" in lab.status.text
    assert "change of logit difference" in lab.live.heatmap.unit
