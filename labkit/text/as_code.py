"""Results as the Python that makes them."""

from __future__ import annotations

from typing import Any

import torch

from labkit.text.prompts import unpacked

TORCH = "import torch\n\n"
"""What stands first in code with token ids in it."""
WIDTH = 110
"""Longer calls have one line per argument."""


class Name(str):
    """A variable name in code, where a text would be quoted."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


LM = Name("lm")


def as_python(value: Any) -> str:
    """A value as code: prompts of any kind, numbers, texts, and lists and tuples of these."""
    if isinstance(value, torch.Tensor):
        return f"torch.tensor({value.tolist()})"
    if isinstance(value, list):
        return f"[{', '.join(map(as_python, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(as_python, value))}{',' * (len(value) == 1)})"
    return repr(unpacked(value))


def as_call(call: str, /, *given: Any, **settings: Any) -> str:
    """The code of one call alone, as a line or several, for code that has its imports already."""
    arguments = [as_python(one) for one in given] + [f"{name}={as_python(one)}" for name, one in settings.items()]
    line = f"{call}({', '.join(arguments)})"
    if len(line) > WIDTH:
        line = f"{call}(\n" + "".join(f"    {one},\n" for one in arguments) + ")"
    return f"{line}\n"


def as_code(before: str, call: str, /, *given: Any, **settings: Any) -> str:
    """The code of one call, with what comes before it, and with the imports that its arguments take.

    Args:
        before: the lines that load the model, and whatever else the call takes.
        call: what is called, and the name of what it gives: `lens = lk.logit_lens`.
        given, settings: its arguments.
    """
    return with_imports(before + as_call(call, *given, **settings))


def with_imports(code: str) -> str:
    """Code, with the import first that token ids in it take."""
    return TORCH + code if "torch.tensor(" in code and not code.startswith(TORCH) else code


def changed(usual: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from their defaults."""
    return {name: given[name] for name, value in usual.items() if given[name] != value}
