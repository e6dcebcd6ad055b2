"""Warnings at the user's line that led to them."""

from __future__ import annotations

import sys
import warnings
from typing import Any
from weakref import WeakKeyDictionary

from labkit.elsewhere import LISTENER

_said: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def warn(message: str) -> None:
    """Warn at the line outside labkit that led here, or whoever asked for this from elsewhere."""
    if (listener := LISTENER.get()) is not None:
        listener.warning(message)
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("labkit."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def first_time(of: Any, message: str, *, about: str | None = None) -> None:
    """Warn once per model or tokenizer; `about` identifies the warning if its wording varies."""
    said = _said.setdefault(of, set())
    if (about or message) not in said:
        said.add(about or message)
        warn(message)
