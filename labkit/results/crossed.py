"""Intervals and tests for numbers that vary with several things at once, such as templates and words.

With other templates *and* other words an average would move more than either alone shows. Each factor is therefore
resampled for itself, and a number counts as often as all its levels were drawn together (Owen 2007, "The pigeonhole
bootstrap"): such an interval is rather too wide than too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labkit.results.bootstrap import LEVEL, RESAMPLES, ends

FLIPS = 9999


def weights(factors: Sequence[Sequence[object]], *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each number counts in each resample, float64 (resamples, n), summing to 1 in each row.

    Args:
        factors: the levels of each factor, (factor, n). One with a single level is not resampled.
        resamples: how often to draw.
        seed: of the draws.

    Raises:
        ValueError: no factor has two levels, so nothing can be resampled.
    """
    draw = np.random.default_rng(seed)
    n = len(factors[0])
    count = np.ones((resamples, n))
    drawn = False
    for levels in factors:
        names, of = np.unique(np.asarray([str(level) for level in levels]), return_inverse=True)
        if (k := len(names)) > 1:
            count *= draw.multinomial(k, np.full(k, 1 / k), size=resamples)[:, of]
            drawn = True
    if not drawn:
        raise ValueError("an interval needs at least two templates or words; these numbers have one of each")
    empty = count.sum(1) == 0  # no number has all its levels drawn: rare, and only among few
    count[empty] = 1
    return count / count.sum(1, keepdims=True)


def interval(values: np.ndarray, drawn: np.ndarray, *, level: float = LEVEL) -> tuple[float, float]:
    """The low and high ends of the interval of the mean of `values` (n,), from what `weights` drew."""
    low, high = ends(drawn @ np.asarray(values, np.float64), level)
    return float(low), float(high)


def flip_test(values: np.ndarray, units: Sequence[object], *, flips: int = FLIPS, seed: int = 0) -> float:
    """How often the mean of `values` (n,) would be as far from 0 if the sign of each unit were chance: a p value.

    Under the null a stereotype label says nothing, and swapping the two sides of all pairs of one word is as likely as
    not; the test is exact then (Fisher 1935; here with random flips, counted as Phipson and Smyth 2010 do).

    Args:
        values: positive for the stereotype.
        units: what is flipped together, (n,).
        flips: how many random ones.
        seed: of the flips.
    """
    _, of = np.unique(np.asarray([str(unit) for unit in units]), return_inverse=True)
    sums = np.bincount(of, weights=np.asarray(values, np.float64))
    signs = np.random.default_rng(seed).integers(0, 2, (flips, len(sums))) * 2 - 1
    reached = np.abs(signs @ sums) >= np.abs(sums.sum()) * (1 - 1e-9)
    return float((1 + reached.sum()) / (1 + flips))


def holm(p: Sequence[float]) -> np.ndarray:
    """p values corrected for how many there are, so that one false alarm among all is at most as likely as each says.

    Holm 1979, "A simple sequentially rejective multiple test procedure". NaN stays NaN and is not counted.
    """
    values = np.asarray(p, np.float64)
    some = np.flatnonzero(np.isfinite(values))
    order = some[np.argsort(values[some], kind="stable")]
    corrected = np.full(len(values), np.nan)
    least = 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, values[i] * (len(order) - rank)))
        corrected[i] = least
    return corrected
