"""How probable a model finds each of many texts as the continuation of its context.

Contexts and continuations become tokens as in lm-evaluation-harness (`labkit.text.continuation`), so the sums are its
`loglikelihood`. Rows of one length run as one batch: nothing is padded, and a row has the numbers it has alone. Pairs
with the same input, such as answers of one token after one question, share a row. Logits are computed where they are
needed, and in float32 as metrics read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch

from labkit.activations.unembedding import measured_tail
from labkit.elsewhere import is_elsewhere, tell_progress, where_the_model_is
from labkit.models.handle import Model
from labkit.text.continuation import Added, encode_continuations
from labkit.text.types import Prompt

PIECE = 256  # pairs that a model elsewhere is asked for at a time
WINDOW = 2048  # pairs among which rows of one length are sought; what an interrupt leaves is whole up to such a window
TOKENS = 2048, 16384  # of a batch on a CPU, where more do not fit the caches, and elsewhere
LOGITS = 1 << 25, 1 << 28  # numbers of the logits of a batch, likewise


@dataclass(frozen=True)
class Continuation:
    """A text as a model predicts it after a context.

    Attributes:
        tokens: its ids (n,), with the spaces that were at the end of the context.
        logprobs: of each token given all before it, natural logarithms, float32 (n,).
        n_bytes: of the continuation as it was given, in UTF-8.
        likeliest: is each token the likeliest in its place? bool (n,).
    """

    tokens: tuple[int, ...]
    logprobs: np.ndarray = field(repr=False)
    n_bytes: int
    likeliest: np.ndarray = field(repr=False)

    @property
    def greedy(self) -> bool:
        """Is it what greedy writing would write?"""
        return bool(self.likeliest.all())

    @property
    def logprob(self) -> float:
        """The log-probability of the whole, in nats."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def per_token(self) -> float:
        return self.logprob / len(self.tokens)

    @property
    def per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.logprob / self.n_bytes


@where_the_model_is
def score_continuations(
    lm: Model, pairs: Sequence[tuple[Prompt, Added]], *, batch: int | None = None
) -> list[Continuation]:
    """How probable each continuation is after its context.

    Args:
        lm: the model.
        pairs: (context, continuation). A context is text (`""` for none), chat messages or token ids (1, seq); a
            continuation is text, usually with the space that comes before it, or a tuple of token ids.
        batch: how many rows to run at once; by default as many as fit.

    Returns:
        One `Continuation` per pair, in their order. `ContinuationJob` is the same in steps, with what is done kept.

    Raises:
        ValueError: an empty continuation, one without tokens of its own, or a pair longer than the context (a
            `TooLong`); before anything has run.
        TypeError: a context is no prompt, or a continuation no text and no ids.
    """
    job = ContinuationJob(lm, pairs, batch=batch)
    for _ in job.steps():
        tell_progress(job.done, job.total)
    return [one for one in job.found if one is not None]


Row = tuple[tuple[int, ...], list[int]]  # an input, and the pairs that it is the input of


class ContinuationJob:
    """Continuations scored in batches, so that they can be watched and stopped.

    Attributes:
        found: for each pair its `Continuation`; None until it is computed.
        done: how many there are.
    """

    def __init__(self, lm: Model, pairs: Sequence[tuple[Prompt, Added]], *, batch: int | None = None) -> None:
        if batch is not None and batch < 1:
            raise ValueError(f"batch must be at least 1 row; got {batch}")
        self.lm, self.batch = lm, batch
        self.found: list[Continuation | None] = [None] * len(pairs)
        self._pairs = list(pairs)
        self._ids = encode_continuations(lm, pairs)
        texts = [added if isinstance(added, str) else lm.tokenizer.decode(added) for _, added in pairs]
        self._bytes = [len(text.encode()) for text in texts]
        self.done = 0

    def again(self) -> Self:
        """The same pairs, not scored."""
        new = copy(self)
        new.found, new.done = [None] * self.total, 0
        return new

    @property
    def total(self) -> int:
        return len(self.found)

    def steps(self) -> Iterator[int]:
        """Score what is not scored yet; yields after each batch how many pairs it had."""
        if is_elsewhere(self.lm):
            yield from self._steps_there()
            return
        for first in range(0, self.total, WINDOW):
            for rows in self._batches(range(first, min(first + WINDOW, self.total))):
                yield self._score(rows)

    def _steps_there(self) -> Iterator[int]:
        for first in range(0, self.total, PIECE):
            waiting = [n for n in range(first, min(first + PIECE, self.total)) if self.found[n] is None]
            if not waiting:
                continue
            found = score_continuations(self.lm, [self._pairs[n] for n in waiting], batch=self.batch)
            for n, one in zip(waiting, found, strict=True):
                self.found[n] = one
            self.done += len(waiting)
            yield len(waiting)

    def _batches(self, pairs: range) -> Iterator[list[Row]]:
        """The pairs that wait, as rows of one length in batches that fit."""
        inputs: dict[int, dict[tuple[int, ...], list[int]]] = {}
        for n in pairs:
            if self.found[n] is None:
                context, added = self._ids[n]
                ids = (*context, *added[:-1])  # nothing is predicted after the last
                inputs.setdefault(len(ids), {}).setdefault(ids, []).append(n)
        elsewhere = self.lm.device.type != "cpu"
        for length, found in sorted(inputs.items()):
            rows = sorted(found.items(), key=self._most)  # those with long continuations together
            most = max(map(self._most, rows))
            fits = min(TOKENS[elsewhere] // length, LOGITS[elsewhere] // (most * self.lm.n_vocab))
            size = self.batch or max(1, fits)
            yield from (rows[start : start + size] for start in range(0, len(rows), size))

    def _most(self, row: Row) -> int:
        """At how many positions of a row logits are needed."""
        return max(len(self._ids[n][1]) for n in row[1])

    def _score(self, rows: list[Row]) -> int:
        lm, most = self.lm, max(map(self._most, rows))
        with lm.busy():
            logits = measured_tail(lm, torch.tensor([ids for ids, _ in rows], device=lm.device), most)
        places = [
            (row, most - len(self._ids[n][1]) + at, id)
            for row, (_, which) in enumerate(rows)
            for n in which
            for at, id in enumerate(self._ids[n][1])
        ]
        row, column, id = torch.tensor(places, device=logits.device).T
        logprobs = (logits[row, column, id] - logits.logsumexp(-1)[row, column]).cpu().numpy()
        likeliest = (logits.argmax(-1)[row, column] == id).cpu().numpy()
        start = 0
        for n in (n for _, which in rows for n in which):
            tokens = self._ids[n][1]
            span = slice(start, start := start + len(tokens))
            self.found[n] = Continuation(tokens, logprobs[span], self._bytes[n], likeliest[span])
        scored = sum(len(which) for _, which in rows)
        self.done += scored
        return scored
