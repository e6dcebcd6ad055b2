"""Published sets of minimal pairs, read from a copy that the user has. labkit ships none of them and downloads nothing.

Each says what has been said against it; `labkit.datasets.published` says where and under which licence it is published.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.datasets.minimal_pairs import MinimalPair
from labkit.datasets.published import SETS, find_copy

_NORWEGIAN = (
    "Blodgett et al. 2021, Stereotyping Norwegian Salmon: An Inventory of Pitfalls in Fairness Benchmark Datasets, ACL"
)


Found = Iterator["MinimalPair | str"]
"""What a reader gives for each item: its pair, or why it is left out."""


@dataclass(frozen=True)
class StereotypeSet:
    """One of `labkit.datasets.published.SETS` as minimal pairs: its name, paper, and what has been said against it."""

    name: str
    paper: str
    criticism: str
    read: Callable[[list[Path]], Found] = field(repr=False)

    def pairs(self, data_dir: str | os.PathLike[str] | None = None) -> list[MinimalPair]:
        """Its pairs, from the folder given or from the one that `LABKIT_DATA` names, or a folder in it.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: its files have another form.
        """
        return self.pairs_and_notes(data_dir)[0]

    def pairs_and_notes(self, data_dir: str | os.PathLike[str] | None = None) -> tuple[list[MinimalPair], list[str]]:
        """Its pairs, and what has to be known of them: source, criticism, what is left out. Raises as `pairs`."""
        found = find_copy(self.name, data_dir=data_dir, instead="lk.audit(lm, 'en')")
        wanted = SETS[self.name]
        pairs, omitted = [], Counter[str]()
        try:
            for one in self.read(found):
                if isinstance(one, str):
                    omitted[one] += 1
                else:
                    pairs.append(one)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{found[0]} does not have the form of {wanted.title} ({type(error).__name__}: {error}); take the "
                f"files of {wanted.repository} on GitHub"
            ) from None
        if not pairs:
            raise ValueError(
                f"{found[0]} has none of the pairs of {wanted.title}; take the files of {wanted.repository} on GitHub"
            )
        notes = [f"{self.paper}. What is known against it: {self.criticism}"]
        if len(found) < wanted.units:
            notes.append(f"These are {len(found)} of the {wanted.units} files of {wanted.title}.")
        if omitted:
            left = "; ".join(f"{reason} ({count:,})" for reason, count in omitted.items())
            notes.append(f"{len(pairs):,} of {len(pairs) + omitted.total():,} items make a pair. Left out: {left}.")
        return pairs, notes


def _crows_pairs(files: list[Path]) -> Found:
    with files[0].open(encoding="utf-8", newline="") as file:
        for n, row in enumerate(csv.DictReader(file)):
            yield MinimalPair(row["bias_type"], ("", row["sent_more"]), ("", row["sent_less"]), f"item {n}")


def _winobias(files: list[Path]) -> Found:
    """Lines of the two files of one type go together; they differ in the pronoun."""
    for pro in files:
        anti = pro.with_name(pro.name.replace("pro_", "anti_", 1))
        if not anti.exists():
            raise ValueError(f"there is no {anti.name} beside {pro.name}")
        both = (path.read_text("utf-8").splitlines() for path in (pro, anti))
        for n, lines in enumerate(zip(*both, strict=True)):
            stereotype, other = (re.sub(r"^\d+\s+|[\[\]]", "", line).strip() for line in lines)
            if stereotype == other:
                yield "both sentences are the same"
            else:
                kind = f"gender, {pro.name.split('_')[2][:5]}"
                yield MinimalPair(kind, ("", stereotype), ("", other), f"{pro.name} {n}")


def _stereoset(files: list[Path]) -> Found:
    data = json.loads(files[0].read_text("utf-8"))["data"]
    for item in data["intrasentence"]:
        by_label = {one["gold_label"]: one["sentence"] for one in item["sentences"]}
        sides = [("", by_label[label]) for label in ("stereotype", "anti-stereotype")]
        if sides[0] == sides[1]:
            yield "both sentences are the same"
        else:
            yield MinimalPair(item["bias_type"], sides[0], sides[1], item["id"])
    for _ in data.get("intersentence", ()):
        yield "a sentence that follows another (intersentence)"


def _bbq(files: list[Path]) -> Found:
    """Questions whose context does not tell: which of the two people is named?"""
    for path in files:
        for line in path.read_text("utf-8").splitlines():
            item = json.loads(line)
            if item["context_condition"] != "ambig":
                yield "the context tells the answer"
            elif (answers := _bbq_answers(item)) is None:
                yield "it does not say which of the two people the stereotype is about"
            else:
                asked = f"{item['context']}\nQuestion: {item['question']}\nAnswer:"
                template = f"{item['category']} {item['question_index']}"
                sides = [(asked, f" {answer}") for answer in answers]
                yield MinimalPair(item["category"], sides[0], sides[1], template)


def _bbq_answers(item: dict[str, Any]) -> tuple[str, str] | None:
    """The answer that a stereotype would give, and the other; None where the item does not say who is who.

    A stereotyped group is named as the answer's group is (`old`), as the answer itself where that is a nationality
    (`British`, whose group is `Europe`), or as what follows the gender of a name (`F-Black`).
    """
    plain = lambda text: re.sub("[^a-z]", "", str(text).lower())  # noqa: E731
    groups = {plain(group) for group in item["additional_metadata"]["stereotyped_groups"]}
    info = {name: item["answer_info"][name] for name in ("ans0", "ans1", "ans2")}
    people = [name for name, (_, group) in info.items() if group != "unknown"]
    said = {name: {plain(text) for text in (*info[name], re.sub("^[FM]-", "", info[name][1]))} for name in people}
    targets = [name for name in people if said[name] & groups]
    if len(people) != 2 or len(targets) != 1:
        return None
    (target,), (other,) = targets, [name for name in people if name not in targets]
    first, second = (target, other) if item["question_polarity"] == "neg" else (other, target)
    return item[first], item[second]


STEREOTYPES = {
    one.name: one
    for one in (
        StereotypeSet(
            "crows_pairs", "Nangia et al. 2020, CrowS-Pairs, arXiv:2010.00133",
            f"Many of its pairs do not contrast one stereotype, or change more than the group ({_NORWEGIAN}); made by "
            "workers in the United States.",
            _crows_pairs,
        ),
        StereotypeSet(
            "winobias", "Zhao et al. 2018, Gender Bias in Coreference Resolution, arXiv:1804.06876",
            f"Two genders and the occupations of one country's statistics; pitfalls are listed in {_NORWEGIAN}.",
            _winobias,
        ),
        StereotypeSet(
            "stereoset", "Nadeem et al. 2021, StereoSet, arXiv:2004.09456",
            f"Many of its sentences are ungrammatical or contrast nothing that is a stereotype ({_NORWEGIAN}).",
            _stereoset,
        ),
        StereotypeSet(
            "bbq", "Parrish et al. 2022, BBQ: A Hand-Built Bias Benchmark for Question Answering, arXiv:2110.08193",
            "Written for English as used in the United States; a model that cannot answer questions looks unbiased.",
            _bbq,
        ),
    )
}  # fmt: skip
"""The published sets that can be read, by name."""
