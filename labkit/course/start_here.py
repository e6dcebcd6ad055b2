"""Start here: tokens, memory, and which model to take."""

from __future__ import annotations

from typing import Any

from labkit.course.checks import Verdict, a_whole_number, exercise
from labkit.language_model import LanguageModel
from labkit.models.catalog import known, models

SENTENCE = "The cat sat on the mat."


@exercise("00.1", "a whole number, such as 6")
def _tokens_of_a_sentence(answer: Any, lm: LanguageModel) -> Verdict:
    if isinstance(answer, list | tuple):
        return Verdict(False, "That is a list, and the question is how long it is: len(...).")
    tokens, given = len(lm.tokens(SENTENCE)), a_whole_number(answer)
    if given == tokens:
        return Verdict(True, "Six words, and the full stop has a token of its own.")
    if given == len(SENTENCE):
        return Verdict(False, f"{given} is the number of characters. A token may have several.")
    if given == len(SENTENCE.split()):
        return Verdict(False, f"{given} is the number of words. Is there anything else in the sentence?")
    return Verdict(False, f"The model does not see {given} tokens. Ask it: lm.tokens(...) gives a list.")


@exercise("00.2", 'a part of the model, such as "attention"')
def _largest_part(answer: Any, lm: LanguageModel) -> Verdict:
    parts = lm.memory().parts
    if not isinstance(answer, str):
        raise TypeError("that is no part")
    named = [part for part in parts if part.split()[0].lower() in answer.lower()]
    if len(named) != 1:
        what = "more than one part" if named else "no part"
        return Verdict(False, f"{answer!r} names {what} of lm.memory(); there are {', '.join(parts)}.")
    largest = max(parts, key=lambda part: parts[part])
    if named[0] == largest:
        share = parts[largest] / sum(parts.values())
        return Verdict(True, f"The embedding stays in 16 bits and is {share:.0%} of this small model.")
    return Verdict(False, f"{named[0]} takes {parts[named[0]] / 1e6:.1f} MB, and another part takes more.")


@exercise("00.3", 'the id of a model, such as "maker/model"')
def _largest_with_open_data(answer: Any, lm: LanguageModel) -> Verdict:
    if not isinstance(answer, str):
        raise TypeError("that is no id")
    model = known(answer)
    if model.data != "yes":
        return Verdict(False, f"The training data of {model.id} is not public, so nobody outside can search it.")
    if not model.gpu.startswith("T4"):
        return Verdict(False, f"In 4 bits {model.id} does not fit a T4; it needs a {model.gpu}.")
    alike = (one for one in models() if one.data == "yes" and one.gpu.startswith("T4"))
    if larger := [one for one in alike if one.parameters > model.parameters]:
        return Verdict(False, f"It fits, but a larger one would too: there are {len(larger)} of them.")
    return Verdict(True, f"{model.id}: {model.parameters:.1f} billion parameters, with training data open to search.")
