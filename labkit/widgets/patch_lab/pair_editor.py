"""PairEditor: a clean and a corrupt prompt, token over token, and the answer and foil that the model itself offers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import traitlets as t

from labkit.activations.unembedding import last_logits
from labkit.datasets.tasks import PromptPair, task, tasks
from labkit.language_model import LanguageModel
from labkit.text.alignment import SideBySide, begins, side_by_side
from labkit.text.encode import single_token
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.base.tool import Panel, button, choice, in_words, link, row, shown
from labkit.widgets.blocks.pair_strip import PairStrip
from labkit.widgets.blocks.prompt_box import PromptBox
from labkit.widgets.patch_lab.answer_picks import OFFERED, AnswerPicks
from labkit.widgets.patch_lab.state import PAIR, PatchState

NAMES = ("clean", "corrupt")
_OWN = "a pair of your own"


class PairEditor(Panel):
    """Write a pair, or generate one; mismatches are shown as you type.

    Args:
        lm: the model.
        state: the pair is in its `clean`, `corrupt`, `answer` and `foil`.
        ask: runs model work in the background: called with a function of the stop event.
        submit: called when the user asks for a run (Ctrl+Enter in a prompt).

    Traits:
        fits: both prompts are there and have the same number of tokens.
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
        self.lm, self.state, self._ask = lm, state, ask
        self.held: SideBySide | None = None
        self._settling = False
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
        # the answer from what follows clean, the foil from what follows corrupt
        self.chosen = AnswerPicks(state, NAMES)
        self.picks = self.chosen.picks
        link(state, **self.boxes)
        for box in self.boxes.values():
            box.on_submit(submit)
            box.layout.flex, box.layout.width = "1 1 380px", "auto"
        self.task.observe(lambda _: self._make(0), "value")
        state.observe(lambda _: self._changed(), PAIR)
        self.children = [
            row(self.task, self.another),
            row(*self.boxes.values(), wide=True),
            Panel(self.strip, row(self.status, self.fix)),
            self.chosen.row,
        ]
        self.align()

    def use(self, clean: str, corrupt: str, answer: str = "", foil: str = "") -> bool:
        """Take this pair; says whether it fits."""
        self._settling = True
        try:
            for name, value in zip(PAIR, (clean, corrupt, answer, foil), strict=True):
                setattr(self.state, name, value)
        finally:
            self._settling = False
        return self.align()

    # -- token over token ----------------------------------------------------------------------------------------

    def _changed(self) -> None:
        if not self._settling:
            self.task.value = ""  # from here on it is the person's own
            self.align()
            self.offer()

    def align(self) -> bool:
        """Show both prompts token over token; say in plain words where they do not fit."""
        try:
            held = self.held = side_by_side(self.lm, self.state.clean, self.state.corrupt)
        except ValueError as error:
            self.held, self.fits = None, False
            self.strip.show([], {}, [])
            self._offer_fix()
            self.status.complain(in_words(error))
            return False
        pairs = [
            (None if i is None else held.clean[i], None if j is None else held.corrupt[j]) for i, j in held.columns
        ]
        columns = [(a.display if a else None, b.display if b else None) for a, b in pairs]
        special = [n for n, pair in enumerate(pairs) if any(token is not None and token.special for token in pair)]
        marks = {"differs": held.differ, "special": special}
        labels = [str(i) if i == j or j is None else str(j) if i is None else f"{i}/{j}" for i, j in held.columns]
        if begins(self.lm, held.clean or held.corrupt):
            marks["BOS"], labels[0] = [0], "0 BOS"
        self.strip.show(columns, marks, labels)
        self._offer_fix()
        self.fits = held.fits
        self.chosen.mark()
        if held.clean and held.corrupt and not held.fits:
            self.status.complain(held.words)
        elif held.fits and (wrong := self._wrong_word()):
            self.status.complain(wrong)
        else:
            self.status.say(held.words)
        return held.fits

    def _wrong_word(self) -> str:
        for name, prompt in zip(("answer", "foil"), NAMES, strict=True):
            if value := getattr(self.state, name):
                try:
                    single_token(self.lm, value, role=name, after=self.lm.encode(getattr(self.state, prompt)))
                except ValueError as error:
                    return in_words(error)
        return ""

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
