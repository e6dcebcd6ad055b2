"""The grid of PatchLab: that of `lk.patch`, estimated first, in every choice of axes, paused, cancelled and resumed."""

from __future__ import annotations

import gc
import re
import time
from typing import Any

import numpy as np
import pytest
import torch
from drawn import opened
from held import LONG_PAIR, Hold, wait_for_cells
from pair import CLEAN, PAIR
from torch import Tensor

import labkit as lk
from labkit.patching.pair_runs import PairRuns
from labkit.patching.patch import PatchJob
from labkit.widgets.patch_lab.lab import PatchLab
from labkit.widgets.patch_lab.live_grid import effects


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patch_lab_gives_the_grid_that_patch_gives_to_the_last_digit(lm4: lk.LanguageModel, direction: str) -> None:
    lab = PatchLab(lm4, *PAIR, site="attn_out", direction=direction)
    lab.wait(300)
    grid = lk.patch(lm4, *PAIR, site="attn_out", direction=direction, progress=False)
    assert isinstance(lab.grid, lk.PatchGrid)
    np.testing.assert_array_equal(lab.grid.values, grid.values)
    scope: dict[str, Any] = {"lm": lm4, "lk": lk}
    exec(lab.code().split("bits=4)\n")[1], scope)
    np.testing.assert_array_equal(scope["grid"].values, grid.values)


def test_no_effect_is_zero_in_both_directions(lm4: lk.LanguageModel) -> None:
    for direction in ("denoise", "noise"):
        lab = PatchLab(lm4, *PAIR, direction=direction)
        lab.wait(300)
        shown, unit = effects(lab.grid)
        assert np.abs(shown[:, :9]).max() < 1e-6  # nothing before the difference can matter
        assert shown[0, 9] == pytest.approx(1, abs=0.02)  # the difference itself is everything
        assert unit.startswith("effect: 0 = " + ("corrupt" if direction == "denoise" else "clean"))


def test_the_estimate_comes_first_and_exact_cells_replace_it(
    lm4: lk.LanguageModel, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.widgets.patch_lab.live_grid.FRAME", 0.0)
    lab = PatchLab(lm4)
    lab.pair.use(*PAIR)
    seen: list[tuple[int, int]] = []

    def note(_: Any) -> None:
        mask = lab.heatmap.estimated
        seen.append((int(mask.sum()), int(np.isfinite(lab.heatmap.values).sum())))

    lab.heatmap.observe(note, "values")
    lab.run(300)
    full = [guessed for guessed, shown in seen if shown == 420]
    assert full[0] > 100  # a whole picture, all that matters in it estimated
    assert full[-1] == 0
    assert full == sorted(full, reverse=True)
    assert len(set(full)) > 3
    assert "estimates, dotted" not in lab.heatmap.description


def test_estimates_are_dotted_in_the_saved_picture_and_told_in_words() -> None:
    values = np.array([[0.5, 0.1], [0.2, 0.3]])
    mask = np.array([[1, 1], [0, 1]], np.uint8)
    plain, dotted = (
        lk.Heatmap(values, title="Effects", low=-1.0, high=1.0, centre=0.0, estimated=m).picture() for m in (None, mask)
    )
    assert "; dotted cells are estimates" in dotted
    assert "dotted" not in plain
    plain, dotted = opened(plain), opened(dotted)
    assert "<pattern" not in plain
    assert dotted.count("<pattern") == 1
    path = re.search(r'url\(#dots[^"]*" d="([^"]*)"', dotted)
    assert path is not None
    assert path[1].count("M") == 2  # the two neighbours in one piece
    heatmap = lk.Heatmap(values, estimated=mask)
    assert "3 of 4 cells are estimates, dotted" in heatmap.description
    assert opened(heatmap.picture()).count("<pattern") == 1


def test_what_is_known_is_not_computed_again(lm4: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = PatchLab(lm4, *PAIR)
    lab.wait(300)
    first = lab.grid
    estimated: list[Any] = []
    real = PairRuns._run
    monkeypatch.setattr(PairRuns, "_run", lambda self, *a: (estimated.append(a), real(self, *a))[1])
    lab.site = "z"  # runs by itself, over heads
    lab.wait(300)
    assert estimated == []  # the two runs of the pair were shared, and the estimate was there
    assert lab.grid.values.shape == (30, 9)
    assert lab.over == ("layer", "head")
    lab.direction = "noise"
    lab.wait(300)
    assert len(lab.live.known) == 3
    monkeypatch.setattr(PatchJob, "steps", lambda self: pytest.fail("the model ran"))
    lab.direction = "denoise"
    lab.site = "resid_pre"
    lab.wait(300)
    assert lab.grid is first
    assert lab.status.text.startswith("420 cells computed before")
    assert lab.over == ("layer", "position")


@pytest.mark.parametrize(
    ("site", "over", "shape"),
    [
        ("z", ("layer", "position"), (30, 14)),
        ("z", ("head", "position"), (9, 14)),
        ("mlp_act", ("neuron", "position"), (1536, 14)),
    ],
)
def test_every_choice_of_axes_gives_the_grid_that_patch_gives(
    lm4: lk.LanguageModel, site: str, over: tuple[str, str], shape: tuple[int, int]
) -> None:
    layers = None if "layer" in over else [29]
    lab = PatchLab(lm4, *PAIR, site=site, over=over, layer=29)
    lab.wait(300)
    grid = lk.patch(lm4, *PAIR, site=site, over=over, layers=layers, progress=False)
    assert grid.values.shape == shape
    np.testing.assert_array_equal(lab.grid.values, grid.values)
    lab.selection = (0, 13) if shape[0] != 1536 else (int(np.abs(grid.values[:, 13] - grid.corrupt).argmax()), 13)
    lab.wait(300)
    effect = float(grid.values[lab.selection]) - grid.corrupt
    assert lab.bars.note.startswith(f"{effect:+.2f}".replace("-", "−"))
    scope: dict[str, Any] = {"lm": lm4, "lk": lk}
    exec(lab.code().split("bits=4)\n")[1], scope)
    logits = scope["patched"].logits[0, -1].float()
    value = float(logits[lm4.encode(" Mary")[0, 0]] - logits[lm4.encode(" John")[0, 0]])
    assert value - grid.corrupt == pytest.approx(effect, abs=0.5)  # rounded otherwise in another batch, in bf16


def test_a_layer_is_chosen_by_the_cell_that_was_looked_at(lm4: lk.LanguageModel) -> None:
    lab = PatchLab(lm4, *PAIR, site="z")
    lab.wait(300)
    lab.selection = (23, 3)
    lab.wait(300)
    lab.over = ("head", "position")
    lab.wait(300)
    assert lab.layer == 23
    assert lab.heatmap.title == "z in layer 23: clean into corrupt"
    assert lab.grid.values.shape == (9, 14)
    lab.site = "resid_pre"  # which has no heads
    lab.wait(300)
    assert lab.over == ("layer", "position")


def test_pause_keeps_and_resume_ends_with_the_same_last_digit(lm32: lk.LanguageModel, hold: Hold) -> None:
    straight = lk.patch(lm32, *PAIR, progress=False)
    go = hold(1)
    lab = PatchLab(lm32, *PAIR)
    wait_for_cells(lab)
    lab.pause_button.click()
    go.set()
    lab.wait(300)
    kept = lab.grid.values.copy()
    assert lab.status.text.startswith("Paused at ")
    assert lab.pause_button.description == "Resume"
    assert not lab.pause_button.disabled
    assert 0 < np.isfinite(kept).sum() < 420
    lab.pause_button.click()
    lab.wait(300)
    assert lab.grid.complete
    assert lab.pause_button.description == "Pause"
    assert lab.pause_button.disabled
    np.testing.assert_array_equal(lab.grid.values, straight.values)


def test_cancel_keeps_the_cells_that_were_computed_and_run_goes_on(lm4: lk.LanguageModel, hold: Hold) -> None:
    go = hold(1)
    lab = PatchLab(lm4, *PAIR)
    wait_for_cells(lab)
    lab.stop()
    go.set()
    lab.wait(300)
    assert lab.status.text.startswith("Stopped at ")
    kept = lab.grid.values.copy()
    assert np.isfinite(kept).any()
    assert not lab.grid.complete
    assert lab.heatmap.estimated.any()  # the rest is still there as an estimate
    lab.run(300)
    assert lab.grid.complete
    np.testing.assert_array_equal(lab.grid.values[np.isfinite(kept)], kept[np.isfinite(kept)])


def test_a_paused_grid_can_be_cancelled(lm4: lk.LanguageModel, hold: Hold) -> None:
    go = hold(1)
    lab = PatchLab(lm4, *PAIR)
    wait_for_cells(lab)
    lab.pause()
    go.set()
    lab.wait(300)
    assert not lab.stop_button.disabled
    lab.stop_button.click()
    assert lab.status.text.startswith("Stopped at ")
    assert lab.stop_button.disabled
    assert lab.pause_button.disabled


def test_progress_says_how_long_it_will_take(lm4: lk.LanguageModel) -> None:
    middling = [text[:400] for text in LONG_PAIR]
    lab = PatchLab(lm4, *middling)
    said: list[str] = []
    lab.status.observe(lambda change: said.append(change["new"]), "text")
    while not any("left" in text for text in said):
        time.sleep(0.01)
        assert not lab.grid or not lab.grid.complete
    lab.stop()
    lab.wait(300)
    assert any(re.match(r"\d+ of \d+ cells exact · about \d+ (s|min) left", text) for text in said)


def test_a_hundred_runs_and_cancels_leave_no_hook_no_memory_and_the_same_logits(
    lm4: lk.LanguageModel, small_chunks: None
) -> None:
    before = lm4.run(CLEAN).logits
    lab = PatchLab(lm4)
    lab.pair.use(*PAIR)

    def cycle(n: int) -> None:
        lab.live.known.clear()  # from the start each time
        lab.site = ("z", "resid_pre")[n % 2]
        lab.start()
        while lab.grid is None or not np.isfinite(lab.grid.values).sum() > 0:
            time.sleep(0.001)
        lab.stop()
        lab.wait(300)

    def kept() -> tuple[int, int]:
        """Bytes of tensors, and objects of any kind, that this process still holds."""
        gc.collect()
        everything = gc.get_objects()
        storages = [t.untyped_storage() for t in everything if type(t) is Tensor and not t.is_mkldnn]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()), len(everything)

    for n in range(10):
        cycle(n)
    before_bytes, before_objects = kept()
    for n in range(100):
        cycle(n)
    after_bytes, after_objects = kept()
    hooks = [h for m in lm4.hf.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not [h for h in hooks if getattr(h, "__module__", "").startswith("labkit")]
    assert after_bytes <= before_bytes + 1e6
    assert after_objects <= before_objects + 20_000  # a grid that is kept has more than 200 objects
    assert torch.equal(lm4.run(CLEAN).logits, before)
