"""Columns of PromptLab compared with the first one: differences are marked, matches are outlined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labkit.text.diff import Stretch, beside, differing, stretches
from labkit.text.tokens import bytes_of
from labkit.widgets.prompt_lab.column import Column

APART = 2.0  # bits by which the surprisal of a stretch has to differ for it to be marked in a scored text


class PaneDiff:
    """How the texts of several columns belong together; recomputed by `align`."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self.found: dict[int, list[Stretch]] = {}  # by column: its stretches matched with those of the first

    def align(self) -> None:
        """Cut the texts where they have borders in common, and mark what differs."""
        self.found = {}
        first, places = self.columns[0], set()
        for number, other in enumerate(self.columns[1:], 1):
            if first.record is None or other.record is None:
                continue
            sides = [bytes_of(one.lm.tokenizer, one.record.ids) for one in (first, other) if one.record is not None]
            self.found[number] = found = stretches(sides[0], sides[1])
            left, right = self._apart(first, other, found)
            places.update(left)
            _mark(other, right)
        if self.found:
            _mark(first, sorted(places))

    @staticmethod
    def _apart(first: Column, other: Column, found: Sequence[Stretch]) -> tuple[list[int], list[int]]:
        """Written texts differ in what they say; of a scored text, the surprisal."""
        if first.score is None or other.score is None:
            return differing(found)
        bits = [np.nan_to_num(one.record.measure("surprisal")) for one in (first.score, other.score)]
        apart = [
            Stretch(s.left, s.left_stop, s.right, s.right_stop, same=False)
            for s in found
            if abs(bits[0][s.left : s.left_stop].sum() - bits[1][s.right : s.right_stop].sum()) > APART
        ]
        return differing(apart)

    def in_words(self) -> str:
        """Where the columns diverge, in a sentence."""
        if not self.found:
            return "Nothing to compare yet."
        first = self.columns[0]
        if first.score is not None:
            count = len(first.strip.marks.get("differs", []))
            return f"Marked: where surprisal differs by more than {APART:g} bits, {count} tokens."
        apart = {n: [s for s in found if not s.same] for n, found in self.found.items()}
        parted = {n: found[0] for n, found in apart.items() if found}
        if not parted:
            return "The texts are the same."
        words = [f"{_said(first, part.left)} vs. {_said(self.columns[n], part.right)}" for n, part in parted.items()]
        at = min(part.left for part in parted.values())
        return f"They diverge at token {at}: {'; '.join(words)}."

    def point(self, column: Column) -> None:
        """Outline in the other columns what matches the token under the pointer."""
        here, hovered = self.columns.index(column), column.strip.hovered
        for there, other in enumerate(self.columns):
            if there == here:
                continue
            found = self.found.get(max(here, there)) if 0 in (here, there) else None
            places: list[int] = []
            if hovered is not None and found and hovered >= column.offset:
                beyond = beside(found, hovered - column.offset, left=here == 0)
                places = [other.offset + n for n in beyond]
            other.strip.pointed = places


def _mark(column: Column, places: Sequence[int]) -> None:
    column.strip.marks = {**column.strip.marks, "differs": [column.offset + n for n in places]}


def _said(column: Column, at: int) -> str:
    """The first words from a place on."""
    ids = column.record.ids[at : at + 3] if column.record is not None else []
    return repr(column.lm.tokenizer.decode(ids)) if ids else "the end"
