"""What a model writes from a cell of PatchLab, QuantLab and LensView, without a front end."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from held import Hold, wait_for_cells
from pair import CLEAN, CORRUPT, PAIR

import labkit as lk
from labkit.generation import loop
from labkit.widgets.cell_writing import CellWriting
from labkit.widgets.patch_lab.lab import PatchLab


@pytest.fixture
def lab(lm4: lk.LanguageModel) -> PatchLab:
    lab = PatchLab(lm4, *PAIR)
    lab.wait(300)
    lab.selection = (29, 13)
    lab.wait(300)
    return lab


def shown(writing: CellWriting) -> dict[str, str]:
    """The strips that are shown, as their titles and texts."""
    return {
        strip.title: "".join(strip.tokens).replace("·", " ")
        for strip in writing.strips
        if strip.layout.display != "none"
    }


def in_one_line(code: str) -> str:
    return " ".join(code.replace("(\n    ", "(").replace(",\n)", ")").split())


def test_the_text_under_the_patch_is_beside_the_one_without_it(lab: PatchLab, lm4: lk.LanguageModel) -> None:
    writing = lab.inspector.writing
    assert writing.buttons["continue"].description == "Continue under this patch"
    assert shown(writing) == {}
    before = lab.code()
    writing.buttons["continue"].click()
    lab.wait(300)
    same = lk.continue_under(lm4, lab.grid, layer=29, position=13)
    assert lab.written.after.record.ids == same.after.record.ids
    assert shown(writing) == {"Before: corrupt prompt": same.before.text, "After the patch": same.after.text}
    assert same.after.text.startswith(" Mary")
    assert writing.strips[1].marks == {"differs": [0]}
    assert writing.strips[1].alternatives[0][0][0] == "·Mary"
    assert lab.code() == before + "\ncontinued = lk.continue_under(lm, grid, layer=29, position=13)\n"
    assert "After the patch" in lab.snapshot()
    assert "what the model writes next" in lab.snapshot().lower()
    assert lab.snapshot() == lab.snapshot()


def test_the_patchscope_reads_what_goes_into_the_cell(lab: PatchLab, lm4: lk.LanguageModel) -> None:
    found = lab.patchscope(300)
    assert found == lk.patchscope(lm4, CLEAN, site="resid_pre.29@13", progress=False)
    assert list(shown(lab.inspector.writing)) == ["With the activation", "Without it", "A random vector instead"]
    assert in_one_line(lab.code()).endswith(f"scope = lk.patchscope(lm, {CLEAN!r}, site='resid_pre.29@13')")
    assert "resid_pre.29 of ·to, in the place of ·? in layer 29" in lab.inspector.writing.line.text
    lab.direction = "noise"
    lab.wait(300)
    assert lab.written is None
    lab.selection = (29, 9)
    assert lab.patchscope(300) == lk.patchscope(lm4, CORRUPT, site="resid_pre.29@9", progress=False)


def test_another_cell_takes_the_texts_away(lab: PatchLab) -> None:
    lab.continue_under(300)
    lab.selection = (3, 9)
    lab.wait(300)
    assert lab.written is None
    assert shown(lab.inspector.writing) == {}
    assert "continue_under" not in lab.code()


def test_a_button_that_cannot_be_used_says_why(lab: PatchLab) -> None:
    buttons = lab.inspector.writing.buttons
    assert not any(one.disabled for one in buttons.values())
    lab.chosen = [(20, 13), (21, 13)]
    lab.wait(300)
    for one in buttons.values():
        assert one.disabled
        assert one.tooltip == "Click a single cell: one patch is continued at a time"
    with pytest.raises(ValueError, match="Click a single cell"):
        lab.continue_under()
    lab.chosen, lab.site = [], "z"
    lab.wait(300)
    lab.selection = (20, 5)
    lab.wait(300)
    assert not buttons["continue"].disabled
    assert buttons["patchscope"].disabled
    assert buttons["patchscope"].tooltip.startswith("A patchscope reads the residual stream, not z: choose resid_pre")
    with pytest.raises(ValueError, match="reads the residual stream"):
        lab.patchscope()
    assert lab.continue_under(300).cell == {"layer": 20, "head": 5}


def test_a_cell_of_a_grid_in_one_layer_is_continued(lm4: lk.LanguageModel) -> None:
    lab = PatchLab(lm4, *PAIR, site="z", over=("head", "position"), layer=20)
    lab.wait(300)
    lab.selection = (5, 13)
    lab.wait(300)
    assert lab.continue_under(300).cell == {"head": 5, "position": 13}


def test_an_estimate_is_continued_once_it_is_exact(lm4: lk.LanguageModel, hold: Hold) -> None:
    go = hold(60)
    lab = PatchLab(lm4, *PAIR)
    wait_for_cells(lab, 60)
    writing = lab.inspector.writing
    missing = next((29 - n, 9) for n in range(30) if lab.grid.values[29 - n, 9] != lab.grid.values[29 - n, 9])
    lab.selection = missing
    assert writing.buttons["continue"].disabled
    assert writing.buttons["continue"].tooltip == "This cell is an estimate so far: let the grid finish"
    go.set()
    lab.wait(300)
    assert not writing.buttons["continue"].disabled
    assert lab.grid.complete


def test_stop_ends_the_writing_and_keeps_what_is_there(lab: PatchLab, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, real = threading.Event(), threading.Event(), loop._Watch.put

    def put(self: Any, value: Any) -> None:
        real(self, value)
        if len(self.record) == 2:
            begun.set()
            assert go.wait(300)

    monkeypatch.setattr(loop._Watch, "put", put)
    lab.begin_continuation()
    assert begun.wait(300)
    assert not lab.stop_button.disabled
    lab.stop()
    go.set()
    lab.wait(300)
    assert lab.written.after.finish == "stopped"
    assert len(lab.written.after.record) in (2, 3)  # within one token
    assert lab.inspector.writing.line.text == "Stopped."
    assert list(shown(lab.inspector.writing)) == ["After the patch"]
    assert lab.stop_button.disabled


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.long
def test_between_two_models_the_one_that_is_patched_writes(
    lm4: lk.LanguageModel, lm32: lk.LanguageModel, direction: str
) -> None:
    lab = lk.QuantLab(lm4, lm32, CLEAN, " Mary", " John")
    lab.direction = direction
    lab.wait(300)
    lab.selection = (28, 13)
    lab.wait(300)
    found = lab.continue_under(300)
    base, other = (lm4, lm32) if direction == "denoise" else (lm32, lm4)
    assert found.before.record.ids == base.generate(CLEAN, max_new_tokens=20).record.ids
    assert "continue_under(lm, grid, layer=28, position=13, source=source)" in lab.code()
    scope = lab.patchscope(300)
    same = lk.patchscope(base, CLEAN, site="resid_pre.28@13", source=other, progress=False)
    assert scope.rows == same.rows
    writer, reader = ("lm", "source") if direction == "denoise" else ("source", "lm")
    call = f"scope = lk.patchscope({writer}, {CLEAN!r}, site='resid_pre.28@13', source={reader})"
    assert in_one_line(lab.code()).endswith(call)


def test_the_lens_lets_the_model_say_what_is_in_a_cell(lm4: lk.LanguageModel) -> None:
    view = lk.LensView(lm4, CLEAN)
    view.wait(300)
    view.selection = (2, 4)
    view.lens_face.writing.buttons["patchscope"].click()
    view.wait(300)
    assert view.written == lk.patchscope(lm4, CLEAN, site="resid_post.2@4", progress=False)
    assert list(shown(view.lens_face.writing)) == ["With the activation", "Without it", "A random vector instead"]
    assert view.code().endswith(f"\nscope = lk.patchscope(lm, {CLEAN!r}, site='resid_post.2@4')\n")
    assert "With the activation" in view.snapshot()
    view.shade = "rank"
    assert view.written is not None  # the same cell in other colours
    view.selection = (3, 4)
    assert view.written is None
    assert "patchscope" not in view.code()
    view.site = "attn_out"
    view.wait(300)
    one = view.lens_face.writing.buttons["patchscope"]
    assert one.disabled
    assert one.tooltip == "A patchscope reads the residual stream, not attn_out: choose resid_post"
    with pytest.raises(ValueError, match="not attn_out: choose resid_post"):
        view.patchscope()
