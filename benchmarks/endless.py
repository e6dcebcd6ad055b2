"""Texts of one length: what writing them costs can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import labkit as lk


@contextmanager
def endless(lm: lk.LanguageModel) -> Iterator[None]:
    """Have every generation write all its tokens: texts that may end early end at other places."""
    ends, lm.hf.generation_config.eos_token_id = lm.hf.generation_config.eos_token_id, None
    try:
        yield
    finally:
        lm.hf.generation_config.eos_token_id = ends
