"""Compiled models are run uncompiled while labkit uses them.

Code from `torch.compile` calls no hook that is registered later: reads would find nothing and writes would do nothing.
So while labkit runs a model, compiled code is bypassed and the modules themselves run; before and after, the model is
as fast as its owner made it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

HIDDEN = (
    "A model that was compiled, traced, exported or captured as a CUDA graph hides its layers: use the original model."
)

_lock = threading.Lock()
_count = 0  # how many blocks of `uncompiled` are open, in all threads
_stance: Any = None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run everything compiled by `torch.compile` uncompiled while the block runs.

    PyTorch has one such switch for all threads; it is reset when the last block ends.
    """
    global _count, _stance
    if "torch._dynamo" not in sys.modules:  # then nothing has been compiled
        yield
        return
    with _lock:
        if _count == 0:
            _stance = torch.compiler.set_stance("force_eager")
        _count += 1
    try:
        yield
    finally:
        with _lock:
            _count -= 1
            if _count == 0:
                _stance.__exit__(None, None, None)
                _stance = None


def original(module: Any) -> Any:
    """The module that a compiled one was made from; any other as it is."""
    while isinstance(module, nn.Module) and "_orig_mod" in module._modules:
        module = module._modules["_orig_mod"]
    return module


def plain_name(name: str) -> str:
    """A module's name without what compiling put into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
