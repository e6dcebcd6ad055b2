"""PromptBox: a text box for a prompt; Ctrl+Enter asks for a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import traitlets as t

from labkit.widgets.base.block import Block, module
from labkit.widgets.base.snapshot import card, note


class PromptBox(Block):
    """A text box that grows with its text. `value` is the text; `on_submit` is called on Ctrl+Enter or Cmd+Enter."""

    _esm = module("prompt_box")

    value = t.Unicode().tag(sync=True)
    label = t.Unicode("Prompt").tag(sync=True)
    placeholder = t.Unicode().tag(sync=True)
    rows = t.Int(2).tag(sync=True)
    delay = t.Int(0, help="milliseconds without a key before `value` follows what is typed").tag(sync=True)

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
