"""The types of prompts, and of a model as far as text needs one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

Prompt = str | Sequence[Mapping[str, str]] | torch.Tensor
"""A prompt: text, a list of chat messages ({"role": ..., "content": ...}) or a `labkit.Chat`, or token ids (1, seq)."""
Prompts = list[str] | tuple[str, ...] | Sequence[torch.Tensor] | Sequence[Sequence[Mapping[str, str]]]
"""Several of them; ids (n, seq) count as several, too."""


class TextModel(Protocol):
    """What this package needs of a model: its tokenizer, its name for messages, and its range of ids."""

    name: str
    tokenizer: Any

    @property
    def context(self) -> int | None: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def embedding(self) -> torch.Tensor: ...
    @property
    def device(self) -> torch.device: ...
