"""CheckList: checks that were made, with their verdicts, one line each."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import traitlets as t

from labkit.widgets.base.block import Block, module
from labkit.widgets.base.snapshot import card, note

SIGNS = {True: "✓", False: "!", None: "–"}


class CheckList(Block):
    """A list of checks.

    Args:
        checks: rows of (name, True, False or None where it could not be made, what it says).
        title: a line above, such as the verdict on all of them.
    """

    _esm = module("check_list")

    checks: t.List = t.List().tag(sync=True)
    title = t.Unicode().tag(sync=True)

    def __init__(self, checks: Sequence[tuple[str, bool | None, str]] = (), **traits: Any) -> None:
        super().__init__(checks=[list(row) for row in checks], **traits)

    def snapshot(self) -> str:
        return card(self.picture())

    def picture(self) -> str:
        """The list as HTML without a frame, for the snapshot of a tool."""
        rows = "".join(
            f'<tr style="background:none;color:inherit"><td style="padding:1px 8px 1px 0">{SIGNS[ok]}</td>'
            f'<td style="padding:1px 12px 1px 0;white-space:nowrap;text-align:left">{escape(name)}</td>'
            f'<td style="padding:1px 0;text-align:left">{escape(says)}</td></tr>'
            for name, ok, says in self.checks
        )
        table = f'<table style="border-collapse:collapse;font-size:12px">{rows}</table>' if rows else ""
        return (note(self.title) if self.title else "") + table

    def code(self) -> str:
        """The Python that makes the same list."""
        rows = [tuple(row) for row in self.checks]
        arguments = f"    {rows!r},\n    title={self.title!r},\n"
        return f"from labkit.widgets.blocks.check_list import CheckList\n\nCheckList(\n{arguments})\n"

    def __repr__(self) -> str:
        return f"CheckList({len(self.checks)} checks)"
