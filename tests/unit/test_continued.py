"""Writing on under the patch of a cell: the text that follows the run that a grid measures."""

from __future__ import annotations

import re
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loud import CORRUPT_IDS, IDS, loud
from pair import CLEAN, CORRUPT, PAIR
from transformers import GenerationConfig

import labkit as lk
from labkit.generation import loop
from labkit.patching.pair_runs import ENDS

LONGER = "When Maryanne and John went to the big store, Mary gave a drink to"
LATE = {"layers": [12, 20]}
CELLS: dict[str, dict[str, Any]] = {
    "resid_pre": LATE,
    "z": {"layers": [20, 21]},
    "head_out": {"layers": [20, 21], "direction": "noise"},
    "pattern": {"layers": [20, 21]},
    "v": {"layers": [20], "over": ("head", "position")},
    "mlp_act": {"layers": [22], "over": ("layer", "neuron"), "neurons": range(240)},
    "mlp_out": {**LATE, "window": 5},
    "z in prompts of unequal length": {"corrupt": LONGER, "layers": [20, 21]},
    "resid_mid in prompts of unequal length": {"corrupt": LONGER, **LATE, "direction": "noise"},
    "resid_pre at an earlier place": {**LATE, "at": 12},
}


def as_measured(lm: lk.LanguageModel, grid: lk.PatchGrid, cell: dict[str, int], id: int, **how: Any) -> lk.PatchGrid:
    """The same cell, with the log probability of a token as the metric."""
    axes = {f"{axis}s": [n] for axis, n in cell.items()}
    given = {name: value for name, value in how.items() if name not in ("corrupt", "neurons")}
    corrupt = {} if "by" in how else {"corrupt": how.get("corrupt", CORRUPT)}
    return lk.patch(
        lm, CLEAN, answer=id, metric="logprob", site=grid.site, progress=False, **corrupt, **{**given, **axes}
    )


def strongest(grid: lk.PatchGrid) -> dict[str, int]:
    at = np.unravel_index(np.nanargmax(np.abs(grid.values - grid.unpatched)), grid.values.shape)
    return {axis: numbers[int(n)] for axis, numbers, n in zip(grid.over, grid.index, at, strict=True)}


@pytest.mark.parametrize("name", CELLS)
def test_the_first_token_is_chosen_from_what_the_cell_measures(lm: lk.LanguageModel, name: str) -> None:
    site, how = name.split()[0], {"corrupt": CORRUPT, **CELLS[name]}
    grid = lk.patch(lm, CLEAN, answer=" Mary", foil=" John", site=site, progress=False, **how)
    cell = strongest(grid)
    found = lk.continue_under(lm, grid, **cell, max_new_tokens=3)
    assert found.cell == cell
    length = len(grid.tokens)
    assert [token.id for token in found.after.prompt] == [token.id for token in grid.tokens]
    assert len(found.before.prompt) == length
    within = 2e-4 if lm.bits == 32 else 0.2  # other kernels round 4-bit products otherwise
    for text, patched in ((found.after, True), (found.before, False)):
        measured = as_measured(lm, grid, cell, text.record.ids[0], **how)
        value = float(measured.values.item()) if patched else measured.unpatched
        assert float(text.record.rows["logprob"][0]) == pytest.approx(value, abs=within)
    if lm.bits == 32:
        measured = as_measured(lm, grid, cell, found.after.record.ids[0], **how)
        assert abs(float(measured.values.item()) - measured.unpatched) > 5 * within  # the patch is in it


def test_the_difference_of_answer_and_foil_is_the_cells_value(lm: lk.LanguageModel) -> None:
    grid = lk.patch(lm, *PAIR, layers=[12, 20], progress=False)
    cell = strongest(grid)
    found = lk.continue_under(lm, grid, **cell, max_new_tokens=1)
    likely = {text: p for _, text, p in found.after.tokens[0].alternatives}
    difference = np.log(likely["·Mary"]) - np.log(likely["·John"])
    assert difference == pytest.approx(float(grid.values.max()), abs=5e-3 if lm.bits == 32 else 0.2)


@pytest.mark.parametrize("site", ["resid_pre.20@9", "z.20.5"])
def test_it_is_what_generate_writes_with_the_activation_in_the_prompt(lm32: lk.LanguageModel, site: str) -> None:
    kind, _, place = site.partition(".")
    grid = lk.patch(lm32, *PAIR, site=kind, layers=[20], progress=False)
    value = lm32.run(CLEAN, read=[site])[site][0]
    at: Any = [9] if "@" in place else "prompt"
    made = lm32.generate(CORRUPT, max_new_tokens=12, write={site.split("@")[0]: value}, write_at=at)
    cell = {"position": 9} if "@" in place else {"head": 5}
    found = lk.continue_under(lm32, grid, layer=20, **cell, max_new_tokens=12)
    assert found.after.record.ids == made.record.ids
    assert found.before.record.ids == lm32.generate(CORRUPT, max_new_tokens=12).record.ids
    assert found.parts is None or found.before.record.ids[found.parts] != found.after.record.ids[found.parts]


def test_what_is_written_depends_on_the_patch_and_is_the_same_again(lm4: lk.LanguageModel) -> None:
    grid = lk.patch(lm4, *PAIR, site="resid_pre", layers=[0, 29], progress=False)
    found = lk.continue_under(lm4, grid, layer=29, position=13)  # all of clean but its past
    assert found.after.text.startswith(" Mary")
    assert found.before.text.startswith(" John")
    assert found.parts == 0
    again = lk.continue_under(lm4, grid, layer=29, position=13)
    assert (again.after.text, again.before.text, repr(again)) == (found.after.text, found.before.text, repr(found))
    assert again.code() == found.code()


@pytest.mark.parametrize("by", ["zero", "mean", "resample", "noise"])
def test_a_perturbation_is_put_in_as_it_was_measured(lm: lk.LanguageModel, by: str) -> None:
    others = [CORRUPT, CLEAN.replace("Mary", "Tom").replace("store", "park")]
    given: Any = {
        "zero": "zero", "mean": lk.Mean(others), "resample": lk.Resample(others), "noise": lk.Noise(" Mary", samples=3)
    }[by]  # fmt: skip
    how = {"layers": [18, 22], "by": given}
    grid = lk.patch(lm, CLEAN, answer=" Mary", foil=" John", site="attn_out", progress=False, **how)
    cell = strongest(grid)
    draws = {"zero": 1, "mean": 1, "resample": 2, "noise": 3}[by]
    texts = [lk.continue_under(lm, grid, **cell, draw=n, max_new_tokens=1) for n in range(draws)]
    id = texts[0].after.record.ids[0]
    measured = as_measured(lm, grid, cell, id, **how)
    for side, value in (("after", float(measured.values.item())), ("before", measured.unpatched)):
        shares = []
        for text in texts:
            token = getattr(text, side).tokens[0]
            shares.append(next(np.log(p) for other, _, p in token.alternatives if other == id))
        assert np.mean(shares) == pytest.approx(value, abs=5e-3 if lm.bits == 32 else 0.3)
    with pytest.raises(ValueError, match=rf"draw={draws} is none of the grid's draws, .* has {'one' * (draws == 1)}"):
        lk.continue_under(lm, grid, **cell, draw=draws)


@pytest.mark.parametrize("direction", ENDS)
def test_between_two_models_the_other_ones_activation_is_put_in(
    lm4: lk.LanguageModel, lm32: lk.LanguageModel, direction: str
) -> None:
    how = {"layers": [25], "positions": [13], "direction": direction, "source": lm32, "progress": False}
    grid = lk.patch(lm4, CLEAN, answer=" Mary", foil=" John", **how)
    found = lk.continue_under(lm4, grid, layer=25, position=13, source=lm32, max_new_tokens=2)
    id = found.after.record.ids[0]
    measured = lk.patch(lm4, CLEAN, answer=id, metric="logprob", **how)
    value = float(measured.values.item())
    assert float(found.after.record.rows["logprob"][0]) == pytest.approx(value, abs=0.2)
    base = lm4 if direction == "denoise" else lm32
    assert found.before.record.ids == base.generate(CLEAN, max_new_tokens=2).record.ids
    assert "source=source" in found.code()
    assert "source = lk.load(" in found.code()
    with pytest.raises(ValueError, match="give the second, which was its source"):
        lk.continue_under(lm4, grid, layer=25, position=13)


@pytest.mark.parametrize("site", ["pattern", "scores", "z"])
def test_a_model_that_reads_its_text_again_each_time_is_patched_in_the_prompt_alone(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = loud("llama")
    grid = lk.patch(lm, IDS, CORRUPT_IDS, "*", "+", site=site, progress=False)
    cell = strongest(grid)
    cached = lk.continue_under(lm, grid, **cell, max_new_tokens=6)
    monkeypatch.setattr(loop, "GenerationConfig", partial(GenerationConfig, use_cache=False))
    again = lk.continue_under(lm, grid, **cell, max_new_tokens=6)
    assert again.after.record.ids == cached.after.record.ids
    assert again.before.record.ids == cached.before.record.ids


def test_a_saved_one_opens_and_its_code_writes_it_again(lm32: lk.LanguageModel, tmp_path: Path) -> None:
    grid = lk.patch(lm32, *PAIR, site="z", layers=[20], progress=False)
    found = lk.continue_under(lm32, grid, layer=20, head=5, max_new_tokens=4)
    opened = lk.open_continued(found.save(tmp_path / "c.npz"))
    assert (repr(opened), opened.code(), opened.cell) == (repr(found), found.code(), found.cell)
    assert opened.after.text == found.after.text
    names: dict[str, Any] = {}
    exec(re.sub(r"^lm = .*\n", "", found.code(), flags=re.M), {"lm": lm32}, names)
    assert names["continued"].after.record.ids == found.after.record.ids
    assert names["grid"].values.shape == (1, 1)
    frame = found.to_frame()
    assert frame["written"].tolist() == ["before"] * 4 + ["after"] * 4
    figure = found.figure()
    assert figure.data[0].z.shape == (2, 4)
    assert "z, layer 20, head 5" in figure.layout.title.text.replace("\u00a0", " ")


def test_a_cell_that_cannot_be_patched_is_refused_before_any_work(lm4: lk.LanguageModel) -> None:
    grid = lk.patch(lm4, CLEAN, LONGER, " Mary", " John", layers=[20], progress=False)
    with pytest.raises(ValueError, match=r"position 2 has no partner in the other prompt, .* is not hatched"):
        lk.continue_under(lm4, grid, layer=20, position=2)
    with pytest.raises(ValueError, match="the grid has no cell at layer 3, position 4"):
        lk.continue_under(lm4, grid, layer=3, position=4)
    with pytest.raises(ValueError, match="a cell of this grid is named by layer=, position=; got layer 20, head 4"):
        lk.continue_under(lm4, grid, layer=20, head=4)
    with pytest.raises(ValueError, match=r"leave source out"):
        lk.continue_under(lm4, grid, layer=20, position=4, source=lm4)
    with pytest.raises(ValueError, match=r"more than the .* context"):
        lk.continue_under(lm4, grid, layer=20, position=4, max_new_tokens=10_000)
    grid.values[0, 5] = np.nan
    with pytest.raises(ValueError, match="the cell at layer 20, position 5 has no value yet; compute the grid first"):
        lk.continue_under(lm4, grid, layer=20, position=5)


def test_it_ends_when_it_is_told_to(lm4: lk.LanguageModel) -> None:
    grid = lk.patch(lm4, *PAIR, layers=[20], positions=[9], progress=False)
    stop = threading.Event()
    stop.set()
    found = lk.continue_under(lm4, grid, layer=20, position=9, stop=stop)
    assert found.after.finish == found.before.finish == "stopped"
    assert len(found.after.record) <= 1
    assert len(found.before.record) == 0
