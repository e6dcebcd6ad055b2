"""Bootstrap intervals over pairs or items, and the rank correlation of two grids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LEVEL, RESAMPLES = 0.95, 2000


def interval(
    average: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The low and high ends of a bootstrap interval; the same for the same seed.

    Pairs are resampled with replacement and averaged, many times; the interval lies between quantiles of these averages
    (Efron 1979): how far the average would move with other pairs of the same kind. It says nothing about other kinds of
    sentence.

    Args:
        average: from weights (resamples, n) that sum to 1 in each row to averages (resamples, ...).
        n: how many pairs there are.
        level: the share of the averages that lies between the ends.
        resamples: how often to draw.
        seed: of the resampling.

    Raises:
        ValueError: fewer than two pairs, or a level that is not between 0 and 1.
    """
    _check(n, level, "pairs")
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n
    low, high = ends(average(weights), level)
    return low.astype(np.float32), high.astype(np.float32)


def interval_of_mean(
    values: np.ndarray, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The ends of a bootstrap interval of the mean of many values of few kinds, such as right and wrong.

    How often each kind comes up among as many draws is drawn at once, which is the same distribution as of draws one by
    one and takes no memory for the items.

    Args:
        values: (n,), finite.

    Raises:
        ValueError: as `interval`.
    """
    _check(len(values), level, "items")
    kinds, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    low, high = ends(drawn @ kinds / len(values), level)
    return float(low), float(high)


def ends(averages: np.ndarray, level: float) -> np.ndarray:
    """The low and high ends, (2, ...), between which a share of the averages (resamples, ...) lies."""
    return np.quantile(averages, [(1 - level) / 2, (1 + level) / 2], axis=0)


def _check(n: int, level: float, what: str) -> None:
    if n < 2:
        raise ValueError(f"an interval needs at least two {what}; there {'is' if n == 1 else 'are'} {n}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95; got {level!r}")


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays of one length; ties share their mean rank; NaN if one is constant."""
    import pandas as pd

    first, second = (pd.Series(np.asarray(values).ravel()).rank() for values in (a, b))
    if first.nunique() < 2 or second.nunique() < 2:
        return float("nan")
    return float(first.corr(second))
