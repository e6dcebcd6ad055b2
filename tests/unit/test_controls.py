"""The checks see what is there, see through what is not, and can be watched and stopped."""

import pytest
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.results.bootstrap import rank_correlation

PAIR = (CLEAN, CORRUPT, " Mary", " John")


@pytest.fixture(scope="module")
def made(lm32):
    pairs = lk.task("indirect object").pairs(lm32, n=6)
    grid = lk.patch(lm32, *pairs[0], layers=[0, 4, 20, 24, 28], progress=False)
    return lk.controls(lm32, *pairs[0], pairs=pairs[1:], grid=grid, n=4, progress=False)


def test_a_real_effect_stands_every_check_that_is_about_the_engine_and_the_activation(made):
    assert [check.name for check in made.checks] == list(lk.ControlsJob.names)
    for name in ("whole runs", "identical prompts", "everything patched", "random positions", "many pairs"):
        assert made[name].ok, made[name]
    assert made["everything patched"].numbers["share"] == pytest.approx(1, abs=1e-4)
    assert made["identical prompts"].numbers["cells"] == 0
    assert made["whole runs"].numbers["largest difference"] < 1e-4
    many = made["many pairs"].numbers
    assert many["low"] <= many["mean"] <= many["high"]
    assert len(many["shares"]) == 5


def test_the_strongest_cells_are_where_the_answer_is(made):
    assert len(made.cells) == 3
    assert {cell["position"] for cell in made.cells} >= {10, 14}  # the second name, and the end
    assert "·to" in " ".join(made.labels())


def test_what_the_estimate_missed_is_named(made):
    estimate = made["estimate"].numbers
    assert len(estimate["exact"]) == len(estimate["estimate"])
    assert estimate["rho"] == pytest.approx(rank_correlation(estimate["exact"], estimate["estimate"]))
    for cell in estimate["missed"]:
        row = made.grid.index[0].index(cell["layer"])
        assert made.grid.normalized[row, cell["position"]] == pytest.approx(cell["exact"], abs=1e-4)


def test_the_result_speaks(made):
    table = made.table()
    assert list(table.index) == list(lk.ControlsJob.names)
    assert set(table.verdict) <= {"passed", "check this", "not done"}
    assert made.verdict.count("checks passed") == 1
    assert "random prompts" in repr(made)
    figure = made.figure()
    assert figure.layout.title.text == f"Sanity checks: {made.verdict}"
    assert {trace.name for trace in figure.data} >= {"right activation", "random positions", "random prompts", "mean"}
    with pytest.raises(KeyError, match="there is no check 'luck'"):
        made["luck"]


def test_an_effect_that_any_disturbance_has_is_seen_through(lm32):
    """A metric that falls whenever something is disturbed: unrelated activations do the same, and the check says so."""
    clean = lm32.run(CLEAN).logits[0, -1].float().log_softmax(-1)

    def distance(logits):
        return -(logits.float().log_softmax(-1) - clean).abs().mean(-1)

    grid = lk.patch(lm32, *PAIR, metric=distance, direction="noise", layers=[26], positions=[13], progress=False)
    made = lk.controls(lm32, *PAIR, metric=distance, direction="noise", grid=grid, n=4, progress=False)
    assert made["random prompts"].ok is False
    assert "removing what was there" in made["random prompts"].says


@pytest.mark.parametrize("site", ["z", pytest.param("pattern", marks=pytest.mark.long), "attn_out"])
def test_other_sites_and_a_given_grid(lm4, site):
    grid = lk.patch(lm4, *PAIR, site=site, layers=[17, 20, 23], progress=False)
    made = lk.controls(lm4, *PAIR, site=site, grid=grid, cells=1, n=2, progress=False)
    assert made.grid is grid
    assert made["whole runs"].ok
    assert made["many pairs"].ok is None
    assert (made["random positions"].ok is None) == (site == "pattern")


def test_it_can_be_stopped_between_and_within_checks_and_begun_again(lm4):
    grid = lk.patch(lm4, *PAIR, layers=[4, 24], progress=False)
    job = lk.ControlsJob(lm4, *PAIR, grid=grid, cells=1, n=2)
    steps = job.steps()
    assert next(steps).name == "whole runs"
    job.cancel()
    assert list(steps) == []
    assert len(job.result.checks) == 1
    assert len(list(job.steps())) == len(job.names)
    assert job.result.grid.complete


def test_bad_input_is_refused_with_words(lm4):
    grid = lk.patch(lm4, *PAIR, layers=[20], progress=False)
    with pytest.raises(ValueError, match="the grid is for something else: its site is 'resid_pre', not 'attn_out'"):
        lk.controls(lm4, *PAIR, site="attn_out", grid=grid)
    partial = lk.PatchJob(lm4, *PAIR).grid
    with pytest.raises(ValueError, match="exact and complete"):
        lk.controls(lm4, *PAIR, grid=partial)
    with pytest.raises(ValueError, match="the metric does not differ"):
        lk.controls(lm4, CLEAN, CLEAN, " Mary", " John", progress=False)
    with pytest.raises(ValueError, match="must be at least 1"):
        lk.controls(lm4, *PAIR, cells=0)
