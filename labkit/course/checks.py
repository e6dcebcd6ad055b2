"""What each exercise asks for, and what to say to what was handed in.

An exercise is a function from (answer, lm) to a `Verdict`. Wrong answers are told what is wrong with them, not the
right one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel


class Verdict(NamedTuple):
    right: bool
    why: str


Exercise = Callable[[Any, "LanguageModel"], Verdict]
EXERCISES: dict[str, Exercise] = {}
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"


def check(name: str, answer: Any, lm: LanguageModel) -> None:
    """Print whether an answer to an exercise is right, and why.

    Raises:
        ValueError: there is no such exercise.
    """
    if name not in EXERCISES:
        raise ValueError(f"there is no exercise {name!r}; there are {', '.join(EXERCISES)}")
    if answer is None or (isinstance(answer, str | tuple) and not answer):
        print(f"{name}: not answered yet. Put your answer in the place of None and run the cell again.")
        return
    try:
        verdict = EXERCISES[name](answer, lm)
    except (ValueError, TypeError, IndexError) as error:
        verdict = Verdict(False, str(error))
    print(f"{name}: {'Right.' if verdict.right else 'Not yet.'} {verdict.why}")


def exercise(name: str) -> Callable[[Exercise], Exercise]:
    def keep(function: Exercise) -> Exercise:
        EXERCISES[name] = function
        return function

    return keep


def _a_head(answer: Any, lm: LanguageModel) -> tuple[int, int]:
    layer, head = answer
    if not (0 <= layer < lm.n_layers and 0 <= head < lm.n_heads):
        raise ValueError(f"layers go from 0 to {lm.n_layers - 1} and heads from 0 to {lm.n_heads - 1}")
    return int(layer), int(head)


def _logit_diff(lm: LanguageModel, prompt: str, answer: str, foil: str, **run: Any) -> float:
    from labkit.tokens import single_token

    logits = lm.run(prompt, **run).logits[0, -1].float()
    return float(logits[single_token(lm, answer)] - logits[single_token(lm, foil, role="foil")])


@exercise("00.1")
def _tokens_of_a_sentence(answer: Any, lm: LanguageModel) -> Verdict:
    count = len(lm.tokens("The cat sat on the mat."))
    if answer == count:
        return Verdict(True, "Six words, and the full stop has a token of its own.")
    return Verdict(False, f"The model does not see {answer} tokens. Ask it: lm.tokens(...) gives a list.")


@exercise("00.2")
def _largest_part(answer: Any, lm: LanguageModel) -> Verdict:
    parts = lm.memory().parts
    largest = max(parts, key=lambda part: parts[part])
    if str(answer).lower() in largest.lower():
        share = parts[largest] / sum(parts.values())
        return Verdict(True, f"The embedding stays in 16 bits and is {share:.0%} of this small model.")
    return Verdict(False, "Look at lm.memory() again: which part has the most megabytes?")


@exercise("00.3")
def _largest_with_open_data(answer: Any, lm: LanguageModel) -> Verdict:
    from labkit.models.catalog import models

    known = {model.id: model for model in models()}
    if answer not in known:
        return Verdict(False, "That is no id in lk.catalog(); it looks like 'maker/model'.")
    model = known[answer]
    if model.data != "yes":
        return Verdict(False, f"What {answer} was trained on is not public, so nobody outside can look a text up.")
    if not model.gpu.startswith("T4"):
        return Verdict(False, f"In 4 bits {answer} wants a {model.gpu}.")
    if larger := [
        m for m in known.values() if (m.data, m.gpu) == ("yes", model.gpu) and m.parameters > model.parameters
    ]:
        return Verdict(False, f"It would do, and so would something larger: there are {len(larger)} of them.")
    return Verdict(True, f"{answer}: {model.parameters:.1f} billion parameters, its training data there to search.")


@exercise("01.1")
def _paris(answer: Any, lm: LanguageModel) -> Verdict:
    if "paris" in str(answer).lower():
        return Verdict(False, "Your prompt has the answer in it. Make the model find it.")
    top = lm.tokenizer.decode(int(lm.run(answer).logits[0, -1].argmax()))
    if top == " Paris":
        return Verdict(True, f"After {answer!r} the likeliest next token is ' Paris'.")
    return Verdict(False, f"After {answer!r} the likeliest next token is {top!r}. A prompt must not end in a space.")


@exercise("01.2")
def _costly_text(answer: Any, lm: LanguageModel) -> Verdict:
    tokens = lm.tokens(answer)
    if len(answer) > 4:
        return Verdict(False, f"That is {len(answer)} characters; four at most.")
    if len(tokens) >= 6:
        return Verdict(True, f"{len(answer)} characters, {len(tokens)} tokens. Rare characters are spelt out in bytes.")
    return Verdict(
        False, f"That is {len(tokens)} tokens. What is rare in English web pages costs more: try other scripts."
    )


@exercise("03.1")
def _previous_token_head(answer: Any, lm: LanguageModel) -> Verdict:
    layer, head = _a_head(answer, lm)
    text = "The quick brown fox jumps over the lazy dog, and the slow red hen walks under the old bridge."
    pattern = lm.run(text, read=[f"pattern.{layer}"])[f"pattern.{layer}.{head}"][0]
    score = float(pattern.diagonal(-1).mean())
    said = f"On another sentence layer {layer}, head {head} gives {score:.0%} of its attention to the token before."
    return Verdict(score > 0.5, said if score > 0.5 else said + " Look for more than half.")


@exercise("03.2")
def _head_that_matters(answer: Any, lm: LanguageModel) -> Verdict:
    layer, head = _a_head(answer, lm)
    before = _logit_diff(lm, CLEAN, " Mary", " John")
    after = _logit_diff(lm, CLEAN, " Mary", " John", write={f"z.{layer}.{head}": torch.zeros(1)})
    said = f"Without layer {layer} head {head} the logit difference goes from {before:.1f} to {after:.1f}."
    return Verdict(before - after > 1, said if before - after > 1 else said + " Look for a drop of more than 1.")


@exercise("04.1")
def _layer_of_the_move(answer: Any, lm: LanguageModel) -> Verdict:
    from labkit.analysis.patching import patch

    last = len(lm.tokens(CLEAN)) - 1
    grid = patch(lm, CLEAN, CORRUPT, " Mary", " John", positions=[9, last], progress=False)
    at_name, at_end = grid.normalized.T
    crossing = next(layer for layer in range(lm.n_layers) if at_end[layer] > at_name[layer])
    if abs(int(answer) - crossing) <= 1:
        return Verdict(True, f"At layer {crossing} the last position overtakes the position of the name.")
    return Verdict(
        False, "Compare the two columns of grid.normalized, at position 9 and at the last: where do they cross?"
    )


@exercise("04.2")
def _a_pair_of_ones_own(answer: Any, lm: LanguageModel) -> Verdict:
    from labkit.tokens import align

    clean, corrupt, right, wrong = answer
    if clean in (CLEAN, CORRUPT):
        return Verdict(False, "That is the pair of this notebook. Make another one.")
    align(lm, clean, corrupt)
    a, b = (_logit_diff(lm, prompt, right, wrong) for prompt in (clean, corrupt))
    said = f"The logit difference is {a:.1f} on clean and {b:.1f} on corrupt."
    if a > 1 and b < a - 2:
        return Verdict(True, said + " A pair to patch with.")
    return Verdict(False, said + " Clean should favour the answer by more than 1, and corrupt at least 2 less.")
