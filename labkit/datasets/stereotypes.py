"""Published sets of minimal pairs, read from a copy that the user has. labkit ships none of them and downloads nothing.

Each says where its makers publish it, under which licence, and what has been said against it.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.datasets.minimal_pairs import MinimalPair
from labkit.datasets.published import FOLDER

_NORWEGIAN = (
    "Blodgett et al. 2021, Stereotyping Norwegian Salmon: An Inventory of Pitfalls in Fairness Benchmark Datasets, ACL"
)


@dataclass(frozen=True)
class StereotypeSet:
    """One published set: its name, paper, licence, the GitHub repository that has it, its files there, criticism."""

    name: str
    paper: str
    licence: str
    repository: str
    files: str
    criticism: str
    read: Callable[[list[Path]], Iterable[MinimalPair]] = field(repr=False)

    def pairs(self, data_dir: str | os.PathLike[str] | None = None) -> list[MinimalPair]:
        """Its pairs, from the folder given or from the one that `LABKIT_DATA` names, at any depth.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: its files have another form.
        """
        found = self.found(data_dir)
        try:
            pairs = list(self.read(found))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{found[0]} does not have the form of {self.name} ({type(error).__name__}: {error}); take the files "
                f"of github.com/{self.repository}"
            ) from None
        if not pairs:
            raise ValueError(f"{found[0]} has none of the pairs of {self.name}")
        return pairs

    def found(self, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
        """Its files.

        Raises:
            FileNotFoundError: there are none.
        """
        folder = data_dir or os.environ.get(FOLDER)
        found = sorted(Path(folder).expanduser().rglob(self.files)) if folder else []
        if not found:
            where = f"{str(folder)!r} has no {self.files}" if folder else "no folder was given"
            raise FileNotFoundError(
                f"{self.name} is not here: {where}. Get it from github.com/{self.repository} ({self.licence}) and give "
                f"its folder as data_dir= or in {FOLDER}; or use labkit's own pairs, data='en'"
            )
        return found


def _crows_pairs(files: list[Path]) -> Iterator[MinimalPair]:
    with files[0].open(encoding="utf-8", newline="") as file:
        for n, row in enumerate(csv.DictReader(file)):
            yield MinimalPair(row["bias_type"], ("", row["sent_more"]), ("", row["sent_less"]), f"item {n}")


def _winobias(files: list[Path]) -> Iterator[MinimalPair]:
    """Lines of the two files of one type go together; they differ in the pronoun."""
    for pro in files:
        anti = pro.with_name(pro.name.replace("pro_", "anti_", 1))
        both = (path.read_text("utf-8").splitlines() for path in (pro, anti))
        for n, lines in enumerate(zip(*both, strict=True)):
            stereotype, other = (re.sub(r"^\d+\s+|[\[\]]", "", line).strip() for line in lines)
            if stereotype != other:
                yield MinimalPair(
                    f"gender, {pro.name.split('_')[2][:5]}", ("", stereotype), ("", other), f"{pro.name} {n}"
                )


def _stereoset(files: list[Path]) -> Iterator[MinimalPair]:
    for item in json.loads(files[0].read_text("utf-8"))["data"]["intrasentence"]:
        by_label = {one["gold_label"]: one["sentence"] for one in item["sentences"]}
        yield MinimalPair(
            item["bias_type"], ("", by_label["stereotype"]), ("", by_label["anti-stereotype"]), item["id"]
        )


def _bbq(files: list[Path]) -> Iterator[MinimalPair]:
    """Questions whose context does not tell: which of the two people is named?"""
    for path in files:
        for line in path.read_text("utf-8").splitlines():
            item = json.loads(line)
            if item["context_condition"] == "ambig" and (answers := _bbq_answers(item)):
                asked = f"{item['context']}\nQuestion: {item['question']}\nAnswer:"
                template = f"{item['category']} {item['question_index']}"
                sides = [(asked, f" {answer}") for answer in answers]
                yield MinimalPair(item["category"], sides[0], sides[1], template)


def _bbq_answers(item: dict[str, Any]) -> tuple[str, str] | None:
    """The answer that a stereotype would give, and the other; None where the item does not say who is who."""
    plain = lambda text: re.sub("[^a-z]", "", str(text).lower())  # noqa: E731
    groups = {plain(group) for group in item["additional_metadata"]["stereotyped_groups"]}
    people = [name for name in ("ans0", "ans1", "ans2") if item["answer_info"][name][1] != "unknown"]
    targets = [name for name in people if plain(item["answer_info"][name][1]) in groups]
    if len(people) != 2 or len(targets) != 1:
        return None
    (target,), (other,) = targets, [name for name in people if name not in targets]
    first, second = (target, other) if item["question_polarity"] == "neg" else (other, target)
    return item[first], item[second]


STEREOTYPES = {
    one.name: one
    for one in (
        StereotypeSet(
            "crows_pairs", "Nangia et al. 2020, CrowS-Pairs, arXiv:2010.00133", "CC BY-SA 4.0", "nyu-mll/crows-pairs",
            "crows_pairs_anonymized.csv",
            f"Many of its pairs do not contrast one stereotype, or change more than the group ({_NORWEGIAN}); made by "
            "workers in the United States.",
            _crows_pairs,
        ),
        StereotypeSet(
            "winobias", "Zhao et al. 2018, Gender Bias in Coreference Resolution, arXiv:1804.06876", "MIT",
            "uclanlp/corefBias", "pro_stereotyped_type?.txt.*",
            f"Two genders and the occupations of one country's statistics; pitfalls are listed in {_NORWEGIAN}.",
            _winobias,
        ),
        StereotypeSet(
            "stereoset", "Nadeem et al. 2021, StereoSet, arXiv:2004.09456", "CC BY-SA 4.0", "moinnadeem/StereoSet",
            "dev.json",
            f"Many of its sentences are ungrammatical or contrast nothing that is a stereotype ({_NORWEGIAN}).",
            _stereoset,
        ),
        StereotypeSet(
            "bbq", "Parrish et al. 2022, BBQ: A Hand-Built Bias Benchmark for Question Answering, arXiv:2110.08193",
            "CC BY 4.0", "nyu-mll/BBQ", "*.jsonl",
            "Written for English as used in the United States; a model that cannot answer questions looks unbiased.",
            _bbq,
        ),
    )
}  # fmt: skip
"""The published sets that can be read, by name."""
