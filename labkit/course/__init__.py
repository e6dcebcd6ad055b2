"""Checks for the exercises in the notebooks, `check("04.1", answer, lm)`, and questions to predict the answer of.

A check runs the model on the answer and says what came of it; there is no list of right answers.
"""

from typing import Any

from labkit.course.checks import check

__all__ = ["check", "predict"]


def __getattr__(name: str) -> Any:
    if name == "predict":  # a widget: ipywidgets loads when one is asked for
        from labkit.course.predictions import predict

        return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
