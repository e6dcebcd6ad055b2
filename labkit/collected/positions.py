"""Which positions of each text are collected."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from numbers import Integral
from operator import index
from typing import Any, Literal

from labkit.shards.workers import source_of
from labkit.text.tokens import Token, describe

Positions = Literal["all", "last"] | int | slice | Sequence[int] | Callable[[list[Token]], Sequence[int]]
"""All positions, the last, some (counted from the end if negative), a slice, or a function from the tokens of a text to
its positions."""


def parsed(positions: Any) -> Any:
    """`all`, a tuple of positions that every text has, a slice, or a function.

    Raises:
        ValueError: it is none of these.
    """
    if callable(positions) or isinstance(positions, slice) or (isinstance(positions, str) and positions == "all"):
        return positions
    if isinstance(positions, str) and positions == "last":
        return (-1,)
    try:
        found = tuple(dict.fromkeys(map(index, [positions] if isinstance(positions, Integral) else positions)))
    except (TypeError, ValueError):
        found = ()
    if isinstance(positions, str) or not found:
        raise ValueError(
            "positions must be 'all', 'last', a list of positions, a slice, or a function from tokens to positions; "
            f"got {positions!r:.80}"
        )
    return found


def chosen(positions: Any, tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """The positions of one text, counted from its first token.

    Args:
        positions: as `parsed` gives them.

    Raises:
        ValueError: the text has no such position.
        TypeError: the function gives something else.
    """
    count = len(ids)
    if isinstance(positions, str):
        return list(range(count))
    if isinstance(positions, slice):
        return list(range(count))[positions]
    given: Any = positions(describe(tokenizer, ids)) if callable(positions) else positions
    try:
        asked = [index(one) for one in given]
    except (TypeError, ValueError):
        raise TypeError(f"positions= must give a list of positions for each text; it gave {given!r:.80}") from None
    for one in asked:
        if not -count <= one < count:
            raise ValueError(f"position {one} is out of range; it has {count} token{'s' * (count > 1)}")
    return [one % count for one in asked]


def as_code(positions: Any) -> tuple[str, str]:
    """Positions as an expression, and the lines before it that define what it names.

    A function without source of its own is named, with a comment that says what it was.
    """
    if not callable(positions):
        return repr(positions), ""
    name = getattr(positions, "__name__", "")
    source = textwrap.dedent(source_of(positions))
    if source.startswith(f"def {name}("):
        return name, f"{source}\n"
    return "positions", "# positions: the function from tokens to positions that was given\n"
