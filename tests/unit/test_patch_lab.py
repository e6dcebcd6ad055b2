"""What PatchLab promises without a front end: the pair, the close look, saved labs, checks. Grids have another file."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from held import LONG_PAIR, Hold, wait_for_cells
from pair import CLEAN, CORRUPT, PAIR

import labkit as lk
from labkit.patching.cell_report import cone, inspect, together, transplant
from labkit.patching.patch import PatchJob
from labkit.text.alignment import side_by_side
from labkit.widgets.patch_lab.lab import PatchLab

STORE = "When Mary and John went to the store, {} gave a drink to"


@pytest.fixture(scope="module")
def done(lm4: lk.LanguageModel) -> PatchLab:
    """A lab whose grid is finished; tests that change it make their own."""
    lab = PatchLab(lm4, *PAIR)
    lab.wait(300)
    return lab


def logit_diff(lm: lk.LanguageModel, **run: Any) -> float:
    logits = lm.run(CORRUPT, **run).logits[0, -1].float()
    return float(logits[lm.encode(" Mary")[0, 0]] - logits[lm.encode(" John")[0, 0]])


def test_the_metric_is_chosen_from_those_there_are_and_kept_with_the_lab(lm4: lk.LanguageModel, tmp_path: Path) -> None:
    lab = PatchLab(lm4, *PAIR, site="z")
    lab.wait(300)
    assert lab.grid.recipe["metric"] == "logit_diff"
    for name in ("rank", "kl"):
        lab.what._metric.value = name
        lab.wait(300)
        assert lab.grid.recipe["metric"] == lab.metric == name
        same = lk.patch(lm4, *PAIR, site="z", metric=name, progress=False)
        np.testing.assert_allclose(lab.grid.values, same.values, atol=1e-4)
        assert f"metric={name!r}" in lab.code()
    again = PatchLab.open(lm4, lab.save(tmp_path / "lab.npz"))
    again.wait(300)
    assert (again.metric, again.grid.recipe["metric"]) == ("kl", "kl")
    again.metric = ""
    again.wait(300)
    assert again.status.text.startswith("270 cells computed before")


# -- the pair ----------------------------------------------------------------------------------------------------------


def test_the_menu_of_sites_has_the_usual_ones_first_and_their_parts_last(lm4: lk.LanguageModel) -> None:
    menu = list(PatchLab(lm4, *PAIR, background=False).what._site.options)
    usual = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_act"]
    by_head = ["q", "k", "v", "pattern", "z", "head_out"]
    parts = ["attn_in", "mlp_in", "mlp_gate", "mlp_up", "q_pre", "k_pre", "scores"]
    assert menu == [*usual, *by_head, *parts]


def test_words_that_make_prompts_unequal_are_named_and_one_that_fits_is_offered(lm4: lk.LanguageModel) -> None:
    held = side_by_side(lm4, STORE.format("John"), STORE.format("Maryanne"))
    assert not held.fits
    assert held.words == (
        "Clean has 14 tokens, corrupt 15: at position 9, ' John' is 1 token, ' Maryanne' is 2 tokens (·Mary + anne)."
    )
    assert held.columns[9:12] == [(9, 9), (None, 10), (10, 11)]
    assert held.differ == [9, 10]
    assert held.fix is not None
    assert (held.fix.prompt, held.fix.words) == ("corrupt", "replace ' Maryanne' with ' Mary'")
    assert side_by_side(lm4, STORE.format("John"), held.fix.text).fits


@pytest.mark.parametrize("other", ["Bartholomew", "Wilhelmina", "Liechtenstein"])
def test_whatever_is_offered_makes_the_prompts_fit(lm4: lk.LanguageModel, other: str) -> None:
    held = side_by_side(lm4, STORE.format(other), STORE.format("John"))
    assert not held.fits
    assert held.fix is None or side_by_side(lm4, held.fix.text, STORE.format("John")).fits


def test_bos_is_marked_in_the_pair(lm4: lk.LanguageModel) -> None:
    lab = PatchLab(lm4, lm4.tokenizer.bos_token + CLEAN, lm4.tokenizer.bos_token + CORRUPT)
    assert lab.pair.strip.marks["BOS"] == [0]
    assert lab.pair.strip.labels[:2] == ["0 BOS", "1"]


def test_the_fix_button_mends_the_pair(lm4: lk.LanguageModel) -> None:
    lab = PatchLab(lm4, STORE.format("John"), STORE.format("Maryanne"))
    assert lab.pair.status.text.endswith("the rest has no partner, and its cells are hatched.")
    assert lab.pair.fix.description == "Replace ' Maryanne' with ' Mary'"
    assert lab.pair.fix.layout.display != "none"
    lab.pair.fix.click()
    assert lab.corrupt == CORRUPT
    assert lab.pair.fits
    assert lab.pair.status.kind == "info"
    assert lab.pair.fix.layout.display == "none"


def test_answer_and_foil_are_chosen_from_what_the_model_would_write(lm4: lk.LanguageModel) -> None:
    lab = PatchLab(lm4, CLEAN, CORRUPT)
    lab.wait(300)
    assert lab.grid is None  # nothing to measure yet
    assert [lab.pair.picks[name].tokens[0] for name in ("clean", "corrupt")] == ["·Mary", "·John"]
    lab.pair.picks["clean"].selection = 0
    lab.pair.picks["corrupt"].selection = 0
    assert (lab.answer, lab.foil) == (" Mary", " John")
    lab.answer = " the"
    assert lab.pair.picks["clean"].tokens[lab.pair.picks["clean"].selection] == "·the"


@pytest.mark.parametrize("name", lk.tasks().index)
def test_every_task_fills_the_pair_and_another_is_another(lm4: lk.LanguageModel, name: str) -> None:
    lab = PatchLab(lm4)
    lab.pair.task.value = name
    first = lab.clean, lab.corrupt
    assert lab.pair.fits
    assert lab.pair.task.value == name
    assert lab.answer
    assert lab.foil
    lab.pair.another.click()
    assert (lab.clean, lab.corrupt) != first
    lab.clean += " "
    assert lab.pair.task.value == ""  # from here on it is a pair of one's own


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clean": "Completely other words"}, "Clean has 4 tokens, corrupt 14, and no span of them is equal"),
        ({"answer": " Maryanne", "metric": "rank"}, "Rank reads the logits of one position"),
        ({"clean": ""}, "The prompt is empty"),
    ],
)
def test_what_does_not_fit_is_answered_in_plain_words(lm4: lk.LanguageModel, change: Any, said: str) -> None:
    lab = PatchLab(lm4, *PAIR)
    lab.wait(300)
    grid = lab.grid
    for name, value in change.items():
        setattr(lab, name, value)
    with pytest.raises(ValueError, match=r"tokens|empty"):
        lab.run(300)
    assert lab.status.kind == "error"
    assert lab.status.text.startswith(said)
    assert lab.grid is grid  # nothing is lost


# -- a closer look -----------------------------------------------------------------------------------------------------


def test_a_cell_shows_the_tokens_before_and_after_and_where_it_looks(lm4: lk.LanguageModel) -> None:
    lab = PatchLab(lm4, *PAIR)
    lab.wait(300)
    lab.selection = (12, 9)
    lab.wait(300)
    (_, before), (_, after) = lab.bars.columns
    assert before[0][0] == "·John"
    assert after[0][0] == "·Mary"
    assert lab.bars.marked == ["·Mary", "·John"]
    np.testing.assert_array_equal(lab.heatmap.cone, cone(lab.grid, (12, 9)))
    value = lm4.run(CLEAN, read=["resid_pre.12"])["resid_pre.12@9"]
    patched = lm4.run(CORRUPT, read=["pattern.12"], write={"resid_pre.12@9": value})["pattern.12@9"][0].float()
    np.testing.assert_allclose(lab.inspector.attention.values, patched, atol=1e-6)  # (head, key)
    lab.inspector.which.value = "before"
    plain = lm4.run(CORRUPT, read=["pattern.12"])["pattern.12@9"][0].float()
    np.testing.assert_allclose(lab.inspector.attention.values, plain, atol=1e-6)
    lab.site = "z"
    lab.wait(300)
    assert lab.selection is None
    assert lab.heatmap.cone is None
    lab.selection = (23, 3)
    lab.wait(300)
    assert lab.inspector.attention.values.shape == (14, 14)


def test_what_was_let_go_while_it_was_computed_is_not_shown(
    lm4: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = PatchLab(lm4, *PAIR, background=True)
    lab.run()
    lab.wait(300)
    begun, go = threading.Event(), threading.Event()

    def slow(*args: Any, **how: Any) -> Any:
        begun.set()
        assert go.wait(300)
        return inspect(*args, **how)

    monkeypatch.setattr("labkit.widgets.patch_lab.inspector.inspect", slow)
    lab.selection = (5, 9)
    assert begun.wait(60)
    lab.selection = None
    go.set()
    lab.wait(300)
    assert (lab.inspector.layout.display, lab.inspector.invitation.layout.display) == ("none", None)
    assert not lab.bars.columns


def test_the_cone_of_a_cell_is_what_its_patch_can_change(lm32: lk.LanguageModel, done: PatchLab) -> None:
    mask = cone(done.grid, (20, 9))
    base = lm32.run(CORRUPT, read=["resid_pre"])["resid_pre"][:, 0]
    write = {"resid_pre.20@9": lm32.run(CLEAN, read=["resid_pre.20"])["resid_pre.20@9"]}
    changed = (lm32.run(CORRUPT, read=["resid_pre"], write=write)["resid_pre"][:, 0] - base).abs().amax(-1) > 1e-4
    assert not changed.numpy()[(mask != 1) & (mask != 3)].any()
    assert changed.numpy()[mask == 1].mean() > 0.9


def test_a_drag_reads_one_place_and_writes_another(lm32: lk.LanguageModel) -> None:
    lab = PatchLab(lm32, *PAIR)
    lab.wait(300)
    lab.arrow = ((10, 9), (12, 11))
    lab.wait(300)
    assert lab.bars.title == "Layer 10, position 9 ·Mary → layer 12, position 11 ·a"
    value = lm32.run(CLEAN, read=["resid_pre.10"])["resid_pre.10@9"]
    expected = logit_diff(lm32, write={"resid_pre.12@11": value}) - lab.grid.corrupt
    assert transplant(lm32, lab.grid, (10, 9), (12, 11)).effect == pytest.approx(expected, abs=1e-4)
    assert lab.bars.note.startswith(f"{expected:+.2f}".replace("-", "−"))
    scope: dict[str, Any] = {"lm": lm32, "lk": lk}
    exec(lab.code().split("grid.figure()\n")[1], scope)
    written = lm32.run(CORRUPT, write={"resid_pre.12@11": value}).logits
    torch.testing.assert_close(scope["patched"].logits, written)
    lab.arrow = None
    lab.selection = (0, 0)
    lab.wait(300)
    assert lab.bars.title == "Layer 0, position 0 When"


def test_a_pattern_is_not_put_where_it_would_see_the_future(lm4: lk.LanguageModel) -> None:
    grid = PatchJob(lm4, *PAIR, site="pattern", over=("layer", "position")).grid
    with pytest.raises(ValueError, match="cannot see"):
        transplant(lm4, grid, (3, 12), (3, 10))


def test_cells_together_are_held_beside_their_sum(lm32: lk.LanguageModel) -> None:
    cells = [(23, 3), (20, 0), (19, 2)]
    lab = PatchLab(lm32, *PAIR, site="z", chosen=cells)
    lab.wait(300)
    assert lab.grid.complete
    assert lab.chosen == cells
    assert lab.heatmap.chosen == cells
    report = together(lm32, lab.grid, cells)
    kept = lm32.run(CLEAN, read=["z"])
    sites = [f"z.{layer}.{head}" for layer, head in cells]
    expected = logit_diff(lm32, write={site: kept[site] for site in sites}) - lab.grid.corrupt
    assert report.effect == pytest.approx(expected, abs=1e-4)
    for single, cell in zip(report.singles, cells, strict=True):
        assert single == pytest.approx(float(lab.grid.values[cell]) - lab.grid.corrupt, abs=1e-6)
    assert report.sum == pytest.approx(sum(report.singles))
    assert f"{report.effect:+.2f}" in lab.bars.note
    assert f"sum of single patches {report.sum:+.2f}" in lab.bars.note
    with pytest.raises(ValueError, match="at least one"):
        together(lm32, lab.grid, [])


def test_a_look_does_not_wait_for_a_long_grid(lm4: lk.LanguageModel) -> None:
    lab = PatchLab(lm4, *LONG_PAIR)
    wait_for_cells(lab)
    lab.selection = (3, 0)
    lab._close_look.wait(300)
    assert not lab.grid.complete
    assert lab.bars.columns
    lab.stop()
    lab.wait(300)
    assert inspect(lm4, lab.grid, 3, 0).after[0][0] == lab.bars.columns[1][1][0][0]


# -- saved, and repeated -----------------------------------------------------------------------------------------------


def test_a_saved_lab_opens_with_all_that_is_known(lm4: lk.LanguageModel, tmp_path: Path) -> None:
    lab = PatchLab(lm4, *PAIR)
    lab.wait(300)
    lab.site = "z"
    lab.wait(300)
    lab.chosen = [(23, 3), (20, 0)]
    lab.wait(300)
    path = lab.save(tmp_path / "lab.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["lab.npz"]
    again = lk.PatchLab.open(lm4, path)
    again.wait(300)
    assert repr(again) == repr(lab)
    assert again.chosen == [(23, 3), (20, 0)]
    np.testing.assert_array_equal(again.grid.values, lab.grid.values)
    np.testing.assert_array_equal(again.heatmap.values, lab.heatmap.values)
    assert again.code() == lab.code()
    assert again.status.text.startswith("270 cells computed before")
    again.site = "resid_pre"
    again.wait(300)
    assert again.status.text.startswith("420 cells computed before")


def test_a_half_done_lab_goes_on_where_it_was_with_the_same_last_digit(
    lm32: lk.LanguageModel, tmp_path: Path, hold: Hold
) -> None:
    straight = lk.patch(lm32, *PAIR, progress=False)
    go = hold(300)
    lab = PatchLab(lm32, *PAIR)
    wait_for_cells(lab, 300)
    lab.stop()
    go.set()
    lab.wait(300)
    kept = np.isfinite(lab.grid.values)
    again = PatchLab.open(lm32, lab.save(tmp_path / "half.npz"))
    assert again.status.text.startswith("Paused at ")
    np.testing.assert_array_equal(np.isfinite(again.grid.values), kept)
    assert again.heatmap.estimated.any()
    computed: list[int] = []
    real = PatchJob._values

    def counted(self: PatchJob, cells: Any) -> Any:
        computed.append(len(cells))
        return real(self, cells)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PatchJob, "_values", counted)
        again.pause_button.click()
        again.wait(300)
    assert sum(computed) == (~kept).sum()  # and nothing twice
    np.testing.assert_array_equal(again.grid.values, straight.values)


def test_a_file_that_is_no_lab_or_of_another_model_is_told(
    lm4: lk.LanguageModel, lm32: lk.LanguageModel, done: PatchLab, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        PatchLab.open(lm4, tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="is not a PatchLab saved by labkit"):
        PatchLab.open(lm4, tmp_path / "text.npz")
    with pytest.raises(ValueError, match=r"it holds a grid, which lk\.open_grid"):
        PatchLab.open(lm4, done.grid.save(tmp_path / "grid.npz"))
    saved = done.save(tmp_path / "lab.npz")
    with pytest.raises(ValueError, match=r"in 4 bits; this model is .* in 32 bits"):
        PatchLab.open(lm32, saved)
    with pytest.raises(ValueError, match="is not a grid"):
        lk.open_grid(saved)


@pytest.mark.long
def test_code_and_snapshot_repeat_the_grid_to_the_last_digit_in_a_fresh_python(
    lm4: lk.LanguageModel, tmp_path: Path
) -> None:
    sites = ("resid_pre", "z")
    labs = [PatchLab(lm4, *PAIR, site=site) for site in sites]
    script = ""
    for lab in labs:
        lab.wait(300)
        saved = re.search(r"<pre[^>]*>(.*?)</pre>", lab.snapshot(), re.DOTALL)
        assert saved is not None
        code = html.unescape(saved[1])
        assert code == lab.code()
        script += code + f"import numpy as np\nnp.save({str(tmp_path / lab.site)!r}, grid.values)\n"
        script += f"lab = lk.PatchLab(lm, {', '.join(map(repr, PAIR))}, site={lab.site!r}, background=False)\n"
        picture = str(tmp_path / f"{lab.site}.html")
        script += f"open({picture!r}, 'w', encoding='utf-8').write(lab.snapshot())\n"
    (tmp_path / "again.py").write_text(script, encoding="utf-8")
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, str(tmp_path / "again.py")], check=True, cwd=root, capture_output=True)
    for lab in labs:
        np.testing.assert_array_equal(np.load(tmp_path / f"{lab.site}.npy"), lab.grid.values)
        assert (tmp_path / f"{lab.site}.html").read_text("utf-8") == lab.snapshot()


# -- is it real? -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_checks_of_a_finished_grid_are_listed(lm4: lk.LanguageModel) -> None:
    lab = PatchLab(lm4, CLEAN, CORRUPT)
    lab.begin_checks()
    assert lab.status.text.startswith("Finish the grid first")
    assert lab.controls.button.disabled
    lab.answer, lab.foil = " Mary", " John"
    lab.run(300)
    assert not lab.controls.button.disabled
    result = lab.check(120)
    assert result is not None
    assert result["identical prompts"].ok
    assert result["everything patched"].ok
    assert [row[0] for row in lab.controls.list.checks] == [check.name for check in result.checks]
    assert lab.controls.list.title == result.verdict
    assert "identical prompts" in lab.snapshot()
    lab.site = "attn_out"  # another grid: nothing has been checked of it
    lab.wait(300)
    assert lab.controls.result is None
    assert lab.controls.list.checks == []
