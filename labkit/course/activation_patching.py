"""Activation patching: where an answer is made."""

from __future__ import annotations

from typing import Any

from labkit.course.checks import CLEAN, CORRUPT, Verdict, a_head, exercise, logit_diff
from labkit.language_model import LanguageModel
from labkit.patching.cell_report import together
from labkit.patching.patch import PatchJob, patch
from labkit.text.pair import align


@exercise("04.1")
def _layer_of_the_move(answer: Any, lm: LanguageModel) -> Verdict:
    last = len(lm.tokens(CLEAN)) - 1
    grid = patch(lm, CLEAN, CORRUPT, " Mary", " John", positions=[9, last], progress=False)
    at_name, at_end = grid.normalized.T
    crossing = next(layer for layer in range(lm.n_layers) if at_end[layer] > at_name[layer])
    if abs(int(answer) - crossing) <= 1:
        return Verdict(True, f"At layer {crossing} the last position overtakes the position of the name.")
    hint = "Compare the two columns of grid.normalized, at position 9 and at the last: where do they cross?"
    return Verdict(False, hint)


@exercise("04.3")
def _a_pair_of_ones_own(answer: Any, lm: LanguageModel) -> Verdict:
    clean, corrupt, right, wrong = answer
    if clean in (CLEAN, CORRUPT):
        return Verdict(False, "That is this notebook's pair. Make one of your own.")
    align(lm, clean, corrupt)
    a, b = (logit_diff(lm, prompt, right, wrong) for prompt in (clean, corrupt))
    said = f"The logit difference is {a:.1f} on clean and {b:.1f} on corrupt."
    if a > 1 and b < a - 2:
        return Verdict(True, said + " A pair to patch with.")
    return Verdict(False, said + " Clean should favour the answer by more than 1, and corrupt at least 2 less.")


@exercise("04.2")
def _heads_together(answer: Any, lm: LanguageModel) -> Verdict:
    heads = [a_head(head, lm) for head in answer]
    if len(set(heads)) > 6:
        return Verdict(False, f"That is {len(set(heads))} heads; use at most six.")
    grid = PatchJob(lm, CLEAN, CORRUPT, " Mary", " John", site="z").grid
    share = together(lm, grid, sorted(set(heads))).normalized
    said = f"Together these {len(set(heads))} heads bring the metric to {share:.2f} on the scale from 0 to 1."
    return Verdict(share > 0.8, said if share > 0.8 else said + " Look for more than 0.8.")
