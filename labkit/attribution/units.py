"""The parts of a prompt that an attribution is about: tokens, words, sentences, chat messages, or spans of one's own.

Words and sentences are found in the text and given the tokens that begin in them; they never reach beyond one message
of a chat. A word is what stands between spaces, a sentence ends with `.`, `!`, `?` and a space, or with a line.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Literal

import torch

from labkit.models.handle import Model
from labkit.text.tokens import Token, bytes_of
from labkit.text.types import Prompt

By = Literal["token", "word", "sentence", "message"] | Sequence[tuple[int, int]]
NAMES = ("token", "word", "sentence", "message")
_ENDS = {
    "word": re.compile(r"(?<=\S)(?=\s)"),
    "sentence": re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])[”’」』）]*|\n\s*"),
}


@dataclass(frozen=True)
class Unit:
    """A stretch of a prompt, positions `start` to `stop` - 1.

    Attributes:
        text: what it spells.
        role: of the message that it is in: `system`, `user` or `assistant`; empty outside of messages.
    """

    text: str
    start: int
    stop: int
    role: str = ""

    @property
    def positions(self) -> range:
        return range(self.start, self.stop)


def units_of(lm: Model, prompt: Prompt, ids: Sequence[int], by: By) -> tuple[Unit, ...]:
    """The units of a prompt in order; no two overlap.

    Args:
        prompt: as it was given; of chat messages it tells where each stands.
        ids: its tokens.
        by: `token` for all tokens, special ones included; `word`, `sentence`, or `message` for those of the text, or of
            the messages of a chat without the template around them; or (start, stop) of each.

    Raises:
        ValueError: there is no such kind of unit, the prompt has none, or a span is out of range or overlaps another.
        TypeError: `by` is neither a name nor a list.
    """
    if not isinstance(by, Iterable):
        raise TypeError(f"by must be {', '.join(map(repr, NAMES))} or a list of (start, stop); got {by!r:.60}")
    tokens = lm.tokens(torch.tensor([list(ids)]))
    chat = not isinstance(prompt, str | torch.Tensor)
    messages = [r for r in lm.regions(prompt) if r.kind != "thinking"] if chat else []
    if not isinstance(by, str):
        return _spans(lm, ids, by)
    if by not in NAMES:
        raise ValueError(f"by must be {', '.join(map(repr, NAMES))} or a list of (start, stop); got {by!r}")
    role_at = {n: region.kind for region in messages for n in range(region.start, region.stop)}
    if by == "token":
        return tuple(Unit(token.text, n, n + 1, role_at.get(n, "")) for n, token in enumerate(tokens))
    if by == "message" and not chat:
        raise ValueError(
            "by='message' needs chat messages; this prompt is "
            f"{'text' if isinstance(prompt, str) else 'token ids'}: use by='sentence', 'word' or 'token'"
        )
    if chat and not messages:
        raise ValueError(
            f"where the messages stand in the text of {lm.name}'s chat template is not known; use by='token'"
        )
    parts = [(m.start, m.stop) for m in messages] if chat else _without_special(tokens)
    found = []
    for start, stop in parts:
        for first, last in [(start, stop)] if by == "message" else _cut(lm, ids, start, stop, by):
            found.append(Unit(_text(lm, ids[first:last]), first, last, role_at.get(first, "")))
    if not found:
        raise ValueError(f"this prompt has no {by}s, only special tokens or spaces; use by='token'")
    return tuple(found)


def _spans(lm: Model, ids: Sequence[int], by: Sequence[tuple[int, int]]) -> tuple[Unit, ...]:
    """Units that are given as (start, stop)."""
    spans = []
    for span in by:
        try:
            start, stop = map(int, span)
        except (TypeError, ValueError):
            raise ValueError(f"a unit is (start, stop), such as (0, 5); got {span!r:.40}") from None
        if not 0 <= start < stop <= len(ids):
            raise ValueError(f"unit {(start, stop)} is out of range; the prompt has positions 0 to {len(ids) - 1}")
        spans.append((start, stop))
    if not spans:
        raise ValueError("by is an empty list; give at least one (start, stop)")
    spans.sort()
    for (_, end), (begin, stop) in pairwise(spans):
        if begin < end:
            raise ValueError(f"unit {(begin, stop)} overlaps the one before it, which ends at {end}")
    return tuple(Unit(_text(lm, ids[start:stop]), start, stop) for start, stop in spans)


def _without_special(tokens: Sequence[Token]) -> list[tuple[int, int]]:
    """The stretches of a prompt between special tokens."""
    runs = [(special, list(run)) for special, run in groupby(range(len(tokens)), key=lambda n: tokens[n].special)]
    return [(run[0], run[-1] + 1) for special, run in runs if not special]


def _cut(lm: Model, ids: Sequence[int], start: int, stop: int, by: str) -> list[tuple[int, int]]:
    """A stretch of tokens cut into words or sentences, each with the tokens whose first letter is in it."""
    pieces = bytes_of(lm.tokenizer, ids[start:stop])
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    ends = sorted({*(match.end() for match in _ENDS[by].finditer(text) if match.end()), len(text)})
    until = list(accumulate(len(char.encode("utf-8", "surrogateescape")) for char in text))  # bytes, after each letter
    begins = [0, *accumulate(map(len, pieces))]

    def part(n: int) -> int:
        blank = len(pieces[n]) - len(pieces[n].lstrip()) if pieces[n].strip() else 0
        return min(bisect_right(ends, bisect_right(until, begins[n] + blank)), len(ends) - 1)

    runs = [list(run) for _, run in groupby(range(len(pieces)), key=part)]
    runs = [run for run in runs if run]
    if len(runs) > 1 and not _text(lm, ids[start + runs[-1][0] : stop]).strip():  # spaces at the end
        runs[-2:] = [runs[-2] + runs[-1]]
    return [(start + run[0], start + run[-1] + 1) for run in runs]


def _text(lm: Model, ids: Sequence[int]) -> str:
    return b"".join(bytes_of(lm.tokenizer, ids)).decode("utf-8", "replace")
