"""Arguments that are whole numbers, Python's own and numpy's, and among them positions."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral


def whole(name: str, value: object, *, least: int | None = None, of: str = "") -> int:
    """An argument as an int; numpy's integers count, True and 2.0 do not.

    Raises:
        ValueError: it is something else, or below `least`; `of` says what is counted, such as " of texts".
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and (least is None or int(value) >= least):
        return int(value)
    least_of = "" if least is None else f", at least {least}"
    raise ValueError(f"{name} must be a whole number{of}{least_of}; got {value!r:.60}")


def from_start(positions: Iterable[int], length: int) -> list[int]:
    """Positions of a prompt of so many tokens, counted from its beginning; those below 0 are counted from its end.

    Raises:
        ValueError: one is out of range.
    """
    found = list(positions)
    if wrong := [one for one in found if not -length <= one < length]:
        raise ValueError(f"position {wrong[0]} is out of range; the prompt has {length} tokens")
    return [int(one) % length for one in found]
