"""Scaling out: what one pair cannot show."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.course.checks import Verdict, a_whole_number, exercise, once
from labkit.datasets.tasks import task
from labkit.language_model import LanguageModel
from labkit.patching.patch import patch
from labkit.sweeps.sweep import sweep

LAYERS, PAIRS = range(17, 25), 24  # what the notebook sweeps over


@exercise("10.1", "a pair (clean, corrupt, answer, foil), such as pairs[0]")
def _a_pair_that_misleads(answer: Any, lm: LanguageModel) -> Verdict:
    if isinstance(answer, str) or len(answer) != 4:
        raise TypeError("that is no pair")
    grid = patch(lm, *answer, site="z", layers=LAYERS, progress=False)
    if grid.clean <= grid.corrupt:
        return Verdict(
            False, f"The logit difference is {grid.clean:.1f} on clean and {grid.corrupt:.1f} on corrupt: clean has to "
            "favour the answer. Are the prompts exchanged?"
        )  # fmt: skip
    here, usual = _strongest(grid.normalized), _usual(lm)
    if here == usual:
        return Verdict(False, f"Here, too, the strongest head is layer {here[0]}, head {here[1]}. Look at other pairs.")
    return Verdict(
        True,
        f"Here the strongest head is layer {here[0]}, head {here[1]}; on average it is layer {usual[0]}, head "
        f"{usual[1]}. This pair alone would have led you to another conclusion.",
    )


@exercise("10.2", "a number of pairs, such as 50")
def _half_the_interval(answer: Any, lm: LanguageModel) -> Verdict:
    pairs = a_whole_number(answer)
    if pairs < 2:
        return Verdict(False, "An interval needs at least two pairs.")
    wide = float(np.sqrt(PAIRS / pairs))
    said = f"With {pairs} pairs instead of {PAIRS}, an interval is about {wide:.2f} times as wide."
    if wide > 1:
        return Verdict(False, said + " Fewer pairs say less.")
    if 0.45 <= wide <= 0.55:
        return Verdict(True, said)
    return Verdict(False, said + (" Look for half: more pairs." if wide > 0.5 else " That is more than is needed."))


def _strongest(normalized: np.ndarray) -> tuple[int, int]:
    layer, head = np.unravel_index(int(normalized.argmax()), normalized.shape)
    return LAYERS[int(layer)], int(head)


@once
def _usual(lm: LanguageModel) -> tuple[int, int]:
    """The strongest head on average over a few pairs of the task."""
    pairs = task("indirect object").pairs(lm, n=12)
    return _strongest(sweep(lm, pairs, site="z", layers=LAYERS, progress=False).normalized)
