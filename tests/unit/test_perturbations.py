"""Grids by zero, a mean, other prompts' activations, and noise (causal tracing): each cell is what whole runs say."""

import numpy as np
import pytest
import torch
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.datasets.tasks import task
from labkit.engine.cells import layers_of
from labkit.patching.cell_report import inspect
from labkit.patching.patch import PatchJob

OTHERS = [
    CLEAN.replace("Mary", "Tom").replace("store", "park"),
    CORRUPT.replace("store", "school"),
    CLEAN.replace("drink", "book"),
]
LAYERS = [3, 14, 22, 29]


def spread(x: torch.Tensor) -> float:
    return float(x.float().std())


def puts(lm, by, site, n_draws) -> list[dict]:
    """For each draw what is written in the base run anyway, and what goes into each layer's cells (1, seq, ...)."""
    read = [f"{site}.{layer}" for layer in range(lm.n_layers)]
    clean = lm.run(CLEAN, read=read)
    whole = lambda run: [run[name] for name in read]  # noqa: E731
    if isinstance(by, lk.Noise):
        own = lm.run(CLEAN, read=["embed"])["embed"]
        places = by.positions(lm, lm.encode(CLEAN))
        draws = []
        for sample in range(n_draws):
            draw = torch.Generator().manual_seed(1_000_003 * by.seed + sample)
            noise = by.strength * spread(own) * torch.randn((len(places), lm.d_model), generator=draw)

            def noised(x, noise=noise):
                x = x.clone()
                x[:, places] += noise.to(x)
                return x

            draws.append({"base": {"embed": noised}, "put": whole(clean)})
        return draws
    if isinstance(by, lk.Mean):
        runs = [whole(lm.run(prompt, read=read)) for prompt in by.prompts]
        return [{"base": {}, "put": [torch.stack(layer).float().mean(0) for layer in zip(*runs, strict=True)]}]
    if isinstance(by, lk.Resample):
        order = torch.randperm(len(by.prompts), generator=torch.Generator().manual_seed(by.seed))[:n_draws]
        return [{"base": {}, "put": whole(lm.run(by.prompts[n], read=read))} for n in order.tolist()]
    return [{"base": {}, "put": [torch.zeros_like(x) for x in whole(clean)]}]


def naive(lm, job: PatchJob, numbers) -> np.ndarray:
    """The mean over the draws of the logit difference of one whole run per cell."""
    mary, john = (int(lm.encode(text)[0, -1]) for text in (" Mary", " John"))
    draws = puts(lm, job.spec.perturbation, job.site, len(job.pair.draws))
    values = []
    for cell in (job.cells[i] for i in numbers):
        each = []
        for draw in draws:
            write = dict(draw["base"])
            for layer in layers_of(cell, job.spec.window, lm.n_layers):
                source = draw["put"][layer]

                def put(x, source=source, cell=cell):
                    x = x.clone()
                    at = slice(None) if cell.position is None else cell.position
                    part = at if cell.head is None else (at, cell.head)
                    where = (slice(None), *part) if isinstance(part, tuple) else (slice(None), part)
                    x[where] = source[where].to(x)
                    return x

                write[f"{job.site}.{layer}"] = put
            logits = lm.run(CLEAN, write=write).logits[0, -1].float()
            each.append(float(logits[mary] - logits[john]))
        values.append(np.mean(each))
    return np.array(values, np.float32)


def some(job: PatchJob, n: int = 5) -> list[int]:
    """A fixed spread of the cells that have an effect."""
    flat = job.grid.values.reshape(-1)
    moved = np.flatnonzero(flat != job.grid.unpatched)
    assert len(moved) >= n
    return moved[np.linspace(0, len(moved) - 1, n).astype(int)].tolist()


BY = {
    "zero": "zero",
    "mean": lk.Mean(OTHERS),
    "resample": lk.Resample(OTHERS, samples=2, seed=3),
    "noise": lk.Noise((1, 3), samples=2, seed=5),
}


@pytest.mark.parametrize("by", BY.values(), ids=BY)
@pytest.mark.parametrize(
    ("site", "how"),
    [
        ("resid_pre", {"layers": LAYERS}),
        ("attn_out", {"layers": LAYERS, "window": 5}),
        ("resid_post", {"layers": LAYERS, "window": 2}),
        ("z", {"layers": LAYERS}),
        ("mlp_act", {"layers": [20], "over": ("layer", "neuron"), "neurons": [1, 5, 700, 900, 1001, 1300]}),
    ],
    ids=["resid_pre", "attn_out in windows", "resid_post in windows", "z", "neurons"],
)
@pytest.mark.long
def test_every_cell_is_what_whole_runs_say(lm, by, site, how):
    if lm.bits == 4 and site != "z":
        pytest.skip("in NF4 heads are enough: the engine is the same")
    job = PatchJob(lm, CLEAN, None, " Mary", " John", by=by, site=site, **how)
    list(job.steps())
    assert job.engine == "wavefront"
    assert job.grid.complete
    numbers = some(job)
    fast, slow = job.grid.values.reshape(-1)[numbers], naive(lm, job, numbers)
    assert float(np.abs(fast - slow).max()) <= (1e-4 if lm.bits == 32 else 0.5)


@pytest.mark.long
def test_causal_tracing_puts_clean_into_a_run_with_a_noised_subject(lm32):
    grid = lk.patch(lm32, CLEAN, None, " Mary", " John", by=lk.Noise("Mary and John", samples=4), progress=False)
    assert grid.direction == "denoise"
    assert grid.corrupt < grid.clean - 2
    np.testing.assert_allclose(grid.values[0, [0, *range(4, 14)]], grid.corrupt, atol=1e-4)  # nothing is noised there
    assert grid.normalized[29, 13] > 0.9  # the last residual stream is the answer
    assert "clean activation put into the noised run" in grid.title()
    other = lk.patch(lm32, CLEAN, None, " Mary", " John", by=lk.Noise("Mary and John", samples=4), progress=False)
    np.testing.assert_array_equal(grid.values, other.values)
    third = lk.patch(
        lm32, CLEAN, None, " Mary", " John", by=lk.Noise("Mary and John", samples=4, seed=1), layers=[0], progress=False
    )
    assert abs(third.corrupt - grid.corrupt) > 1e-3


def test_without_a_second_run_a_grid_is_in_the_metrics_own_unit(lm32):
    grid = lk.patch(lm32, CLEAN, None, " Mary", " John", by="zero", layers=[0, 29], progress=False)
    assert grid.direction == "noise"
    assert np.isnan(grid.corrupt)
    assert grid.unpatched == grid.clean
    assert np.isnan(grid.normalized).all()
    assert "by zero" in repr(grid)
    assert "zero activation put into the clean run" in grid.title()
    low, high = grid.figure().data[0].zmin, grid.figure().data[0].zmax
    assert (low + high) / 2 == pytest.approx(grid.clean)


@pytest.mark.parametrize("by", BY.values(), ids=BY)
def test_code_and_file_carry_it(lm32, tmp_path, by):
    grid = lk.patch(lm32, CLEAN, None, " Mary", by=by, layers=[2, 9], window=3, progress=False)
    again = lk.open_grid(grid.save(tmp_path / "grid.npz"))
    np.testing.assert_array_equal(again.values, grid.values)
    assert again.code() == grid.code()
    space: dict = {"lk": lk, "lm": lm32}
    exec("grid = " + again.code().split("grid = ")[1], space)
    np.testing.assert_array_equal(space["grid"].values, grid.values)


@pytest.mark.parametrize(
    "form",
    [
        lambda lm, text: lk.Chat([{"role": "user", "content": text}]),
        lambda lm, text: [{"role": "user", "content": text}],
        lambda lm, text: lm.encode(text),
    ],
    ids=["chat", "messages", "ids"],
)
def test_prompts_of_every_form_are_saved_and_in_the_code(lm32, tmp_path, form):
    clean, others = form(lm32, "Hello Mary"), [form(lm32, text) for text in ("Hello John", "Good Tom")]
    for by in (lk.Mean(others), lk.Resample(others)):
        grid = lk.patch(lm32, clean, None, " Mary", by=by, layers=[4], positions=[-1, -2], progress=False)
        again = lk.open_grid(grid.save(tmp_path / "grid.npz"))
        assert again.code() == grid.code()
        space: dict = {"lk": lk, "lm": lm32, "torch": torch}
        exec("grid = " + again.code().split("grid = ")[1], space)
        np.testing.assert_array_equal(space["grid"].values, grid.values)


def test_runs_of_another_mean_are_not_reused(lm32):
    one, two = (lk.Mean([text]) for text in OTHERS[:2])
    job = PatchJob(lm32, CLEAN, None, " Mary", by=one, layers=[4])
    with pytest.raises(ValueError, match="belongs to another model or to other prompts"):
        PatchJob(lm32, CLEAN, None, " Mary", by=two, layers=[4], runs=job.runs)
    PatchJob(lm32, CLEAN, None, " Mary", by=lk.Mean(OTHERS[:1]), layers=[4], runs=job.runs)


def test_a_subject_may_be_characters_that_are_split_over_tokens(lm4):
    ids = lm4.encode("A 🦊 called Ünï eats")
    for subject in ("🦊", "Ünï"):
        places = lk.Noise(subject).positions(lm4, ids)
        text = lm4.tokenizer.decode(ids[0, places])
        assert subject in text
        assert len(text.strip()) == len(subject)


def test_estimates_go_with_exact_effects(lm32):
    asked = {"site": "z", "by": lk.Mean(OTHERS), "window": 1, "progress": False}
    exact = lk.patch(lm32, CLEAN, None, " Mary", " John", **asked)
    estimate = lk.patch(lm32, CLEAN, None, " Mary", " John", method="attribution", **asked)
    a, b = ((one.values - exact.clean).ravel() for one in (exact, estimate))
    assert np.corrcoef(a, b)[0, 1] > 0.8


def test_texts_of_several_tokens_are_measured_too(lm32):
    asked = {"layers": [10, 20], "positions": [9, 13], "progress": False}
    grid = lk.patch(lm32, CLEAN, None, " Mary and", " John", by=lk.Resample(OTHERS, samples=2), **asked)
    each = []
    for seed in range(40):
        one = lk.patch(lm32, CLEAN, None, " Mary and", " John", by=lk.Resample(OTHERS, samples=1, seed=seed), **asked)
        each.append(one.values)
    drawn = np.unique(np.stack(each).round(5), axis=0)  # each of the three prompts alone
    assert len(drawn) == 3
    pairs = [(drawn[i] + drawn[j]) / 2 for i in range(3) for j in range(i)]
    assert min(float(np.abs(grid.values - pair).max()) for pair in pairs) < 1e-3


def test_a_mean_over_prompts_of_other_lengths_is_over_all_positions(lm32):
    prompts = ["Mary went home.", "The three of them laughed together"]
    job = PatchJob(lm32, CLEAN, None, " Mary", " John", by=lk.Mean(prompts), site="mlp_out", layers=[8])
    put = job.runs.lanes[0].put_in("noise", "mlp_out")[8]
    each = [lm32.run(prompt, read=["mlp_out.8"])["mlp_out.8"][0].mean(0) for prompt in prompts]
    torch.testing.assert_close(put, torch.stack(each).mean(0).expand_as(put), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"by": "mean"}, r"write by=lk\.Mean\(prompts\)"),
        ({"by": "noise"}, r"write by=lk\.Noise\('the subject'\)"),
        ({"by": "gaussian"}, "by must be 'prompt', 'zero'"),
        ({"by": ["zero"]}, "by must be 'prompt', 'zero'"),
        ({"by": lk.Resample([CLEAN])}, "are the clean one; add others"),
        ({"by": "zero", "corrupt": CORRUPT}, "leave corrupt out"),
        ({"by": "zero", "alignment": [((0, 2), (0, 2))]}, "leave alignment out"),
        ({"by": "zero", "window": 0}, "window must be a whole number of layers, at least 1"),
        ({}, "give a corrupt prompt, or another model"),
        ({"by": lk.Noise("Eiffel Tower")}, "'Eiffel Tower' is not in the prompt"),
        ({"by": lk.Noise("John")}, "'John' is in the prompt 2 times"),
        ({"by": lk.Noise((40,))}, "position 40 is out of range"),
        ({"by": lk.Noise("a drink"), "at": 3}, "up to position 3, which at= names: 'a drink' is not in the prompt"),
        ({"by": lk.Resample(["a", "b c"])}, "no other prompt given to Resample has"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(lm4, monkeypatch, how, says):
    lm4.sites()  # which runs the model, once
    monkeypatch.setattr(type(lm4.hf), "forward", lambda *a, **k: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=says):
        PatchJob(lm4, CLEAN, how.pop("corrupt", None), " Mary", " John", **how)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: lk.Mean([]), "Mean takes a list of prompts"),
        (lambda: lk.Mean("one text"), "Mean takes a list of prompts"),
        (lambda: lk.Noise(""), "the subject is empty"),
        (lambda: lk.Noise("a", strength=0), "strength must be a number above 0"),
        (lambda: lk.Noise("a", samples=0), "samples must be a whole number"),
        (lambda: lk.Noise("a", strength=float("inf")), "strength must be a number above 0"),
        (lambda: lk.Noise("a", strength="3"), "strength must be a number above 0"),
        (lambda: lk.Noise("a", seed=0.5), "seed must be a whole number"),
        (lambda: lk.Noise(2), "a text of the prompt, or a list of positions"),
        (lambda: lk.Noise([1.7]), "a text of the prompt, or a list of positions"),
        (lambda: lk.Noise(["Eiffel"]), "a text of the prompt, or a list of positions"),
    ],
)
def test_a_perturbation_that_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_controls_and_the_inspector_say_that_they_need_two_prompts(lm4):
    grid = lk.patch(lm4, CLEAN, None, " Mary", " John", by="zero", layers=[3], progress=False)
    with pytest.raises(ValueError, match="a grid with by= has none"):
        lk.controls(lm4, CLEAN, None, " Mary", " John", by="zero")
    with pytest.raises(ValueError, match="a cell of a grid with by= is not one run"):
        inspect(lm4, grid, 3, 5)


def test_a_task_gives_the_prompts_of_a_mean(lm4):
    prompts = [pair.clean for pair in task(lk.tasks().index[0]).pairs(lm4, 6, seed=2)]
    grid = lk.patch(lm4, prompts[0], None, metric="kl", by=lk.Mean(prompts[1:]), site="z", layers=[20], progress=False)
    assert grid.clean == 0
    assert (grid.values >= -1e-3).all()
    assert grid.values.max() > 0.001
