"""What two models predict after each token of a prompt, and how far apart that is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from labkit.activations.run import run
from labkit.patching.metrics import kl
from labkit.patching.source_model import check_source
from labkit.text.tokens import Token, describe

if TYPE_CHECKING:
    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt

ROWS = 64  # positions whose distributions are compared at once


@dataclass(frozen=True)
class NextTokens:
    """The next-token distributions of two models at every position of a prompt.

    Attributes:
        tokens: of the prompt, (seq,).
        kl: the divergence of the source's distribution from this model's, nats, float32 (seq,); NaN where the models
            have vocabularies of different sizes.
        same: is the likeliest token of one a likeliest of the other? bool (seq,); in 16 bits several can be.
        ids, shares: by run, `clean` for the source and `corrupt` for this model, the k likeliest tokens and their
            probabilities, (seq, k).
    """

    tokens: list[Token]
    kl: np.ndarray
    same: np.ndarray
    ids: dict[str, torch.Tensor] = field(repr=False)
    shares: dict[str, torch.Tensor] = field(repr=False)

    def words(self) -> str:
        """Both numbers in a sentence."""
        same = f"The likeliest next token is the same at {int(self.same.sum())} of {len(self.tokens)} positions"
        if np.isnan(self.kl).any():
            return f"{same}. The models have vocabularies of different sizes, so there is no KL divergence."
        return f"{same}; KL is {self.kl.mean():.3g} nats on average, {self.kl.max():.3g} at most."


def next_tokens(lm: LanguageModel, source: LanguageModel, prompt: Prompt, *, k: int = 10) -> NextTokens:
    """Run a prompt in two models, and compare what they predict at each position.

    Raises:
        ValueError: the models have other sizes, or read the prompt as other tokens; before anything has run.
    """
    check_source(lm, source, prompt)
    ids = lm.encode(prompt)
    logits = {name: run(model, ids.to(model.device)).logits[0] for name, model in (("clean", source), ("corrupt", lm))}
    tops = {name: x.argmax(-1, keepdim=True) for name, x in logits.items()}
    both_ways = [_among(logits[one], tops[other]) for one, other in (("clean", "corrupt"), ("corrupt", "clean"))]
    best = {name: [rows.float().softmax(-1).topk(k) for rows in x.split(ROWS)] for name, x in logits.items()}
    apart = np.full(ids.shape[1], np.nan, np.float32)
    if lm.n_vocab == source.n_vocab:
        both = zip(logits["corrupt"].split(ROWS), logits["clean"].split(ROWS), strict=True)
        parts = [kl(own.float(), clean=theirs.to(own.device).float()) for own, theirs in both]
        apart = torch.cat(parts).cpu().numpy()
    return NextTokens(
        describe(lm.tokenizer, ids[0].tolist()),
        apart,
        both_ways[0] | both_ways[1],
        {name: torch.cat([part.indices for part in parts]).cpu() for name, parts in best.items()},
        {name: torch.cat([part.values for part in parts]).cpu() for name, parts in best.items()},
    )


def _among(logits: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """Is each token (seq, 1) as likely as any by its logits (seq, vocab)?"""
    known = ids.to(logits.device).clamp(max=logits.shape[1] - 1)
    return (logits.gather(1, known) == logits.amax(-1, keepdim=True))[:, 0].cpu().numpy()
