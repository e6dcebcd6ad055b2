"""Circuits: from one head's output to the edges that do a task."""

from __future__ import annotations

from typing import Any

from labkit.circuits.circuit import Circuit
from labkit.course.checks import CLEAN, CORRUPT, Verdict, a_head, exercise, once
from labkit.language_model import LanguageModel
from labkit.patching.paths import path_patch

FRESH = [  # pairs that the notebook does not use
    (
        "When David and Emma went to the office, Emma gave a letter to",
        "When David and Emma went to the office, David gave a letter to",
        " David",
        " Emma",
    ),
    (
        "When Peter and Lisa went to the house, Lisa gave a present to",
        "When Peter and Lisa went to the house, Peter gave a present to",
        " Peter",
        " Lisa",
    ),
]


@once
def _moved(lm: LanguageModel) -> dict[str, float]:
    """By which input, how far the strongest sender to it moves the answer."""
    moved = {}
    for kind, head in (("q", 3), ("k", 1), ("v", 1)):
        paths = path_patch(
            lm, CLEAN, CORRUPT, " Mary", " John", receiver=f"{kind}.23.{head}", senders="mlp_out", progress=False
        )
        moved[kind] = float(abs(paths.normalized).max())
    return moved


@exercise("05.1", "a layer and a head, such as (3, 1)")
def _a_head_that_speaks_against(answer: Any, lm: LanguageModel) -> Verdict:
    layer, head = a_head(answer, lm)
    path = path_patch(lm, CLEAN, CORRUPT, " Mary", " John", senders=[f"z.{layer}.{head}"], progress=False)
    effect = float(path.normalized[0, head])
    if effect < -0.1:
        return Verdict(True, f"Its clean output alone moves the answer {-effect:.0%} of the way backwards.")
    said = f"Its clean output moves the answer by {effect:+.2f}"
    said += ", towards Mary." if effect > 0.1 else ", which is less than a tenth."
    return Verdict(False, said + " Look for the smallest number in direct.normalized.")


@exercise("05.2", "'q', 'k' or 'v'")
def _which_input_matters(answer: Any, lm: LanguageModel) -> Verdict:
    kind = answer.lower().partition(".")[0]
    kind = {"queries": "q", "keys": "k", "values": "v"}.get(kind, kind)
    if kind not in ("q", "k", "v"):
        raise TypeError("that is no input")
    moved = _moved(lm)
    if moved[kind] == max(moved.values()):
        return Verdict(True, f"The strongest sender to its {kind} moves the answer by {moved[kind]:.2f}.")
    return Verdict(False, f"No sender to its {kind} moves the answer by more than {moved[kind]:.2f}. Try the others.")


@exercise("05.3", "a circuit, such as edges.circuit(500)")
def _a_circuit_that_holds_elsewhere(answer: Any, lm: LanguageModel) -> Verdict:
    if not isinstance(answer, Circuit):
        raise TypeError("that is no circuit")
    every = int(answer.wiring.exists.sum())
    if answer.n_edges > 0.025 * every:
        return Verdict(False, f"It has {answer.n_edges} edges, {answer.n_edges / every:.1%} of all; use at most 2.5%.")
    value = answer.faithfulness(lm, FRESH).value
    said = f"On two held-out pairs its faithfulness is {value:.2f}."
    return Verdict(value >= 0.6, said + ("" if value >= 0.6 else " Use more edges to reach 0.6."))
