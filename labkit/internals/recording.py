"""One plain run and what is kept of it: all that it takes to start again from any layer and position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.internals.attention_hook import AttentionCall
from labkit.internals.heads import heads_of
from labkit.internals.run import hooked
from labkit.internals.sites import layers_with
from labkit.models.anatomy import first_tensor, hidden_input

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel


class Unsupported(Exception):
    """This architecture cannot be restarted in the middle; the caller runs it whole instead."""


@dataclass
class Base:
    """One plain run and all it takes to start again from any layer and position in it."""

    lm: LanguageModel
    ids: torch.Tensor  # (1, seq)
    resid: list[torch.Tensor]  # what enters each block, and what leaves the last: n_layers + 1 of (seq, d_model)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]  # the arguments of each block, without the hidden states
    attention: dict[int, AttentionCall]  # k, v, mask and options of each layer that has attention of ours
    logits: torch.Tensor  # (vocab,) at the last position, float32

    @property
    def length(self) -> int:
        return self.ids.shape[1]


def record(
    lm: LanguageModel, ids: torch.Tensor, *, sites: Sequence[str] = ()
) -> tuple[Base, dict[str, dict[int, torch.Tensor]]]:
    """Run a prompt (1, seq) once and keep what the wavefront needs, and some kinds of site.

    Returns:
        The base, and each kind's activation in each layer that has it, without the batch axis: (seq, ...), patterns
        (head, seq, seq).

    Raises:
        Unsupported: the residual stream has a form that cannot be taken apart by position, or the layers run more than
            once.
    """
    if lm.anatomy.streams_first:
        raise Unsupported(f"the residual stream of {lm.name} has several copies, on its first axis")
    resid: list[torch.Tensor] = []
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    attention: dict[int, AttentionCall] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = hidden_input(args, kwargs)
        assert x is not None
        resid.append(x[0].detach().clone())
        rest = args[1:] if args and args[0] is x else args
        calls.append((rest, {name: value for name, value in kwargs.items() if value is not x}))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = first_tensor(output)
        assert x is not None
        resid.append(x[0].detach().clone())

    blocks = [block.module for block in lm.anatomy.blocks]
    heads_of(lm)  # looked at now, before there are hooks
    with lm.busy(), ExitStack() as stack:  # other threads that run the model meet no hook of ours
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(blocks[-1].register_forward_hook(after).remove)
        logits, found = recorded(lm, ids, sites=sites, watch=attention.__setitem__)
    if len(calls) != len(blocks):
        raise Unsupported(f"the layers of {lm.name} run more than once in a pass")
    if any(x.shape[0] != ids.shape[1] for x in resid):
        raise Unsupported(f"the residual stream of {lm.name} has no axis of positions")
    return Base(lm, ids, resid, calls, attention, logits), found


def recorded(
    lm: LanguageModel,
    ids: torch.Tensor,
    *,
    sites: Sequence[str],
    watch: Callable[[int, AttentionCall], None] | None = None,
) -> tuple[torch.Tensor, dict[str, dict[int, torch.Tensor]]]:
    """Logits (vocab,) at the last position, float32, and kinds of site by layer as `record` gives them."""
    places = {kind: layers_with(lm, kind) for kind in sites}
    wanted = {(kind, layer) for kind, layers in places.items() for layer in layers}
    with lm.busy(), hooked(lm, wanted, {}, watch=watch) as found:
        logits = last_logits(lm, ids)[0].float()
    return logits, {kind: {layer: found[kind, layer][0] for layer in layers} for kind, layers in places.items()}


def last_logits(lm: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits (batch, vocab) at the last position; only they are computed where the architecture can be asked to."""
    return lm.hf(input_ids=ids, use_cache=False, **lm.only_last).logits[:, -1]
