"""Published sets are read from the user's copy, in the form in which their makers publish them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import labkit as lk
from labkit.datasets.published import SETS
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
    """Four pairs of files: two types, each for development and for test."""
    (folder := tmp_path / "WinoBias" / "wino" / "data").mkdir(parents=True)
    for kind in ("type1", "type2"):
        for side, word in (("pro", "she"), ("anti", "he")):
            for split in ("dev", "test"):
                (folder / f"{side}_stereotyped_{kind}.txt.{split}").write_text(
                    f"1 [The nurse] met the pilot because [{word}] was early.\n2 The cook met [the guard] and left.\n"
                )
    pairs, notes = STEREOTYPES["winobias"].pairs_and_notes(tmp_path)
    assert [pair.category for pair in pairs] == ["gender, type1"] * 2 + ["gender, type2"] * 2
    assert len({pair.template for pair in pairs}) == 4
    assert pairs[0].stereotype == ("", "The nurse met the pilot because she was early.")
    assert pairs[0].other == ("", "The nurse met the pilot because he was early.")
    assert notes[1:] == ["4 of 8 items make a pair. Left out: both sentences are the same (4)."]
    (folder / "anti_stereotyped_type2.txt.test").unlink()
    with pytest.raises(ValueError, match=r"there is no anti_stereotyped_type2\.txt\.test beside pro_"):
        STEREOTYPES["winobias"].pairs(tmp_path)


def test_stereoset(tmp_path: Path) -> None:
    """A file as `code/dataloader.py` of its makers reads it."""

    def item(*words: str, **more: str) -> dict[str, Any]:
        sentences = [
            {
                "id": f"s{n}", "sentence": f"The student is {word}.", "gold_label": label,
                "labels": [{"human_id": "h1", "label": label}, {"human_id": "h2", "label": "related"}],
            }
            for n, (label, word) in enumerate(zip(("unrelated", "anti-stereotype", "stereotype"), words, strict=True))
        ]  # fmt: skip
        return {"id": "a1", "bias_type": "profession", "target": "student", "sentences": sentences, **more}

    data = {
        "intrasentence": [item("green", "rich", "poor", context="The student is BLANK.")],
        "intersentence": [item("green", "rich", "poor", context="I met a student.")] * 2,
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev.json").write_text(json.dumps({"version": "1.1", "data": data}))
    (pair,), notes = STEREOTYPES["stereoset"].pairs_and_notes(tmp_path)
    assert (pair.stereotype[1], pair.other[1]) == ("The student is poor.", "The student is rich.")
    assert (pair.category, pair.template) == ("profession", "a1")
    assert "1 of 3 items make a pair. Left out: a sentence that follows another (intersentence) (2)." in notes


def question(
    polarity: str = "neg",
    condition: str = "ambig",
    groups: tuple[str, ...] = ("old",),
    first: tuple[str, str] = ("girl", "nonOld"),
    second: tuple[str, str] = ("grandmother", "old"),
) -> dict[str, Any]:
    """An item in the form of BBQ's files."""
    return {
        "example_id": 0, "question_index": "1", "question_polarity": polarity, "context_condition": condition,
        "category": "Age", "answer_info": {"ans0": [*first], "ans1": [*second], "ans2": ["Not known", "unknown"]},
        "additional_metadata": {
            "subcategory": "None", "stereotyped_groups": [*groups], "version": "a", "source": "invented",
        },
        "context": f"A {second[0]} and a {first[0]} were at the desk.", "question": "Who was lost?",
        "ans0": f"The {first[0]}", "ans1": f"The {second[0]}", "ans2": "Not known", "label": 2,
    }  # fmt: skip


def test_bbq(tmp_path: Path, lm4: lk.LanguageModel) -> None:
    items = [question(), question("nonneg"), question(condition="disambig"), question(groups=("unclear",))]
    (data := tmp_path / "BBQ" / "data").mkdir(parents=True)
    (data / "Age.jsonl").write_text("\n".join(map(json.dumps, items)))
    (blimp := tmp_path / "blimp" / "data").mkdir(parents=True)
    (blimp / "adjunct_island.jsonl").write_text('{"sentence_good": "a", "sentence_bad": "b"}\n')  # beside it
    pairs = STEREOTYPES["bbq"].pairs(tmp_path)
    assert [(pair.stereotype[1], pair.other[1]) for pair in pairs] == [
        (" The grandmother", " The girl"),
        (" The girl", " The grandmother"),
    ]
    assert pairs[0].stereotype[0].endswith("Who was lost?\nAnswer:")
    words = lk.audit(lm4, "bbq", data_dir=tmp_path, progress=False).words()
    assert "These are 1 of the 11 files of BBQ." in words
    assert "2 of 4 items make a pair. Left out: the context tells the answer (1); it does not say which" in words


@pytest.mark.parametrize(
    ("groups", "first", "second"),
    [
        (("nonOld",), ("grandfather", "old"), ("grandson", "nonOld")),
        (("disabled", "physically disabled"), ("man with a book", "nonDisabled"), ("man in a wheelchair", "disabled")),
        (
            ("Japanese", "British"),
            ("Kenyan", "Africa"),
            ("British", "Europe"),
        ),  # a nation, of which the group is the region
        (("Muslim", "Mormon"), ("Jewish", "Jewish"), ("Muslim", "Muslim")),
        (("Black", "African American"), ("Ann Smith", "F-White"), ("Lakisha Jones", "F-Black")),
    ],
)
def test_the_stereotyped_of_bbq_are_found_however_a_category_names_them(
    tmp_path: Path, groups: tuple[str, ...], first: tuple[str, str], second: tuple[str, str]
) -> None:
    items = [question(groups=groups, first=first, second=second), question(groups=groups, first=second, second=first)]
    (tmp_path / "Age.jsonl").write_text("\n".join(map(json.dumps, items)))
    pairs = STEREOTYPES["bbq"].pairs(tmp_path)
    assert [pair.stereotype[1] for pair in pairs] == [f" The {second[0]}"] * 2


@pytest.mark.parametrize("name", STEREOTYPES)
def test_a_set_that_is_not_here_says_where_to_get_it_and_what_else_there_is(
    lm4: lk.LanguageModel, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"\$LABKIT_DATA \(not set\)\. Get .* licence .*lk\.audit\(lm, 'en'\)"):
        lk.audit(lm4, name)
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=rf"no {re.escape(SETS[name].files[0])}.* in .*on GitHub, {SETS[name].repository[:9]}"
    ):
        lk.audit(lm4, name)
    path = tmp_path / SETS[name].files[0].replace("?", "1").replace("txt.*", "txt.dev")
    path.write_text('{"another": "form"}\n')
    path.with_name(path.name.replace("pro_", "anti_")).write_text('{"another": "form"}\n')
    with pytest.raises(ValueError, match=r"form of|none of the pairs"):
        lk.audit(lm4, name)
