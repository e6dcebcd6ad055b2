"""A pair on which the model hardly differs: whoever patches it is told, and noise is not drawn as a finding."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from drawn import opened
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.activations.metrics import metric_of
from labkit.engine.cells import Cell
from labkit.engine.wavefront import Lane, Wavefront
from labkit.patching.pair_runs import PairRuns
from labkit.text.encode import single_token
from labkit.text.pair import align
from labkit.widgets.patch_lab.live_grid import effects

NOTHING = ("The king said that she", "The queen said that she", " the", " a")
PAIR = (CLEAN, CORRUPT, " Mary", " John")
FEW: dict[str, Any] = {"layers": [5, 20], "positions": [-2, -1], "progress": False}


@contextmanager
def told_once() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    said = [one for one in told if "hardly differ" in str(one.message)]
    assert len(said) == 1, [str(one.message) for one in said]
    assert said[0].filename == __file__  # where it was called


@contextmanager
def told_nothing() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def test_every_way_to_patch_says_so_once_and_in_words(lm4: lk.LanguageModel) -> None:
    with told_once():
        grid = lk.patch(lm4, *NOTHING, **FEW)
    with told_once():
        lk.attribution_patch(lm4, *NOTHING, sites=["resid_pre", "attn_out"])
    with told_once():
        paths = lk.path_patch(lm4, *NOTHING, senders=["z.20"], progress=False)
    with told_once():
        edges = lk.edge_attribution(lm4, *NOTHING, steps=1, progress=False)
    with told_once():
        edges.circuit(50).faithfulness(lm4, [NOTHING])
    for one in (grid, paths):
        assert one.too_close
        assert one.noise > 0
        with pytest.warns(UserWarning, match=r"logit_diff is .* re-batching .* up to .* nothing to explain"):
            one.warned()
    assert "most: " in repr(paths)


def test_a_pair_that_differs_is_patched_without_a_word_and_without_measuring(lm4: lk.LanguageModel) -> None:
    with told_nothing():
        grid = lk.patch(lm4, *PAIR, **FEW)
        lk.attribution_patch(lm4, *PAIR, sites=["resid_pre"])
    assert not grid.too_close
    assert grid.noise is None
    assert grid.figure().data[0].colorbar.title.text == "0 = corrupt, 1 = clean"


def test_the_figure_is_in_the_metrics_own_unit_unless_asked_otherwise(lm4: lk.LanguageModel, tmp_path: Any) -> None:
    with pytest.warns(UserWarning, match="hardly differ"):
        grid = lk.patch(lm4, *NOTHING, **FEW)
    for one in (grid, lk.open_grid(grid.save(tmp_path / "grid.npz"))):
        drawn = one.figure().data[0]
        np.testing.assert_array_equal(drawn.z, grid.values)
        assert drawn.colorbar.title.text == "logits"
        assert drawn.zmax - drawn.zmin >= 4 * grid.noise  # noise is not drawn in full colour
        assert "hardly differ" in one.figure().layout.title.text
        assert one.figure(normalized=True).data[0].colorbar.title.text == "0 = corrupt, 1 = clean"
    values, unit = effects(grid)
    np.testing.assert_allclose(values, grid.values - grid.corrupt)
    assert unit == "change of logit difference"


def test_identical_prompts_are_such_a_pair_and_have_no_effect(lm32: lk.LanguageModel) -> None:
    with pytest.warns(UserWarning, match="clean and corrupt are the same prompt"):
        grid = lk.patch(lm32, CLEAN, CLEAN, " Mary", " John", **FEW)
    assert np.all(grid.values == grid.corrupt)
    assert np.isnan(grid.normalized).all()
    np.testing.assert_array_equal(grid.figure().data[0].z, grid.values)


@pytest.mark.parametrize(
    ("metric", "close"),
    [("rank", True), ("kl", False), ("logprob", False), (lambda logits: logits[:, ANSWER] * 0 + 1, True)],
    ids=["rank", "kl", "logprob", "a function that does not change"],
)
def test_every_metric_is_held_against_its_own_noise(metric: Any, close: bool) -> None:
    lm = loud("llama")
    top = int(lm.run(IDS).logits[0, -1].argmax())
    same = CORRUPT_IDS if metric != "rank" else torch.where(torch.arange(12) == 0, 13, IDS[0])[None]
    answer = top if metric == "rank" else ANSWER
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        grid = lk.patch(lm, IDS, same, answer, FOIL, metric=metric, progress=False)
    if metric == "rank":
        close = grid.clean == grid.corrupt or bool(grid.noise)
    assert grid.too_close == close
    assert grid.noise is None or grid.noise < 1e-3


def test_noise_is_tiny_in_float32_and_the_same_every_time() -> None:
    lm = loud("gpt2")
    found = []
    for _ in range(2):
        runs = PairRuns(lm, IDS, CORRUPT_IDS)
        near = runs.logits("clean") * 0 + runs.logits("corrupt")
        runs._logits["clean"] = near + 1e-6  # as if the two hardly differed
        found.append(runs.noise(metric_of("logit_diff", answer=ANSWER, foil=FOIL, reference=near)))
    assert found[0] == found[1]
    assert found[0] is not None


@torch.no_grad()
def test_what_the_engine_itself_moves_is_within_the_noise(lm4: lk.LanguageModel) -> None:
    """Cells with the activation that is there already, computed again in the engine's batches."""
    pair = align(lm4, *NOTHING[:2])
    runs = PairRuns(lm4, pair.clean, pair.corrupt)
    answer, foil = (single_token(lm4, word) for word in NOTHING[2:])
    metric = metric_of(None, answer=answer, foil=foil, reference=runs.logits("clean")[0])
    noise = runs.noise(metric)
    assert noise is not None
    for name in ("clean", "corrupt"):
        wavefront = Wavefront([Lane(runs.base(name), runs.activations(name, "resid_pre"), 0)], site="resid_pre")
        cells = [Cell(layer, position=position) for layer in (0, 9, 20, 29) for position in (0, 2, 4)]
        again = metric(runs.readout(name)(wavefront(cells), metric.columns))
        moved = float((again - metric.of(runs.logits(name))[0]).abs().max())
        assert moved <= noise.least


def test_a_pair_without_a_gap_has_no_say_in_a_normalised_mean(lm4: lk.LanguageModel) -> None:
    settings = {"layers": [20, 25], "positions": [-1], "progress": False}
    others = [PAIR, (CORRUPT, CLEAN, " John", " Mary")]
    with pytest.warns(UserWarning, match=r"in 1 of 3 pairs .* hardly differ .* in 1\. They are left out"):
        swept = lk.sweep(lm4, [others[0], NOTHING, others[1]], **settings)
    with told_nothing():
        without = lk.sweep(lm4, others, **settings)
    assert swept.too_close == [1]
    assert without.too_close == []
    np.testing.assert_allclose(swept.normalized, without.normalized, atol=0.06)  # they ride in other batches
    np.testing.assert_allclose(swept.mean, swept.values.mean(0), atol=1e-5)
    assert np.isfinite(swept.interval()).all()
    assert "1 without a gap" in repr(swept)
    assert "1 of them without a gap" in swept.title()
    with pytest.warns(UserWarning, match="in 2 of 2 pairs"):
        nothing = lk.sweep(lm4, [NOTHING, NOTHING], **settings)
    np.testing.assert_array_equal(nothing.figure().data[0].z, nothing.mean)
    assert nothing.figure().data[0].colorbar.title.text == "logits"


def test_the_controls_say_that_there_is_nothing_to_explain(lm4: lk.LanguageModel) -> None:
    with pytest.warns(UserWarning, match="hardly differ"):
        grid = lk.patch(lm4, *NOTHING, **FEW)
    with told_once():
        found = lk.controls(lm4, *NOTHING, grid=grid, progress=False)
    assert len(found.checks) == 8
    assert all(check.ok is None for check in found.checks)
    assert found.verdict.startswith("Nothing to explain: clean and corrupt hardly differ")
    found.figure()


def test_patch_lab_says_so_in_its_status_and_its_picture(lm4: lk.LanguageModel) -> None:
    with told_nothing():  # a widget has a place to say it
        lab = lk.PatchLab(lm4, *NOTHING, background=False)
    assert "nothing to explain" in lab.status.text
    assert lab.heatmap.unit == "change of logit difference"
    assert lab.heatmap.high >= 2 * lab.grid.noise
    assert "nothing to explain" in lab.snapshot()
    assert "change of logit difference" in opened(lab.snapshot())
    lab.selection = (20, 4)
    lab.wait(60)
    assert "on the scale from corrupt" not in lab.bars.note
