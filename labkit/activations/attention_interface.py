"""One attention function that shows q, k, v, pattern and z on every architecture that transformers routes through its
attention interface.

`labkit` is registered beside `sdpa` and `eager`, with its mask (without the mask's own registration the causal mask is
silently lost). It is switched on only while a pass needs it, only for the thread that asked (`attention_tasks`), and
only acts in the layers that were given a task; every other layer goes straight to SDPA.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

NAME, EAGER = "labkit", "labkit-eager"  # with masks as SDPA takes them, and as a model's own eager attention does


@dataclass
class AttentionCall:
    """What one layer's attention was called with.

    q is (batch, head, query, d_head), k and v (batch, kv_head, key, d_head); values may have a width of their own, and
    there may be more keys than positions (DeepSeek-V4 adds compressed ones). `mask` broadcasts to (batch, head, query,
    key): bool (True: visible), additive float, or None for causal.
    """

    module: nn.Module
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    options: dict[str, Any] = field(default_factory=dict)  # softcap, sinks (s_aux), sliding_window, ...

    def fast(self) -> torch.Tensor:
        """z (batch, query, head, d_head) by SDPA where SDPA can do it."""
        if not needs_pattern(self.options):
            options = {k: v for k, v in self.options.items() if k != "softcap"}
            return sdpa_attention_forward(
                self.module, self.q, self.k, self.v, self.mask, scaling=self.scaling, **options
            )[0]
        return apply_pattern(pattern_of(self), self.v)

    def part(
        self, *, heads: slice = slice(None), queries: slice = slice(None), keys: int | None = None
    ) -> AttentionCall:
        """The same call for some heads and queries, its pattern that part of the whole pattern: (batch, heads, queries,
        key). `keys` leaves out the keys from there on, for a caller who knows that none of these queries sees them.
        """
        (n_heads, n_queries), n_keys = self.q.shape[1:3], self.k.shape[2]
        first, last, _ = queries.indices(n_queries)
        shared = torch.arange(n_heads, device=self.k.device)[heads] // (n_heads // self.k.shape[1])

        def cut(x: Any) -> Any:
            """What broadcasts to (batch, head, query, key)."""
            if not isinstance(x, torch.Tensor):
                return x
            x = x[..., :keys] if x.shape[-1] == n_keys else x
            x = x[..., queries, :] if x.ndim > 1 and x.shape[-2] == n_queries else x
            return x[..., heads, :, :] if x.ndim > 2 and x.shape[-3] == n_heads else x

        mask = cut(self.mask)
        if mask is None:
            rows = torch.arange(first, last, device=self.q.device)[:, None] + n_keys - n_queries
            mask = torch.arange(n_keys, device=self.q.device)[:keys] <= rows
        options = {name: cut(x) if name == "position_bias" else x for name, x in self.options.items()}
        for name in _SINKS:
            if isinstance(sinks := options.get(name), torch.Tensor):  # (head,) or (batch, head, 1 or query, 1)
                options[name] = cut(sinks) if sinks.ndim == 4 else sinks[heads]
        q, k, v = self.q[:, heads, queries], self.k[:, shared, :keys], self.v[:, shared, :keys]
        return AttentionCall(self.module, q, k, v, mask, self.scaling, options)


Task = Callable[[AttentionCall], torch.Tensor]
"""What to do in one layer: from the call to z (batch, query, head, d_head)."""

_here = threading.local()
_SINKS = ("s_aux", "sinks")  # one learnt score per head, or one per query, that takes a share of the attention


def needs_pattern(options: Mapping[str, Any]) -> bool:
    """Does z need an explicit pattern (soft-capped scores, attention sinks)?"""
    return any(options.get(name) is not None for name in ("softcap", *_SINKS, "position_bias"))


def shared_heads(x: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Key or value heads (batch, kv_head, key, d_head) repeated to one per query head."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], 1)


def scores_of(call: AttentionCall) -> torch.Tensor:
    """The scores that the softmax takes (batch, head, query, key), float32: capped, with biases, -inf where masked."""
    n_heads, queries, keys = call.q.shape[1], call.q.shape[2], call.k.shape[2]
    # float32 whatever the model computes in: SDPA accumulates its scores so, too
    scores = call.q.float() @ shared_heads(call.k, n_heads).float().transpose(2, 3) * call.scaling
    if (cap := call.options.get("softcap")) is not None:
        scores = torch.tanh(scores / cap) * cap
    if (bias := call.options.get("position_bias")) is not None:
        scores = scores + bias
    mask = call.mask
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -torch.inf)
    return (scores + mask).masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)


def softmax_of(call: AttentionCall, scores: torch.Tensor) -> torch.Tensor:
    """The pattern (batch, head, query, key) that scores give in a call, with its sinks; 0 in rows that see nothing."""
    if (sinks := next((s for name in _SINKS if (s := call.options.get(name)) is not None), None)) is not None:
        column = sinks.float() if sinks.ndim == 4 else sinks.float().view(1, -1, 1, 1)
        column = column.expand(scores.shape[0], -1, scores.shape[2], 1)
        pattern = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        pattern = scores.softmax(-1)
    return pattern.masked_fill(scores == -torch.inf, 0.0)  # rows of padding, where everything is masked


def pattern_of(call: AttentionCall) -> torch.Tensor:
    """The attention pattern (batch, head, query, key), float32.

    Rows sum to 1, less a sink's share, and are zero where masked.
    """
    return softmax_of(call, scores_of(call))


def apply_pattern(pattern: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """z (batch, query, head, d_head) from a pattern (batch, head, query, key) and v (batch, kv_head, key, d_head)."""
    return (pattern @ shared_heads(v, pattern.shape[1]).to(pattern.dtype)).transpose(1, 2).to(v.dtype)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if (indices := options.pop("indices", None)) is not None:
        attention_mask = _sparse(attention_mask, indices, query.shape[2], key.shape[2])
    call = AttentionCall(module, query, key, value, attention_mask, scale, options)
    task = getattr(_here, "tasks", {}).get(module)
    return (call.fast() if task is None else task(call)).contiguous(), None


def _sparse(mask: torch.Tensor | None, indices: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """The mask without the keys that a sparse-attention indexer (DeepSeek-V3.2) left out; indices (batch, query, k)."""
    chosen = torch.zeros(indices.shape[0], queries, keys, dtype=torch.bool, device=indices.device)
    chosen = chosen.scatter(-1, indices.long(), True)[:, None]
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=indices.device).tril(keys - queries)
    return mask & chosen if mask.dtype == torch.bool else mask.masked_fill(~chosen, torch.finfo(mask.dtype).min)


for _name, _mask in ((NAME, sdpa_mask), (EAGER, eager_mask)):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, _mask)


@cache
def keep_out_of_graphs() -> None:
    """Let code that `torch.compile` makes call our attention without looking into it."""
    for name in (NAME, EAGER):
        AttentionInterface.register(name, torch.compiler.disable(_attention))


_configs: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()


def _configs_of(hf: nn.Module) -> list[Any]:
    """Every configuration that sets how some part of a model attends; searched once, as it takes a millisecond."""
    if hf not in _configs:
        configs = (getattr(module, "config", None) for module in hf.modules())
        _configs[hf] = list({id(c): c for c in configs if hasattr(c, "_attn_implementation")}.values())
    return _configs[hf]


@contextmanager
def attention_tasks(hf: Any, tasks: Mapping[nn.Module, Task]) -> Iterator[None]:
    """Give some attention modules a task for as long as the block runs; with no tasks nothing is switched at all.

    The model's configuration names another attention implementation meanwhile and is restored afterwards, even after an
    error. Other threads that run the same model meanwhile get SDPA.
    """
    if not tasks:
        yield
        return
    before = [(config, config._attn_implementation) for config in _configs_of(hf)]
    _here.tasks = dict(tasks)
    try:
        for config, name in before:
            config._attn_implementation = EAGER if name == "eager" else NAME
        yield
    finally:
        _here.tasks = {}
        for config, name in before:
            config._attn_implementation = name
