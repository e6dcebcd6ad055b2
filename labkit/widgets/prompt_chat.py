"""The turns of a chat as boxes that can be edited, each with a button that goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import traitlets as t

from labkit.widgets.prompt_box import PromptBox
from labkit.widgets.tool import row

WORDS = {"user": ("You", "Rerun from here"), "assistant": ("Model", "Answer again"), "system": ("System prompt", "")}


def as_asked(system: str, messages: Sequence[Mapping[str, Any]], column: int = 0) -> list[dict[str, str]]:
    """Messages as a model gets them; each of several models gets its own answers back."""
    found = [{"role": "system", "content": system}] if system else []
    for message in messages:
        others = message.get("others", ())
        own = message["role"] == "assistant" and 0 < column <= len(others)
        found.append({"role": message["role"], "content": others[column - 1] if own else message["content"]})
    return found


class Turns(widgets.VBox):
    """A system prompt and the turns so far.

    Traits:
        system: the system prompt; empty for none of one's own.
        messages: `{"role": ..., "content": ...}` of user and assistant; an edit of a box changes them.
    """

    system = t.Unicode()
    messages = t.List(t.Dict())

    def __init__(self) -> None:
        super().__init__()
        self._rerun: list[Callable[[int], Any]] = []
        self._rows: list[tuple[PromptBox, widgets.Button, widgets.HBox]] = []
        self._drawing = False
        self.system_box = PromptBox(
            label=WORDS["system"][0], rows=1, placeholder="Empty: the template's own, if it has one."
        )
        t.link((self, "system"), (self.system_box, "value"))
        self.add_class("labkit-column")
        self.observe(lambda _: self._draw(), "messages")
        self._draw()

    def on_rerun(self, call: Callable[[int], Any]) -> None:
        """Call this with the number of the turn that a person wants to go on from."""
        self._rerun.append(call)

    def _draw(self) -> None:
        self._drawing = True
        try:
            while len(self._rows) < len(self.messages):
                self._rows.append(self._row(len(self._rows)))
            for (box, button, _), message in zip(self._rows, self.messages, strict=False):
                label, words = WORDS.get(message["role"], (message["role"], ""))
                box.label, box.value, button.description = label, message["content"], words
            self.children = [self.system_box, *(line for _, _, line in self._rows[: len(self.messages)])]
        finally:
            self._drawing = False

    def _row(self, number: int) -> tuple[PromptBox, widgets.Button, widgets.HBox]:
        box, button = PromptBox(rows=1), widgets.Button()
        box.layout.flex, box.layout.width = "1 1 300px", "auto"
        box.observe(lambda change: self._edit(number, change["new"]), "value")
        for on in (box.on_submit, lambda call: button.on_click(lambda _: call())):
            on(lambda: [call(number) for call in self._rerun])
        line = row(box, button)
        line.add_class("labkit-turn")
        return box, button, line

    def _edit(self, number: int, text: str) -> None:
        if not self._drawing and number < len(self.messages) and self.messages[number]["content"] != text:
            edited = {**self.messages[number], "content": text}
            self.messages = [*self.messages[:number], edited, *self.messages[number + 1 :]]
