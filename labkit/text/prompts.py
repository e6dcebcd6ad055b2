"""Prompts as arguments: one or several, as given, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

import torch

from labkit.text.chat import Chat, dated, is_chat, template_of
from labkit.text.types import Prompt, Prompts, TextModel

P = ParamSpec("P")
R = TypeVar("R")


def prompts_of(given: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list: a text, ids and one list of messages are one prompt."""
    if not isinstance(given, Sequence) or isinstance(given, str) or is_chat(given):
        return [given]  # type: ignore[list-item]
    return list(given)  # type: ignore[arg-type]


def several(given: Any) -> list[Prompt] | None:
    """The prompts of a list of them, or of ids (n, seq); None if this is one prompt, or none."""
    if isinstance(given, torch.Tensor):
        return list(given) if given.ndim == 2 and len(given) > 1 else None
    if not isinstance(given, Sequence) or isinstance(given, str) or is_chat(given):
        return None
    prompts = bool(given) and all(isinstance(one, str | torch.Tensor) or is_chat(one) for one in given)
    return list(given) if prompts else None


class Each(Protocol[P, R]):
    """A function that gives a result for one prompt, and a list of results for several."""

    @overload
    def __call__(self, lm: Any, prompt: Prompt, /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, lm: Any, prompts: Prompts, /, *args: P.args, **kwargs: P.kwargs) -> list[R]: ...


def each_prompt(look: Callable[Concatenate[Any, Any, P], R]) -> Each[P, R]:
    """Let a function of one prompt take several, one after the other, each with the result it has alone.

    A generation that was stopped ends the list. An error names its prompt, and has the results before it as `results`.
    """
    name = list(signature(look).parameters)[1]

    @wraps(look)
    def each(lm: Any, *args: Any, **kwargs: Any) -> Any:
        many = several(args[0] if args else kwargs.get(name))
        if many is None:
            return look(lm, *args, **kwargs)
        rest = {key: value for key, value in kwargs.items() if key != name}
        found: list[Any] = []
        for one in many:
            try:
                found.append(look(lm, one, *args[1:], **rest))
            except Exception as error:
                error.results = found  # type: ignore[attr-defined]
                error.add_note(
                    f"this was prompt {len(found) + 1} of {len(many)}; earlier results are in this error's `results`"
                )
                raise
            last = found[-1][-1:] if isinstance(found[-1], list) else found[-1:]  # of several samples
            if any(getattr(result, "finish", None) == "stopped" for result in last):
                break
        return found

    return each  # type: ignore[return-value]


def asked(lm: TextModel, prompt: Prompt) -> Prompt:
    """A prompt for a recipe: a copy of its messages, with today's date pinned if the template writes it."""
    if not is_chat(prompt):
        return prompt.cpu() if isinstance(prompt, torch.Tensor) else prompt
    assert not isinstance(prompt, str | torch.Tensor)
    if template_of(lm) is None:
        return prompt  # an error says so where it is encoded
    chat = dated(lm, prompt)
    return chat if chat.options else [dict(message) for message in chat]


def packed(prompt: Any) -> Any:
    """A chat with settings as JSON has it; anything else as it is."""
    return prompt.to_dict() if isinstance(prompt, Chat) else prompt


def unpacked(prompt: Any) -> Any:
    """What `packed` packed."""
    return Chat.from_dict(prompt) if isinstance(prompt, Mapping) and "chat" in prompt else prompt


def as_json(part: Any) -> Any:
    """A part of a pair, for JSON: a prompt of any kind, or an answer."""
    return {"ids": part.reshape(-1).tolist()} if isinstance(part, torch.Tensor) else packed(part)


def from_json(part: Any) -> Any:
    """A part of a pair as it was."""
    return torch.tensor([part["ids"]]) if isinstance(part, dict) and set(part) == {"ids"} else unpacked(part)
