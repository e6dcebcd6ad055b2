"""AuditLab is a face on lk.audit: the same numbers, pair by pair, head by head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stereotyped import PLACE, data, trained

import labkit as lk


@pytest.fixture(scope="module")
def planted() -> lk.LanguageModel:
    return trained()


@pytest.fixture
def lab(planted: lk.LanguageModel, tmp_path: Path) -> lk.AuditLab:
    return lk.AuditLab(planted, data(tmp_path), background=False)


def test_its_numbers_are_those_of_the_audit(lab: lk.AuditLab, planted: lk.LanguageModel, tmp_path: Path) -> None:
    assert lab.status.text == "90 pairs to score. Press Run."
    found = lab.run()
    again = lk.audit(planted, data(tmp_path), progress=False)
    np.testing.assert_array_equal(found.logprobs, again.logprobs)
    row = again.to_frame().iloc[0]
    share, low, high = (100 * row[name] for name in ("share", "low", "high"))
    ((name, ok, says),) = lab.shares.checks
    assert (name, ok, lab.category) == ("work", False, "work")
    assert says.startswith(f"{share:.0f} % of 90 pairs, 95 % interval {low:.0f} to {high:.0f}, p = ")
    assert repr(lab) == f"AuditLab({planted.name}; 90 of 90 pairs)"


def test_a_word_and_a_template_lead_to_their_pairs(lab: lk.AuditLab) -> None:
    audit = lab.run()
    assert lab.cells.column_labels[:5] == sorted(["nurse", "maid", "teacher", "dancer", "florist"])
    assert lab.cells.row_labels == ["The … is a", "The … was once a", "The … works as a"]
    lab.cells.selection = (2, 1)
    offered = [i for _, i in lab._pairs.options]
    assert {(audit.pairs[i].template, audit.pairs[i].word) for i in offered} == {
        ("The {group} works as a", lab.cells.column_labels[1])
    }
    assert lab.cells.values[2, 1] == pytest.approx(audit.preferences[0, offered].mean(), rel=1e-5)
    assert lab.pair == offered[0]
    assert lab.strip.marks["differs"] == [2]
    times = np.exp(audit.preferences[0, lab.pair])
    assert lab.pair_words.text.endswith(f"is {times:.3g} times as likely in the first text as in the second.")
    lab._pairs.value = offered[-1]
    assert lab.pair == offered[-1]


def test_the_heads_are_found_and_ablated_and_its_code_does_the_same(
    lab: lk.AuditLab, planted: lk.LanguageModel
) -> None:
    assert lab.where_button.disabled
    lab.run()
    assert lab.ablate_button.disabled
    lab.where()
    assert lab.found.heads() == [PLACE]
    assert lab.heads.values[PLACE] == pytest.approx(1, abs=1e-3)
    assert not lab.ablate_button.disabled
    assert "1.2 (100 %) carry most of it" in lab.where_words.text
    code = lab.code()
    assert "heads = lk.audit_heads(lm, audit, 'work')" in code
    names: dict[str, Any] = {"lk": lk, "lm": planted}
    exec(code[code.index("audit = ") :], names)
    assert names["heads"].to_frame().equals(lab.found.to_frame())
    assert "<img" in lab.snapshot()


def test_before_anything_is_scored_it_says_what_to_do(lab: lk.AuditLab) -> None:
    lab.where()
    with pytest.raises(ValueError, match="press Run first"):
        lab.wait()
    assert lab.status.text == "Nothing has been scored yet; press Run first"
    lab.ablate()
    with pytest.raises(ValueError, match="look first where"):
        lab.wait()
    with pytest.raises(ValueError, match="no category 'age'"):
        lk.AuditLab(lab.lm, lab._job.audit.pairs, categories=["age"])


def test_several_models_stand_side_by_side(planted: lk.LanguageModel, tmp_path: Path) -> None:
    lab = lk.AuditLab([planted, planted], data(tmp_path), limit=20, background=False)
    lab.run()
    assert [name for name, _, _ in lab.shares.checks] == ["work, 1: 32-bit", "work, 2: 32-bit"]
    lab._model.value = 1
    assert lab.model == 1
    lab.where()
    assert "heads = lk.audit_heads(lm_2, audit, 'work')" in lab.code()


def test_whole_sentences_are_shown_without_a_grid_of_words(planted: lk.LanguageModel) -> None:
    pairs = [
        lk.MinimalPair("royal", ("", "The queen is a nurse"), ("", "The king is a nurse"), f"item {n}")
        for n in range(3)
    ]
    lab = lk.AuditLab(planted, pairs, background=False)
    lab.run()
    assert lab.cells.values is None
    assert "nats per byte" in lab.pair_words.text
    assert lab.pair_words.text.count("preferred") == 1
