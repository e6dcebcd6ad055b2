"""What a model writes from one cell of a tool's map: buttons, and the texts below them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import traitlets as t

from labkit.language_model import LanguageModel
from labkit.lens.patchscope_result import Patchscope
from labkit.patching.continued import Continued
from labkit.text.tokens import describe
from labkit.widgets.base.job_queue import Work
from labkit.widgets.base.snapshot import note
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.base.tool import Panel, button, row, shown
from labkit.widgets.blocks.token_strip import TokenStrip

RESIDUAL = ("resid_pre", "resid_mid", "resid_post")
"""What a patchscope reads here; `lk.patchscope` itself takes other vectors, too."""
PATCHSCOPE = (
    "Patchscope",
    "Put the activation of this cell into another prompt, and see what the model writes then (lk.patchscope)",
)
CONTINUE = ("Continue under this patch", "Write on with this patch and without it (lk.continue_under)")


class CellWriting(Panel):
    """Buttons that let a model write from the selected cell, and what it wrote.

    Args:
        ask: for each button its words, its title and what it calls.

    Traits:
        result: the `Continued` or the `Patchscope` that is shown; None if nothing is.
    """

    result = t.Any(None)

    def __init__(self, ask: Mapping[str, tuple[str, str, Callable[[], Any]]]) -> None:
        super().__init__()
        self._tips = {name: tip for name, (_, tip, _) in ask.items()}
        self.buttons = {name: button(words, call, tip, disabled=True) for name, (words, tip, call) in ask.items()}
        for one in self.buttons.values():
            one.layout.width = "auto"
        self.line = StatusLine()
        self.strips: list[TokenStrip] = []  # made when there is something to show: most cells are never asked
        self._turn = object()
        self.children = [row(*self.buttons.values()), self.line]
        self.clear()

    def offer(self, name: str, why_not: str = "") -> None:
        """Offer a button, or say in its title why not."""
        one = self.buttons[name]
        one.disabled, one.tooltip = bool(why_not), why_not or self._tips[name]

    def clear(self) -> None:
        """Show nothing."""
        self._turn, self.result = object(), None
        for part in (self.line, *self.strips):
            shown(part, False)

    def _show(self, lm: LanguageModel, found: Continued | Patchscope) -> None:
        texts = _under_a_patch(found) if isinstance(found, Continued) else _with_activation(lm, found)
        if len(texts) > len(self.strips):
            self.strips += [TokenStrip() for _ in range(len(texts) - len(self.strips))]
            self.children = [*self.children[:2], *self.strips]
        for strip, (title, how) in zip(self.strips, texts.items(), strict=False):
            strip.clear()
            with strip.hold_sync():
                strip.title = title
                for name, value in how.items():
                    setattr(strip, name, value)
        for n, strip in enumerate(self.strips):
            shown(strip, n < len(texts) and bool(strip.tokens))
        self.line.say(_about(found))
        shown(self.line, True)
        self.result = found

    def work(self, lm: LanguageModel, words: str, make: Callable[[threading.Event], Continued | Patchscope]) -> Work:
        """Say that something is being written, and give back the work that writes and shows it."""
        self.clear()
        self.line.say(words)
        shown(self.line, True)
        turn = self._turn

        def work(stop: threading.Event) -> None:
            found = None
            try:
                if not stop.is_set():
                    found = make(stop)
            finally:
                if turn is self._turn:  # nothing else was asked for since
                    self.clear()
                    if found is not None:
                        self._show(lm, found)

        return work

    def picture(self) -> str:
        """What is shown as HTML, for the snapshot of a tool."""
        if self.result is None:
            return ""
        some = [strip for strip in self.strips if strip.layout.display != "none"]
        return note(self.line.text) + "".join(note(strip.title) + strip.picture() for strip in some)


def _under_a_patch(found: Continued) -> dict[str, dict[str, Any]]:
    """Both texts, with the likeliest tokens at each place; where they part is marked."""
    base = found.recipe["base"] + ("" if found.recipe["source"] else " prompt")
    texts = {f"Before: {base}": found.before, "After the patch": found.after}
    parts = {} if found.parts is None else {"differs": [found.parts]}
    return {
        title: {
            "tokens": [one.token.display for one in text.tokens],
            "marks": parts if text is found.after else {},
            "alternatives": [[(word, p) for _, word, p in one.alternatives] for one in text.tokens],
        }
        for title, text in texts.items()
    }


def _with_activation(lm: LanguageModel, found: Patchscope) -> dict[str, dict[str, Any]]:
    """The text with the activation, and the two controls."""
    (one,) = found.rows
    texts = {"With the activation": one.wrote, "Without it": found.unpatched, "A random vector instead": one.random}
    return {
        title: {"tokens": [] if wrote is None else [token.display for token in describe(lm.tokenizer, wrote.ids)]}
        for title, wrote in texts.items()
    }


def _about(found: Continued | Patchscope) -> str:
    """What is shown, in a sentence."""
    if isinstance(found, Continued):
        stopped = "stopped" in (found.before.finish, found.after.finish)
        same = "The same text with and without the patch." if found.parts is None else "What the model writes next."
        return "Stopped." if stopped else same
    if found.finish == "stopped":
        return "Stopped."
    (one,) = found.rows
    into, token = "".join(token.text for token in found.target), found.target[found.at].display
    return (
        f"{found.recipe['site']}.{one.layer} of {one.token}, in the place of {token} in layer {one.target_layer} of "
        f"“{into}”"
    )
