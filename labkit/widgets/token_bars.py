"""TokenBars: the likeliest tokens as bars, one column or several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import traitlets as t

from labkit.widgets.block import Block, module, style
from labkit.widgets.snapshot import card


class TokenBars(Block):
    """Tokens and their probabilities.

    Args:
        columns: for each column title, rows of (text, probability 0 to 1).
        marked: token texts that stand out, such as the answer and the foil.
        title, note: a line above and below.
    """

    _esm = module("token_bars")
    _css = style("token_bars")

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

    def snapshot(self) -> str:
        return card(self.picture(), title=self.title)

    def picture(self) -> str:
        """The columns as an HTML table without a frame, for the snapshot of a tool."""
        mono = "font-family:ui-monospace,Menlo,Consolas,monospace;white-space:pre"
        cell = "padding:1px 10px 1px 0;vertical-align:top;text-align:left"
        tables = []
        for name, rows in self.columns:
            body = "".join(
                f'<tr><td style="{cell};{mono}">{escape(text)}</td>'
                f'<td style="{cell};text-align:right">{probability:.1%}</td></tr>'
                for text, probability in rows
            )
            head = f'<tr><th colspan="2" style="{cell};font-weight:400;color:#59636e">{escape(name)}</th></tr>'
            tables.append(f'<td style="{cell}"><table style="border-collapse:collapse">{head}{body}</table></td>')
        return f'<table style="border-collapse:collapse"><tr>{"".join(tables)}</tr></table>' if tables else ""

    def code(self) -> str:
        """The Python that makes the same bars."""
        columns = {name: [tuple(row) for row in rows] for name, rows in self.columns}
        return (
            "from labkit.widgets.token_bars import TokenBars\n\n"
            f"TokenBars(\n    {columns!r},\n    title={self.title!r},\n)\n"
        )

    def __repr__(self) -> str:
        return f"TokenBars({', '.join(repr(name) for name, _ in self.columns)})"


def _rows(columns: Mapping[str, Sequence[tuple[str, float]]]) -> list[Any]:
    return [[name, [[text, float(probability)] for text, probability in rows]] for name, rows in columns.items()]
