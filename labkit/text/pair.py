"""A clean and a corrupt prompt, compared token by token.

Prompts of one length are paired position by position. Prompts of unequal length are paired along an alignment: spans of
positions, of one length in both, each position with its partner. What is in no span has no partner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

import torch

from labkit.text.encode import encode
from labkit.text.tokens import Token, describe
from labkit.text.types import Prompt, TextModel

Range = tuple[int, int]
Spans = tuple[tuple[Range, Range], ...]
"""Positions start to stop - 1 of clean, paired with as many of corrupt."""


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupt prompt, token by token; `differ` holds the positions that differ.

    `spans` is their alignment; None: they have one length, and are paired position by position.
    """

    clean: torch.Tensor  # (1, seq)
    corrupt: torch.Tensor  # (1, seq)
    clean_tokens: list[Token]
    corrupt_tokens: list[Token]
    spans: Spans | None = None

    @property
    def differ(self) -> list[int]:
        return (self.clean[0] != self.corrupt[0]).nonzero()[:, 0].tolist()


def align(lm: TextModel, clean: Prompt, corrupt: Prompt) -> Pair:
    """Two prompts, aligned by position.

    Raises:
        ValueError: they have different numbers of tokens; the message shows where they diverge.
    """
    pair = _pair(lm, clean, corrupt)
    left, right = pair.clean_tokens, pair.corrupt_tokens
    if len(left) != len(right):
        shared = min(len(left), len(right))
        first = next((i for i in range(shared) if left[i].id != right[i].id), shared)
        show = lambda tokens: " ".join(repr(t.text) for t in tokens[first : first + 4]) or "the end"  # noqa: E731
        raise ValueError(
            f"clean has {len(left)} tokens, corrupt {len(right)}; they differ from token {first}: "
            f"clean {show(left)}, corrupt {show(right)}. This needs prompts of one length, so choose "
            "words with the same number of tokens; lk.patch takes prompts of unequal length"
        )
    return pair


def align_spans(lm: TextModel, clean: Prompt, corrupt: Prompt, spans: Sequence[Sequence[Sequence[int]]] | None) -> Pair:
    """Two prompts of any lengths, aligned along spans: given ones, or where lengths differ those that are equal.

    Raises:
        ValueError: spans that are out of range, of unequal length or overlapping; or nothing is equal.
    """
    pair = _pair(lm, clean, corrupt)
    sides = {"clean": pair.clean_tokens, "corrupt": pair.corrupt_tokens}
    if spans is not None:
        return _along(pair, checked_spans(spans, {name: len(tokens) for name, tokens in sides.items()}))
    if len(pair.clean_tokens) == len(pair.corrupt_tokens):
        return pair
    found = equal_spans(*([token.id for token in tokens] for tokens in sides.values()))
    if not found:
        raise ValueError(
            f"clean has {len(pair.clean_tokens)} tokens, corrupt {len(pair.corrupt_tokens)}, and no span of them is "
            "equal; say which positions belong together with alignment=[((start, stop), (start, stop)), ...]"
        )
    return _along(pair, found)


def equal_spans(left: Sequence[int], right: Sequence[int]) -> Spans:
    """The spans of two prompts' ids that are paired without being told: what is equal, and what replaces as much."""
    return joined(((a, b), (c, d)) for a, b, c, d in matched(left, right) if b - a == d - c)


def matched(left: Sequence[int], right: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """What belongs together in two prompts' ids, in order: positions a to b - 1 of one, c to d - 1 of the other."""
    return [(a, b, c, d) for _, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes()]


def spans_to_text(spans: Sequence[Sequence[Sequence[int]]]) -> str:
    """Spans as people write them, the last position named: `0-8 = 0-8, 10-13 = 11-14`."""
    side = lambda a, b: str(a) if b == a + 1 else f"{a}-{b - 1}"  # noqa: E731
    return ", ".join(f"{side(*clean)} = {side(*corrupt)}" for clean, corrupt in spans)


def spans_of_text(text: str) -> Spans:
    """What `spans_to_text` wrote, or a person.

    Raises:
        ValueError: it is not of that form.
    """
    side = r"\s*(\d+)\s*(?:[-\u2013]\s*(\d+)\s*)?"
    found = []
    for part in filter(str.strip, text.split(",")):
        if not (match := re.fullmatch(f"{side}={side}", part)):
            raise ValueError(
                f"{part.strip()!r} is not a pair of spans; write positions of clean = positions of corrupt, such as "
                "0-8 = 0-8, 10-13 = 11-14"
            )
        a, b, c, d = match.groups()
        found.append(((int(a), int(b or a) + 1), (int(c), int(d or c) + 1)))
    return tuple(found)


def partners(spans: Sequence[Sequence[Sequence[int]]], side: str, *, length: int, other: int) -> list[int | None]:
    """For each of `length` positions of `clean` or `corrupt` its partner, of `other` ones; None where it has none."""
    found: list[int | None] = [None] * length
    for clean, corrupt in spans:
        (start, stop), (first, _) = (clean, corrupt) if side == "clean" else (corrupt, clean)
        for n in range(start, min(stop, length)):
            found[n] = first + n - start if first + n - start < other else None
    return found


def _pair(lm: TextModel, clean: Prompt, corrupt: Prompt) -> Pair:
    a, b = encode(lm, clean), encode(lm, corrupt)
    left, right = (describe(lm.tokenizer, ids[0].tolist()) for ids in (a, b))
    return Pair(a, b, left, right)


def _along(pair: Pair, spans: Spans) -> Pair:
    return Pair(pair.clean, pair.corrupt, pair.clean_tokens, pair.corrupt_tokens, spans)


def joined(spans: Iterable[tuple[Range, Range]]) -> Spans:
    """Spans that follow one another in both prompts, as one."""
    found: list[tuple[Range, Range]] = []
    for (a, b), (c, d) in spans:
        if found and found[-1][0][1] == a and found[-1][1][1] == c:
            (a, _), (c, _) = found.pop()
        found.append(((a, b), (c, d)))
    return tuple(found)


def checked_spans(spans: Sequence[Sequence[Sequence[int]]], lengths: dict[str, int]) -> Spans:
    """Spans as tuples, checked against how many tokens `clean` and `corrupt` have.

    Raises:
        ValueError: they are out of range, of unequal length or overlapping.
    """
    form = "alignment is a list of ((start, stop), (start, stop)), positions of clean and of corrupt"
    try:
        found = tuple(((int(a), int(b)), (int(c), int(d))) for (a, b), (c, d) in spans)
    except (TypeError, ValueError):
        raise ValueError(f"{form}; got {spans!r:.120}") from None
    if not found:
        raise ValueError(f"{form}; it is empty, so no position has a partner")
    for span in found:
        for (name, length), (start, stop) in zip(lengths.items(), span, strict=True):
            if not 0 <= start < stop <= length:
                raise ValueError(
                    f"the alignment's span {span} is out of range: {name} has positions 0 to {length - 1}, and a span "
                    "ends before its stop"
                )
        (a, b), (c, d) = span
        if b - a != d - c:
            raise ValueError(
                f"the alignment's span {span} pairs {b - a} positions of clean with {d - c} of corrupt; a span pairs "
                "them one to one, so name the positions that belong together"
            )
    for n, name in enumerate(lengths):
        for one, two in pairwise(sorted(span[n] for span in found)):
            if two[0] < one[1]:
                raise ValueError(f"the alignment has spans of {name} that overlap: {one} and {two}")
    return found
