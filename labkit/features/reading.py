"""What is read of one shard: three looks at the numbers of a unit, each of which gives back little.

The first counts and finds the strongest texts, the second tells apart the bins in which quantiles lie, the third takes
examples. Which examples of a decile are taken is decided by a hash of seed, text and position: those with the smallest
are a sample without replacement (bottom-k sampling), the same in whichever order and wherever the shards are read.
"""

from __future__ import annotations

import math
from collections.abc import Collection as Container
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.collected.store import ShardFile, opened
from labkit.features.quantiles import Counts, lower, upper
from labkit.features.result import Example
from labkit.features.units import Unit

_GOLDEN, _MIX = 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of SplitMix64 (Steele et al. 2014)

Row = tuple[int, int]
"""A text and a position in it."""


@dataclass(frozen=True)
class Look:
    """What is looked for, the same in every shard.

    Attributes:
        unit: whose numbers.
        top: how many texts are kept as the strongest.
        bins: those whose numbers are told apart, in the second look.
        edges: of the deciles, nine, in the third.
        each: how many examples of a decile are taken.
        context: how many tokens on either side of one.
        seed: of the sample.
        strongest: rows of which examples are wanted besides.
    """

    unit: Unit
    top: int
    each: int
    context: int
    seed: int
    bins: tuple[int, ...] = ()
    edges: tuple[float, ...] = ()
    strongest: frozenset[Row] = frozenset()


@dataclass(frozen=True)
class Tally:
    """What the first look gives: counts, sums (`exactly`), the strongest texts (number, text, position) in order."""

    rows: int
    nan: int
    texts: int
    zeros: int
    positive: int
    sum: list[float]
    squares: list[float]
    counts: Counts
    top: list[tuple[float, int, int]]


@dataclass(frozen=True)
class Numbers:
    """The numbers of a unit in a shard, with the text and position of each; those that are NaN are left out.

    Attributes:
        nan: how many those are.
    """

    values: np.ndarray
    text: np.ndarray
    position: np.ndarray
    nan: int

    @classmethod
    def of(cls, unit: Unit, file: Any) -> Numbers:
        values = unit.of(file.get_tensor(str(unit.have)))
        text, position = (file.get_tensor(name).numpy() for name in ("text", "position"))
        known = ~np.isnan(values)
        return cls(values[known], text[known], position[known], int((~known).sum()))


def tally(look: Look, shard: ShardFile) -> Tally:
    """The first look."""
    with opened(shard) as (file, _):
        one = Numbers.of(look.unit, file)
    exact = one.values.astype(np.float64)
    order = np.lexsort((one.position, -exact, one.text))
    texts, first = np.unique(one.text[order], return_index=True)
    best = order[first]  # of each text
    best = best[np.lexsort((one.text[best], -exact[best]))][: look.top]
    top = [(float(one.values[n]), int(one.text[n]), int(one.position[n])) for n in best]
    return Tally(
        len(exact), one.nan, len(texts), int((exact == 0).sum()), int((exact > 0).sum()), exactly(exact),
        exactly(np.square(exact)), upper(one.values), top,
    )  # fmt: skip


def exactly(values: np.ndarray) -> list[float]:
    """A few numbers whose sum is that of all, with nothing rounded (an expansion, Shewchuk 1997): added up, those of
    several shards give the same to the last bit wherever one shard ends and the next begins."""
    left, parts = values.tolist(), []
    if not np.isfinite(values).all():
        return [sum(left)]
    while part := math.fsum(left):
        parts.append(part)
        left.append(-part)
    return parts


def total(parts: list[float]) -> float:
    """Their sum, rounded once."""
    return math.fsum(parts) if all(map(math.isfinite, parts)) else sum(parts)


def told_apart(look: Look, shard: ShardFile) -> dict[int, Counts]:
    """The second look."""
    with opened(shard) as (file, _):
        return lower(Numbers.of(look.unit, file).values, look.bins)


def taken(look: Look, shard: ShardFile) -> list[tuple[int, int, Example]]:
    """The third look: examples, each with its decile, 0 to 9, and its hash, by which the smallest are taken; -1 and 0
    for those that are wanted as the strongest."""
    with opened(shard) as (file, about):
        one = Numbers.of(look.unit, file)
        ids = file.get_tensor("id").numpy()
        every = look.unit.of(file.get_tensor(str(look.unit.have)))
        text, position = (file.get_tensor(name).numpy() for name in ("text", "position"))
    rows = _Rows(text, position, every, ids, about["tokens"], look.context)
    edges = np.array(look.edges, np.float32)
    deciles, keys = np.searchsorted(edges, one.values, side="right"), hashes(look.seed, one.text, one.position)
    found = [(-1, 0, rows.example(*place)) for place in sorted(look.strongest) if rows.has(*place)]
    for decile in range(10):
        mine = np.flatnonzero(deciles == decile)
        order = mine[np.lexsort((one.position[mine], one.text[mine], keys[mine]))][: look.each]
        found += [(decile, int(keys[n]), rows.example(int(one.text[n]), int(one.position[n]))) for n in order]
    return found


@dataclass(frozen=True)
class _Rows:
    """All rows of a shard; those of one text are side by side."""

    text: np.ndarray
    position: np.ndarray
    values: np.ndarray
    ids: np.ndarray
    shown: dict[str, str]
    context: int

    def has(self, text: int, position: int) -> bool:
        return len(self._at(text, position, 0)) > 0

    def _at(self, text: int, position: int, context: int) -> np.ndarray:
        """The rows of a text near a position, in order."""
        start, stop = np.searchsorted(self.text, [text, text + 1])
        places, rows = np.unique(self.position[start:stop], return_index=True)
        return start + rows[np.abs(places - position) <= context]

    def example(self, text: int, position: int) -> Example:
        near = self._at(text, position, self.context)
        places = self.position[near].tolist()
        return Example(
            text, position, float(self.values[near[places.index(position)]]), tuple(places),
            tuple(self.shown[str(id)] for id in self.ids[near].tolist()), tuple(self.values[near].tolist()),
        )  # fmt: skip


def hashes(seed: int, text: np.ndarray, position: np.ndarray) -> np.ndarray:
    """A number (rows,) uint64 for each row that looks random."""
    x = (text.astype(np.uint64) << np.uint64(32)) | position.astype(np.uint64)
    for start in (seed, 1):
        x = x + np.uint64((start * _GOLDEN + _GOLDEN) % (1 << 64))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX[0])
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX[1])
        x ^= x >> np.uint64(31)
    return x


def smallest(found: list[tuple[int, Example]], each: int) -> list[tuple[int, Example]]:
    """Of examples with their hashes, those that are taken."""
    return sorted(found, key=lambda one: (one[0], one[1].text, one[1].position))[:each]


def strongest(found: Container[tuple[float, int, int]], top: int) -> list[tuple[float, int, int]]:
    """Of (number, text, position), the strongest; of equals the first."""
    return sorted(found, key=lambda one: (-one[0], one[1], one[2]))[:top]
