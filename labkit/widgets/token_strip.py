"""TokenStrip: a row of token chips that wraps, with a value, marks and alternatives for each token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import traitlets as t

from labkit.widgets.block import Array, Block, literal, module, style, texts
from labkit.widgets.snapshot import card, token_row

Alternatives = Sequence[Sequence[Any]]


class TokenStrip(Block):
    """Tokens in a row, each coloured by a value. Arrow keys move, Enter or a click selects, Escape lets go.

    Args:
        tokens: texts, or tokens as `lm.tokens(prompt)` gives them.
        values: a number a token (seq,), float32; NaN leaves a token plain.
        marks: names for positions, such as `{"differs": [9], "special": [0], "prompt": range(9)}`; those three have a
            look of their own, any name is read out and becomes the css class `labkit-is-<name>`.
        alternatives: for each token None or rows of (text, probability), shown on hover and focus.
        title, unit: what is shown, and of what the values are.
        scale: `amount`, `surprise` or `effect`; `low`, `high`, `centre` are the values at its ends and middle.
        legend: show the colour scale.
        widths: chip widths in characters, so that two strips line up.

    Traits:
        selection (int | None), hovered (int | None): positions; both can be observed, linked and set.
    """

    _esm = module("token_strip")
    _css = style("token_strip")

    tokens = t.List(t.Unicode()).tag(sync=True)
    values = Array(1)
    marks = t.Dict().tag(sync=True)
    alternatives: t.List = t.List().tag(sync=True)
    widths = t.List(t.Int()).tag(sync=True)
    title = t.Unicode().tag(sync=True)
    unit = t.Unicode().tag(sync=True)
    legend = t.Bool(False).tag(sync=True)
    low = t.Float(0.0).tag(sync=True)
    high = t.Float(1.0).tag(sync=True)
    centre = t.Float(None, allow_none=True).tag(sync=True)
    selection = t.Int(None, allow_none=True).tag(sync=True)
    hovered = t.Int(None, allow_none=True).tag(sync=True)
    _appending = False

    def __init__(
        self,
        tokens: Sequence[Any] = (),
        values: Any = None,
        *,
        marks: Mapping[str, Iterable[int]] | None = None,
        **traits: Any,
    ) -> None:
        super().__init__(tokens=texts(tokens), values=values, marks=_lists(marks), **traits)

    def append(
        self,
        tokens: Sequence[Any],
        values: Sequence[float] | None = None,
        *,
        alternatives: Sequence[Alternatives | None] | None = None,
    ) -> None:
        """Add tokens at the end; the browser is sent the new ones and draws only those."""
        shown = texts(tokens)
        new = np.full(len(shown), np.nan, np.float32) if values is None else np.asarray(values, np.float32)
        if len(new) != len(shown):
            raise ValueError(f"a value for each token, please: {len(shown)} tokens, {len(new)} values")
        rows = [None if row is None else [list(pair) for pair in row] for row in alternatives or [None] * len(shown)]
        before = np.full(len(self.tokens), np.nan, np.float32)
        if self.values is not None:
            before[: len(self.values)] = self.values
        self._appending = True  # the state here and there grows by the message below, not by sending it all again
        try:
            held = [*self.alternatives, *[None] * (len(self.tokens) - len(self.alternatives))]
            self.alternatives = [*held, *rows]
            self.values = np.concatenate([before, new])
            self.tokens = [*self.tokens, *shown]
        finally:
            self._appending = False
        wire = {"shape": [len(new)], "dtype": "float32"}
        self.send({"kind": "append", "tokens": shown, "values": wire, "alternatives": rows}, buffers=[new.tobytes()])

    def clear(self) -> None:
        """Take all tokens away."""
        self.selection = self.hovered = None
        self.tokens, self.values, self.alternatives, self.marks = [], None, [], {}

    def send_state(self, key: Any = None) -> None:
        if not self._appending:
            super().send_state(key)

    def snapshot(self) -> str:
        return card(self.picture(), title=self.title)

    def picture(self) -> str:
        """The strip as HTML without a frame, for the snapshot of a tool."""
        look = {"scale": self.scale, "low": self.low, "high": self.high, "centre": self.centre}
        return token_row(self.tokens, self.values, marks=self.marks, **look)  # type: ignore[arg-type]

    def code(self) -> str:
        """The Python that makes the same strip."""
        given = {"values": literal(self.values)} if self.values is not None else {}
        given |= {name: repr(getattr(self, name)) for name in ("marks", "title", "unit") if getattr(self, name)}
        given |= {"scale": repr(self.scale), "low": repr(self.low), "high": repr(self.high)} if given else {}
        arguments = "".join(f"    {name}={text},\n" for name, text in given.items() if "#" not in text)
        return f"import labkit as lk\n\nlk.TokenStrip(\n    {self.tokens!r},\n{arguments})\n"

    def __repr__(self) -> str:
        shown = "".join(self.tokens[:8]) + ("…" if len(self.tokens) > 8 else "")
        return f"TokenStrip({len(self.tokens)} tokens: {shown!r})"


def _lists(marks: Mapping[str, Iterable[int]] | None) -> dict[str, list[int]]:
    return {name: [int(place) for place in places] for name, places in (marks or {}).items()}
