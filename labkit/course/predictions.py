"""Predict before you look: a question whose answer appears when a guess is in.

Where nobody can answer, in nbconvert, nbval, papermill or a script, the answer appears at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from IPython import get_ipython

from labkit.course.progress import note_prediction
from labkit.widgets.blocks.prediction import Prediction

NAME = re.compile(r"\d\d\.[a-z][a-z_]*")


def predict(
    name: str,
    question: str,
    *,
    truth: Any | Callable[[], Any],
    options: Sequence[str] = (),
    between: tuple[float, float] | None = None,
    unit: str = "",
    show: Callable[[], Any] | None = None,
) -> Prediction:
    """A question to predict the answer of. What is predicted first is noted in the file of one's progress.

    Args:
        name: of the prediction, the notebook's number and a word: "04.late_name".
        question: what to predict.
        truth: what is true, or a function that finds out; it is called when the guess is in.
        options: the answers to choose from; without them and `between`, a text is guessed.
        between: the ends of the line on which a number is guessed.
        unit: of the number.
        show: makes what is shown below the answer, such as a figure.

    Raises:
        ValueError: the name is none, or options and truth do not fit each other.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"a prediction is called by its notebook's number and a word, '04.late_name'; got {name!r}")
    one = Prediction(question, truth, show=show, options=options, between=between, unit=unit)

    def noted(_: Any) -> None:
        if one.guess and one.truth:
            note_prediction(name, said=one.guess, truth=one.truth, right=one.right)

    one.observe(noted, "says")
    if not somebody_is_there():
        one.reveal()
    return one


def somebody_is_there() -> bool:
    """Does a person's front end run this cell? It lets a cell ask for input; what runs notebooks by itself does not."""
    return bool(getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False))
