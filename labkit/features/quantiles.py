"""Exact quantiles of numbers that are seen in parts, in memory that does not grow with how many there are.

The bits of a float32, as a whole number, can be made to have the order of the numbers themselves. A first look counts
numbers by the upper half of these bits, which says in which of 65,536 bins a quantile lies; a second counts the lower
halves in those bins. Counts add up to the same in whichever order the parts come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

PERMILLE = (0, 10, 100, 200, 300, 400, 500, 600, 700, 800, 900, 990, 999, 1000)
"""The quantiles that are found: quantile p of n numbers is the one with p * n // 1000 before it, at most the last."""
BINS = 1 << 16
Counts = tuple[np.ndarray, np.ndarray]
"""Bins, in order, and how many are in each."""


def ordered(values: np.ndarray) -> np.ndarray:
    """float32 without NaN as uint32 in the same order; -0 is 0."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def number_of(place: int) -> float:
    """The float32 that `ordered` put there."""
    bits = np.uint32(place ^ (1 << 31) if place >> 31 else ~place & 0xFFFFFFFF)
    return float(np.array(bits).view(np.float32))


def upper(values: np.ndarray) -> Counts:
    """How many numbers have each upper half of their bits."""
    return np.unique((ordered(values) >> 16).astype(np.uint16), return_counts=True)


def lower(values: np.ndarray, bins: Sequence[int]) -> dict[int, Counts]:
    """Of the numbers in some bins, how many have each lower half."""
    places = ordered(values)
    high, low = (places >> 16).astype(np.uint16), (places & 0xFFFF).astype(np.uint16)
    return {one: np.unique(low[high == one], return_counts=True) for one in bins}


def nothing() -> np.ndarray:
    """The counts (65536,) of no number, to add to."""
    return np.zeros(BINS, np.int64)


def add(every: np.ndarray, part: Counts) -> None:
    """Add the counts of a part, in place."""
    bins, counts = part
    every[bins] += counts


def wanted(every: np.ndarray) -> list[tuple[int, int, int]]:
    """Of each quantile its permille, the bin that it lies in, and how many of that bin come before it."""
    ends, total = np.cumsum(every), int(every.sum())
    found = []
    for permille in PERMILLE:
        rank = min(total - 1, permille * total // 1000)
        one = int(np.searchsorted(ends, rank, side="right"))
        found.append((permille, one, rank - int(ends[one] - every[one])))
    return found


def quantiles(places: Sequence[tuple[int, int, int]], inside: Mapping[int, np.ndarray]) -> dict[float, float]:
    """The number at each quantile, from `wanted` and the counts of lower halves in its bins."""
    found = {}
    for permille, one, rank in places:
        low = int(np.searchsorted(np.cumsum(inside[one]), rank, side="right"))
        found[permille / 1000] = number_of((one << 16) | low)
    return found
