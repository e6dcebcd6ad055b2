"""What a prompt is, wherever one goes in: one or several, as it was asked, as Python and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from labkit.chat import Chat, dated, is_chat, template_of

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel, Prompt


def prompts_of(given: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list: a text, ids and one list of messages are one prompt."""
    if not isinstance(given, Sequence) or isinstance(given, str) or is_chat(given):
        return [given]  # type: ignore[list-item]
    return list(given)  # type: ignore[arg-type]


def asked(lm: LanguageModel, prompt: Prompt) -> Prompt:
    """A prompt to be kept in a recipe: what is done later to the list of messages does not change it, and it gives the
    same tokens tomorrow (a template that writes today's date has it from then on)."""
    if not is_chat(prompt):
        return prompt.cpu() if isinstance(prompt, torch.Tensor) else prompt
    assert not isinstance(prompt, str | torch.Tensor)
    if template_of(lm) is None:
        return prompt  # an error says so where it is encoded
    chat = dated(lm, prompt)
    return chat if chat.options else [dict(message) for message in chat]


def written(prompt: Prompt) -> str:
    """A prompt as Python text."""
    return f"torch.tensor({prompt.tolist()})" if isinstance(prompt, torch.Tensor) else repr(prompt)


def imports_of(prompt: Prompt) -> str:
    """What that Python text needs imported."""
    return "import torch\n\n" if isinstance(prompt, torch.Tensor) else ""


def packed(prompt: Any) -> Any:
    """A chat with settings as JSON has it; anything else as it is."""
    return prompt.to_dict() if isinstance(prompt, Chat) else prompt


def unpacked(prompt: Any) -> Any:
    """What `packed` packed."""
    return Chat.from_dict(prompt) if isinstance(prompt, Mapping) and "chat" in prompt else prompt
