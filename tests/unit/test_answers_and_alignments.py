"""Answers of several tokens, sets of answers, and pairs of unequal length: each cell is what one whole run says."""

import json
import warnings

import numpy as np
import pytest
import torch
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud
from naive_texts import naive_texts
from pair import CLEAN, CORRUPT, PAIR

import labkit as lk
from labkit.patching.answers import Answers
from labkit.patching.cell_report import inspect, together
from labkit.patching.patch import PatchJob
from labkit.text.encode import following
from labkit.text.pair import align_spans, partners

TEXTS = [" Mary and her friend", " Mary"], [" John", " John Smith"]
LONGER = "When Maryanne and John went to the big store, Mary gave a drink to"
SPANS = ((0, 2), (0, 2)), ((2, 7), (3, 8)), ((7, 14), (9, 16))
BLOCK = [((n, n + 1), (n, n + 1)) for n in range(14)]


def naive_of(lm, job: PatchJob, numbers) -> np.ndarray:
    clean, corrupt = (lm.encode(prompt) for prompt in (job.spec.clean, job.spec.corrupt))
    sides = (([side] if isinstance(side, str) else side) for side in (job.spec.answer, job.spec.foil))
    ids = [[following(lm.tokenizer, text, clean) for text in side] for side in sides]
    cells = [job.cells[i] for i in numbers]
    return naive_texts(lm, clean, corrupt, job.pair.pair.spans or BLOCK, *ids, cells, job.site)


def some(job: PatchJob, n: int = 5) -> list[int]:
    """A fixed spread of the cells that have an effect."""
    flat = job.grid.values.reshape(-1)
    moved = np.flatnonzero(np.isfinite(flat) & (flat != job.grid.unpatched))
    return moved[np.linspace(0, len(moved) - 1, n).astype(int)].tolist()


@pytest.mark.parametrize("site", ["resid_pre", "z"])
@pytest.mark.parametrize(
    "asked",
    [
        {"corrupt": CORRUPT, "answer": TEXTS[0], "foil": TEXTS[1]},
        {"corrupt": LONGER, "answer": " Mary", "foil": " John"},
        {"corrupt": LONGER, "answer": " Mary and her", "foil": " John", "direction": "denoise"},
    ],
    ids=["sets of texts", "unequal prompts", "both"],
)
def test_every_cell_is_what_one_whole_run_says(lm, asked, site):
    job = PatchJob(lm, CLEAN, **asked, site=site, layers=[4, 12, 20, 29])
    list(job.steps())
    assert job.engine == "wavefront"
    assert job.grid.complete
    assert job.done == job.total
    numbers = some(job)
    fast, slow = job.grid.values.reshape(-1)[numbers], naive_of(lm, job, numbers)
    # in NF4 on bf16 the naive run's logits are rounded to 1/8, and other batches round otherwise; texts add several up
    assert float(np.abs(fast - slow).max()) <= (1e-4 if lm.bits == 32 else 0.8)


def test_logit_diff_of_two_tokens_is_what_logprob_diff_is_and_what_texts_of_one_token_give(lm32):
    plain = lk.patch(lm32, *PAIR, layers=[3, 20], progress=False)
    named = lk.patch(lm32, *PAIR, layers=[3, 20], metric="logprob_diff", progress=False)
    texts = lk.patch(lm32, CLEAN, CORRUPT, [" Mary"], [" John"], layers=[3, 20], progress=False)
    assert np.array_equal(plain.values, named.values)
    assert "answer_tokens" not in plain.recipe
    assert texts.recipe["answer_tokens"] == [[lm32.encode(" Mary")[0, 0].item()]]
    np.testing.assert_allclose(texts.values, plain.values, atol=1e-4)


def test_a_set_is_as_likely_as_its_texts_together(lm32):
    how = {"layers": [20], "progress": False}
    both = lk.patch(lm32, CLEAN, CORRUPT, TEXTS[0], **how)
    each = [lk.patch(lm32, CLEAN, CORRUPT, text, **how) for text in TEXTS[0]]
    assert both.recipe["metric"] == "logprob"
    np.testing.assert_allclose(both.values, np.logaddexp(*(grid.values for grid in each)), atol=1e-4)


def test_texts_that_begin_alike_share_a_lane():
    answers = Answers(((1, 2, 3), (1, 5), (7,)), ((1, 2, 3, 4), (8, 9)))
    assert answers.lanes == ((1, 2, 3), (8,))
    assert answers.reads == (4, 2)
    logits = torch.randn(2 * 6, 12, generator=torch.Generator().manual_seed(0))
    value = answers.metric(None)(logits)
    rows = logits.view(2, 6, 12).log_softmax(-1)
    told = [
        rows[:, 0, 1] + rows[:, 1, 2] + rows[:, 2, 3],
        rows[:, 0, 1] + rows[:, 1, 5],
        rows[:, 0, 7],
        rows[:, 0, 1] + rows[:, 1, 2] + rows[:, 2, 3] + rows[:, 3, 4],
        rows[:, 4, 8] + rows[:, 5, 9],
    ]
    wanted = torch.stack(told[:3]).logsumexp(0) - torch.stack(told[3:]).logsumexp(0)
    torch.testing.assert_close(value, wanted)


def test_a_cell_without_a_partner_is_nan_and_hatched_and_no_other_is(lm32):
    grid = lk.patch(lm32, CLEAN, LONGER, " Mary", " John", layers=[0, 9, 20], progress=False)
    lone = [2, 8]  # " Mary" + "anne" stand for " Mary", and " big" for nothing
    assert grid.alignment == [[list(side) for side in span] for span in SPANS]
    assert grid.complete
    assert np.flatnonzero(np.isnan(grid.values).all(0)).tolist() == lone
    assert int(np.isnan(grid.values).sum()) == 3 * len(lone)
    assert np.array_equal(grid.unpaired, np.isnan(grid.values))
    assert [token.text for token in grid.tokens] == [token.text for token in lm32.tokens(LONGER)]
    figure = grid.figure()
    assert [(box.x0 + 0.5, box.y0, box.y1) for box in figure.layout.shapes if box.type == "rect"] == [
        (column, -0.5, 2.5) for column in lone
    ]
    assert len(figure.data) == 1  # on an axis of categories another trace would add columns
    assert "no partner in the other prompt" in figure.layout.title.text.replace("\u00a0", " ")
    other = lk.patch(lm32, CLEAN, LONGER, " Mary", " John", layers=[20], direction="noise", progress=False)
    assert other.values.shape == (1, 14)
    assert partners(SPANS, "clean", length=14, other=16)[6:8] == [7, 9]
    assert np.isfinite(other.values).all()  # whatever clean has, corrupt has too
    heads = lk.patch(lm32, CLEAN, LONGER, " Mary", " John", site="z", layers=[20], progress=False)
    assert np.isfinite(heads.values).all()


def test_a_map_of_ones_own_is_followed(lm32):
    own = [((0, 3), (0, 3)), ((3, 14), (5, 16))]
    grid = lk.patch(lm32, CLEAN, LONGER, " Mary", " John", alignment=own, layers=[20], progress=False)
    assert np.flatnonzero(np.isnan(grid.values[0])).tolist() == [3, 4]
    by_position = [((0, 14), (0, 14))]
    usual = lk.patch(lm32, *PAIR, layers=[20], progress=False)
    spelled = lk.patch(lm32, *PAIR, alignment=by_position, layers=[20], progress=False)
    np.testing.assert_allclose(spelled.values, usual.values, atol=1e-4)


def test_equal_prompts_are_paired_by_position_as_ever(lm32):
    assert align_spans(lm32, CLEAN, CORRUPT, None).spans is None
    assert lk.patch(lm32, *PAIR, layers=[20], progress=False).alignment is None


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_code_and_file_carry_texts_and_alignment(lm32, tmp_path, site):
    grid = lk.patch(lm32, CLEAN, LONGER, *TEXTS, site=site, layers=[20], progress=False)
    names: dict = {}
    exec(grid.code().replace("lm = lk.load(bits=32)\n", ""), names := {"lm": lm32})
    assert np.array_equal(names["grid"].values, grid.values, equal_nan=True)
    opened = lk.open_grid(grid.save(tmp_path / "grid.npz"))
    assert repr(opened) == repr(grid)
    assert opened.code() == grid.code()
    assert opened.complete
    assert json.loads(json.dumps(opened.recipe))["answer"] == TEXTS[0]
    assert "' Mary and her friend' or ' Mary'" in opened.title()


def test_estimates_go_with_exact_effects_and_leave_out_what_has_no_partner(lm32):
    pair = (CLEAN, LONGER, " Mary and her friend", " John")
    some = {"layers": [15, 20, 25], "progress": False}
    grids = lk.attribution_patch(lm32, *pair, sites=["resid_pre", "mlp_out"], **some)
    exact = lk.patch(lm32, *pair, site="mlp_out", **some)
    assert np.array_equal(np.isnan(grids["mlp_out"].values), exact.unpaired)
    both = np.isfinite(exact.values)
    assert np.corrcoef(exact.values[both], grids["mlp_out"].values[both])[0, 1] > 0.5


def test_a_sweep_and_its_store_carry_texts_and_unequal_pairs(lm32, tmp_path):
    pairs = [(CLEAN, LONGER, TEXTS[0], " John"), (CLEAN, LONGER, " Mary", " John"), (*PAIR[:2], TEXTS[0], TEXTS[1])]
    how = {"site": "z", "layers": [20, 21], "progress": False}
    swept = lk.sweep(lm32, pairs, **how, store=tmp_path / "store")
    assert swept.complete
    for pair, grid in zip(pairs, swept.done, strict=True):
        np.testing.assert_allclose(grid.values, lk.patch(lm32, *pair, **how).values, atol=1e-4)
    assert np.array_equal(lk.open_sweep(tmp_path / "store").mean, swept.mean)
    by_position = lk.sweep(lm32, pairs[:2], layers=[20], progress=False)
    assert len(by_position.layouts) == 1
    assert np.flatnonzero(np.isnan(by_position.mean[0])).tolist() == [2, 8]
    with pytest.raises(ValueError, match=r"2 layouts: .*without a partner at 2, 8"):
        _ = lk.sweep(lm32, pairs, layers=[20], progress=False).mean


def test_controls_hold_for_texts_and_for_unequal_pairs(lm32):
    how = {"layers": [15, 25], "n": 2, "cells": 2, "progress": False}
    several = lk.controls(lm32, CLEAN, CORRUPT, TEXTS[0], " John", **how)
    found = {check.name: check for check in several.checks}
    assert all(found[name].ok for name in ("whole runs", "identical prompts", "everything patched"))
    unequal = lk.controls(lm32, CLEAN, LONGER, " Mary", " John", **how)
    found = {check.name: check for check in unequal.checks}
    assert all(found[name].ok for name in ("whole runs", "identical prompts"))
    assert found["everything patched"].ok is None
    assert found["ablation"].ok is None


def test_a_cell_is_inspected_along_the_alignment(lm32):
    grid = lk.patch(lm32, CLEAN, LONGER, " Mary", " John", layers=[20, 25], progress=False)
    report = inspect(lm32, grid, 25, 15)
    assert report.after[0][0].endswith("Mary")
    assert report.effect == pytest.approx(float(grid.values[1, 15]) - grid.corrupt)
    joint = together(lm32, grid, [(20, 11), (25, 15)])
    assert joint.effect == pytest.approx(report.effect, abs=3)
    with pytest.raises(ValueError, match="position 8 has no partner in the other prompt"):
        inspect(lm32, grid, 25, 8)


@pytest.mark.parametrize("other", [lk.path_patch, lk.edge_attribution])
def test_methods_of_single_tokens_and_equal_prompts_say_so(lm4, other):
    with pytest.raises(ValueError, match="it must be one"):
        other(lm4, CLEAN, CORRUPT, " Mary and her friend", " John", progress=False)
    with pytest.raises(ValueError, match=r"must be one token here; lk\.patch takes sets"):
        other(lm4, CLEAN, CORRUPT, [" Mary"], " John", progress=False)
    with pytest.raises(ValueError, match=r"needs prompts of one length.*lk\.patch takes prompts of unequal length"):
        other(lm4, CLEAN, LONGER, " Mary", " John", progress=False)


def test_a_text_that_continues_the_last_word_is_warned_of(lm4):
    with pytest.warns(UserWarning, match=r"continues the prompt's last word, ' toMary Ann'; .*: ' Mary Ann'"):
        PatchJob(lm4, CLEAN, CORRUPT, "Mary Ann", " John")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PatchJob(lm4, CLEAN, CORRUPT, " Mary Ann", " John")


def test_runs_with_other_texts_are_not_reused():
    lm = loud("llama")
    runs = PatchJob(lm, IDS, CORRUPT_IDS, ANSWER, FOIL).runs
    with pytest.raises(ValueError, match="`runs` belongs to another model or to other prompts"):
        PatchJob(lm, IDS, CORRUPT_IDS, [ANSWER, FOIL], runs=runs, alignment=[((0, 2), (0, 2))])
