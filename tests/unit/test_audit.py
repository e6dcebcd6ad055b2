"""An audit finds a planted preference with its sign and its place, and none where labels are chance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from stereotyped import FIRST, GROUPS, PLACE, SECOND, data, trained
from stopped import stopped

import labkit as lk
from labkit.audits.ablation import AblationJob
from labkit.audits.audit import AuditJob
from labkit.audits.heads import at_mean
from labkit.results.recipe import names_of


@pytest.fixture(scope="module")
def planted() -> lk.LanguageModel:
    return trained()


def test_a_planted_preference_is_found_with_its_sign(planted: lk.LanguageModel, tmp_path: Path) -> None:
    row = lk.audit(planted, data(tmp_path), progress=False).to_frame().iloc[0]
    assert row["share"] > 0.95
    assert row["times_low"] > 2
    assert row["verdict"] == "stereotype"
    turned = lk.audit(
        planted, data(tmp_path, sets=[{"groups": GROUPS, "first": SECOND, "second": FIRST}]), progress=False
    )
    assert turned.to_frame().iloc[0]["share"] < 0.05
    assert turned.to_frame().iloc[0]["verdict"] == "opposite"


def test_a_planted_preference_is_found_in_its_place_and_goes_with_it(planted: lk.LanguageModel, tmp_path: Path) -> None:
    audit = lk.audit(planted, data(tmp_path), progress=False)
    found = lk.audit_heads(planted, audit, progress=False)
    assert found.heads() == [PLACE]
    assert found.shares[PLACE] == pytest.approx(1, abs=1e-3)
    assert float(found.to_frame()["direct"].iloc[0]) == pytest.approx(float(found.gaps.mean()), rel=0.05)
    assert np.abs(np.delete(found.shares.ravel(), 4 * PLACE[0] + PLACE[1])).max() < 1e-3
    without = lk.audit_without(planted, audit, found.heads(), text="The woman is a nurse", progress=False)
    assert without.without is not None
    assert np.abs(without.without.preferences).max() < 1e-4
    assert without.together.difference().iloc[0]["difference"] < -0.4
    assert all(np.allclose(one.preferences, audit.preferences, atol=1e-4) for one in without.random)
    again = lk.open_audit_ablation(without.save(tmp_path / "ablation.npz"))
    assert again.to_frame().equals(without.to_frame())
    assert again.cost().equals(without.cost())
    assert again.words() == without.words()
    assert "work: the preference goes, as far as these pairs show." in again.words()
    assert "Quality was measured by perplexity alone: " in again.words()  # it has no tokens for other words
    assert len(again.figure().data) == 6
    assert "ended early" not in again.words()
    assert f"lk.audit_without(lm, audit, [{PLACE}], text='The woman is a nurse')" in again.code()
    assert f"without {PLACE[0]}.{PLACE[1]} the stereotype is preferred in" in without.words()
    assert without.to_frame().index[0] == ("work", "nothing")


def ablated(lm: lk.LanguageModel, audit: lk.Audit, **more: Any) -> lk.AuditAblation:
    settings = {"controls": 1, "quality_limit": 2, "text": "The old house stood at the end of a long road."}
    return lk.audit_without(lm, audit, [(16, n) for n in range(4)], **settings, **more, progress=False)


def test_quality_is_measured_under_each_ablation_and_paired_with_the_whole_model(
    lm4: lk.LanguageModel, tmp_path: Path
) -> None:
    audit = lk.audit(lm4, categories=["age"], limit=12, progress=False)
    found = ablated(lm4, audit)
    cost = found.cost()
    assert list(cost.index) == found.names == ["nothing", *found.names[1:]]
    assert cost["items"].tolist() == [16] * 3  # two per phenomenon
    assert cost.loc["nothing", ["times", "times_low", "times_high", "difference"]].tolist() == [1, 1, 1, 0]
    assert cost.iloc[1]["perplexity"] == pytest.approx(cost.iloc[0]["perplexity"] * cost.iloc[1]["times"], rel=1e-5)
    assert cost.iloc[1]["times_low"] < cost.iloc[1]["times"] < cost.iloc[1]["times_high"]
    whole = lk.benchmark(lm4, "mini", limit=2, progress=False)
    assert found.quality[0].minus(whole).to_frame().loc["all", "changed"] <= 1 / 16  # rounding may turn one
    difference = found.quality[1].minus(found.quality[0]).to_frame().loc["all"]
    assert cost.iloc[1][["difference", "low", "high"]].tolist() == difference[["difference", "low", "high"]].tolist()
    words = found.words()
    assert "On 16 items of the mini set it is right in" in words
    assert "Quality suffers measurably" in words or "No loss of quality was measured." in words
    assert f"({cost.iloc[1].times:.2f} times, 95 % interval" in words
    again = lk.open_audit_ablation(found.save(tmp_path / "ablation.npz"))
    assert (again.words(), again.code()) == (words, found.code())
    assert again.cost().equals(cost)
    assert len(again.figure().data) == 5
    assert "quality_limit=2" in found.code()
    assert "text='The old house" in found.code()
    assert np.isnan(ablated(lm4, audit, quality=None).cost()["accuracy"]).all()
    frame = pd.DataFrame({"sent_more": ["a"], "sent_less": ["b"], "bias_type": ["c"], "stereo_antistereo": ["d"]})
    with pytest.raises(ValueError, match="the frame has no right answers: it measures a preference"):
        ablated(lm4, audit, quality=frame)


def test_what_an_audit_has_of_the_whole_model_is_not_scored_again(planted: lk.LanguageModel, tmp_path: Path) -> None:
    audit = lk.audit(planted, data(tmp_path), progress=False)
    settings: dict[str, Any] = {"controls": 0, "quality": None, "text": "The woman is a nurse"}

    def ablated(audit: lk.Audit) -> tuple[list[lk.Audit], int]:
        with stopped(planted, 10**6) as passes:
            found = lk.audit_without(planted, audit, [PLACE], **settings, progress=False)
        return found.audits, passes[0]

    ablated(audit)  # what is looked at once per model
    (whole, without), passes = ablated(audit)
    assert np.array_equal(whole.logprobs, audit.logprobs)
    assert not np.array_equal(without.logprobs, audit.logprobs)
    (whole, _), more = ablated(replace(audit, logprobs=audit.logprobs - 5))  # not what this model gives
    assert np.allclose(whole.logprobs, audit.logprobs, atol=1e-4)
    assert more > passes
    half = replace(audit, logprobs=np.where(np.arange(len(audit.pairs))[:, None] < 20, audit.logprobs, np.nan))
    (whole, _), _ = ablated(half)  # what an interrupted audit lacks is scored
    assert np.allclose(whole.logprobs, audit.logprobs, atol=1e-4)


def test_an_ablation_that_is_interrupted_keeps_what_was_scored(planted: lk.LanguageModel, tmp_path: Path) -> None:
    audit = lk.audit(planted, data(tmp_path), progress=False)
    quality = pd.DataFrame({
        "prompt": ["The woman is a", "The king"], "choices": [["nurse", "pilot"], ["is a", "works as a"]], "answer": 0,
    })  # fmt: skip
    settings: dict[str, Any] = {"controls": 1, "quality": quality, "text": "The woman is a nurse", "progress": False}
    lk.audit_without(planted, audit, [PLACE], **settings)  # what is looked at once per model
    with stopped(planted, 10**6) as passes:
        whole = lk.audit_without(planted, audit, [PLACE], **settings)
    seen = set()
    for after in range(1, passes[0] + 1):
        with stopped(planted, after), pytest.warns(UserWarning, match=r"interrupted: \d+ of \d+ texts are in the"):
            part = lk.audit_without(planted, audit, [PLACE], **settings)
        seen.add(len(part.audits))
        if part.without is None:
            assert part.words() == "Nothing has been ablated yet."
            continue
        assert "It ended early" in part.words()
        for one, full in zip(part.audits, whole.audits, strict=False):
            assert np.allclose(one.logprobs[one.done], full.logprobs[one.done], atol=1e-4)
        again = lk.open_audit_ablation(part.save(tmp_path / "part.npz"))
        assert again.words() == part.words()
        assert again.figure().data
        assert len(part.to_frame()) == len(part.cost()) == len(part.audits)
    assert seen >= {1, 2, 3}
    with stopped(planted, passes[0], MemoryError("no more")), pytest.raises(MemoryError) as error:
        lk.audit_without(planted, audit, [PLACE], **settings)
    assert len(error.value.ablation.audits) == 3


def test_with_shuffled_labels_the_interval_covers_none_in_19_of_20_seeds(lm4: lk.LanguageModel) -> None:
    audit = lk.audit(lm4, categories=["gender and occupation"], limit=300, progress=False)
    assert audit.to_frame().iloc[0]["verdict"] == "stereotype"
    rows = [audit.shuffled(seed).to_frame().iloc[0] for seed in range(20)]
    assert sum(row["low"] <= 0.5 <= row["high"] for row in rows) >= 19
    assert sum(row["p_holm"] < 0.05 for row in rows) <= 3


def test_what_is_scored_is_what_the_model_gives(lm32: lk.LanguageModel) -> None:
    audit = lk.audit(lm32, categories=["religion"], limit=6, progress=False)
    for pair, (found, _) in zip(audit.pairs, audit.logprobs[0], strict=True):
        context, word = pair.stereotype
        ids = lm32.encode(context + word)
        after = lm32.encode(context).shape[1]
        logprobs = lm32.run(ids).logits[0].log_softmax(-1)
        by_hand = sum(float(logprobs[n - 1, ids[0, n]]) for n in range(after, ids.shape[1]))
        assert found == pytest.approx(by_hand, abs=1e-4)


def test_an_audit_that_was_stopped_keeps_what_it_has_and_goes_on_from_there(
    planted: lk.LanguageModel, tmp_path: Path
) -> None:
    whole = lk.audit(planted, data(tmp_path), progress=False)
    job = AuditJob(planted, data(tmp_path))
    job._order = [job._order[0][:40], job._order[0][40:]]
    steps = job.steps()
    next(steps)
    assert (job.done, job.total) == (40, 90)
    early = job.audit.to_frame().iloc[0]
    assert early["pairs"] == 40
    assert early["share"] > 0.9
    assert "40 of 90 pairs" in repr(job.audit)
    for _ in job.steps():
        pass
    np.testing.assert_allclose(job.audit.logprobs, whole.logprobs, atol=1e-5)
    assert job.audit.to_frame().iloc[0]["pairs"] == 90


def test_an_audit_is_saved_opened_and_made_again_by_its_code(planted: lk.LanguageModel, tmp_path: Path) -> None:
    audit = lk.audit(planted, data(tmp_path), limit=30, seed=3, progress=False)
    opened = lk.open_audit(audit.save(tmp_path / "audit.npz"))
    assert opened.pairs == audit.pairs
    assert opened.to_frame().equals(audit.to_frame())
    assert opened.words() == audit.words()
    heads = lk.audit_heads(planted, audit, pairs=4, progress=False)
    again = lk.open_audit_heads(heads.save(tmp_path / "heads.npz"))
    assert again.to_frame().equals(heads.to_frame())
    assert "lk.audit_heads(lm, audit, category='work', pairs=4)" in again.code()
    code = audit.code()
    assert "limit=30" in code
    names: dict[str, Any] = {"lk": lk, "lm": planted}
    exec(code[code.index("audit = ") :], names)
    assert names["audit"].to_frame().equals(audit.to_frame())
    own = lk.audit(planted, audit.pairs[:3], progress=False)
    exec(own.code()[own.code().index("pairs = ") :], names)
    assert names["audit"].pairs == audit.pairs[:3]


def test_two_precisions_are_compared_on_the_same_pairs(lm4: lk.LanguageModel, lm32: lk.LanguageModel) -> None:
    audit = lk.audit([lm32, lm4], categories=["age"], limit=40, progress=False)
    assert audit.models == ["32-bit", "4-bit"]
    row = audit.difference().iloc[0]
    assert row.name == ("4-bit", "age")
    frame = audit.to_frame()["share"]
    assert row["difference"] == pytest.approx(frame["4-bit", "age"] - frame["32-bit", "age"])
    assert row["low"] <= row["difference"] <= row["high"]
    assert len(audit.figure().data) == 2
    assert "lm_2 = lk.load(" in audit.code()
    same = lk.audit([lm4, lm4], categories=["age"], limit=10, progress=False)
    assert same.models == ["1: 4-bit", "2: 4-bit"]
    assert same.difference().iloc[0][["difference", "p"]].tolist() == [0, 1]
    with pytest.raises(ValueError, match="needs two models"):
        lk.audit(lm4, categories=["age"], limit=2, progress=False).difference()


def test_models_are_named_by_what_tells_them_apart(lm4: lk.LanguageModel, planted: lk.LanguageModel) -> None:
    assert names_of([lm4]) == [lm4.name]
    assert names_of([lm4, planted]) == [lm4.name, planted.name]
    assert names_of([lm4, lm4, planted])[0] == f"1: {lm4.name}, 4-bit"


def test_words_of_several_tokens_and_other_tokenizers_are_noted(
    lm4: lk.LanguageModel, planted: lk.LanguageModel, tmp_path: Path
) -> None:
    rare = data(tmp_path, sets=[{"groups": GROUPS, "first": ["nurse", "florist"], "second": ["pilot", "sailor"]}])
    audit = lk.audit([planted, lm4], rare, progress=False)
    assert any("words are several tokens" in note and lm4.name in note for note in audit.notes)
    assert any("different tokenizers" in note for note in audit.notes)
    assert np.isfinite(audit.logprobs).all()


def test_whole_sentences_are_compared_by_byte_unless_asked_otherwise(lm4: lk.LanguageModel) -> None:
    pairs = [
        lk.MinimalPair("grammar", ("", "The dogs are here."), ("", "The dogs is here."), f"item {n}") for n in range(2)
    ]
    audit = lk.audit(lm4, pairs, progress=False)
    assert audit.normalise == "byte"
    by_hand = audit.logprobs[0] / [[18, 17], [18, 17]]
    np.testing.assert_allclose(audit.preferences[0], by_hand[:, 0] - by_hand[:, 1])
    assert lk.audit(lm4, pairs, normalise="sum", progress=False).preferences[0, 0] == pytest.approx(
        audit.logprobs[0, 0, 0] - audit.logprobs[0, 0, 1], abs=1e-4
    )


def test_ablated_heads_write_their_mean_and_only_they_do(lm32: lk.LanguageModel) -> None:
    text = "When Mary and John went to the store"
    mean = lm32.run(text, read=["z.3.2"])["z.3.2"][0, 1:].mean(0)
    written = lm32.run("Hello there", write={"z.3.2": mean}).logits
    with at_mean(lm32, [(3, 2)], text=text):
        seen = lm32.run("Hello there").logits
    assert torch.allclose(seen, written, atol=1e-4)
    assert not torch.allclose(seen, lm32.run("Hello there").logits, atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"categories": ["wealth"]}, "no category 'wealth'; the data have gender and occupation, names"),
        ({"categories": "age"}, r"such as \['age'\]"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"normalise": "word"}, "normalise must be one of sum, token, byte"),
        ({"data": "xx"}, "labkit's own are en, and of the published ones it reads crows_pairs"),
        ({"data": []}, "list of lk.MinimalPair"),
    ],
)
def test_what_cannot_be_audited_is_refused(lm4: lk.LanguageModel, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        lk.audit(lm4, progress=False, **settings)


def test_what_cannot_be_patched_or_ablated_is_refused(
    planted: lk.LanguageModel, lm4: lk.LanguageModel, tmp_path: Path
) -> None:
    audit = lk.audit(planted, data(tmp_path), limit=20, progress=False)
    with pytest.raises(ValueError, match="no category 'age'; the audit has work"):
        lk.audit_heads(planted, audit, "age")
    sentences = [lk.MinimalPair("one", ("", "The man"), ("", "The king"), "item 0")]
    with pytest.raises(ValueError, match="none of the pairs of 'one' can be patched"):
        lk.audit_heads(planted, lk.audit(planted, sentences, progress=False))
    with pytest.raises(ValueError, match="no heads to ablate"):
        lk.audit_without(planted, audit, [])
    for wrong in ({"controls": -1}, {"quality_limit": 0}):
        with pytest.raises(ValueError, match="controls must be 0 or more, and quality_limit at least 1; got"):
            lk.audit_without(planted, audit, [PLACE], **wrong)
    with pytest.raises(FileNotFoundError, match="no copy of BLiMP"):
        lk.audit_without(planted, audit, [PLACE], quality="blimp", data_dir=tmp_path)
    with pytest.raises(ValueError, match="categories is empty; leave it out for all, or name some of work"):
        lk.audit(planted, data(tmp_path), categories=[])
    with pytest.raises(ValueError, match=r"it is for lk\.benchmark\(lm, 'blimp'\)"):
        lk.audit(planted, "blimp")
    with pytest.raises(FileNotFoundError, match=r"BBQ is for lk\.audit\(lm, 'bbq'\)"):
        lk.benchmark(planted, "bbq")
    with pytest.raises(ValueError, match="head 9"):
        AblationJob(planted, audit, [(0, 9)])
    with pytest.raises(ValueError, match="no model"):
        lk.audit([])


def filled(groups: list[str], word: str) -> str:
    """A file with one pair of groups and one word."""
    sets = [{"groups": [groups], "first": [word], "second": ["nurse"]}]
    return json.dumps({"categories": {"a": {"templates": ["The {group} is"], "sets": sets}}})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "has no minimal pairs.*its form"),
        ("not json", "has no minimal pairs"),
        (json.dumps({"categories": {"a": {"templates": ["The man"], "sets": []}}}), "has no {group}"),
        (json.dumps({"categories": {"a": {"templates": ["The {group}"], "sets": []}}}), "no template, group or word"),
        (
            json.dumps({"categories": {"a": {"templates": ["{group} is {word}"], "sets": []}}}),
            "has the slot {word}; only",
        ),
        (filled(["a", "a"], "b"), "groups must differ"),
        (filled(["a", "c"], " "), "no group or word may be empty"),
    ],
)
def test_a_file_of_another_form_is_refused(lm4: lk.LanguageModel, tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        lk.audit(lm4, path)
    with pytest.raises(FileNotFoundError, match="no file"):
        lk.audit(lm4, tmp_path / "none.json")
