"""The turns of a chat as boxes that can be edited, each with a button that continues from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import traitlets as t

from labkit.generation.tree import Branch
from labkit.widgets.base.tool import Panel, link, row
from labkit.widgets.blocks.prompt_box import PromptBox

WORDS = {"user": ("You", "Rerun from here"), "assistant": ("Model", "Answer again"), "system": ("System prompt", "")}


def as_asked(system: str, messages: Sequence[Mapping[str, Any]], column: int = 0) -> list[dict[str, str]]:
    """Messages as a model gets them; each of several models gets its own answers back."""
    found = [{"role": "system", "content": system}] if system else []
    for message in messages:
        others = message.get("others", ())
        own = message["role"] == "assistant" and 0 < column <= len(others)
        found.append({"role": message["role"], "content": others[column - 1] if own else message["content"]})
    return found


def with_answers(
    turns: Sequence[Mapping[str, Any]], asked: Sequence[Mapping[str, Any]], branches: Sequence[Branch | None]
) -> list[dict[str, Any]] | None:
    """The turns with each model's answer; None if the user has continued meanwhile.

    A continued answer is the earlier text and what the model wrote after it.
    """
    begun = asked[-1] if asked and asked[-1]["role"] == "assistant" else None
    before = list(asked[:-1]) if begun else list(asked)
    now = list(turns)
    if len(now) == len(before) + 1 and now[-1]["role"] == "assistant":
        if begun and not now[-1]["content"].startswith(begun["content"]):
            return None
        now.pop()
    texts = [_said(branch, space=bool(begun)) for branch in branches]
    if now != before or not any(texts):
        return None
    if begun:
        own = [message["content"] for column in range(len(texts)) for message in as_asked("", [begun], column)]
        texts = [there + text for there, text in zip(own, texts, strict=True)]
    return [*map(dict, before), {"role": "assistant", "content": texts[0], "others": texts[1:]}]


def _said(branch: Branch | None, *, space: bool) -> str:
    """The text of a branch; within a sentence with its first space, which many tokenizers drop."""
    if branch is None:
        return ""
    first = branch.tokens[0].token.text if space and len(branch) else ""
    return " " * (first.startswith(" ") and not branch.text.startswith(" ")) + branch.text


class ChatTurns(Panel):
    """A system prompt and the turns so far.

    Traits:
        system: the system prompt; empty for none of your own.
        messages: `{"role": ..., "content": ...}` of user and assistant; an edit of a box changes them.
    """

    system = t.Unicode()
    messages = t.List(t.Dict())

    def __init__(self) -> None:
        super().__init__()
        self._rerun: list[Callable[[int], Any]] = []
        self._rows: list[tuple[PromptBox, widgets.Button, widgets.HBox]] = []
        self._drawing = False
        hint = "Leave empty for the template's own, if it has one."
        self.system_box = PromptBox(label=WORDS["system"][0], rows=1, placeholder=hint)
        link(self, system=self.system_box)
        self.observe(lambda _: self._draw(), "messages")
        self._draw()

    def on_rerun(self, call: Callable[[int], Any]) -> None:
        """Call this with the number of the turn to continue from."""
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
