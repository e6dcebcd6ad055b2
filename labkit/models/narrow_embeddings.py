"""Embeddings that stay in 16 bits in a model that computes in 32.

In a small model most of a 4-bit checkpoint is embedding, so it stays in 16 bits: rows are converted to float32 as they
are looked up, and an unembedding as it is multiplied, part by part.
"""

from __future__ import annotations

import inspect
from copy import copy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from labkit.models.bf16_matmul import linear


class NarrowEmbedding(nn.Embedding):
    """An embedding whose rows come out in `computes`, a wider dtype than they are stored in."""

    computes: torch.dtype

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.embedding(input, self.weight).to(self.computes)


class NarrowLinear(nn.Linear):
    """A linear layer that multiplies in its input's dtype, a wider one than its weight is stored in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


@cache
def _scaled(kind: Any) -> Any:
    """The class of an embedding that does more than look rows up (Gemma's scales them), for rows in another dtype."""

    def forward(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
        rows = F.embedding(input_ids.reshape(-1), self.weight).to(self.computes)
        wide = copy(self)
        wide.__class__, wide.padding_idx, wide.num_embeddings = kind, None, len(rows)
        wide._parameters = self._parameters | {"weight": rows}
        return kind.forward(wide, torch.arange(len(rows), device=rows.device).view(input_ids.shape))

    return type(kind.__name__, (kind,), {"forward": forward, "__doc__": kind.__doc__, "__module__": kind.__module__})


def narrow(hf: Any, dtype: torch.dtype) -> set[torch.Tensor]:
    """Make a model's embeddings and unembedding compute in a dtype wider than they are stored in.

    Returns:
        Their weights, which are to stay as they are. Those of a class that may do something else with its weight are
        not among them, nor any that it shares.
    """
    head = hf.get_output_embeddings()
    tables: list[Any] = [m for m in hf.modules() if isinstance(m, nn.Embedding) or m is head]
    scaled = {m for m in tables if isinstance(m, nn.Embedding) and hasattr(m, "embed_scale")}
    others = {m.weight for m in tables if type(m) not in (nn.Linear, nn.Embedding) and m not in scaled}
    if head is not None and _rounds_for(head, hf):
        others.add(head.weight)
    chosen = [m for m in tables if m.weight not in others]
    for module in chosen:
        kind = {nn.Embedding: NarrowEmbedding, nn.Linear: NarrowLinear}.get(type(module))
        module.__class__ = kind or _scaled(module.__class__)
        module.computes = dtype
    return {m.weight for m in chosen}


def _rounds_for(head: nn.Module, hf: Any) -> bool:
    """Does a model's own code put the last hidden state into the dtype of its unembedding, as Mamba's does?"""
    names = [name for name, module in hf.named_children() if module is head]
    try:
        source = inspect.getsource(type(hf).forward)
    except (OSError, TypeError):  # no source to look into
        return False
    return any(f"{name}.weight.dtype" in source for name in names)
