"""PatchLab with prompts of unequal length and answers of several tokens: paired, hatched, measured, saved."""

import numpy as np
import pytest
from pair import CLEAN, CORRUPT, PAIR

import labkit as lk
from labkit.text.pair import spans_of_text, spans_to_text

LONGER = "When Maryanne and John went to the big store, Mary gave a drink to"
TEXTS = (CLEAN, CORRUPT, " Mary and", " John")
OWN = [((0, 1), (0, 1)), ((2, 7), (3, 8)), ((9, 14), (11, 16))]


@pytest.fixture(scope="module")
def lab(lm32: lk.LanguageModel) -> lk.PatchLab:
    lab = lk.PatchLab(lm32, CLEAN, LONGER, " Mary", " John")
    lab.wait(300)
    return lab


def test_unequal_prompts_are_paired_and_the_rest_is_hatched(lab: lk.PatchLab, lm32: lk.LanguageModel) -> None:
    grid = lk.patch(lm32, CLEAN, LONGER, " Mary", " John", progress=False)
    np.testing.assert_allclose(lab.grid.values, grid.values, atol=1e-4)
    assert lab.grid.complete
    lone = grid.unpaired
    assert 0 < lone.sum() < lone.size
    assert np.isnan(lab.heatmap.values)[lone].all()
    notes = np.array(lab.heatmap.notes).reshape(lone.shape)
    assert set(notes[lone]) == {"no partner in the other prompt"}
    assert set(notes[~lone]) == {""}
    assert lab.status.text.startswith(f"{int((~lone).sum())} cells ")
    assert "What is equal is paired; the rest has no partner" in lab.pair.status.text
    assert lab.pair.spans.value == spans_to_text(grid.alignment)
    assert lab.pair.spans.layout.display != "none"
    marks = lab.pair.strip.marks["no partner"]
    assert len(lab.pair.strip.columns) - len(marks) == sum(b - a for (a, b), _ in grid.alignment)


def test_a_cell_without_a_partner_says_so_and_one_with_it_is_patched(lab: lk.PatchLab) -> None:
    lab.selection = (25, 15)
    lab.wait(300)
    assert lab.bars.columns[1][1][0][0].endswith("Mary")
    lab.selection = (25, 8)
    with pytest.raises(ValueError, match="position 8 has no partner in the other prompt"):
        lab.wait(300)


def test_a_pairing_of_ones_own_is_followed_shown_written_and_saved(lm32: lk.LanguageModel, tmp_path) -> None:
    lab = lk.PatchLab(lm32, CLEAN, LONGER, " Mary", " John", alignment=OWN)
    lab.wait(300)
    assert lab.pair.spans.value == "0 = 0, 2-6 = 3-7, 9-13 = 11-15"
    assert lab.grid.unpaired[0].tolist() == [n in (1, 2, 8, 9, 10) for n in range(16)]
    opened = lk.PatchLab.open(lm32, lab.save(tmp_path / "lab.npz"))
    opened.wait(300)
    assert opened.pair.spans.value == lab.pair.spans.value
    np.testing.assert_array_equal(opened.grid.values, lab.grid.values)
    space: dict = {"lk": lk, "lm": lm32}
    exec("grid = " + lab.code().split("grid = ")[1].split("grid.figure()")[0], space)
    np.testing.assert_allclose(space["grid"].values, lab.grid.values, atol=1e-5)


def test_a_pairing_can_be_typed_and_a_wrong_one_is_refused_where_it_is_typed(lm32: lk.LanguageModel) -> None:
    lab = lk.PatchLab(lm32, CLEAN, LONGER, " Mary", " John")
    lab.wait(300)
    lab.pair.spans.value = "0-1 = 0-1, 9-13 = 11-15"
    assert lab.alignment == [((0, 2), (0, 2)), ((9, 14), (11, 16))]
    lab.wait(300)
    assert lab.grid.unpaired[0].sum() == 16 - 7
    for wrong, said in (("0-1 = 3", "one to one"), ("0 = 40", "out of range"), ("0 to 3", "0-8 = 0-8, 10-13 = 11-14")):
        lab.pair.spans.value = wrong
        assert lab.pair.status.kind == "error"
        assert said in lab.pair.status.text
        assert len(lab.alignment) == 2
    lab.pair.spans.value = ""
    assert lab.alignment is None  # what is equal, as before
    lab.clean += " the"
    assert lab.alignment is None


@pytest.mark.parametrize("text", ["0-8 = 0-8, 10-13 = 11-14", "3 = 4", "0-1 = 2-3, 5 = 5"])
def test_spans_are_read_as_they_are_written(text: str) -> None:
    assert spans_to_text(spans_of_text(text)) == text


def test_an_answer_of_several_tokens_is_measured_and_said_also_for_cells_together(lm32: lk.LanguageModel) -> None:
    lab = lk.PatchLab(lm32, *TEXTS)
    lab.wait(300)
    grid = lk.patch(lm32, *TEXTS, progress=False)
    np.testing.assert_allclose(lab.grid.values, grid.values, atol=1e-4)
    assert "The answer is 2 tokens: measured by the sum of their log probabilities." in lab.pair.status.text
    lab.chosen = [(12, 9), (20, 13)]
    lab.wait(300)
    value = lm32.run(CLEAN + " Mary", read=["resid_pre.12", "resid_pre.20"])
    write = {"resid_pre.12@9": value["resid_pre.12@9"], "resid_pre.20@13": value["resid_pre.20@13"]}
    mary, john, joined = (int(lm32.encode(text)[0, -1]) for text in (" Mary", " John", " and"))
    first = lm32.run(CORRUPT + " Mary", write=write).logits[0, -2:].float().log_softmax(-1)
    wanted = float(first[0, mary] + first[1, joined] - first[0, john]) - grid.corrupt
    said = lab.bars.note.splitlines()[0]
    assert said.startswith("together ")
    assert float(said.split()[1].replace("\u2212", "-")) == pytest.approx(wanted, abs=0.02)


def test_the_runs_of_a_pair_are_shared_by_its_grids_and_not_with_another_pairing(lm32: lk.LanguageModel) -> None:
    lab = lk.PatchLab(lm32, *PAIR)
    lab.wait(300)
    runs = lab.live._runs
    lab.site = "z"
    lab.wait(300)
    assert lab.live._runs is runs
    lab.answer = " Mary and"
    lab.run(300)
    assert lab.live._runs is not runs
