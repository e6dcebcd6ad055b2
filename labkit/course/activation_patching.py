"""Activation patching: where an answer is made."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.course.checks import CLEAN, CORRUPT, Verdict, a_head, a_layer, exercise, logit_diff, once, parts
from labkit.language_model import LanguageModel
from labkit.patching.cell_report import together
from labkit.patching.grid import PatchGrid
from labkit.patching.patch import PatchJob, patch
from labkit.text.pair import align


@once
def _at_name_and_end(lm: LanguageModel) -> np.ndarray:
    """The effect of the residual stream at the name and at the end, 0 to 1, (layer, 2)."""
    last = len(lm.tokens(CLEAN)) - 1
    return patch(lm, CLEAN, CORRUPT, " Mary", " John", positions=[9, last], progress=False).normalized


@once
def _heads(lm: LanguageModel) -> PatchGrid:
    """A grid of heads with no cell computed."""
    return PatchJob(lm, CLEAN, CORRUPT, " Mary", " John", site="z").grid


@exercise("04.1", "a layer, such as 3")
def _layer_of_the_move(answer: Any, lm: LanguageModel) -> Verdict:
    layer, effects = a_layer(answer, lm), _at_name_and_end(lm)
    crossing = next(n for n, (at_name, at_end) in enumerate(effects) if at_end > at_name)
    if abs(layer - crossing) <= 1:
        return Verdict(True, f"At layer {crossing} the last position overtakes the position of the name.")
    at_name, at_end = effects[layer]
    where = "it is still behind" if layer < crossing else "it was ahead before"
    said = f"At layer {layer} the name has {at_name:.2f} and the last position {at_end:.2f}: {where}."
    return Verdict(False, said + " Where do they cross?")


@exercise("04.3", 'a pair: (clean, corrupt, " Answer", " Foil")')
def _a_pair_of_ones_own(answer: Any, lm: LanguageModel) -> Verdict:
    clean, corrupt, right, wrong = parts(answer, 4)
    if not all(isinstance(text, str) for text in answer):
        raise TypeError("a pair is four texts")
    if clean in (CLEAN, CORRUPT):
        return Verdict(False, "That is this notebook's pair. Make one of your own.")
    align(lm, clean, corrupt)
    a, b = (logit_diff(lm, prompt, right, wrong) for prompt in (clean, corrupt))
    said = f"The logit difference is {a:.1f} on clean and {b:.1f} on corrupt."
    if a > 1 and b < a - 2:
        return Verdict(True, said + " A pair to patch with.")
    if a < b - 2:
        return Verdict(False, said + " They are the wrong way round: exchange clean and corrupt.")
    return Verdict(False, said + " Clean should favour the answer by more than 1, and corrupt at least 2 less.")


@exercise("04.2", "a list of heads, such as [(3, 1), (5, 0)]")
def _heads_together(answer: Any, lm: LanguageModel) -> Verdict:
    heads = [a_head(head, lm) for head in answer]
    if len(set(heads)) > 6:
        return Verdict(False, f"That is {len(set(heads))} heads; use at most six.")
    share = together(lm, _heads(lm), sorted(set(heads))).normalized
    said = f"Together these {len(set(heads))} heads bring the metric to {share:.2f} on the scale from 0 to 1."
    return Verdict(share > 0.8, said if share > 0.8 else said + " Look for more than 0.8.")
