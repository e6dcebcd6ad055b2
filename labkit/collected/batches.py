"""Which texts run together: those of about one length, as one left-padded batch.

Some models have other activations in a padded batch than alone: padding changes the state of RecurrentGemma, RWKV and
xLSTM, and which positions share a compressed key in DeepSeek-V4. Each model is tried once; in those only texts of one
length run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from labkit.activations.run import run
from labkit.engine.batching import chunked, tokens_at_once
from labkit.models.handle import Model

BATCH = 128 << 20  # bytes that a batch reads at most
LENGTHS = 21, 9  # of the rows that are tried

_ignore_padding: WeakKeyDictionary[Model, bool] = WeakKeyDictionary()


def ignores_padding(lm: Model) -> bool:
    """Do rows of different lengths say the same in a left-padded batch as alone, but for rounding?"""
    if lm not in _ignore_padding:
        every = (torch.arange(sum(LENGTHS), device=lm.device) * 7 + 3) % lm.n_vocab
        rows = list(every.split(LENGTHS))
        alone = torch.cat([_said(lm, [row]) for row in rows])
        apart = (_said(lm, rows) - alone).norm(dim=1) / (alone - alone.mean(1, keepdim=True)).norm(dim=1)
        exact = lm.dtype == torch.float32 and lm.bits > 8
        _ignore_padding[lm] = bool((apart <= (1e-3 if exact else 0.1)).all())
    return _ignore_padding[lm]


def _said(lm: Model, rows: list[torch.Tensor]) -> torch.Tensor:
    """The logits (row, vocab) after each row."""
    return run(lm, rows, logits="last", to="cpu").logits[:, -1].float()


def batches(
    lm: Model, ids: Sequence[torch.Tensor], some: Sequence[int], *, batch: int | None, row: int | None
) -> list[list[int]]:
    """Some of the texts, the longest first, in batches.

    Args:
        batch: how many texts run together; None: as many as fit.
        row: the bytes that one position of a batch takes, if all of them are read.
    """
    order = sorted(some, key=lambda n: -len(ids[n]))
    groups = [order]
    if not ignores_padding(lm):
        groups = [[n for n in order if len(ids[n]) == length] for length in dict.fromkeys(len(ids[n]) for n in order)]
    budget = tokens_at_once(lm) if row is None else max(1, min(tokens_at_once(lm), BATCH // row))
    found: list[list[int]] = []
    for group in groups:
        if batch is not None:
            found += [group[start : start + batch] for start in range(0, len(group), batch)]
        else:
            found += chunked(group, lambda n: len(ids[n]), budget=budget)
    return found
