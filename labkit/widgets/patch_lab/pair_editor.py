"""PairEditor: a clean and a corrupt prompt, token over token, and the answer and foil that the model itself offers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets
import traitlets as t

from labkit.activations.unembedding import last_logits
from labkit.datasets.tasks import PromptPair, task, tasks
from labkit.language_model import LanguageModel
from labkit.patching.answers import Answers, resolved
from labkit.text.alignment import SideBySide, begins, side_by_side
from labkit.text.pair import spans_of_text, spans_to_text
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.base.tool import Panel, button, choice, in_words, labelled, link, row, shown
from labkit.widgets.blocks.pair_strip import PairStrip
from labkit.widgets.blocks.prompt_box import PromptBox
from labkit.widgets.patch_lab.answer_picks import OFFERED, AnswerPicks
from labkit.widgets.patch_lab.state import PAIR, PAIRED, PatchState

NAMES = ("clean", "corrupt")
WORDS = {"answer": "clean", "foil": "corrupt"}  # and the prompt that each follows
LONE = "What is equal is paired; the rest has no partner, and its cells are hatched."
_OWN = "a pair of your own"


class PairEditor(Panel):
    """Write a pair, or generate one; mismatches are shown as you type.

    Args:
        lm: the model.
        state: the pair is in its `clean`, `corrupt`, `answer` and `foil`.
        ask: runs model work in the background: called with a function of the stop event.
        submit: called when the user asks for a run (Ctrl+Enter in a prompt).

    Traits:
        fits: both prompts are there, and at least one position of each has a partner in the other.
    """

    fits = t.Bool(False)

    def __init__(
        self,
        lm: LanguageModel,
        state: PatchState,
        *,
        ask: Callable[[Callable[[threading.Event], None]], Any],
        submit: Callable[[], Any] = lambda: None,
    ) -> None:
        super().__init__()
        self.lm, self.state, self._ask, self._submit = lm, state, ask, submit
        self.held: SideBySide | None = None
        self._settling = False
        self._spans_shown = ""
        self._offers_for: tuple[str, str] | None = None
        self.seed = 0  # which pair of the task it is
        self.task = choice("Start from", [(_OWN, ""), *((n, n) for n in tasks().index)], "290px")
        self.another = button(
            "Another pair", lambda: self._make(self.seed + 1), "The next pair of this task", disabled=True
        )
        self.boxes = {name: PromptBox(label=f"{name.capitalize()} prompt", delay=150) for name in NAMES}
        self.strip = PairStrip()
        self.status = StatusLine()
        self.fix = button("", self._mend, layout={"display": "none"})
        self.spans = labelled(widgets.Text, "Paired", "420px", continuous_update=False)
        self.spans.tooltip = "Positions of clean = positions of corrupt; empty pairs what is equal"
        self.spans.observe(lambda change: self._pair_up(change["new"]), "value")
        # the answer from what follows clean, the foil from what follows corrupt
        self.chosen = AnswerPicks(state, NAMES)
        self.picks = self.chosen.picks
        link(state, **self.boxes)
        for box in self.boxes.values():
            box.on_submit(submit)
            box.layout.flex, box.layout.width = "1 1 380px", "auto"
        self.task.observe(lambda _: self._make(0), "value")
        state.observe(lambda change: self._changed(change["name"]), PAIRED)
        self.children = [
            row(self.task, self.another),
            row(*self.boxes.values(), wide=True),
            Panel(self.strip, row(self.status, self.fix), self.spans),
            self.chosen.row,
        ]
        self.align()

    def use(
        self,
        clean: str,
        corrupt: str,
        answer: str = "",
        foil: str = "",
        alignment: Sequence[Any] | None = None,
    ) -> bool:
        """Take this pair; says whether it fits."""
        self._settling = True
        try:
            self.state.alignment = None if alignment is None else list(alignment)
            for name, value in zip(PAIR, (clean, corrupt, answer, foil), strict=True):
                setattr(self.state, name, value)
        finally:
            self._settling = False
        return self.align()

    # -- token over token ----------------------------------------------------------------------------------------

    def _changed(self, name: str) -> None:
        if self._settling:
            return
        self.task.value = ""  # from here on it is the person's own
        if name in NAMES and self.state.alignment is not None:
            self.state.alignment = None  # of other tokens; this comes back here
            return
        self.align()
        self.offer()

    def _pair_up(self, text: str) -> None:
        """Pair the positions that somebody wrote; what cannot be used is said, and the pairing stays."""
        if self._settling or text == self._spans_shown:
            return
        try:
            spans = spans_of_text(text) or None
            if spans is not None:
                side_by_side(self.lm, self.state.clean, self.state.corrupt, spans=spans, suggest=False)
        except ValueError as error:
            self.status.complain(in_words(error))
            return
        self.state.alignment = None if spans is None else list(spans)
        self.align()
        self._submit()

    def align(self) -> bool:
        """Show both prompts token over token; say in plain words where they do not fit."""
        try:
            held = self.held = side_by_side(self.lm, self.state.clean, self.state.corrupt, spans=self.state.alignment)
        except ValueError as error:
            self.held, self.fits = None, False
            self.strip.show([], {}, [])
            self._offer_fix()
            self._show_spans()
            self.status.complain(in_words(error))
            return False
        pairs = [
            (None if i is None else held.clean[i], None if j is None else held.corrupt[j]) for i, j in held.columns
        ]
        columns = [(a.display if a else None, b.display if b else None) for a, b in pairs]
        special = [n for n, pair in enumerate(pairs) if any(token is not None and token.special for token in pair)]
        marks = {"differs": held.differ, "special": special, "no partner": list(held.lone)}
        labels = [str(i) if i == j or j is None else str(j) if i is None else f"{i}/{j}" for i, j in held.columns]
        if begins(self.lm, held.clean or held.corrupt):
            marks["BOS"], labels[0] = [0], "0 BOS"
        self.strip.show(columns, marks, labels)
        self._offer_fix()
        self._show_spans()
        self.fits = held.paired
        self.chosen.mark()
        if held.clean and held.corrupt and not held.paired:
            self.status.complain(f"{held.words} Nothing is equal; say below which positions belong together.")
            return False
        words = held.words if held.fits or not held.paired else f"{held.words} {LONE}"
        try:
            words += self._about_words() if held.paired else ""
        except ValueError as error:
            self.status.complain(in_words(error))
        else:
            self.status.say(words)
        return held.paired

    def _about_words(self) -> str:
        """What is said of an answer or a foil of several tokens.

        Raises:
            ValueError: one of them cannot be used.
        """
        after = {name: self.lm.encode(getattr(self.state, prompt)) for name, prompt in WORDS.items()}
        found = resolved(self.lm, self.state.answer or None, self.state.foil or None, after=after)
        if not isinstance(found, Answers):
            return ""
        sizes = {name: len(ids) for name in WORDS for ids in getattr(found, name)}
        longer = " and ".join(f"the {name} is {n} tokens" for name, n in sizes.items() if n > 1)
        return f" {longer[:1].upper()}{longer[1:]}: measured by the sum of their log probabilities."

    def _show_spans(self) -> None:
        """Show which positions are paired, where that is not position by position."""
        apart = self.held is not None and (bool(self.held.lone) or self.state.alignment is not None)
        self._spans_shown = spans_to_text(self.held.spans) if self.held and apart else ""
        self.spans.value = self._spans_shown
        shown(self.spans, apart)

    def _offer_fix(self) -> None:
        fix = self.held.fix if self.held else None
        shown(self.fix, fix is not None)
        if fix is not None:
            self.fix.description = fix.words[:1].upper() + fix.words[1:]

    def _mend(self) -> None:
        if self.held and self.held.fix:
            setattr(self.state, self.held.fix.prompt, self.held.fix.text)

    # -- answer and foil -----------------------------------------------------------------------------------------

    def offer(self) -> None:
        """Offer what the model predicts after each prompt, to choose the answer and the foil from."""
        prompts = {name: getattr(self.state, name) for name in NAMES}
        if not self.fits or self._offers_for == tuple(prompts.values()):
            return

        def work(stop: threading.Event) -> None:
            if stop.is_set():
                return
            for name, prompt in prompts.items():
                with self.lm.busy():
                    best = last_logits(self.lm, self.lm.encode(prompt))[0].float().softmax(-1).topk(OFFERED)
                self.chosen.offer(name, self.lm, *best, title=f"likeliest after {name}")
            self._offers_for = (prompts["clean"], prompts["corrupt"])
            self.chosen.mark()

        self._ask(work)

    # -- pairs of classic tasks ----------------------------------------------------------------------------------

    def _make(self, seed: int) -> None:
        self.seed = seed
        self.another.disabled = not self.task.value
        if not self.task.value:
            return
        try:
            pair: PromptPair = task(self.task.value).pairs(self.lm, 1, seed=self.seed)[0]
        except ValueError as error:
            self.status.complain(in_words(error))
            return
        self.use(*pair)
        self.offer()
