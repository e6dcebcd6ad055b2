"""Warnings at the line of the user's that led to them."""

from __future__ import annotations

import sys
import warnings
from typing import Any
from weakref import WeakKeyDictionary

_said: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def warn(message: str) -> None:
    """Warn at the line outside labkit that led here, whatever lies between."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("labkit."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def first_time(of: Any, message: str, *, about: str | None = None) -> None:
    """Warn the first time that this is said of a model or a tokenizer; `about` names what it is about, if the wording
    changes from case to case."""
    said = _said.setdefault(of, set())
    if (about or message) not in said:
        said.add(about or message)
        warn(message)
