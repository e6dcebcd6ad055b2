"""What two models predict after each token of a prompt, and how far apart that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from labkit.activations.metrics import kl
from labkit.activations.run import run, run_to_measure
from labkit.engine.readout import readout_of
from labkit.engine.recorded_run import RecordedRun, Unsupported
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
        ids, shares: by run, `clean` for the source and `corrupt` for this model, the k likeliest tokens and their
            probabilities, (seq, k).
    """

    tokens: list[Token]
    kl: np.ndarray
    ids: dict[str, torch.Tensor] = field(repr=False)
    shares: dict[str, torch.Tensor] = field(repr=False)

    @property
    def same(self) -> np.ndarray:
        """Where the two have the same likeliest token, bool (seq,)."""
        return (self.ids["clean"][:, 0] == self.ids["corrupt"][:, 0]).numpy()

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
    read = {name: _logits(model, ids.to(model.device)) for name, model in (("clean", source), ("corrupt", lm))}
    apart: list[torch.Tensor] = []
    best: dict[str, list[torch.return_types.topk]] = {name: [] for name in read}
    for first in range(0, ids.shape[1], ROWS):
        rows = slice(first, first + ROWS)
        logits = {name: of(rows) for name, of in read.items()}
        for name, some in logits.items():
            best[name].append(some.softmax(-1).topk(k))
        if lm.n_vocab == source.n_vocab:
            apart.append(kl(logits["corrupt"], clean=logits["clean"].to(logits["corrupt"].device)).cpu())
    return NextTokens(
        describe(lm.tokenizer, ids[0].tolist()),
        torch.cat(apart).numpy() if apart else np.full(ids.shape[1], np.nan, np.float32),
        {name: torch.cat([part.indices for part in parts]).cpu() for name, parts in best.items()},
        {name: torch.cat([part.values for part in parts]).cpu() for name, parts in best.items()},
    )


def _logits(lm: LanguageModel, ids: torch.Tensor) -> Callable[[slice], torch.Tensor]:
    """The logits of some positions of a prompt, (rows, vocab), float32, as metrics read them."""
    last = f"resid_post.{lm.n_layers - 1}"
    seen = run_to_measure(lm, ids, read=[last])
    stream = seen[last][0]
    try:
        readout = readout_of(RecordedRun(lm, ids, [stream], [], {}, seen.logits[0, -1]))
    except Unsupported:
        whole = run(lm, ids).logits[0].float()
        return lambda rows: whole[rows]

    def read(rows: slice) -> torch.Tensor:
        with lm.busy():
            return readout(stream[rows])

    return read
