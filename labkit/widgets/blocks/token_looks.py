"""TokenLooks: the text, shaded by where a token looks or what looks at it, and the strongest of these as a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import traitlets as t

from labkit.text.tokens import Token
from labkit.widgets.base.tool import Panel, choice, link, row, special
from labkit.widgets.blocks.token_bars import TokenBars
from labkit.widgets.blocks.token_strip import TokenStrip

POINT = "Point at a token to see where it looks; click to lock it"
OVER = {"selection": "the large head", "mean": "chosen heads, mean", "max": "chosen heads, maximum"}
DIRECTIONS = {"from": "where a token looks", "to": "what looks at it"}


class TokenLooks(Panel):
    """A `TokenStrip` over a matrix (query, key), and a table of the strongest looks for eyes and screen readers.

    Traits:
        token: the position whose looks are shown, or None; follows the pointer, unless one is locked by a click.
        direction: `from` the token, or `to` it.
        over: which heads the matrix holds; used by the owner, who makes it.
    """

    token = t.Int(None, allow_none=True)
    direction = t.Enum(list(DIRECTIONS), "from")
    over = t.Enum(list(OVER), "selection")

    def __init__(self) -> None:
        self.matrix: np.ndarray | None = None  # (query, key), or (1, key) of the last token
        self.strip = TokenStrip(unit="attention", legend=True, title=POINT)
        self.strip.add_class("labkit-short")
        self.bars = TokenBars()
        self.bars.add_class("labkit-looks")
        self._unit, self._one = "attention", ""
        self.direction_choice, over = choice("Looks", DIRECTIONS), choice("of", OVER)
        super().__init__()
        link(self, direction=self.direction_choice, over=over)
        self.observe(lambda _: self.shade(), ["token", "direction"])
        self.strip.observe(lambda _: self.follow(), ["hovered", "selection"])
        self._pointed: int | None = None
        self.children = [self.strip, row(self.direction_choice, over), self.bars]

    def begin(self, tokens: Sequence[Token]) -> None:
        """Another text; nothing to show of it yet."""
        self.token, self.matrix = None, None
        with self.strip.hold_sync():
            self.strip.clear()
            self.strip.tokens = [token.display for token in tokens]
            self.strip.marks = {"special": special(tokens)}

    def show(self, matrix: np.ndarray, *, unit: str, one: str = "") -> None:
        """Show this matrix; `one` is the title where it is of the last token alone, and may be negative."""
        self.matrix, self._unit, self._one = matrix, unit, one
        self.shade()

    def point(self, token: int | None) -> None:
        """The pointer is on a token elsewhere, in a picture."""
        self._pointed = token
        self.follow()

    def follow(self) -> None:
        """The token that was locked by a click, else the one under the pointer."""
        places = (self.strip.selection, self.strip.hovered, self._pointed)
        self.token = next((place for place in places if place is not None), None)

    def shade(self) -> None:
        """Colour the tokens, and list the strongest."""
        matrix, strip = self.matrix, self.strip
        alone = matrix is not None and bool(self._one)
        token = 0 if alone else self.token
        with strip.hold_sync():
            if matrix is not None:
                reach = 1.0 if self._unit == "attention" else float(np.abs(matrix).max(initial=0)) or 1.0
                strip.scale, strip.centre = ("effect", 0.0) if alone else ("amount", None)
                strip.low, strip.high, strip.unit = (-reach if alone else 0.0), reach, self._unit
            if matrix is None or token is None or token >= len(matrix):
                strip.values, strip.title = None, POINT
                strip.marks = {name: at for name, at in strip.marks.items() if name != "looking"}
                self.bars.show({})
                return
            strip.values = values = matrix[token] if self.direction == "from" or alone else matrix[:, token]
            looking = len(values) - 1 if alone else token
            strip.marks = {**strip.marks, "looking": [looking]}
            name = f"{strip.tokens[looking]} ({looking})"
            strip.title = self._one or (f"Where {name} looks" if self.direction == "from" else f"What looks at {name}")
        if alone:
            self.bars.show({})
            return
        total = 1.0 if self._unit == "attention" and self.direction == "from" else float(values.sum()) or 1.0
        most = [n for n in np.argsort(-values, kind="stable")[:5] if values[n] > 0]
        self.bars.show({strip.title: [(f"{n} {strip.tokens[n]}", float(values[n]) / total) for n in most]})
