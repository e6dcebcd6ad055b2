"""PairStrip: two prompts token over token, to show where they diverge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import traitlets as t

from labkit.widgets.base.block import Block, module
from labkit.widgets.base.picture import pairs

_MOST_COLUMNS = 300  # in a picture; a saved notebook should stay small


class PairStrip(Block):
    """Columns of two tokens, one of each prompt, that wrap together. Arrow keys move, Enter or a click selects.

    Args:
        columns: (text of the upper prompt, text of the lower one); None where that prompt has no token.
        marks: names for columns, such as `{"differs": [9], "special": [0]}`; any name is read out.
        names: what the two prompts are called.
        labels: what to write over each column, such as its position.

    Traits:
        selection, hovered (int | None): columns.
    """

    _esm = module("token_chip", "pair_strip")

    columns: t.List = t.List().tag(sync=True)
    marks = t.Dict().tag(sync=True)
    names = t.List(t.Unicode(), ["clean", "corrupt"]).tag(sync=True)
    labels = t.List(t.Unicode()).tag(sync=True)
    selection = t.Int(None, allow_none=True).tag(sync=True)
    hovered = t.Int(None, allow_none=True).tag(sync=True)

    def __init__(
        self,
        columns: Sequence[tuple[str | None, str | None]] = (),
        *,
        marks: Mapping[str, Iterable[int]] | None = None,
        **traits: Any,
    ) -> None:
        super().__init__(
            columns=[list(pair) for pair in columns],
            marks={name: list(places) for name, places in (marks or {}).items()},
            **traits,
        )

    def show(
        self, columns: Sequence[tuple[str | None, str | None]], marks: Mapping[str, list[int]], labels: Sequence[str]
    ) -> None:
        """Show these columns instead."""
        with self.hold_sync():
            self.selection = self.hovered = None
            self.columns, self.marks, self.labels = [list(pair) for pair in columns], dict(marks), list(labels)

    def picture(self) -> str:
        """The two rows as an image without a frame, for the snapshot of a tool."""
        differs, special = (set(self.marks.get(name, ())) for name in ("differs", "special"))
        more = len(self.columns) - _MOST_COLUMNS
        rest = f"… and {more} more positions" if more > 0 else ""
        shown = [(pair[0], pair[1]) for pair in self.columns[:_MOST_COLUMNS]]
        return pairs(shown, differs, special, self.labels, rest) if shown else ""

    def code(self) -> str:
        """The Python that makes the same strip."""
        columns = [tuple(pair) for pair in self.columns]
        return (
            "from labkit.widgets.blocks.pair_strip import PairStrip\n\n"
            f"PairStrip(\n    {columns!r},\n    marks={self.marks!r},\n    labels={self.labels!r},\n)\n"
        )

    def __repr__(self) -> str:
        return f"PairStrip({len(self.columns)} columns)"
