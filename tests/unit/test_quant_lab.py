"""QuantLab: the small model in 4 and in 32 bits, side by side, on a pair of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.patching.cell_report import inspect, together, transplant
from labkit.precision.findings import overlap
from labkit.precision.next_tokens import next_tokens

FOLDER = Path(__file__).parents[1] / "files" / "small_llama"
PROMPT = "After Nancy and Steven sat down in the school, Steven handed a camera to"
OTHER = "After Nancy and Steven sat down in the school, Nancy handed a camera to"
ASKED = (PROMPT, " Nancy", " Steven")
PAIR = {"answer": " Nancy", "foil": " Steven", "progress": False}


@pytest.fixture(scope="module")
def own() -> lk.LanguageModel:
    return lk.load(FOLDER, bits=4, device="cpu", progress=False)


@pytest.fixture(scope="module")
def full() -> lk.LanguageModel:
    return lk.load(FOLDER, bits=32, device="cpu", progress=False)


@pytest.fixture(autouse=True)
def nothing_is_left(own: lk.LanguageModel, full: lk.LanguageModel) -> Iterator[None]:
    yield
    for lm in (own, full):
        assert not [hook for part in lm.hf.modules() for hook in part._forward_pre_hooks.values()]


@pytest.fixture
def lab(own: lk.LanguageModel, full: lk.LanguageModel) -> lk.QuantLab:
    return lk.QuantLab(own, full, *ASKED, background=False)


def naive_next(lm: lk.LanguageModel) -> torch.Tensor:
    """Log probabilities (seq, vocab) after every position, float64: one forward, and the last matmul in float32."""
    with torch.no_grad():
        last = lm.hf.model(lm.encode(PROMPT)).last_hidden_state[0].float()
        return (last @ lm.hf.get_output_embeddings().weight.float().T).double().log_softmax(-1)


def test_the_grid_is_that_of_patch_between_the_two_models(
    lab: lk.QuantLab, own: lk.LanguageModel, full: lk.LanguageModel
) -> None:
    lab.run()
    np.testing.assert_array_equal(lab.grid.values, lk.patch(own, PROMPT, source=full, **PAIR).values)
    assert lab.heatmap.title == "resid_pre: 32-bit into 4-bit"
    assert lab.heatmap.unit == "effect: 0 = 4-bit, 1 = 32-bit"
    assert lab.heatmap.column_axis == "position"
    assert lab.heatmap.column_marks == []
    assert f"logit difference: 32-bit {lab.grid.clean:.2f}, 4-bit {lab.grid.corrupt:.2f}" in lab.status.text
    lab.site, lab.direction = "z", "noise"
    expected = lk.patch(own, PROMPT, source=full, site="z", direction="noise", **PAIR)
    np.testing.assert_array_equal(lab.grid.values, expected.values)
    assert lab.heatmap.title == "z: 4-bit into 32-bit"
    assert lab.what._direction.options[1] == ("noise: 4-bit into 32-bit", "noise")


def test_what_the_models_predict_is_compared_at_every_position(
    lab: lk.QuantLab, own: lk.LanguageModel, full: lk.LanguageModel
) -> None:
    q, p = naive_next(own), naive_next(full)
    kl, same = (p.exp() * (p - q)).sum(-1).numpy(), (p.argmax(-1) == q.argmax(-1)).numpy()
    np.testing.assert_allclose(lab.next_tokens.kl, kl, atol=1e-4)
    np.testing.assert_allclose(lab.predictions.strip.values, kl, atol=1e-4)
    assert lab.predictions.strip.marks["differs"] == np.flatnonzero(~same).tolist() != []
    said = lab.predictions.words.text
    assert f"the same at {same.sum()} of {len(kl)} positions" in said
    assert f"{lab.next_tokens.kl.mean():.3g} nats on average" in said
    at = int(np.flatnonzero(~same)[0])
    lab.predictions.strip.selection = at
    columns = dict(lab.predictions.bars.columns)
    assert [*columns] == ["4-bit", "32-bit"]
    assert columns["4-bit"][0][0] != columns["32-bit"][0][0]
    for logs, rows in ((q, columns["4-bit"]), (p, columns["32-bit"])):
        assert [share for _, share in rows] == pytest.approx(logs[at].exp().topk(len(rows)).values.tolist(), abs=1e-5)
    grid = lk.patch(own, PROMPT, source=full, metric="kl", layers=[0], progress=False)
    assert grid.corrupt == pytest.approx(float(lab.next_tokens.kl[-1]), rel=0.1)  # rounded otherwise, in bfloat16
    assert lab.predictions.strip.notes[str(at)] == f"32-bit {columns['32-bit'][0][0]}, 4-bit {columns['4-bit'][0][0]}"


def test_answer_and_foil_are_picked_from_what_the_models_predict(own: lk.LanguageModel, full: lk.LanguageModel) -> None:
    lab = lk.QuantLab(own, full, PROMPT, background=False)
    assert lab.grid is None
    picks = lab.words.picks
    assert [pick.title for pick in picks.values()] == ["likeliest in 32-bit", "likeliest in 4-bit"]
    picks["clean"].selection, picks["corrupt"].selection = 0, 1
    assert (lab.answer, lab.foil) == (" Nancy", " Steven")
    lab.run()
    assert lab.grid.complete
    assert lab.grid.answer == " Nancy"


def test_a_cell_is_looked_at_and_its_code_makes_the_same_patch(
    lab: lk.QuantLab, own: lk.LanguageModel, full: lk.LanguageModel
) -> None:
    lab.selection = (3, 15)
    assert lab.bars.title == "Layer 3, position 15 ·to"
    assert [name for name, _ in lab.bars.columns] == ["before: 4-bit", "after the patch"]
    assert "on the scale from 4-bit (0) to 32-bit (1)" in lab.bars.note
    names: dict[str, Any] = {}
    exec(lab.code(), names)
    np.testing.assert_array_equal(names["grid"].values, lab.grid.values)
    value = full.run(PROMPT, read=["resid_pre.3"])["resid_pre.3@15"]
    patched = own.run(PROMPT, write={"resid_pre.3@15": value}).logits
    torch.testing.assert_close(names["patched"].logits, patched)
    likeliest = patched[0, -1].float().softmax(-1).max().item()
    assert lab.bars.columns[1][1][0][1] == pytest.approx(likeliest, abs=0.01)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", ["attn_out", "z", "mlp_act"])
def test_cells_between_models_in_detail_are_those_of_the_grid(
    own: lk.LanguageModel, full: lk.LanguageModel, site: str, direction: str
) -> None:
    how = {"over": ("neuron", "position"), "layers": [2], "neurons": [0, 5]} if site == "mlp_act" else {}
    grid = lk.patch(own, PROMPT, source=full, site=site, direction=direction, **how, **PAIR)
    unknown = copy.copy(grid)
    unknown.values = np.full_like(grid.values, np.nan)  # so that nothing is read off the grid
    cell = (0, 15) if site == "mlp_act" else (2, 1)
    row = grid.index[0].index(cell[0]), grid.index[1].index(cell[1])
    found = inspect(own, unknown, *cell, source=full)
    assert found.effect == pytest.approx(grid.values[row] - grid.unpatched, abs=0.02)
    both = together(own, grid, [cell, (grid.index[0][1], cell[1])], source=full)
    assert both.singles[0] == pytest.approx(grid.values[row] - grid.unpatched)
    moved = transplant(own, grid, cell, (cell[0], grid.index[1][-1]), source=full)
    assert np.isfinite(moved.effect)


def test_the_other_model_has_to_be_there_for_a_closer_look(own: lk.LanguageModel, full: lk.LanguageModel) -> None:
    between = lk.patch(own, PROMPT, source=full, layers=[1], **PAIR)
    with pytest.raises(ValueError, match=r"between two models, 4-bit and 32-bit: give .* as source="):
        inspect(own, between, 1, 3)
    pair = lk.patch(own, PROMPT, OTHER, layers=[1], **PAIR)
    with pytest.raises(ValueError, match="leave source out"):
        inspect(own, pair, 1, 3, source=full)
    with pytest.raises(ValueError, match="built otherwise"):
        inspect(own, between, 1, 3, source=smaller(full))


def test_the_difference_of_the_two_grids_of_a_pair(
    lab: lk.QuantLab, own: lk.LanguageModel, full: lk.LanguageModel
) -> None:
    lab.view = "difference"
    assert lab.difference is None
    assert lab.status.text == "Write a corrupt prompt with as many tokens, and press Run."
    lab.corrupt = OTHER
    assert lab.run() is lab.grids["own"]
    here, there = (lk.patch(lm, PROMPT, OTHER, **PAIR) for lm in (own, full))
    np.testing.assert_allclose(lab.grids["own"].values, here.values, atol=1e-5)
    np.testing.assert_allclose(lab.grids["source"].values, there.values, atol=1e-5)
    expected = here.normalized - there.normalized
    np.testing.assert_allclose(lab.difference, expected, atol=1e-5)
    panel = lab.differences
    np.testing.assert_array_equal(panel.heatmap.values, lab.difference)
    assert panel.heatmap.title == "resid_pre: clean into corrupt, 4-bit minus 32-bit"
    shared = overlap(*((grid.values - grid.corrupt).ravel() for grid in (here, there)), 10)
    assert panel.words.text.startswith(
        f"Of the 10 strongest cells in 32-bit, {10 * shared:.0f} are among those in 4-bit;"
    )
    assert lab.heatmap.layout.display == panel.heatmap.layout.display is None
    panel.which = "source"
    assert panel.heatmap.layout.display == "none"
    assert panel.heatmaps["source"].layout.display is None
    panel.heatmap.selection = (2, 4)
    assert panel.heatmaps["source"].selection == (2, 4)
    lab.selection = (1, 3)  # of the grid between the models, which is still there
    assert lab.bars.note.endswith("on the scale from 4-bit (0) to 32-bit (1)")
    names: dict[str, Any] = {}
    exec(lab.code(), names)
    np.testing.assert_allclose(names["difference"], lab.difference, atol=1e-5)
    lab.direction = "noise"
    np.testing.assert_allclose(
        lab.grids["source"].values, lk.patch(full, PROMPT, OTHER, direction="noise", **PAIR).values, atol=1e-5
    )
    lab.view = "lost"
    assert lab.heatmap.title == "resid_pre: 4-bit into 32-bit"


def test_code_runs_before_anything_is_computed(own: lk.LanguageModel, full: lk.LanguageModel) -> None:
    lab = lk.QuantLab(own, full, PROMPT, site="mlp_out", background=False)
    lab.answer, lab.foil = " Nancy", " Steven"
    names: dict[str, Any] = {}
    exec(lab.code(), names)
    assert lab.grid is None
    np.testing.assert_array_equal(names["grid"].values, lab.run().values)


def smaller(lm: lk.LanguageModel) -> lk.LanguageModel:
    config = copy.deepcopy(lm.hf.config)
    config.num_hidden_layers = 2
    return lk.wrap(type(lm.hf)(config).eval(), lm.tokenizer)


def wider(lm: lk.LanguageModel, tokenizer: Any) -> lk.LanguageModel:
    config = copy.deepcopy(lm.hf.config)
    config.vocab_size += 64
    return lk.wrap(type(lm.hf)(config).eval(), tokenizer)


def test_models_that_do_not_go_together_are_refused(
    own: lk.LanguageModel, full: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"built otherwise .* n_layers 2 instead of 4"):
        lk.QuantLab(full, smaller(full))
    tokenizer = copy.deepcopy(full.tokenizer)
    tokenizer.add_tokens([" Nancy and"])
    others = wider(full, tokenizer)
    assert others.n_layers == full.n_layers  # known from a first look at the model
    with monkeypatch.context() as nothing_runs:
        nothing_runs.setattr(type(full.hf), "forward", None)
        with pytest.raises(ValueError, match="different tokens"):
            lk.QuantLab(own, others, PROMPT)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": " Nancy Steven", "metric": "rank"}, "one position"),
        ({"prompt": ""}, "prompt is empty"),
        ({"site": "head_out"}, "use z, or attn_out"),
        ({"view": "difference"}, "write a corrupt prompt"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_rest_stays(lab: lk.QuantLab, change: dict[str, Any], says: str) -> None:
    before = lab.grid.values.copy()
    for name, value in change.items():
        setattr(lab, name, value)
    with pytest.raises(ValueError, match=says):
        lab.run()
    assert lab.status.kind == "error"
    assert says in lab.status.text
    np.testing.assert_array_equal(lab.grid.values, before)
    lab.prompt, lab.answer, lab.metric, lab.site, lab.view = PROMPT, " Nancy", "", "resid_pre", "lost"
    lab.run()
    assert lab.status.kind == "info"


def test_it_works_in_the_background_and_can_be_cancelled(
    own: lk.LanguageModel, full: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.patching.patch.tokens_at_once", lambda lm: 40)
    lab = lk.QuantLab(own, full, *ASKED, background=True)
    lab.pause()
    lab.wait(60)
    assert lab.pause_button.description == "Resume"
    lab.start()
    lab.wait(60)
    assert lab.grid.complete
    lab.selection = (1, 4)
    lab.wait(60)
    assert lab.bars.columns
    lab.view, lab.corrupt = "difference", OTHER
    lab.start()
    lab.stop()
    lab.wait(60)
    assert lab.status.text.startswith(("Stopped", "Two grids"))
    lab.run(60)
    assert np.isfinite(lab.difference).all()


def test_the_snapshot_shows_both_views_and_repr_says_what_they_are_of(lab: lk.QuantLab) -> None:
    lab.selection = (3, 15)
    html = lab.snapshot()
    for part in (
        "4-bit and 32-bit",
        "KL divergence of the next token in 4-bit from 32-bit",
        "32-bit into 4-bit",
        "Code",
    ):
        assert part in html
    assert html.count("<img") >= 4
    lab.corrupt, lab.view = OTHER, "difference"
    assert "4-bit minus 32-bit" in lab.snapshot()
    assert repr(lab) == (
        f"QuantLab({lab.lm.name!r}, '4-bit', '32-bit', prompt={PROMPT!r}, answer=' Nancy', foil=' Steven', "
        "site='resid_pre', view='difference')"
    )


def test_vocabularies_of_other_sizes_have_likeliest_tokens_and_no_kl(full: lk.LanguageModel) -> None:
    wide = wider(full, full.tokenizer)
    found = next_tokens(wide, full, PROMPT)
    assert np.isnan(found.kl).all()
    assert found.words().endswith("so there is no KL divergence.")
    lab = lk.QuantLab(wide, full, PROMPT, background=False)
    assert len(lab.predictions.bars.columns) == 2
