"""How open is a model? Dated facts with their sources, and the class that follows from them by rule.

The facts are in openness.json: for each licence its terms in plain words, sentence by sentence with the section that
says so; for each group of models (by the beginning of their ids) which of the 17 components of the Model Openness
Framework (White et al. 2024, arXiv:2403.13784) are released and how, what the Open Source Initiative and the European
Open Source AI Index found, and where the training data are described. What nobody found out is left out there, and is
"not known" here: nothing is taken to be closed because a source is silent.

The class is computed, by the rule of the Model Openness Tool that the authors of the framework maintain: a class asks
for its own components and those of the classes below it, each under an open licence; a research paper replaces the
technical report. Models in one group are taken to be alike. Entries of the Index (https://osai-index.eu, CC BY 4.0) are
counted as Liesenfeld and Dingemanse (2024, "Rethinking open source generative AI") define its aspects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from labkit.models.catalog import Source

DATA = Path(__file__).with_suffix(".json")

COMPONENTS = {
    "Model architecture": 3,
    "Data preprocessing code": 1,
    "Training code": 2,
    "Inference code": 2,
    "Evaluation code": 2,
    "Supporting libraries and tools": None,
    "Model parameters (final)": 3,
    "Model parameters (intermediate)": 1,
    "Datasets": 1,
    "Evaluation data": 2,
    "Model metadata": None,
    "Sample model outputs": None,
    "Model card": 3,
    "Data card": 3,
    "Technical report": 3,
    "Research paper": 1,
    "Evaluation results": 3,
}
"""The 17 components, each with the class that asks for it; None where no class does."""
CLASSES = {3: "Class III, Open Model", 2: "Class II, Open Tooling Model", 1: "Class I, Open Science Model"}
STATES = {
    "open": "released, open licence",
    "restricted": "released, licence not open or none stated",
    "released": "released, licence not read",
    "closed": "not released",
    "not known": "not known",
}
"""What a component can be, in words."""


@dataclass(frozen=True)
class Sentence:
    """A statement with its source; `section`: of the licence text, where it is about one."""

    says: str
    source: Source
    section: str = ""


@dataclass(frozen=True)
class Component:
    """One of the 17 components; `state` is a key of `STATES`, `source` None where that is "not known"."""

    name: str
    state: str
    licence: str | None
    source: Source | None


@dataclass(frozen=True)
class MofClass:
    """A class of the Model Openness Framework.

    Attributes:
        reached: 3, 2, 1 (the most open) or None.
        certain: whether something that the next class asks for is known not to be open; False where all may be unknown.
        lacking: the components of the next class that are not known to be open.
    """

    reached: int | None
    certain: bool
    lacking: tuple[str, ...]

    def __str__(self) -> str:
        if self.reached:
            return CLASSES[self.reached]
        return "none of the three" if self.certain else "not known"


def mof_class(states: Mapping[str, str]) -> MofClass:
    """The class that components reach.

    Args:
        states: of the components, by name; those left out are not known.

    Raises:
        ValueError: a name or a state that there is not.
    """
    for name, state in states.items():
        if name not in COMPONENTS:
            raise ValueError(f"no component {name!r}; the 17 are {', '.join(COMPONENTS)}")
        if state not in STATES:
            raise ValueError(f"{name} is {state!r}; a component is {', '.join(STATES)}")
    known = {name: states.get(name, "not known") for name in COMPONENTS}
    if known["Research paper"] == "open":
        known["Technical report"] = "open"
    reached = None
    for level in CLASSES:
        lacking = tuple(name for name, asked in COMPONENTS.items() if asked == level and known[name] != "open")
        if lacking:
            certain = any(known[name] in ("restricted", "closed") and not _replaceable(name, known) for name in lacking)
            return MofClass(reached, certain, lacking)
        reached = level
    return MofClass(reached, True, ())


def _replaceable(name: str, known: Mapping[str, str]) -> bool:
    """Whether a technical report that is not open may be replaced by a paper of which we do not know."""
    return name == "Technical report" and known["Research paper"] in ("not known", "released")


@dataclass(frozen=True)
class Openness:
    """What is known of a model's group.

    Attributes:
        group: its name, None if nothing is known.
        components: all 17.
        osi: what the Open Source Initiative published.
        index: the entry in the European Open Source AI Index.
        data: where the training data are described.
        terms: what comes on top of the licence.
        cite: a BibTeX entry.
    """

    group: str | None
    components: tuple[Component, ...]
    osi: Sentence | None
    index: Sentence | None
    data: Sentence | None
    terms: tuple[Sentence, ...]
    cite: str | None

    @property
    def mof(self) -> MofClass:
        return mof_class({one.name: one.state for one in self.components})


def openness(id: str) -> Openness:
    """What is known of the group that a hub id belongs to: the one with the longest beginning that fits."""
    data = _data()
    starts = [(start, name) for name, group in data["groups"].items() for start in group["covers"]]
    name = max((len(start), name) for start, name in [("", ""), *starts] if id.startswith(start))[1] or None
    group = data["groups"].get(name, {})
    parts = {part: (state, licence, source(key)) for part, (state, licence, key) in group.get("components", {}).items()}
    components = tuple(Component(part, *parts.get(part, ("not known", None, None))) for part in COMPONENTS)
    entry = group.get("index")
    return Openness(
        name,
        components,
        _sentence(group.get("osi")),
        _sentence(entry and {"says": _in_the_index(entry), "source": entry["source"]}),
        _sentence(group.get("data")),
        tuple(_some_sentence(told) for told in group.get("terms", ())),
        group.get("cite"),
    )


def terms(licence: str) -> tuple[Sentence, ...]:
    """The terms of a licence of the catalog, in plain words."""
    return tuple(_some_sentence(told) for told in _data()["licences"].get(licence, ()))


def source(key: str) -> Source:
    """A source of openness.json."""
    return Source(**_data()["sources"][key])


def _in_the_index(entry: dict[str, Any]) -> str:
    counts = ", ".join(f"{entry[state]} {state}" for state in ("open", "partial", "closed"))
    total = sum(entry[state] for state in ("open", "partial", "closed"))
    return f"{entry['model']}: of {total} aspects {counts}"


def _sentence(told: dict[str, str] | None) -> Sentence | None:
    return _some_sentence(told) if told else None


def _some_sentence(told: dict[str, str]) -> Sentence:
    return Sentence(told["says"], source(told["source"]), told.get("section", ""))


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    return json.loads(DATA.read_text())
