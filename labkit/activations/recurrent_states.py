"""The recurrent state of a layer: all that it keeps of the past, in place of keys and values.

State-space layers (Mamba) and linear attention (gated delta nets and others) each compute it in functions of their own,
out of reach of a hook. But all of them hand it to transformers' cache, from where the next token's pass takes it. So a
pass that reads it is given a cache, and the state is what the layer leaves there: that after the last position.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from labkit.activations.head_layout import LENGTH
from labkit.models.handle import Model, PerModel

_seen: PerModel[dict[str, set[int]]] = PerModel(dict)


def layers_with_state(lm: Model) -> set[int]:
    """The layers that leave a recurrent state in the cache; found once, by a pass over a few tokens."""
    if not _seen[lm]:
        _seen[lm]["layers"] = _look(lm) if _may_have(lm) else set()
    return _seen[lm]["layers"]


def state_in(passed: Iterable[Any], layer: int) -> torch.Tensor | None:
    """The state that a layer has left in the cache among its arguments; None where there is none."""
    cache = next((x for x in passed if isinstance(x, Cache)), None)
    layers = [] if cache is None else cache.layers
    states = getattr(layers[layer], "recurrent_states", {}) if layer < len(layers) else {}
    return states.get(0)


def _may_have(lm: Model) -> bool:
    """Has a cache for this model a layer with a place for states? Most models are spared the pass."""
    cache = DynamicCache(config=lm.hf.config)
    return any(hasattr(layer, "recurrent_states") for layer in cache.layers)


def _look(lm: Model) -> set[int]:
    found: set[int] = set()

    def note(layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if state_in((*args, *kwargs.values()), layer) is not None:
            found.add(layer)

    ids = torch.arange(LENGTH, device=lm.device)[None] % lm.n_vocab
    with lm.busy(), ExitStack() as stack:
        for layer, block in enumerate(lm.anatomy.blocks):
            stack.callback(block.module.register_forward_hook(partial(note, layer), with_kwargs=True).remove)
        lm.hf(input_ids=ids, use_cache=True)
    return found
