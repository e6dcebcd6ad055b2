"""How the next token is chosen: the settings, which of them contradict each other, and draws that can be repeated.

Every draw is seeded with the seed and the place in the text. So a text can be resumed anywhere, after a stop or in a
branch, and continues as it would have: earlier draws do not matter.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

RANGES = {
    "max_new_tokens": (1, math.inf, "at least 1"),
    "temperature": (0, 100, "from 0 to 100"),
    "top_p": (1e-9, 1, "above 0 and at most 1"),
    "top_k": (0, math.inf, "at least 0"),
    "min_p": (0, 1, "from 0 to 1"),
    "repetition_penalty": (1e-9, 100, "above 0 (1 is no penalty)"),
}


@dataclass(frozen=True)
class Sampling:
    """Settings of `generate`, checked; it says what the others are.

    Attributes:
        top_p: sample from the likeliest tokens that together have this probability (Holtzman et al. 2020).
        top_k: sample from this many of the likeliest; 0: from all.
        min_p: leave out tokens less probable than this share of the likeliest one (Nguyen et al. 2024).
        repetition_penalty: above 1 makes what is in the text already less likely (Keskar et al. 2019).

    Raises:
        ValueError: a setting out of range, or settings that contradict each other.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_strings: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, (low, high, words) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be {words}; got {value}")
        if 0 < self.temperature < 0.01:
            raise ValueError(f"a temperature of {self.temperature} leaves only the likeliest token; use 0 for that")
        strings = self.stop_strings
        object.__setattr__(self, "stop_strings", (strings,) if isinstance(strings, str) else tuple(strings))
        if not all(isinstance(text, str) and text for text in self.stop_strings):
            raise ValueError(f"stop_strings must be strings of at least one character; got {list(self.stop_strings)!r}")
        if idle := self.idle():
            raise ValueError(
                f"temperature 0 always takes the likeliest token, so {' and '.join(idle)} would have no effect; set "
                "temperature above 0, or leave the others out"
            )

    def idle(self) -> list[str]:
        """Sampling settings that have no effect at temperature 0."""
        return [] if self.temperature else [name for name in CUTS if getattr(self, name) != DEFAULTS[name]]

    def drawn(self) -> Sampling:
        """With a seed, if one is needed and there is none."""
        return replace(self, seed=secrets.randbits(31)) if self.temperature and self.seed is None else self

    def given(self) -> dict[str, Any]:
        """The settings that are not the defaults, and `max_new_tokens`, as `generate` takes them."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        if not self.temperature:
            settings.pop("seed")
        kept = {k: v for k, v in settings.items() if v != DEFAULTS.get(k) or k == "max_new_tokens"}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}

    def for_transformers(self) -> dict[str, Any]:
        """The settings as a generation config of transformers takes them."""
        if not self.temperature:
            return {"do_sample": False}
        return {
            "do_sample": True, "temperature": float(self.temperature), "top_p": float(self.top_p),
            "top_k": int(self.top_k), "min_p": float(self.min_p) or None,
        }  # fmt: skip

    def processors(self, seeds: Sequence[int | None] | None = None) -> list[LogitsProcessor]:
        """What comes after the model's own distribution has been looked at; with the seeds of a batch's rows also what
        cuts the distribution, and the draws.
        """
        found: list[LogitsProcessor] = []
        if self.repetition_penalty != 1:
            found.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if not self.temperature:
            return found
        if seeds is None:
            assert self.seed is not None
            return [*found, _Draws(self.seed)]
        # in the order of transformers
        if self.temperature != 1:
            found.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            found.append(TopKLogitsWarper(int(self.top_k)))
        if self.top_p < 1:
            found.append(TopPLogitsWarper(float(self.top_p)))
        if self.min_p:
            found.append(MinPLogitsWarper(float(self.min_p)))
        return [*found, _DrawsEach([_Draws(seed) for seed in seeds if seed is not None])]


CUTS = ("top_p", "top_k", "min_p")
DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Sampling)}


class _Draws(LogitsProcessor):
    """Changes nothing; makes the draw that follows depend on the seed and the place alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(((self.seed & 0x7FFFFFFF) << 24) + input_ids.shape[1])
        return scores


class _DrawsEach(LogitsProcessor):
    """Draws a token for each row of a batch, as it would be drawn alone, and leaves no other."""

    def __init__(self, draws: Sequence[_Draws]) -> None:
        self.draws = draws

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        left = torch.full_like(scores, -torch.inf)
        for row, draws in enumerate(self.draws):
            draws(input_ids[row : row + 1], scores)
            left[row, torch.multinomial(scores[row : row + 1].softmax(-1), 1)[0]] = 0
        return left
