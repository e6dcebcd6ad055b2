"""GivenPrompt: a prompt box that also takes what is not plain text."""

from __future__ import annotations

from typing import Any

import torch
import traitlets as t

from labkit.language_model import LanguageModel
from labkit.text.chat import render
from labkit.text.types import Prompt
from labkit.widgets.blocks.prompt_box import PromptBox


class GivenPrompt(PromptBox):
    """A prompt box for text, chat messages or token ids (1, seq).

    Messages and ids are shown as the text they stand for and are used as they were given, until somebody edits the
    text; from then on the text is the prompt.

    Traits:
        prompt: what the model is to read.
    """

    prompt = t.Any("")

    def __init__(self, lm: LanguageModel, prompt: Prompt = "", **traits: Any) -> None:
        super().__init__(**traits)
        self._lm, self._shown, self._name = lm, "", self.label
        self.observe(self._given, "prompt")
        self.observe(self._typed, "value")
        self.prompt = prompt

    def _given(self, _change: Any) -> None:
        prompt = self.prompt
        if isinstance(prompt, str):
            self._shown, kind = prompt, ""
        elif isinstance(prompt, torch.Tensor):
            ids = self._lm.encode(prompt)[0].tolist()
            self._shown, kind = self._lm.tokenizer.decode(ids), f": {len(ids)} token ids, until you edit them as text"
        else:
            self._shown, kind = render(self._lm, prompt), ": chat messages in their template, until you edit the text"
        with self.hold_sync():
            self.label = self._name + kind
            self.value = self._shown

    def _typed(self, _change: Any) -> None:
        if self.value != self._shown:
            self.prompt = self.value

    def __repr__(self) -> str:
        return f"GivenPrompt({self.value!r})"


def share_prompt(one: t.HasTraits, other: t.HasTraits) -> None:
    """Keep two `prompt` traits the same object; a link compares by value, which token ids do not do with one answer."""
    for source, target in ((one, other), (other, one)):

        def hand_on(change: Any, target: Any = target) -> None:
            if target.prompt is not change["new"]:
                target.prompt = change["new"]

        source.observe(hand_on, "prompt")
    other.prompt = one.prompt  # type: ignore[attr-defined]
