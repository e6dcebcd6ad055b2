"""PromptBox: a text box for a prompt; Ctrl+Enter asks for a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import traitlets as t

from labkit.widgets.base.block import Block, module
from labkit.widgets.base.snapshot import card, note


class PromptBox(Block):
    """A text box that grows with its text. `value` is the text; `on_submit` is called on Ctrl+Enter or Cmd+Enter.

    What was typed is here before the click on a button that follows it, also while the kernel is busy: when the box is
    left, it tells its text once more, ahead of changes that wait, and these are left out when they come.
    """

    _esm = module("prompt_box")

    value = t.Unicode().tag(sync=True)
    label = t.Unicode("Prompt").tag(sync=True)
    placeholder = t.Unicode().tag(sync=True)
    rows = t.Int(2).tag(sync=True)
    delay = t.Int(0, help="milliseconds without a key before `value` follows what is typed").tag(sync=True)

    edits = t.Int(0, help="how many times something was typed").tag(sync=True)
    _told = -1  # edits at the last text that came ahead

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.on_msg(self._hear)

    def _hear(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        if message.get("kind") not in ("left", "submit"):
            return
        new = {name: message[name] for name in ("edits", "value")}
        with self._lock_property(**new), self.hold_trait_notifications():  # not sent back: it may be older by then
            self.edits, self.value = new.values()
        self._told = self.edits

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take what the browser has changed, but nothing older than what it has told ahead."""
        if sync_data.get("edits", self._told + 1) <= self._told:
            sync_data = {name: value for name, value in sync_data.items() if name not in ("edits", "value")}
        super().set_state(sync_data)

    def on_submit(self, call: Callable[[], Any]) -> None:
        """Call this, without arguments, when the user asks for a run."""
        self.on_msg(lambda _widget, message, _buffers: call() if message.get("kind") == "submit" else None)

    def snapshot(self) -> str:
        return card(note(self.label), note(self.value))

    def code(self) -> str:
        """The Python that makes the same box."""
        return (
            "from labkit.widgets.blocks.prompt_box import PromptBox\n\n"
            f"PromptBox(value={self.value!r}, label={self.label!r})\n"
        )

    def __repr__(self) -> str:
        return f"PromptBox({self.value!r})"
