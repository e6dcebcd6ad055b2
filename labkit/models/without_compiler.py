"""transformers and bitsandbytes without PyTorch's compiler, which is for those who compile.

Importing this module imports transformers' part for models; others that need it import this one first.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial, wraps
from typing import Any

import torch


def import_without_compiler(*names: str) -> None:
    """Import packages without PyTorch's compiler, which transformers and bitsandbytes load for a few decorated
    functions, called or not: 110 MB and two seconds in every process.

    What they want to have compiled runs as it is written, and what they exclude from compiling is excluded once there
    is a compiler. With a GPU, where people compile, everything is as the packages have it.
    """
    if torch.cuda.is_available() or "torch._dynamo" in sys.modules or all(name in sys.modules for name in names):
        return
    before: Any = torch.compile, torch.compiler.disable, torch.compiler.allow_in_graph
    torch.compile = _as_written  # type: ignore[assignment]
    torch.compiler.disable = partial(_excluded, before[1])
    torch.compiler.allow_in_graph = _as_written
    standing_in: Any = vars(torch).setdefault("_dynamo", _Compiler())
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        torch.compile, torch.compiler.disable, torch.compiler.allow_in_graph = before
        if vars(torch).get("_dynamo") is standing_in:  # nothing has needed the real one
            del torch._dynamo


class _Compiler:
    """What decorators ask of `torch._dynamo`: to take a function's result as constant, which marks it, and to call it
    from compiled code without looking into it, which is for what runs on GPUs."""

    allow_in_graph = staticmethod(lambda function: function)

    def assume_constant_result(self, function: Any) -> Any:
        function._dynamo_marked_constant = True
        return function

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("torch._dynamo"), name)


def _as_written(function: Any = None, **_: Any) -> Any:
    return _as_written if function is None else function


def _excluded(disable: Any, function: Any = None, recursive: bool = True, **settings: Any) -> Any:
    if function is None:
        return partial(_excluded, disable, recursive=recursive, **settings)

    @wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # then nothing is compiled
            return function(*arguments, **named)
        return disable(function, recursive, **settings)(*arguments, **named)

    return called


import_without_compiler("transformers.modeling_utils")
