"""Checks for the exercises in the notebooks: `check("04.1", answer, lm)`.

A check computes: it runs the model on what was handed in and says what came of it. There is no list of right answers.
"""

from labkit.course.checks import check

__all__ = ["check"]
