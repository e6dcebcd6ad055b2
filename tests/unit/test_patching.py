"""Exact patching: the fast engine against the naive path, and what happens around it."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud
from naive import close, naive, some
from pair import CLEAN, CORRUPT, PAIR

import labkit as lk
from labkit.activations.site_kinds import HEAD_KINDS, PATCHED
from labkit.patching import joint
from labkit.patching import patch as patching
from labkit.patching.cell_report import inspect
from labkit.patching.joint import steps_together
from labkit.patching.patch import PatchJob

BY_HEAD = HEAD_KINDS
ABSENT = ("mlp_pre", "router", "latent")  # no Llama has those
BY_POSITION = [site for site in PATCHED if site not in (*BY_HEAD, *ABSENT)]
QUICK = ("resid_pre", "attn_out", "q", "q_pre", "scores", "pattern", "head_out")  # one of each way to be patched


@pytest.mark.parametrize("direction", ["denoise", pytest.param("noise", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "site", [pytest.param(s, marks=[] if s in QUICK else pytest.mark.long) for s in (*BY_POSITION, *BY_HEAD)]
)
def test_the_fast_grid_is_the_naive_grid(lm, site, direction):
    job = PatchJob(lm, *PAIR, site=site, direction=direction)
    for _ in job.steps():
        pass
    assert job.engine == "wavefront"
    assert job.grid.complete
    cells = some(job.grid)
    assert close(lm, job.grid.values[tuple(cells.T)], naive(lm, job.grid, cells))


@pytest.mark.parametrize("site", BY_HEAD)
def test_heads_by_position_are_the_naive_cells(lm32, site):
    grid = lk.patch(lm32, *PAIR, site=site, over=("layer", "head", "position"), layers=[3, 22], progress=False)
    cells = np.argwhere(grid.values != grid.corrupt)
    cells = cells[np.linspace(0, len(cells) - 1, 8).astype(int)]
    places = np.column_stack([np.array(grid.index[axis])[cells[:, axis]] for axis in range(3)])
    assert close(lm32, grid.values[tuple(cells.T)], naive(lm32, grid, places))


def test_a_whole_layer_of_heads_by_position_is_the_naive_cell(lm32):
    grid = lk.patch(lm32, *PAIR, site="z", over=("layer", "position"), progress=False)
    cells = some(grid, 6)
    assert close(lm32, grid.values[tuple(cells.T)], naive(lm32, grid, cells))


@pytest.mark.parametrize("site", ["z", "mlp_act"])
def test_heads_and_neurons_of_one_layer_by_position_are_the_naive_cells(lm32, site):
    unit = "neuron" if site == "mlp_act" else "head"
    units = [0, 3, 700] if site == "mlp_act" else [0, 3, 7]
    how = {"site": site, "over": (unit, "position"), "layers": [20], f"{unit}s": units, "positions": [9, 13]}
    grid = lk.patch(lm32, *PAIR, progress=False, **how)
    assert grid.values.shape == (3, 2)
    assert f"{site} of layer 20" in grid.title()
    value = lm32.run(CLEAN, read=[f"{site}.20"])[f"{site}.20"]

    def one(x, unit, position):
        x = x.clone()
        x[0, position, unit] = value[0, position, unit]
        return x

    for row, number in enumerate(units):
        for column, position in enumerate((9, 13)):
            run = lm32.run(CORRUPT, write={f"{site}.20": lambda x: one(x, number, position)})  # noqa: B023
            right = run.logits[0, -1, lm32.encode(" Mary")[0, 0]] - run.logits[0, -1, lm32.encode(" John")[0, 0]]
            assert abs(grid.values[row, column] - float(right)) < 1e-4
    assert "layers=[20]" in grid.code()
    namespace = {}
    exec(grid.code().replace(", progress=False", ""), namespace)
    assert np.array_equal(namespace["grid"].index[0], units)


def test_one_pass_estimates_every_site_as_one_estimate_each(lm32):
    found = lk.attribution_patch(lm32, *PAIR, sites=["resid_pre", "z", "pattern", "mlp_act", "head_out"])
    for site, grid in found.items():
        alone = lk.patch(lm32, *PAIR, site=site, method="attribution", progress=False)
        assert grid.over == alone.over
        assert np.abs(grid.values - alone.values).max() < 1e-4, site


def test_grids_over_the_same_runs_are_those_over_runs_of_their_own(lm32):
    first = PatchJob(lm32, *PAIR, site="resid_pre", layers=[5, 20])
    list(first.steps())
    for site, direction in (("z", "denoise"), ("mlp_out", "noise")):
        shared = PatchJob(lm32, *PAIR, site=site, direction=direction, layers=[5, 20], runs=first.runs)
        list(shared.steps())
        alone = lk.patch(lm32, *PAIR, site=site, direction=direction, layers=[5, 20], progress=False)
        assert np.abs(shared.grid.values - alone.values).max() < 1e-5
    with pytest.raises(ValueError, match="other prompts"):
        PatchJob(lm32, CORRUPT, CLEAN, " Mary", " John", runs=first.runs)


@pytest.mark.parametrize("site", ["resid_pre", "pattern"])
def test_pairs_patched_together_have_the_grids_they_have_alone(lm32, site):
    other = (CLEAN.replace("Mary", "Anna"), CORRUPT.replace("Mary", "Anna"), " Anna", " John")
    longer = (f"Well. {CLEAN}", f"Well. {CORRUPT}", " Mary", " John")
    settings = [(PAIR, "denoise"), (other, "denoise"), (PAIR, "noise"), (longer, "denoise")]
    jobs = [PatchJob(lm32, *pair, site=site, direction=way, layers=[4, 20]) for pair, way in settings]
    done = list(steps_together(jobs))
    assert done[-1] == sum(job.total for job in jobs)
    for job, (pair, way) in zip(jobs, settings, strict=True):
        alone = lk.patch(lm32, *pair, site=site, direction=way, layers=[4, 20], progress=False)
        assert np.abs(job.grid.values - alone.values).max() < 1e-4


def test_pairs_patched_together_can_be_cancelled_and_go_on(lm32, monkeypatch):
    monkeypatch.setattr(joint, "tokens_at_once", lambda lm: 40)
    jobs = [PatchJob(lm32, *PAIR, layers=[4, 20], direction=way) for way in ("denoise", "noise")]
    steps = steps_together(jobs)
    next(steps)
    jobs[1].cancel()
    assert len(list(steps)) <= 1
    assert 0 < sum(job.done for job in jobs) < sum(job.total for job in jobs)
    list(steps_together(jobs))
    assert all(job.grid.complete for job in jobs)


def test_estimates_of_a_job_are_those_of_attribution(lm32):
    job = PatchJob(lm32, *PAIR, site="attn_out")
    grid = lk.patch(lm32, *PAIR, site="attn_out", method="attribution", progress=False)
    assert np.allclose(job.estimates, grid.values, atol=1e-4)
    assert job.done < job.total


def test_a_metric_without_a_gradient_is_patched_and_not_estimated(lm32, monkeypatch):
    monkeypatch.setattr(patching, "tokens_at_once", lambda lm: 60)  # many chunks, which are put in order of estimates
    grid = lk.patch(lm32, *PAIR, metric=lambda x: x.argmax(-1).float(), layers=[5, 20], progress=False)
    assert grid.complete
    with pytest.raises(ValueError, match="no gradient"):
        lk.patch(lm32, *PAIR, metric="rank", method="attribution", progress=False)
    with pytest.raises(ValueError, match="no gradient"):
        lk.patch(lm32, *PAIR, metric=lambda x: x.argmax(-1).float(), method="attribution", progress=False)


def test_identical_prompts_have_no_effect_anywhere(lm):
    for site in ("resid_pre", "z"):
        grid = lk.patch(lm, CLEAN, CLEAN, " Mary", " John", site=site, progress=False)
        assert (grid.values == grid.corrupt).all()
        assert np.isnan(grid.normalized).all()


def test_the_first_difference_at_layer_0_and_the_end_at_the_last_layer_carry_everything(lm):
    grid = lk.patch(lm, *PAIR, progress=False)
    tolerance = 1e-4 if lm.bits == 32 else 0.06
    assert abs(grid.normalized[0, 9] - 1) < tolerance
    post = lk.patch(lm, *PAIR, site="resid_post", layers=[lm.n_layers - 1], progress=False)
    assert abs(post.normalized[0, 13] - 1) < tolerance
    assert (grid.values[:, :9] == grid.corrupt).all()


@pytest.mark.parametrize("metric", ["logit_diff", "logprob", "kl", "rank"])
def test_metrics_are_what_their_names_say(lm32, metric):
    grid = lk.patch(lm32, *PAIR, metric=metric, layers=[0, 29], progress=False)
    answer, foil = lm32.encode(" Mary")[0, 0], lm32.encode(" John")[0, 0]
    for text, got in ((CLEAN, grid.clean), (CORRUPT, grid.corrupt)):
        logits = lm32.run(text).logits[0, -1]
        clean = lm32.run(CLEAN).logits[0, -1]
        expected = {
            "logit_diff": logits[answer] - logits[foil],
            "logprob": logits.log_softmax(-1)[answer],
            "kl": torch.nn.functional.kl_div(logits.log_softmax(-1), clean.softmax(-1), reduction="sum"),
            "rank": (logits.argsort(descending=True) == answer).nonzero()[0, 0] + 1,
        }[metric]
        assert got == pytest.approx(float(expected), abs=1e-4)


def test_ranks_of_an_older_grid_are_counted_from_one_when_it_is_opened(lm32, tmp_path):
    grid = lk.patch(lm32, *PAIR, metric="rank", layers=[0, 29], progress=False)
    recipe = {**grid.recipe, "unit": "tokens above"}
    old = replace(grid, values=grid.values - 1, clean=grid.clean - 1, corrupt=grid.corrupt - 1, recipe=recipe)
    opened = lk.open_grid(old.save(tmp_path / "old.npz"))
    np.testing.assert_array_equal(opened.values, grid.values)
    assert (opened.clean, opened.corrupt, opened.recipe["unit"]) == (grid.clean, grid.corrupt, "ranks")


def test_a_metric_of_ones_own_sees_rows_of_logits(lm32):
    def top(logits):
        assert logits.ndim == 2
        assert logits.shape[1] == lm32.n_vocab
        return logits.max(-1).values

    grid = lk.patch(lm32, CLEAN, CORRUPT, metric=top, layers=[10], progress=False)
    assert grid.recipe["metric"] == "top"
    with pytest.raises(ValueError, match=r"must give one number per row, shape \(1,\); got \(1, 49152\)"):
        lk.patch(lm32, CLEAN, CORRUPT, metric=lambda logits: logits, progress=False)


def test_the_metric_reads_the_position_asked_for(lm32):
    grid = lk.patch(lm32, *PAIR, at=10, progress=False)
    assert grid.values.shape == (30, 11)
    logits = lm32.run(CLEAN).logits[0, 10]
    expected = float(logits[lm32.encode(" Mary")[0, 0]] - logits[lm32.encode(" John")[0, 0]])
    assert grid.clean == pytest.approx(expected, abs=1e-4)


def test_attribution_ranks_cells_much_as_exact_patching_does(lm32):
    exact = lk.patch(lm32, *PAIR, site="z", progress=False)
    quick = lk.patch(lm32, *PAIR, site="z", method="attribution", progress=False)
    assert quick.complete
    ranks = [grid.values.ravel().argsort().argsort() for grid in (exact, quick)]
    assert np.corrcoef(*ranks)[0, 1] > 0.8
    assert "gradient estimate" in quick.title()


@pytest.mark.parametrize("site", ["mlp_out", "attn_out", "z", "head_out", "resid_mid"])
def test_attribution_is_exact_where_everything_after_the_site_is_linear(site):
    """In a last layer whose MLP adds nothing, under a final norm that is none, the estimate is the effect."""
    lm = loud("llama")
    last = lm.n_layers - 1
    lm.hf.model.norm = torch.nn.Identity()
    if site != "mlp_out":
        lm.hf.model.layers[last].mlp.down_proj.weight.data.zero_()
    lm = lk.wrap(lm.hf, lm.tokenizer)
    how = {"site": site, "layers": [last], "progress": False}
    exact = lk.patch(lm, IDS, CORRUPT_IDS, ANSWER, FOIL, **how)
    quick = lk.patch(lm, IDS, CORRUPT_IDS, ANSWER, FOIL, method="attribution", **how)
    effects = exact.values - exact.corrupt
    assert np.abs(effects).max() > 0.01
    np.testing.assert_allclose(quick.values - quick.corrupt, effects, atol=1e-4 * np.abs(effects).max())


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("llama", [site for site in PATCHED if site not in ABSENT]),
        ("gpt2", ["head_out", "mlp_act", "mlp_pre"]),
        ("mixtral", ["router"]),
        ("deepseek_v3", ["latent", "head_out"]),
    ],
)
def test_a_gradient_reaches_every_site(name, sites):
    lm = loud(name)
    for site in sites:
        exact = lk.patch(lm, IDS, CORRUPT_IDS, ANSWER, FOIL, site=site, progress=False)
        quick = lk.patch(lm, IDS, CORRUPT_IDS, ANSWER, FOIL, site=site, method="attribution", progress=False)
        assert np.abs(exact.values - exact.corrupt).max() > 1e-3, site
        assert np.abs(quick.values - quick.corrupt).max() > 1e-3, site


def test_attribution_goes_through_four_bit_layers(lm4):
    quick = lk.patch(lm4, *PAIR, method="attribution", progress=False)
    exact = lk.patch(lm4, *PAIR, progress=False)
    assert quick.complete
    patched = exact.values != exact.corrupt
    ranks = [grid.values[patched].argsort().argsort() for grid in (exact, quick)]
    assert np.corrcoef(*ranks)[0, 1] > 0.6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clean": "", "corrupt": ""}, "the prompt is empty"),
        ({"clean": CLEAN + " Bob", "at": 13}, r"at=13 is another place in each of two prompts of 15 and 14 tokens"),
        ({"clean": CLEAN + " Bob", "site": "pattern"}, "pattern has one key for each position of its own prompt"),
        ({"clean": "Bob", "corrupt": " and Mary"}, "no span of them is equal; say which positions belong together"),
        ({"alignment": [((0, 2), (0, 3))]}, "pairs 2 positions of clean with 3 of corrupt"),
        ({"alignment": [((0, 2), (13, 15))]}, "is out of range: corrupt has positions 0 to 13"),
        ({"alignment": [((0, 2), (0, 2)), ((1, 3), (4, 6))]}, "spans of clean that overlap"),
        ({"alignment": [(0, 2)]}, r"alignment is a list of \(\(start, stop\), \(start, stop\)\)"),
        ({"alignment": []}, "it is empty"),
        ({"answer": []}, "the set of answers is empty"),
        ({"answer": [" Mary", " Mary"]}, "have duplicates"),
        ({"answer": " Maryanne", "metric": "logit_diff"}, "logit_diff reads the logits of one position"),
        ({"answer": " Maryanne", "metric": "kl"}, "kl reads the logits of one position"),
        ({"answer": " Maryanne", "foil": None, "metric": "logprob_diff"}, "logprob_diff needs a foil"),
        ({"answer": None, "foil": " Maryanne"}, "needs an answer"),
        ({"answer": " Mary" * 8190}, "prompt and answer have 8203 tokens, 11 more than the 8192"),
        ({"answer": ""}, "the answer is empty"),
        ({"answer": None}, "needs an answer"),
        ({"metric": "logit_diff", "foil": None}, "needs a foil"),
        ({"metric": "loss"}, "there is no metric 'loss'"),
        ({"site": "resid"}, "there is no site 'resid'"),
        ({"site": "embed"}, "cannot be patched as a grid"),
        ({"layers": [30]}, "layer 30 is out of range; .* has layers 0 to 29"),
        ({"site": "z", "heads": [9]}, "head 9 is out of range; .* has heads 0 to 8 at z"),
        (
            {"site": "v", "heads": [3]},
            "key-value head 3 is out of range; .* has key-value heads 0 to 2 at v, shared by its 9 query heads",
        ),
        ({"positions": [14]}, "position 14 is out of range"),
        ({"heads": [1]}, "the grid is over"),
        ({"over": ("layer", "head")}, "is not possible for resid_pre"),
        ({"layers": []}, "empty or has duplicates"),
        ({"direction": "up"}, "direction must be one of"),
        ({"method": "guess"}, "method must be one of"),
        ({"at": 14}, "at=14 is out of range"),
        ({"clean": CLEAN * 700, "corrupt": CLEAN * 700}, "more than the 8192 of .* context"),
    ],
)
def test_wrong_input_is_told_before_the_model_runs(lm4, change, says):
    lm4.sites()  # what a model has is looked at once, with a pass of its own
    lm4.hf.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    try:
        arguments = {"clean": CLEAN, "corrupt": CORRUPT, "answer": " Mary", "foil": " John", **change}
        with pytest.raises(ValueError, match=says):
            lk.patch(lm4, **arguments, progress=False)
    finally:
        lm4.hf._forward_pre_hooks.clear()


def test_a_grid_is_saved_whole_and_opened_the_same(lm4, tmp_path):
    grid = lk.patch(lm4, *PAIR, progress=False)
    grid.values[3, 10] = np.nan
    path = grid.save(tmp_path / "grid.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["grid.npz"]
    opened = lk.open_grid(path)
    assert np.array_equal(opened.values, grid.values, equal_nan=True)
    assert repr(opened) == repr(grid)
    assert opened.code() == grid.code()
    assert opened.tokens == grid.tokens
    assert {"model", "revision", "bits", "dtype", "clean_ids", "corrupt_ids", "versions"} <= set(opened.recipe)
    assert opened.to_frame().equals(grid.to_frame())


def test_a_file_that_is_no_grid_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        lk.open_grid(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="is not a grid saved by labkit"):
        lk.open_grid(tmp_path / "text.npz")


def test_code_repeats_the_grid(lm4):
    grid = lk.patch(lm4, *PAIR, site="z", direction="noise", layers=[4, 5], progress=False)
    names: dict = {}
    exec(grid.code(), names)
    assert np.array_equal(names["grid"].values, grid.values)


def test_a_figure_has_a_title_axes_and_token_labels(lm4):
    figure = lk.patch(lm4, *PAIR, progress=False).figure()
    title = figure.layout.title.text.replace("<br>", " ").replace("\u00a0", " ")
    assert title == "resid_pre: clean activation put into the corrupt run (logit_diff of ' Mary' minus ' John')"
    narrow = lk.patch(lm4, *PAIR, positions=[-2, -1], progress=False).figure()
    assert max(map(len, narrow.layout.title.text.split("<br>"))) * 7 <= narrow.layout.width
    assert figure.layout.xaxis.title.text == "position"
    assert figure.data[0].x[9] == "9 ·Mary"
    assert figure.layout.yaxis.title.text == "layer"


def test_no_effect_is_white_in_both_directions(lm4):
    for direction, nothing in (("denoise", 0.0), ("noise", 1.0)):
        data = lk.patch(lm4, *PAIR, direction=direction, progress=False).figure().data[0]
        assert (data.zmin + data.zmax) / 2 == pytest.approx(nothing)


def test_a_cell_can_be_inspected(lm32):
    grid = lk.patch(lm32, *PAIR, progress=False)
    cell = inspect(lm32, grid, 0, 9)
    assert cell.before[0][0] == "·John"
    assert cell.after[0][0] == "·Mary"
    assert cell.normalized == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="the grid has no cell layer 31"):
        inspect(lm32, grid, 31, 9)


def test_no_warning_in_ordinary_use(lm4):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lk.patch(lm4, *PAIR, progress=False)


@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out"])
def test_the_same_prompt_twice_has_no_effect_at_all(lm, site):
    """Exactly none, though two rows of a batch may be rounded each in its own way."""
    grid = lk.patch(lm, CLEAN, CLEAN, " Mary", " John", site=site, progress=False)
    assert grid.clean == grid.corrupt
    assert (grid.values == grid.clean).all()
