"""Checks for the exercises in the notebooks: `check("04.1", answer, lm)`.

A check runs the model on the answer and says what came of it; there is no list of right answers.
"""

from labkit.course.checks import check

__all__ = ["check"]
