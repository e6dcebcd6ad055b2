"""TokenBars: the likeliest tokens as bars, one column or several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import traitlets as t

from labkit.widgets.base.block import Block, module
from labkit.widgets.base.picture import cut, image, xml


class TokenBars(Block):
    """Tokens and their probabilities.

    Args:
        columns: for each column title, rows of (text, probability 0 to 1).
        marked: token texts that stand out, such as the answer and the foil.
        title, note: a line above and below.
    """

    _esm = module("bars", "token_bars")

    columns: t.List = t.List().tag(sync=True)
    marked = t.List(t.Unicode()).tag(sync=True)
    title = t.Unicode().tag(sync=True)
    note = t.Unicode().tag(sync=True)

    def __init__(self, columns: Mapping[str, Sequence[tuple[str, float]]] | None = None, **traits: Any) -> None:
        super().__init__(columns=_rows(columns or {}), **traits)

    def show(self, columns: Mapping[str, Sequence[tuple[str, float]]], *, title: str = "", note: str = "") -> None:
        """Show these columns instead."""
        with self.hold_sync():
            self.columns, self.title, self.note = _rows(columns), title, note

    def picture(self) -> str:
        """The columns as an image without a frame, for the snapshot of a tool."""
        if not self.columns:
            return ""
        out, about, most, wide = [], [], max(len(rows) for _, rows in self.columns), 230
        for n, (name, rows) in enumerate(self.columns):
            x = 4 + n * wide
            out.append(f'<text x="{x}" y="16" class="q">{xml(cut(name, 34))}</text>')
            about.append(f"{name}: {', '.join(f'{text} {share:.1%}' for text, share in rows)}")
            for k, (text, share) in enumerate(rows):
                y = 24 + 20 * k
                bar = 90 * min(1.0, max(0.0, share))
                out.append(
                    f'<text x="{x}" y="{y + 13}" class="m">{xml(cut(text, 11))}</text>'
                    f'<rect x="{x + 95}" y="{y + 2}" width="{bar:.1f}" height="14" rx="2" fill="#6caed6"/>'
                    f'<text x="{x + 100 + bar:.1f}" y="{y + 13}">{share:.1%}</text>'
                )
        said = f"{self.title or 'Tokens'}; {'; '.join(about)}"
        return image("".join(out), wide * len(self.columns) + 8, 32 + 20 * most, said)

    def code(self) -> str:
        """The Python that makes the same bars."""
        columns = {name: [tuple(row) for row in rows] for name, rows in self.columns}
        return (
            "from labkit.widgets.blocks.token_bars import TokenBars\n\n"
            f"TokenBars(\n    {columns!r},\n    title={self.title!r},\n)\n"
        )

    def __repr__(self) -> str:
        return f"TokenBars({', '.join(repr(name) for name, _ in self.columns)})"


def _rows(columns: Mapping[str, Sequence[tuple[str, float]]]) -> list[Any]:
    return [[name, [[text, float(probability)] for text, probability in rows]] for name, rows in columns.items()]
