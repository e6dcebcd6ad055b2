"""Scaling out: what one pair cannot show."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from labkit.course.checks import Verdict, exercise
from labkit.datasets.tasks import task
from labkit.language_model import LanguageModel
from labkit.patching.patch import patch
from labkit.sweeps.sweep import sweep

LAYERS, PAIRS = range(15, 27), 40  # what the notebook sweeps over


@exercise("10.1")
def _a_pair_that_misleads(answer: Any, lm: LanguageModel) -> Verdict:
    if not (isinstance(answer, tuple | list) and len(answer) == 4):
        return Verdict(False, "A pair is (clean, corrupt, answer, foil), such as pairs[0].")
    grid = patch(lm, *answer, site="z", layers=LAYERS, progress=False)
    if grid.clean <= grid.corrupt:
        return Verdict(False, "The model does not do the task on this pair: clean has to favour the answer.")
    here, usual = _strongest(grid.normalized), _usual(lm)
    if here == usual:
        return Verdict(False, f"Here, too, the strongest head is layer {here[0]}, head {here[1]}. Look at other pairs.")
    return Verdict(
        True,
        f"Here the strongest head is layer {here[0]}, head {here[1]}; on average it is layer {usual[0]}, head "
        f"{usual[1]}. This pair alone would have led you to another conclusion.",
    )


@exercise("10.2")
def _half_the_interval(answer: Any, lm: LanguageModel) -> Verdict:
    pairs = int(answer)
    if pairs < 2:
        return Verdict(False, "An interval needs at least two pairs.")
    wide = float(np.sqrt(PAIRS / pairs))
    said = f"With {pairs} pairs instead of {PAIRS}, an interval is about {wide:.2f} times as wide."
    return Verdict(0.45 <= wide <= 0.55, said)


def _strongest(normalized: np.ndarray) -> tuple[int, int]:
    layer, head = np.unravel_index(int(normalized.argmax()), normalized.shape)
    return LAYERS[int(layer)], int(head)


@lru_cache(maxsize=1)
def _usual(lm: LanguageModel) -> tuple[int, int]:
    """The strongest head on average over a few pairs of the task."""
    pairs = task("indirect object").pairs(lm, n=12)
    return _strongest(sweep(lm, pairs, site="z", layers=LAYERS, progress=False).normalized)
