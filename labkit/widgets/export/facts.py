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

_ELHAGE = "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits"
_VIG = "Vig et al. 2020, Causal Mediation Analysis for Interpreting Neural NLP: The Case of Gender Bias"
_WANG = "Wang et al. 2022, Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small"
_PATCHING = (_VIG, "Meng et al. 2022, Locating and Editing Factual Associations in GPT", _WANG)
_ATTENTION = (_ELHAGE, "Olsson et al. 2022, In-context Learning and Induction Heads")
_LENS = ("nostalgebraist 2020, interpreting GPT: the logit lens",)
_EDGES = (
    "Syed et al. 2023, Attribution Patching Outperforms Automated Circuit Discovery",
    "Hanna et al. 2024, Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms",
)
_STEERING = (
    "Turner et al. 2023, Steering Language Models With Activation Engineering",
    "Rimsky et al. 2024, Steering Llama 2 via Contrastive Activation Addition",
)
PAPERS: dict[str, tuple[str, ...]] = {
    "PatchLab": _PATCHING, "PatchGrid": _PATCHING, "Sweep": _PATCHING, "Controls": _PATCHING, "PathGrid": (_WANG,),
    "QuantLab": (*_PATCHING, "Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs"),
    "AttentionView": _ATTENTION, "AttentionPatterns": _ATTENTION, "HeadCircuit": (_ELHAGE,), "HeadCircuits": (_ELHAGE,),
    "LensView": (*_LENS, _ELHAGE), "LogitLens": _LENS, "DirectAttribution": (_ELHAGE, _WANG),
    "CircuitView": _EDGES, "Circuit": _EDGES, "EdgeScores": _EDGES,
    "SteerLab": _STEERING, "SteeringSearch": _STEERING, "AuditHeads": (_VIG,),
    "Refusal": ("Arditi et al. 2024, Refusal in Language Models Is Mediated by a Single Direction",),
    "Memorisation": ("Carlini et al. 2023, Quantifying Memorization Across Neural Language Models",),
    "Patchscope": ("Ghandeharioun et al. 2024, Patchscopes: A Unifying Framework for Inspecting Hidden "
                   "Representations of Language Models",),
}  # fmt: skip
"""The papers of the methods, by the class of the result or the tool, as the docstrings name them."""
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
