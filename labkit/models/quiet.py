"""transformers and bitsandbytes while they read a model: progress bars where they are wanted, no noise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Drop(logging.Filter):
    """Drop messages that call for nothing.

    Two of bitsandbytes: an optional kernel, and a cast at every 8-bit layer. One of transformers: a table of tensors
    without a place, about which `sources.whole` says what there is to say.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        known = text.startswith(("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be cast"))
        return not known and "LOAD REPORT" not in text


_DROP = _Drop()


@contextmanager
def quiet(*, progress: bool = False) -> Iterator[None]:
    """transformers' own bars only where progress is wanted; some known messages never."""
    from transformers.utils import logging as transformers_logging

    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).addFilter(_DROP)
    reports, drop = logging.getLogger("transformers.modeling_utils"), _Drop()  # only meanwhile
    reports.addFilter(drop)
    shown = transformers_logging.is_progress_bar_enabled()
    if not progress:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        reports.removeFilter(drop)
        if shown:
            transformers_logging.enable_progress_bar()
