"""Published sets are read from the user's copy, in the form in which their makers publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import labkit as lk
from labkit.datasets.stereotypes import STEREOTYPES


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_DATA", raising=False)


def test_crows_pairs(tmp_path: Path, lm4: lk.LanguageModel) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "crows_pairs_anonymized.csv").write_text(
        ",sent_more,sent_less,stereo_antistereo,bias_type\n"
        '0,"Old people, they say, forget.","Young people, they say, forget.",stereo,age\n'
        "1,The poor waste money.,The rich waste money.,stereo,socioeconomic\n"
    )
    pairs = STEREOTYPES["crows_pairs"].pairs(tmp_path)
    assert [pair.category for pair in pairs] == ["age", "socioeconomic"]
    assert pairs[0].stereotype == ("", "Old people, they say, forget.")
    audit = lk.audit(lm4, "crows_pairs", data_dir=tmp_path, progress=False)
    assert audit.to_frame()["pairs"].tolist() == [1, 1]
    assert any("Blodgett" in note for note in audit.notes)


def test_winobias(tmp_path: Path) -> None:
    for side, word in (("pro", "she"), ("anti", "he")):
        (tmp_path / f"{side}_stereotyped_type1.txt.dev").write_text(
            f"1 [The nurse] met the pilot because [{word}] was early.\n2 [The cook] left.\n"
        )
    (pair,) = STEREOTYPES["winobias"].pairs(tmp_path)
    assert pair.category == "gender, type1"
    assert pair.stereotype == ("", "The nurse met the pilot because she was early.")
    assert pair.other == ("", "The nurse met the pilot because he was early.")


def test_stereoset(tmp_path: Path) -> None:
    sentences = [
        {"gold_label": label, "sentence": f"The student is {word}."}
        for label, word in (("unrelated", "green"), ("anti-stereotype", "rich"), ("stereotype", "poor"))
    ]
    item = {"id": "a1", "bias_type": "profession", "sentences": sentences}
    (tmp_path / "dev.json").write_text(json.dumps({"data": {"intrasentence": [item]}}))
    (pair,) = STEREOTYPES["stereoset"].pairs(tmp_path)
    assert (pair.stereotype[1], pair.other[1]) == ("The student is poor.", "The student is rich.")


def question(polarity: str, condition: str = "ambig", groups: tuple[str, ...] = ("old",)) -> dict[str, Any]:
    return {
        "category": "Age", "question_index": "1", "question_polarity": polarity, "context_condition": condition,
        "context": "A grandmother and a girl were at the desk.", "question": "Who was lost?",
        "ans0": "The girl", "ans1": "The grandmother", "ans2": "Cannot be known",
        "answer_info": {"ans0": ["girl", "nonOld"], "ans1": ["grandmother", "Old"], "ans2": ["none", "unknown"]},
        "additional_metadata": {"stereotyped_groups": list(groups)},
    }  # fmt: skip


def test_bbq(tmp_path: Path) -> None:
    items = [question("neg"), question("nonneg"), question("neg", "disambig"), question("neg", groups=("unclear",))]
    (tmp_path / "Age.jsonl").write_text("\n".join(map(json.dumps, items)))
    pairs = STEREOTYPES["bbq"].pairs(tmp_path)
    assert [(pair.stereotype[1], pair.other[1]) for pair in pairs] == [
        (" The grandmother", " The girl"),
        (" The girl", " The grandmother"),
    ]
    assert pairs[0].stereotype[0].endswith("Who was lost?\nAnswer:")


@pytest.mark.parametrize("name", STEREOTYPES)
def test_a_set_that_is_not_here_says_where_to_get_it_and_what_else_there_is(
    lm4: lk.LanguageModel, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder was given.*github.com/.*data='en'"):
        lk.audit(lm4, name)
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has no .*github.com/.*LABKIT_DATA"):
        lk.audit(lm4, name)
    path = tmp_path / STEREOTYPES[name].files.replace("?", "1").replace("*.jsonl", "a.jsonl").replace(
        "txt.*", "txt.dev"
    )
    path.write_text('{"another": "form"}\n')
    path.with_name(path.name.replace("pro_", "anti_")).write_text('{"another": "form"}\n')
    with pytest.raises(ValueError, match=r"form of|none of the pairs"):
        lk.audit(lm4, name)
