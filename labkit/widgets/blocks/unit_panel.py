"""UnitPanel: what a head or neuron writes, and the texts of a collection in which it is strongest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property

import ipywidgets as widgets
import numpy as np

from labkit.collected.collection import Collection
from labkit.features.examples import examples
from labkit.features.result import Example, Examples
from labkit.features.writes import Writer, Writes
from labkit.language_model import LanguageModel
from labkit.widgets.base.snapshot import note
from labkit.widgets.base.tool import Panel, shown
from labkit.widgets.blocks.token_strip import TokenStrip

TOP, CONTEXT = 4, 6  # texts, and tokens on either side


class UnitPanel(Panel):
    """Rows of tokens, each with arrow keys and a colour scale; takes no room until there is something to show.

    Args:
        collection: where examples are looked for, if anywhere.
    """

    def __init__(self, lm: LanguageModel, collection: Collection | None = None) -> None:
        self.lm, self.collection = lm, collection
        self.strips: list[TokenStrip] = []  # as `writes`, made when there is something to show
        self.about = widgets.Label()
        self.about.add_class("labkit-muted")
        self.found: Examples | None = None
        self._writer: Writer | None = None
        self._known: dict[str, Examples] = {}
        super().__init__(self.about)
        self.clear()

    @cached_property
    def writes(self) -> TokenStrip:
        """What is written, from the most promoted token to the most suppressed."""
        made = TokenStrip(unit="logits", scale="effect", centre=0.0)
        made.add_class("labkit-short")
        self.children = [made, self.about, *self.strips]
        return made

    @property
    def _written(self) -> list[TokenStrip]:
        """`writes`, if it has been made."""
        return [self.writes] if "writes" in vars(self) else []

    def clear(self) -> None:
        """Nothing to show."""
        self.found = None
        self.about.value = ""
        for part in (self, self.about, *self._written, *self.strips):
            shown(part, False)

    def write(self, look: Callable[[Writer], Writes], stop: threading.Event | None = None) -> Writes | None:
        """Show what is written; None if it was stopped meanwhile.

        Raises:
            ValueError: the model's weights do not say; the message says why.
        """
        if self._writer is None:
            self._writer = Writer(self.lm)
        made = look(self._writer)
        if stop is not None and stop.is_set():
            return None
        with self.writes.hold_sync():
            self.writes.selection = self.writes.hovered = None
            self.writes.tokens, self.writes.title = list(made.tokens), made.title
            self.writes.values = np.array(made.logits, np.float32)
            self.writes.high = float(np.abs(self.writes.values).max()) or 1.0
            self.writes.low = -self.writes.high
        for part in (self, self.writes):
            shown(part, True)
        return made

    def exemplify(self, unit: str, stop: threading.Event | None = None) -> None:
        """Show where a unit is strongest in the collection; a unit that was not collected gives a line that says so."""
        if self.collection is None:
            return
        found: Examples | None = None
        try:
            if unit not in self._known:
                self._known[unit] = examples(self.collection, unit, top=TOP, each=0, context=CONTEXT, progress=False)
            found = self._known[unit]
        except (KeyError, ValueError) as error:
            words = str(error.args[0]) if error.args else str(error)
        else:
            words = f"Strongest in {found.texts} texts ({found.measure})"
        if stop is not None and stop.is_set():
            return
        self.found, self.about.value = found, words
        shown(self, True)
        shown(self.about, True)
        top: tuple[Example, ...] = () if found is None else found.top
        reach = max([abs(value) for one in top for value in one.values], default=0.0) or 1.0
        signed = any(value < 0 for one in top for value in one.values)
        if len(top) > len(self.strips):
            self.strips += [TokenStrip(scale="amount") for _ in range(len(top) - len(self.strips))]
            for strip in self.strips:
                strip.add_class("labkit-short")
            self.children = [*self._written, self.about, *self.strips]
        for n, strip in enumerate(self.strips):
            shown(strip, n < len(top))
            if n >= len(top):
                continue
            one = top[n]
            with strip.hold_sync():
                strip.selection = strip.hovered = None
                strip.tokens, strip.values = list(one.tokens), np.array(one.values, np.float32)
                strip.scale, strip.centre = ("effect", 0.0) if signed else ("amount", None)
                strip.low, strip.high = (-reach if signed else 0.0), reach
                strip.unit = found.measure if found is not None else ""
                strip.marks = {"differs": [one.at]}
                strip.title = f"{one.value:.3g} at {one.token}, text {one.text}"

    def picture(self) -> str:
        """What is shown as HTML, for the snapshot of a tool."""
        visible = [one for one in (*self._written, *self.strips) if one.layout.display != "none"]
        parts = [note(one.title) + one.picture() for one in visible]
        if self.about.value:
            parts.insert(len([one for one in visible if one not in self.strips]), note(self.about.value))
        return "".join(parts) if self.layout.display != "none" else ""
