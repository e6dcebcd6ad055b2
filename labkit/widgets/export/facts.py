"""What an exported page says of its origin: the model, its licence, the recipe, and how to cite all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from labkit._version import __version__
from labkit.models.card import card
from labkit.models.catalog import known

NOT_KNOWN = "not in labkit's catalog: look at the model's own page"
CITE_LABKIT = (
    f"@software{{labkit,\n  title = {{labkit}},\n  author = {{{{The labkit authors}}}},\n  "
    f"version = {{{__version__}}},\n"
    "  license = {Apache-2.0}\n}"
)


@dataclass(frozen=True)
class Facts:
    """What stands at the end of a page: (name, value) pairs, the recipe as data, BibTeX entries and papers."""

    pairs: tuple[tuple[str, str], ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    citations: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()


def today() -> str:
    return date.today().isoformat()


def facts_of(recipe: Mapping[str, Any], *, papers: tuple[str, ...] = ()) -> Facts:
    """The facts that a recipe leads to; `recipe` is as `labkit.results.recipe.made_with` begins one."""
    name = str(recipe.get("model") or "")
    pairs, citations = [("labkit", __version__)], [CITE_LABKIT]
    if name:
        bits = f", {recipe['bits']}-bit" if recipe.get("bits") else ""
        pairs.insert(0, ("Model", f"{name}{bits}"))
        pairs.insert(1, ("Revision", str(recipe.get("revision") or "not known: a local model")))
        pairs.insert(2, ("Licence of the model", licence_of(name)))
        citations += entry_of(name)
    return Facts(tuple(pairs), recipe, tuple(citations), papers)


def licence_of(name: str) -> str:
    """The licence of a model of the catalog, by its name."""
    try:
        model = known(name)
    except ValueError:
        return NOT_KNOWN
    return f"{model.licence}{f', {model.also}' if model.also else ''} ({model.licence_url})"


def entry_of(name: str) -> list[str]:
    """The BibTeX of a model of the catalog, if it is one."""
    try:
        sections = card(name).sections()
    except ValueError:
        return []
    return [one.verbatim for one in sections if one.verbatim]


def as_json(recipe: Mapping[str, Any]) -> str:
    """A recipe as people read it."""
    return json.dumps(recipe, indent=2, ensure_ascii=False, default=str)
