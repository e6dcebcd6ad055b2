"""A clean and a corrupt prompt, compared token by token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from labkit.text.encode import encode
from labkit.text.tokens import Token, describe
from labkit.text.types import Prompt, TextModel


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupt prompt of the same length, token by token; `differ` holds the positions that differ."""

    clean: torch.Tensor  # (1, seq)
    corrupt: torch.Tensor  # (1, seq)
    clean_tokens: list[Token]
    corrupt_tokens: list[Token]

    @property
    def differ(self) -> list[int]:
        return (self.clean[0] != self.corrupt[0]).nonzero()[:, 0].tolist()


def align(lm: TextModel, clean: Prompt, corrupt: Prompt) -> Pair:
    """Two prompts, aligned by position.

    Raises:
        ValueError: they have different numbers of tokens; the message shows where they diverge.
    """
    a, b = encode(lm, clean), encode(lm, corrupt)
    left, right = (describe(lm.tokenizer, ids[0].tolist()) for ids in (a, b))
    if a.shape != b.shape:
        shared = min(len(left), len(right))
        first = next((i for i in range(shared) if left[i].id != right[i].id), shared)
        show = lambda tokens: " ".join(repr(t.text) for t in tokens[first : first + 4]) or "the end"  # noqa: E731
        raise ValueError(
            f"clean has {len(left)} tokens, corrupt {len(right)}; they differ from token {first}: "
            f"clean {show(left)}, corrupt {show(right)}. Patching puts activations at the same position, so choose "
            "words with the same number of tokens."
        )
    return Pair(a, b, left, right)
