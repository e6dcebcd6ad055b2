"""What an exercise is, and how an answer is checked.

An exercise is a function from (answer, lm) to a `Verdict`, with a few words for what it asks for. Any right answer is
accepted; a wrong one gets a reason, not the solution. Each notebook's exercises are in a module of their own beside
this one, imported when one is first checked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from labkit.course.progress import note

if TYPE_CHECKING:
    from labkit.language_model import LanguageModel


class Verdict(NamedTuple):
    right: bool
    why: str


Exercise = Callable[[Any, "LanguageModel"], Verdict]
EXERCISES: dict[str, Exercise] = {}
ASKS: dict[str, str] = {}
"""By exercise, what an answer is: "a layer, such as 3"."""
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


def check(name: str, answer: Any, lm: LanguageModel, *, grade: bool = False) -> None:
    """Print whether an answer to an exercise is right, and why; note it in the file of one's progress.

    Args:
        name: of the exercise, "04.1".
        answer: yours; None where there is none yet.
        lm: the model of the notebook.
        grade: raise an error unless the answer is right, as a test of nbgrader has to.

    Raises:
        ValueError: there is no such exercise.
        AssertionError: with `grade`, the answer is wrong or missing; the message says why.
    """
    if name not in exercises():
        raise ValueError(f"there is no exercise {name!r}; use one of {', '.join(exercises())}")
    if answer is None or (isinstance(answer, str | tuple) and not answer):
        _say(f"{name}: not answered yet. Replace None with your answer and run the cell again.", failed=grade)
        return
    try:
        verdict = EXERCISES[name](answer, lm)
    except ValueError as error:
        verdict = Verdict(False, _sentence(str(error)))
    except (TypeError, LookupError, AttributeError):  # of an answer of another kind
        verdict = Verdict(False, f"The answer is {ASKS[name]}; yours is {answer!r:.80}.")
    note(name, right=verdict.right)
    _say(f"{name}: {'Right.' if verdict.right else 'Not yet.'} {verdict.why}", failed=grade and not verdict.right)


def _say(text: str, *, failed: bool) -> None:
    if failed:
        raise AssertionError(text)
    print(text)


def exercises() -> dict[str, Exercise]:
    """Every exercise by its name, `04.1` for the first of notebook 04."""
    for notebook in NOTEBOOKS:
        import_module(f"labkit.course.{notebook}")
    return EXERCISES


def exercise(name: str, asks: str) -> Callable[[Exercise], Exercise]:
    """Make a function the check of an exercise that asks for this, "a layer, such as 3"."""

    def keep(function: Exercise) -> Exercise:
        EXERCISES[name], ASKS[name] = function, asks
        return function

    return keep


def _sentence(text: str) -> str:
    begin = text.split()[0]
    text = text[:1].upper() + text[1:] if begin.isalpha() and begin != "labkit" else text
    return text + ("" if text.endswith((".", "?", "!")) else ".")


# -- answers -----------------------------------------------------------------------------------------------------------


def parts(answer: Any, count: int) -> list[Any]:
    """What a tuple, a list or an array of so many things has in it.

    Raises:
        TypeError: it is none, or has another number of them; a text is none either.
    """
    if isinstance(answer, str) or len(answer) != count:
        raise TypeError(f"that is no tuple of {count}")
    return list(answer)


def a_number(answer: Any) -> float:
    """A number of any kind: Python's, numpy's, a tensor of one element.

    Raises:
        TypeError: it is none; a text with a number in it is none either, nor is True.
    """
    if isinstance(answer, str | bytes | bool):
        raise TypeError("that is no number")
    return float(answer)


def a_whole_number(answer: Any) -> int:
    """The same for a whole one."""
    number = a_number(answer)
    if number != int(number):
        raise ValueError(f"that is no whole number: {number:g}")
    return int(number)


def a_layer(answer: Any, lm: LanguageModel) -> int:
    """A layer of the model."""
    layer = a_whole_number(answer)
    if not 0 <= layer < lm.n_layers:
        raise ValueError(f"there is no layer {layer}: layers go from 0 to {lm.n_layers - 1}")
    return layer


def a_head(answer: Any, lm: LanguageModel) -> tuple[int, int]:
    """A head of the model, as layer and head."""
    layer, head = (a_whole_number(number) for number in parts(answer, 2))
    if 0 <= layer < lm.n_heads <= head < lm.n_layers:
        raise ValueError(
            f"heads go from 0 to {lm.n_heads - 1}, so {head} is none. The layer comes first: ({head}, {layer})?"
        )
    if not (0 <= layer < lm.n_layers and 0 <= head < lm.n_heads):
        raise ValueError(f"layers go from 0 to {lm.n_layers - 1} and heads from 0 to {lm.n_heads - 1}")
    return layer, head


# -- what checks compute -----------------------------------------------------------------------------------------------

Found = TypeVar("Found")
_found: WeakKeyDictionary[LanguageModel, dict[Any, Any]] = WeakKeyDictionary()


def once(function: Callable[..., Found]) -> Callable[..., Found]:
    """Compute the same thing of a model once, so that a second try is checked at once; anew while it is steered."""

    @wraps(function)
    def found(lm: LanguageModel, *arguments: Any) -> Found:
        if lm.hf._forward_hooks:
            return function(lm, *arguments)
        kept, key = _found.setdefault(lm, {}), (function, arguments)
        if key not in kept:
            kept[key] = function(lm, *arguments)
        return kept[key]

    return found


def logit_diff(lm: LanguageModel, prompt: str, answer: str, foil: str, **run: Any) -> float:
    from labkit.text.encode import single_token

    ids = lm.encode(prompt)
    logits = lm.run(ids, **run).logits[0, -1].float()
    return float(logits[single_token(lm, answer, after=ids)] - logits[single_token(lm, foil, role="foil", after=ids)])
