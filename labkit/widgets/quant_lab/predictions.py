"""Predictions: the prompt coloured by how far apart two models are, and what both predict at one position."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from labkit.precision.next_tokens import NextTokens
from labkit.text.tokens import describe
from labkit.widgets.base.snapshot import note, side_by_side
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.base.tool import Panel, special
from labkit.widgets.blocks.token_bars import TokenBars
from labkit.widgets.blocks.token_strip import TokenStrip

LEAST = 0.1  # nats at the strong end of the colours; less is not worth the colour
SHOWN = 6  # tokens in each column


class Predictions(Panel):
    """The tokens of a prompt, and the next-token bars of both models at the selected one, at first the last.

    The bars are for its owner to place.

    Args:
        tokenizer: of both models.
        names: what to call the source, `clean`, and the model looked at, `corrupt`.
    """

    def __init__(self, tokenizer: object, names: Mapping[str, str]) -> None:
        super().__init__()
        self.tokenizer, self.names = tokenizer, names
        self.found: NextTokens | None = None
        self.strip = TokenStrip(unit="KL (nats)", legend=True, high=LEAST)
        self.words = StatusLine()
        self.bars = TokenBars()
        self.strip.observe(lambda _: self._draw_bars(), "selection")
        self.bars.layout.flex = "0 1 540px"  # both columns side by side
        self.children = [self.strip, self.words]

    def show(self, found: NextTokens | None) -> None:
        """Show this, or nothing."""
        self.found = found
        own, theirs = self.names["corrupt"], self.names["clean"]
        with self.strip.hold_sync():
            self.strip.clear()
            if found is not None:
                self.strip.title = f"KL divergence of the next token in {own} from {theirs}"
                self.strip.tokens = [token.display for token in found.tokens]
                self.strip.values = found.kl
                self.strip.high = max(LEAST, float(np.nan_to_num(found.kl).max()))
                differs = np.flatnonzero(~found.same).tolist()
                self.strip.marks = {"special": special(found.tokens), "differs": differs}
                self.strip.notes = {
                    str(n): ", ".join(f"{name} {self._rows(found, run, n)[0][0]}" for run, name in self.names.items())
                    for n in differs
                }
                self.strip.selection = len(found.tokens) - 1
        self.words.say("" if found is None else f"{found.words()} Underlined: another one.")
        self._draw_bars()

    def _rows(self, found: NextTokens, run: str, at: int) -> list[tuple[str, float]]:
        """The likeliest tokens of one model at a position, as (text, probability)."""
        tokens = describe(self.tokenizer, found.ids[run][at, :SHOWN].tolist())
        return [(one.display, p) for one, p in zip(tokens, found.shares[run][at].tolist(), strict=False)]

    def _draw_bars(self) -> None:
        found = self.found
        if found is None:
            self.bars.show({})
            return
        at = len(found.tokens) - 1 if self.strip.selection is None else self.strip.selection
        columns = {self.names[run]: self._rows(found, run, at) for run in ("corrupt", "clean")}
        self.bars.show(columns, title=f"What comes after {at} {found.tokens[at].display}")

    def picture(self) -> str:
        """What is shown as HTML, for the snapshot of the tool."""
        if self.found is None:
            return ""
        text = f"<div>{note(self.strip.title)}{self.strip.picture()}{note(self.words.text)}</div>"
        return text + side_by_side(f"<div>{note(self.bars.title)}{self.bars.picture()}</div>")
