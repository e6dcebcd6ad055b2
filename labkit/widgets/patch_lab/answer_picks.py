"""The answer and the foil: typed, or picked from what a model predicts."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets
import torch
import traitlets as t

from labkit.language_model import LanguageModel
from labkit.text.tokens import describe
from labkit.widgets.base.tool import labelled, link, row
from labkit.widgets.blocks.token_strip import TokenStrip

OFFERED = 6  # tokens to choose the answer and the foil from


class AnswerPicks:
    """Two words, and beside each of them the likeliest tokens of a distribution to pick it from.

    Args:
        state: the words are its `answer` and `foil`.
        names: what the distribution beside each word comes from.
    """

    def __init__(self, state: t.HasTraits, names: Sequence[str]) -> None:
        self.state = state
        self.words = {name: labelled(widgets.Text, name.capitalize(), "150px") for name in ("answer", "foil")}
        self.picks = {name: TokenStrip(unit="probability", low=0.0, high=1.0) for name in names}
        self._offered: dict[str, list[str]] = {name: [] for name in names}
        link(state, **self.words)
        for (name, pick), word in zip(self.picks.items(), self.words.values(), strict=True):
            pick.add_class("labkit-picks")
            pick.layout.flex, pick.layout.width = "1 1 300px", "auto"
            pick.observe(lambda change, name=name, word=word: self._picked(name, word, change["new"]), "selection")
        choices = [row(*pair) for pair in zip(self.words.values(), self.picks.values(), strict=True)]
        for one in choices:
            one.layout.flex = "1 1 440px"
        self.row = row(*choices, wide=True)

    def offer(self, name: str, lm: LanguageModel, shares: torch.Tensor, ids: torch.Tensor, *, title: str) -> None:
        """Offer these tokens, (k,), the likeliest first."""
        tokens = describe(lm.tokenizer, ids[:OFFERED].tolist())
        pick = self.picks[name]
        with pick.hold_sync():
            pick.selection = None
            pick.tokens = [token.display for token in tokens]
            pick.values, pick.title = shares[:OFFERED].cpu().numpy(), title
        self._offered[name] = [token.text for token in tokens]

    def mark(self) -> None:
        """The chosen answer and foil stand out among what is offered."""
        for (name, pick), word in zip(self.picks.items(), self.words, strict=True):
            offered, chosen = self._offered[name], getattr(self.state, word)
            pick.selection = offered.index(chosen) if chosen in offered else None

    def _picked(self, name: str, word: widgets.Text, at: int | None) -> None:
        if at is not None and at < len(self._offered[name]):
            word.value = self._offered[name][at]
