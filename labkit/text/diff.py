"""Two texts compared token by token: the stretches that are the same, and those that differ."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class Stretch:
    """Tokens `left` to `left_stop` - 1 of one text, matched with tokens `right` to `right_stop` - 1 of the other.

    `same` if they spell the same.
    """

    left: int
    left_stop: int
    right: int
    right_stop: int
    same: bool


def stretches(left: Sequence[bytes], right: Sequence[bytes]) -> list[Stretch]:
    """Two texts, given as the bytes of their tokens, cut wherever both have a token border at the same place.

    What is the same in both is found word by word; the shortest stretches come out, in order, covering both texts.
    """
    texts = [b"".join(side) for side in (left, right)]
    borders = [[0, *accumulate(map(len, side))] for side in (left, right)]
    known = [set(side) for side in borders]
    cuts = {(0, 0), (len(texts[0]), len(texts[1]))}
    for a, b, size in _shared(*texts):
        cuts |= {(a + n, b + n) for n in range(size + 1) if a + n in known[0] and b + n in known[1]}
    found = []
    for (a, b), (a_stop, b_stop) in pairwise(sorted(cuts)):
        # a token without bytes of its own shares its border with its neighbour: the later index takes it along
        here, here_stop = (bisect.bisect_left(borders[0], at) for at in (a, a_stop))
        there, there_stop = (bisect.bisect_left(borders[1], at) for at in (b, b_stop))
        found.append(Stretch(here, here_stop, there, there_stop, texts[0][a:a_stop] == texts[1][b:b_stop]))
    return found


def _shared(left: bytes, right: bytes) -> list[tuple[int, int, int]]:
    """(start in left, start in right, length) of what both texts have, in bytes, words taken whole."""
    spans = [[match.span() for match in re.finditer(rb"\s*\S+|\s+$", text)] for text in (left, right)]
    words = [[text[a:b] for a, b in side] for text, side in zip((left, right), spans, strict=True)]
    found = []
    for block in SequenceMatcher(None, words[0], words[1], autojunk=False).get_matching_blocks():
        if block.size:
            a, b = spans[0][block.a][0], spans[1][block.b][0]
            found.append((a, b, spans[0][block.a + block.size - 1][1] - a))
    return found


def differing(found: Sequence[Stretch]) -> tuple[list[int], list[int]]:
    """The positions, left and right, that differ."""
    apart = [one for one in found if not one.same]
    return (
        [n for one in apart for n in range(one.left, one.left_stop)],
        [n for one in apart for n in range(one.right, one.right_stop)],
    )


def beside(found: Sequence[Stretch], position: int, *, left: bool = True) -> range:
    """The positions of the other text that correspond to a position of this one."""
    for one in found:
        here = range(one.left, one.left_stop) if left else range(one.right, one.right_stop)
        if position in here:
            return range(one.right, one.right_stop) if left else range(one.left, one.left_stop)
    return range(0)
