"""Minimal pairs for an audit: two texts that differ in who is spoken of, one of which a stereotype would prefer.

labkit's own pairs come from templates, in a JSON file per language: a template names a group (`The {group} works as
a`), and a word follows (` nurse`). The same word is scored after both groups, so how common the word is cancels. Half
of the words are stereotyped of the first group and half of the second, so how common the groups are cancels, too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWN = Path(__file__).parent
FORM = '{"categories": {name: {"templates": ["The {group} works as a", ...], "sets": [{"groups": [[a, b], ...], \
"first": [words stereotyped of a], "second": [of b]}]}}}'


@dataclass(frozen=True)
class MinimalPair:
    """Two texts of which a stereotype would prefer the first.

    Attributes:
        category: what the stereotype is about.
        stereotype, other: (context, continuation) each. What is scored is the continuation, given the context; a
            context may be empty, and then the whole sentence is scored.
        template, word, group: what the pair was made of, which intervals resample; of a single sentence, its number.
        first: the stereotype is of the first of the two groups.
    """

    category: str
    stereotype: tuple[str, str]
    other: tuple[str, str]
    template: str
    word: str = ""
    group: str = ""
    first: bool = True


def own_pairs(language: str = "en") -> list[MinimalPair]:
    """labkit's own pairs in a language.

    Raises:
        ValueError: there are none in that language.
    """
    path = OWN / f"minimal_pairs_{language}.json"
    if not language.isalpha() or not path.exists():
        known = ", ".join(sorted(p.stem.removeprefix("minimal_pairs_") for p in OWN.glob("minimal_pairs_*.json")))
        raise ValueError(
            f"there is no set of pairs {language!r}: labkit's own are {known}, and of the published ones it reads "
            f"crows_pairs, winobias, stereoset and bbq; or give a JSON file of your own: {FORM}"
        )
    return pairs_from(path)


def reworded(category: str, template: str, *, language: str = "en") -> list[MinimalPair]:
    """The groups and words of one of labkit's own categories, in another template.

    Raises:
        KeyError: there is no such category.
        ValueError: the template names no group.
    """
    made = json.loads((OWN / f"minimal_pairs_{language}.json").read_text("utf-8"))["categories"][category]
    return list(_filled(category, made | {"templates": [template]}))


def pairs_from(path: str | os.PathLike[str]) -> list[MinimalPair]:
    """The pairs of a file of templates and words.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        categories = json.loads(path.read_text("utf-8"))["categories"]
        pairs = [pair for name, made in categories.items() for pair in _filled(name, made)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} has no minimal pairs ({type(error).__name__}: {error}); its form: {FORM}"
        ) from None
    if not pairs:
        raise ValueError(f"{str(path)!r} has no minimal pairs: no template, group or word is in it")
    return pairs


def _filled(category: str, made: dict[str, Any]) -> Iterator[MinimalPair]:
    templates: Sequence[str] = made["templates"]
    for template in templates:
        if "{group}" not in template:
            raise ValueError(f"the template {template!r} has no {{group}}")
        if left := re.findall(r"\{\w*\}", template.replace("{group}", "")):
            raise ValueError(
                f"the template {template!r} has the slot {left[0]}; only {{group}} is filled, a word follows"
            )
        for words in made["sets"]:
            for a, b in words["groups"]:
                if a == b or not all(text.strip() for text in (a, b, *words["first"], *words["second"])):
                    raise ValueError(f"groups must differ, and no group or word may be empty: {a!r}, {b!r}")
                for word, first in [(w, True) for w in words["first"]] + [(w, False) for w in words["second"]]:
                    text = f" {word}"
                    sides = [(template.replace("{group}", group), text) for group in ((a, b) if first else (b, a))]
                    yield MinimalPair(category, sides[0], sides[1], template, word, f"{a} | {b}", first)
