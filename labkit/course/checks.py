"""What an exercise is, and how an answer is checked.

An exercise is a function from (answer, lm) to a `Verdict`. A wrong answer gets a reason, not the solution. Each
notebook's exercises are in a module of their own beside this one, imported when one is first checked.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.course.progress import note

if TYPE_CHECKING:
    from labkit.language_model import LanguageModel


class Verdict(NamedTuple):
    right: bool
    why: str


Exercise = Callable[[Any, "LanguageModel"], Verdict]
EXERCISES: dict[str, Exercise] = {}
NOTEBOOKS = (
    "start_here",
    "prompting",
    "lens",
    "attention",
    "activation_patching",
    "circuits",
    "steering",
    "four_bits",
    "open_models",
    "scrutiny",
    "scaling_out",
    "thinking_models",
)
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"


def check(name: str, answer: Any, lm: LanguageModel) -> None:
    """Print whether an answer to an exercise is right, and why; note it in the file of one's progress.

    Raises:
        ValueError: there is no such exercise.
    """
    if name not in exercises():
        raise ValueError(f"there is no exercise {name!r}; use one of {', '.join(exercises())}")
    if answer is None or (isinstance(answer, str | tuple) and not answer):
        print(f"{name}: not answered yet. Replace None with your answer and run the cell again.")
        return
    try:
        verdict = EXERCISES[name](answer, lm)
    except (ValueError, TypeError, IndexError) as error:
        verdict = Verdict(False, str(error))
    note(name, right=verdict.right)
    print(f"{name}: {'Right.' if verdict.right else 'Not yet.'} {verdict.why}")


def exercises() -> dict[str, Exercise]:
    """Every exercise by its name, `04.1` for the first of notebook 04."""
    for notebook in NOTEBOOKS:
        import_module(f"labkit.course.{notebook}")
    return EXERCISES


def exercise(name: str) -> Callable[[Exercise], Exercise]:
    def keep(function: Exercise) -> Exercise:
        EXERCISES[name] = function
        return function

    return keep


def a_head(answer: Any, lm: LanguageModel) -> tuple[int, int]:
    layer, head = answer
    if not (0 <= layer < lm.n_layers and 0 <= head < lm.n_heads):
        raise ValueError(f"layers go from 0 to {lm.n_layers - 1} and heads from 0 to {lm.n_heads - 1}")
    return int(layer), int(head)


def logit_diff(lm: LanguageModel, prompt: str, answer: str, foil: str, **run: Any) -> float:
    from labkit.text.encode import single_token

    ids = lm.encode(prompt)
    logits = lm.run(ids, **run).logits[0, -1].float()
    return float(logits[single_token(lm, answer, after=ids)] - logits[single_token(lm, foil, role="foil", after=ids)])
