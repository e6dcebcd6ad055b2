"""A model that is interrupted, or fails, in the middle of some work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import labkit as lk


@contextmanager
def stopped(lm: lk.LanguageModel, after: int, by: BaseException | None = None) -> Iterator[list[int]]:
    """While a block runs, the model's pass number `after` ends in an interrupt, or in an error; yields the passes.

    The passes after that run as usual: what went on regardless would be seen.
    """
    passes = [0]

    def count(*_: object) -> None:
        passes[0] += 1
        if passes[0] == after:
            raise KeyboardInterrupt if by is None else by

    handle = lm.hf.register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()
