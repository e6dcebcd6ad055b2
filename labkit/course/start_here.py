"""Start here: tokens, memory, and which model to take."""

from __future__ import annotations

from typing import Any

from labkit.course.checks import Verdict, exercise
from labkit.language_model import LanguageModel
from labkit.models.catalog import models


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
    known = {model.id: model for model in models()}
    if answer not in known:
        return Verdict(False, "That is not an id in lk.catalog(); ids look like 'maker/model'.")
    model = known[answer]
    if model.data != "yes":
        return Verdict(False, f"The training data of {answer} is not public, so nobody outside can search it.")
    if not model.gpu.startswith("T4"):
        return Verdict(False, f"In 4 bits {answer} needs a {model.gpu}.")
    alike = (one for one in known.values() if (one.data, one.gpu) == ("yes", model.gpu))
    if larger := [one for one in alike if one.parameters > model.parameters]:
        return Verdict(False, f"It fits, but a larger one would too: there are {len(larger)} of them.")
    return Verdict(True, f"{answer}: {model.parameters:.1f} billion parameters, with training data open to search.")
