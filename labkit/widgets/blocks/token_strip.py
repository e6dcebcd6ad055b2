"""TokenStrip: a row of token chips that wraps, with a value, marks and alternatives for each token.

A strip can grow while it is shown: `append` sends only the new tokens, and neither side touches the others, so the
four-thousandth token costs no more than the first. Alternatives travel and are kept as numbers into a list of words,
with probabilities in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import traitlets as t

from labkit.widgets.base.block import Array, Block, listener, literal, module, texts
from labkit.widgets.base.colour_scales import colour, ink, shade
from labkit.widgets.base.picture import INK, chips, image

Alternatives = Sequence[Sequence[Any]]
_MOST_TOKENS = 600  # in a picture; a saved notebook should stay small


class TokenStrip(Block):
    """Tokens in a row, each coloured by a value. Arrow keys move, Enter or a click selects, Escape lets go.

    Args:
        tokens: texts, or tokens as `lm.tokens(prompt)` gives them.
        values: a number per token (seq,), float32; NaN leaves a token plain.
        marks: names for positions, such as `{"differs": [9], "special": [0], "prompt": range(9)}`; those, `template`,
            `system`, `user`, `assistant`, `branched` and `surprise` have a look of their own, any name is read out and
            becomes the css class `labkit-is-<name>`.
        alternatives: for each token None or rows of (text, probability), shown on hover and focus.
        facts: more numbers about each token (seq, f), with `fact_names`, shown with the alternatives.
        notes: a few words about a position, shown with it: `{"3": "a part of 😀"}`.
        folds: stretches folded away behind their length, `{"start": 3, "stop": 40, "label": "thought"}`; a stop of None
            extends to the end. `opened` lists the starts of those that are unfolded.
        title, unit: what is shown, and of what the values are.
        scale: `amount`, `surprise` or `effect`; `low`, `high`, `centre` are the values at its ends and middle.
        legend: show the colour scale.
        choosable: alternatives can be clicked, or chosen with arrows and Enter; see `on_choose`.
        widths: chip widths in characters, so that two strips line up.

    Traits:
        selection (int | None), hovered (int | None): positions; both can be observed, linked and set.
        pointed: positions that are outlined, such as those matching the hovered one of another strip.
    """

    _esm = module("bars", "token_chip", "token_strip_rows", "token_strip_note", "token_strip")
    _listener = listener("token_strip_rows")

    tokens = t.List(t.Unicode()).tag(sync=True)
    values = Array(1, grows=True)
    marks = t.Dict().tag(sync=True)
    words = t.List(t.Unicode(), help="every text among the alternatives").tag(sync=True)
    top = Array(2, keep=np.int32, grows=True)  # (seq, k): indices into words, -1 for none
    chances = Array(2, keep=np.float16, grows=True)  # (seq, k)
    facts = Array(2, grows=True)
    fact_names = t.List(t.Unicode()).tag(sync=True)
    notes = t.Dict().tag(sync=True)
    folds = t.List(t.Dict()).tag(sync=True)
    opened = t.List(t.Int()).tag(sync=True)
    widths = t.List(t.Int()).tag(sync=True)
    title = t.Unicode().tag(sync=True)
    unit = t.Unicode().tag(sync=True)
    legend = t.Bool(False).tag(sync=True)
    low = t.Float(0.0).tag(sync=True)
    high = t.Float(1.0).tag(sync=True)
    centre = t.Float(None, allow_none=True).tag(sync=True)
    choosable = t.Bool(False).tag(sync=True)
    selection = t.Int(None, allow_none=True).tag(sync=True)
    hovered = t.Int(None, allow_none=True).tag(sync=True)
    pointed = t.List(t.Int()).tag(sync=True)

    def __init__(
        self,
        tokens: Sequence[Any] = (),
        values: Any = None,
        *,
        marks: Mapping[str, Iterable[int]] | None = None,
        alternatives: Sequence[Alternatives | None] | None = None,
        **traits: Any,
    ) -> None:
        self._index: dict[str, int] = {}  # where each word is
        self._room: dict[str, np.ndarray] = {}  # arrays with room to grow, of which the traits are the front
        places = {name: [int(place) for place in at] for name, at in (marks or {}).items()}
        super().__init__(tokens=texts(tokens), values=values, marks=places, **traits)
        if alternatives is not None:
            self.alternatives = alternatives

    # -- alternatives ------------------------------------------------------------------------------------------------

    @property
    def alternatives(self) -> list[list[list[Any]] | None]:
        """For each token None or rows of [text, probability]."""
        if self.top is None or self.chances is None:
            return [None] * len(self.tokens)
        found: list[list[list[Any]] | None] = []
        for row, likely in zip(self.top, self.chances, strict=True):
            shown = [[self.words[n], float(p)] for n, p in zip(row, likely, strict=True) if n >= 0]
            found.append(shown or None)
        return [*found, *[None] * (len(self.tokens) - len(found))]

    @alternatives.setter
    def alternatives(self, rows: Sequence[Alternatives | None]) -> None:
        self.words, self._index = [], {}
        words, top, chances = self._packed(rows)
        with self.hold_sync():
            self.words, self.top, self.chances = words, top, chances

    def _packed(self, rows: Sequence[Alternatives | None]) -> tuple[list[str], np.ndarray, np.ndarray]:
        """New words, and rows of indices and probabilities; a row that is shorter than the others is filled with -1."""
        most = max([len(row) for row in rows if row], default=0)
        most = max(most, 0 if self.top is None else self.top.shape[1])
        top, chances = np.full((len(rows), most), -1, np.int32), np.zeros((len(rows), most), np.float16)
        fresh = []
        for place, row in enumerate(rows):
            for n, (text, probability) in enumerate(row or ()):
                if text not in self._index:
                    self._index[text] = len(self._index)
                    fresh.append(text)
                top[place, n], chances[place, n] = self._index[text], probability
        return fresh, top, chances

    # -- growing -----------------------------------------------------------------------------------------------------

    def append(
        self,
        tokens: Sequence[Any],
        values: Sequence[float] | np.ndarray | None = None,
        *,
        alternatives: Sequence[Alternatives | None] | None = None,
        facts: np.ndarray | None = None,
    ) -> None:
        """Add tokens at the end; the browser is sent the new ones and draws only those.

        The traits have them at once; as nothing that was there has changed, no change is announced.
        """
        shown = texts(tokens)
        new = np.full(len(shown), np.nan, np.float32) if values is None else np.asarray(values, np.float32)
        if len(new) != len(shown):
            raise ValueError(f"expected one value per token: {len(shown)} tokens, {len(new)} values")
        before = len(self.tokens)
        words, top, chances = self._packed(alternatives or [None] * len(shown))
        added: dict[str, np.ndarray] = {"values": new, "top": top, "chances": chances}
        if facts is not None:
            added["facts"] = np.asarray(facts, np.float32)
        for name, rows in added.items():
            self._grow(name, before, rows)
        self.words.extend(words)
        self.tokens.extend(shown)
        wire = {name: {"shape": list(rows.shape), "dtype": str(rows.dtype)} for name, rows in added.items()}
        message = {"kind": "append", "at": before, "tokens": shown, "words": words, "arrays": wire}
        self.send(message, buffers=[np.ascontiguousarray(rows).tobytes() for rows in added.values()])

    def _grow(self, name: str, before: int, rows: np.ndarray) -> None:
        """Put rows behind the first `before` ones of an array trait; the room doubles when it is full."""
        held, room = getattr(self, name), self._room.get(name)
        needed, rest = before + len(rows), rows.shape[1:]
        ours = room is not None and held is not None and held.base is room and room.shape[1:] == rest
        if not ours or room is None or len(room) < needed:
            empty: Any = -1 if name == "top" else 0 if name == "chances" else np.nan
            fresh = np.full((max(64, 2 * needed), *rest), empty, rows.dtype)
            if held is not None:
                fresh[(slice(len(held)), *map(slice, held.shape[1:]))] = held
            room = self._room[name] = fresh
        room[before:needed] = rows
        self._trait_values[name] = room[:needed]

    def clear(self) -> None:
        """Take all tokens away."""
        self.selection = self.hovered = None
        with self.hold_sync():
            self.tokens, self.values, self.facts, self.marks = [], None, None, {}
            self.words, self.top, self.chances, self._index = [], None, None, {}
            self.folds, self.opened, self.pointed, self.notes = [], [], [], {}

    def on_choose(self, call: Callable[[int, int], Any]) -> None:
        """Call this with (position, place among its alternatives) when the user chooses one."""

        def heard(_widget: Any, message: Any, _buffers: Any) -> None:
            if message.get("kind") == "choose":
                call(int(message["position"]), int(message["place"]))

        self.on_msg(heard)

    # -- the rest ----------------------------------------------------------------------------------------------------

    def picture(self) -> str:
        """The strip as an image without a frame, for the snapshot of a tool; its text is the text."""
        tokens, places = list(self.tokens), list(range(len(self.tokens)))
        for fold in reversed(self.folds):
            start, stop = fold["start"], len(self.tokens) if fold.get("stop") is None else fold["stop"]
            if start not in self.opened:
                tokens[start:stop], places[start:stop] = [f"▸ {fold['label']} · {stop - start} tokens"], [-1]
        values = self.values
        if values is not None and len(tokens) != len(self.tokens):
            values = np.array([values[n] if 0 <= n < len(values) else np.nan for n in places], np.float32)
        shown, more = tokens[:_MOST_TOKENS], len(tokens) - _MOST_TOKENS
        if not shown:
            return ""
        marked = set(self.marks.get("differs", ()))
        differs = {n for n, place in enumerate(places[:_MOST_TOKENS]) if place in marked}
        fills: list[str | None] = [None if n in differs else "#f2f4f6" for n in range(len(shown))]
        inks = [INK] * len(shown)
        for n in range(len(shown)):
            if values is not None and n < len(values) and np.isfinite(values[n]):
                rgb = colour(self.scale, shade(float(values[n]), self.low, self.high, centre=self.centre))
                fills[n], inks[n] = "#{:02x}{:02x}{:02x}".format(*rgb), ink(rgb)
        rest = f"… and {more} more tokens" if more > 0 else ""
        text = "".join(shown).replace("·", " ").replace("⏎", " ")
        how = "" if values is None else f", coloured from {self.low:.3g} to {self.high:.3g}"
        about = f"{self.title or 'Text'}, {len(tokens)} tokens{how}: {text} {rest}"
        return image(*chips(shown, fills, inks, differs, rest), about)

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
