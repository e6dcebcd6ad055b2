"""HeadAction: ablate or freeze the chosen heads, see what a head writes, or send heads to PatchLab."""

from __future__ import annotations

import threading
from typing import Any

import ipywidgets as widgets
import traitlets as t

from labkit.attention_maps.ablation import HOW, KnockOut, knock_out
from labkit.collected.collection import Collection
from labkit.features.writes import Writes
from labkit.language_model import LanguageModel
from labkit.text.types import Prompt
from labkit.widgets.base.tool import Panel, choice, labelled, link, row
from labkit.widgets.blocks.token_bars import TokenBars
from labkit.widgets.blocks.unit_panel import UnitPanel


class HeadAction(Panel):
    """Actions on the chosen heads. The owner wires the buttons: `knock_button`, `writes_button`, `send_button`.

    Traits:
        heads: list of (layer, head).
        how: one of `labkit.attention_maps.ablation.HOW`.
        answer, foil: tokens, for the logit difference, and for PatchLab.
    """

    heads: t.List = t.List()
    how = t.Enum(list(HOW), "zero")
    answer = t.Unicode()
    foil = t.Unicode()

    def __init__(self, lm: LanguageModel, collection: Collection | None = None, **traits: Any) -> None:
        self.found: KnockOut | None = None
        self.written: Writes | None = None
        self.bars, self.unit = TokenBars(), UnitPanel(lm, collection)
        self._names = widgets.Label()
        how = choice("Replace with", HOW)
        self.knock_button = widgets.Button(description="Knock out", tooltip="The next token without these heads")
        self.writes_button = widgets.Button(
            description="What it writes", tooltip="Which tokens the head writes for when it looks at the selected token"
        )
        self.send_button = widgets.Button(description="Send to PatchLab", tooltip="Patch these heads, exactly")
        answer, foil = (
            labelled(widgets.Text, name, "136px", placeholder=example, continuous_update=False)
            for name, example in (("Answer", "· Mary"), ("Foil", "· John"))
        )
        super().__init__(**traits)
        link(self, how=how, answer=answer, foil=foil)
        self.observe(lambda _: self._name(), "heads")
        buttons = row(how, self.knock_button, self.writes_button, self.send_button)
        self.children = [row(self._names, answer, foil), buttons, self.bars, self.unit]
        self._name()

    def _name(self) -> None:
        names = ", ".join(f"{layer}.{head}" for layer, head in self.heads[:8])
        more = f" and {len(self.heads) - 8} more" if len(self.heads) > 8 else ""
        self._names.value = f"Heads {names}{more}:" if len(self.heads) > 1 else f"Head {names}:" if names else "No head"
        self.bars.show({}, note="")
        self.written = None
        self.unit.clear()

    def act(self, lm: LanguageModel, prompt: Prompt, other: Prompt | None) -> KnockOut:
        """Do it, and show the next token before and after."""
        self.found = found = knock_out(lm, prompt, heads=self.heads, how=self.how, other=other)
        before, after = found.top()
        said = f"KL {found.kl:.2f} nats"
        if self.answer and self.foil:
            a, b = found.logit_diff(self.answer, self.foil)
            said = f"logit difference {a:.2f} → {b:.2f} · {said}".replace("-", "−")
        names = ", ".join(f"{layer}.{head}" for layer, head in self.heads)
        self.bars.show(
            {"the whole model": before, HOW[self.how]: after}, title=f"Next token without {names}", note=said
        )
        return found

    def write(self, head: tuple[int, int], prompt: Prompt, position: int, stop: threading.Event) -> None:
        """Show what a head writes when it looks at a token, and where it is strongest in the collection."""
        self.written = self.unit.write(lambda writer: writer.head(*head, prompt, position), stop)
        self.unit.exemplify(f"z.{head[0]}.{head[1]}", stop)
