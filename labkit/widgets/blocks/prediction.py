"""Prediction: a question, a guess that is committed, and only then what is true, with the guess beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import traitlets as t
from IPython import get_ipython
from IPython.display import display

from labkit.widgets.base.block import Block, module
from labkit.widgets.base.snapshot import card, note
from labkit.widgets.base.tool import in_words

CLOSE = 0.1  # of the line that numbers are guessed on: no farther off is right


class Prediction(Block):
    """A question that is answered by a choice, by a number, or by a text.

    Args:
        question: what to predict.
        truth: what is true, or a function that finds out and is called when a guess is in.
        options: the answers to choose from.
        between: the ends of the line on which a number is guessed, instead of options.
        unit: of the number.
        show: makes what is shown below the answer, such as a figure.

    Attributes:
        guess: what was committed; empty until then. Setting it commits.
        says: guess and truth in a sentence; empty until the reveal.
    """

    _esm = module("prediction")

    question = t.Unicode().tag(sync=True)
    options: t.List = t.List(t.Unicode()).tag(sync=True)
    between = t.Tuple(t.Float(), t.Float(), default_value=None, allow_none=True).tag(sync=True)
    unit = t.Unicode().tag(sync=True)
    guess = t.Unicode().tag(sync=True)
    truth = t.Unicode().tag(sync=True)
    says = t.Unicode().tag(sync=True)

    def __init__(
        self,
        question: str,
        truth: Any | Callable[[], Any],
        *,
        options: Sequence[str] = (),
        between: tuple[float, float] | None = None,
        show: Callable[[], Any] | None = None,
        **traits: Any,
    ) -> None:
        if options and between:
            raise ValueError("a guess is one of the options or a number between two, not both")
        if not callable(truth) and options and str(truth) not in options:
            raise ValueError(f"the truth, {truth!r}, is not one of the options {list(options)}")
        self._truth, self._show, self._below = truth, show, None
        super().__init__(question=question, options=list(options), between=between, **traits)

    @t.validate("guess")
    def _possible(self, proposal: Any) -> str:
        guess = str(proposal["value"]).strip()
        if guess and self.options and guess not in self.options:
            raise t.TraitError(f"a guess is one of {', '.join(self.options)}; got {guess!r}")
        if guess and self.between:
            try:
                float(guess)
            except ValueError:
                raise t.TraitError(f"a guess is a number; got {guess!r}") from None
        return guess

    @t.observe("guess")
    def _committed(self, change: Any) -> None:
        if change["new"] and not self.says:
            try:
                self.reveal()
            except Exception as error:  # nobody would see it in the callback of a front end
                self.says = f"It could not be computed: {in_words(error)}"

    def reveal(self) -> None:
        """Find out what is true and show it, whether or not there is a guess."""
        truth = self._truth() if callable(self._truth) else self._truth
        self.truth = f"{truth:.4g}" if isinstance(truth, float) else str(truth)
        unit = f" {self.unit}" if self.unit else ""
        said = f"Your guess: {self.guess}{unit}. " if self.guess else ""
        self.says = f"{said}The answer: {self.truth}{unit}."
        self.refresh_snapshot()
        if self._below is not None and self._show is not None:
            self._below.update(_shown(self._show()), raw=True)

    def _ipython_display_(self, **how: Any) -> None:
        super()._ipython_display_(**how)
        if self._show is not None:
            data = _shown(self._show()) if self.says else {"text/plain": ""}
            self._below = display(data, raw=True, display_id=True)

    @property
    def right(self) -> bool:
        """Is the guess the truth, or for a number close to it, by a tenth of the line?"""
        if self.between and self.guess and self.truth:
            low, high = self.between
            return abs(float(self.guess) - float(self.truth)) <= CLOSE * (high - low)
        return bool(self.guess) and self.guess.casefold() == self.truth.strip().casefold()

    def picture(self) -> str:
        rows = "".join(
            f"<div>{'●' if option == self.guess else '○'} {escape(option)}"
            f"{' <b>✓ the answer</b>' if self.says and option == self.truth else ''}</div>"
            for option in self.options
        )
        end = f"<div>{escape(self.says)}</div>" if self.says else note("Run the cell and guess to see what is true.")
        return f'<div style="font-weight:600">{escape(self.question)}</div>{rows}{end}'

    def snapshot(self) -> str:
        return card(self.picture())

    def __repr__(self) -> str:
        return f"Prediction({self.says or self.question!r})"


def _shown(thing: Any) -> dict[str, Any]:
    """What a front end shows of something, as one bundle, so that it can take the place of nothing."""
    if hasattr(thing, "_repr_mimebundle_"):
        found = thing._repr_mimebundle_()
        return dict(found[0] if isinstance(found, tuple) else found)
    shell = get_ipython()
    return dict(shell.display_formatter.format(thing)[0]) if shell else {"text/plain": repr(thing)}
