"""StatusLine: the current state in one sentence, with a bar while something runs."""

from __future__ import annotations

import traitlets as t

from labkit.widgets.base.block import Block, module
from labkit.widgets.base.snapshot import card, note


class StatusLine(Block):
    """One line of plain text that screen readers announce; `kind` is `info` or `error`, `share` done is 0 to 1."""

    _esm = module("status_line")

    text = t.Unicode().tag(sync=True)
    kind = t.Enum(["info", "error"], "info").tag(sync=True)
    share = t.Float(None, allow_none=True).tag(sync=True)

    def say(self, text: str, *, share: float | None = None) -> None:
        """Show what is going on, and the share done."""
        with self.hold_sync():
            self.text, self.kind, self.share = text, "info", share

    def complain(self, text: str) -> None:
        """Show what went wrong."""
        with self.hold_sync():
            self.text, self.kind, self.share = text, "error", None

    def snapshot(self) -> str:
        return card(note(self.text))

    def code(self) -> str:
        """The Python that makes the same line."""
        line = f"StatusLine(text={self.text!r}, kind={self.kind!r})"
        return f"from labkit.widgets.base.status_line import StatusLine\n\n{line}\n"

    def __repr__(self) -> str:
        return f"StatusLine(kind={self.kind!r})"  # the text has times in it, which differ from run to run
