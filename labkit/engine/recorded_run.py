"""One plain run and what is kept of it to restart from any layer and position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from labkit.activations.attention_interface import AttentionCall
from labkit.activations.head_layout import heads_of
from labkit.activations.hooks import Edit, Place, hooked
from labkit.activations.sites import layers_with
from labkit.activations.unembedding import measured_end
from labkit.models.flow import first_tensor, hidden_input

if TYPE_CHECKING:
    from labkit.models.handle import Model


class Unsupported(Exception):
    """This architecture cannot be restarted midway; the caller does full forward passes instead."""


@dataclass
class RecordedRun:
    """One plain run and all that is needed to restart it from any layer and position."""

    lm: Model
    ids: torch.Tensor  # (1, seq)
    resid: list[torch.Tensor]  # what enters each block, and what leaves the last: n_layers + 1 of (seq, d_model)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]  # the arguments of each block, without the hidden states
    attention: dict[int, AttentionCall]  # k, v, mask and options of each layer that has attention of ours
    logits: torch.Tensor  # (vocab,) at the last position, float32
    tail: torch.Tensor | None = None  # the same at the last positions (count, vocab), where several are asked for

    @property
    def length(self) -> int:
        return self.ids.shape[1]


def record(
    lm: Model,
    ids: torch.Tensor,
    *,
    sites: Sequence[str] = (),
    count: int = 1,
    edits: Mapping[Place, Edit] | None = None,
) -> tuple[RecordedRun, dict[str, dict[int, torch.Tensor]]]:
    """Run a prompt (1, seq) once and keep what the wavefront needs, and some kinds of site.

    Args:
        count: of how many last positions the logits are wanted.
        edits: what is written in this run.

    Returns:
        The base, and each kind's activation in each layer that has it, without the batch axis: (seq, ...), patterns
        (head, seq, seq).

    Raises:
        Unsupported: the residual stream has a form that cannot be split by position, or the layers run more than once.
    """
    return _record(lm, ids, sites, count, edits)[0]


_alike: WeakKeyDictionary[Model, bool] = WeakKeyDictionary()


def record_together(
    lm: Model, ids: torch.Tensor, *, sites: Sequence[str] = (), count: int = 1
) -> list[tuple[RecordedRun, dict[str, dict[int, torch.Tensor]]]]:
    """`record` for several prompts of one length (prompt, seq), in one pass if that gives the same as one each.

    This is checked once per model.
    """
    if len(ids) == 1 or ids.shape[1] == len(ids) or _alike.get(lm) is False:
        return [record(lm, row[None], sites=sites, count=count) for row in ids]
    try:
        both = _record(lm, ids, sites, count)
    except _Mixed:
        _alike[lm] = False
        return record_together(lm, ids, sites=sites, count=count)
    if lm not in _alike:
        each = [record(lm, row[None], sites=()) for row in ids]
        _alike[lm] = all(_same_run(a, b) for (a, _), (b, _) in zip(both, each, strict=True))
        if not _alike[lm]:
            return record_together(lm, ids, sites=sites, count=count)
    return both


def several_alike(lm: Model) -> bool:
    """Do several prompts in a pass give what each gives alone? False if not known yet."""
    return _alike.get(lm, False)


def _same_run(a: RecordedRun, b: RecordedRun) -> bool:
    share = 1e-4 if a.lm.dtype == torch.float32 else 0.05
    pairs = [(a.resid[-1], b.resid[-1]), (a.logits, b.logits)]
    return all(float((x - y).float().norm()) <= share * float(y.float().norm()) for x, y in pairs)


def _record(
    lm: Model,
    ids: torch.Tensor,
    sites: Sequence[str],
    count: int,
    edits: Mapping[Place, Edit] | None = None,
) -> list[tuple[RecordedRun, dict[str, dict[int, torch.Tensor]]]]:
    if lm.anatomy.streams_first:
        raise Unsupported(f"the residual stream of {lm.name} has several copies, on its first axis")
    resid: list[torch.Tensor] = []
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    attention: dict[int, AttentionCall] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = hidden_input(args, kwargs)
        assert x is not None
        resid.append(x.detach().clone())
        rest = args[1:] if args and args[0] is x else args
        calls.append((rest, {name: value for name, value in kwargs.items() if value is not x}))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = first_tensor(output)
        assert x is not None
        resid.append(x.detach().clone())

    blocks = [block.module for block in lm.anatomy.blocks]
    heads_of(lm)  # looked at now, before there are hooks
    with lm.busy(), ExitStack() as stack:  # other threads that run the model meet no hook of ours
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(blocks[-1].register_forward_hook(after).remove)
        both = recorded(lm, ids, sites=sites, count=count, edits=edits, watch=attention.__setitem__)
    if len(calls) != len(blocks):
        raise Unsupported(f"the layers of {lm.name} run more than once in a pass")
    if any(x.shape[:2] != ids.shape for x in resid):
        raise Unsupported(f"the residual stream of {lm.name} has no axis of positions")
    return [
        (
            RecordedRun(
                lm,
                ids[n : n + 1],
                [x[n] for x in resid],
                _row(calls, n, ids.shape),
                {layer: _call_of(call, n, ids.shape) for layer, call in attention.items()},
                tail[-1],
                tail if count > 1 else None,
            ),
            found,
        )
        for n, (tail, found) in enumerate(both)
    ]


class _Mixed(Exception):
    """An argument of a layer does not show which part belongs to which prompt."""


def mapped(work: Callable[..., Any], value: Any, *others: Any, name: str = "") -> Any:
    """Arguments of a block with `work(name, tensor, ...)` in place of each tensor, however deep it lies.

    With `others`, which have the same form, it gets the tensors of all of them.
    """
    if isinstance(value, tuple | list):
        return type(value)(mapped(work, *items, name=name) for items in zip(value, *others, strict=True))
    if isinstance(value, dict):
        each = (value, *others)
        return {key: mapped(work, *(one[key] for one in each), name=f"{name}.{key}") for key in value}
    return work(name, value, *others) if isinstance(value, torch.Tensor) else value


def expanded(arguments: Any, rows: int) -> Any:
    """Arguments of a block, for several rows: what has a batch axis of one is shared by all."""

    def expand(name: str, x: torch.Tensor) -> torch.Tensor:
        return x.expand(rows, *x.shape[1:]) if x.ndim >= 2 and x.shape[0] == 1 and rows > 1 else x

    return mapped(expand, arguments)


def same_output(out: torch.Tensor, expected: torch.Tensor, x: torch.Tensor) -> bool:
    """Are two outputs (seq, ...) of a block equal at every position, compared with the change that it makes to x?"""
    rms = lambda t: t.float().flatten(1).pow(2).mean(1).sqrt()  # noqa: E731
    expected, x = expected.to(out.device), x.to(out.device)  # the next layer's device may be another
    share, rounding = (1e-4, 1e-5) if out.dtype == torch.float32 else (0.02, 2**-7)
    limit = share * rms(expected - x).max() + rounding * rms(expected).max()
    return out.shape == expected.shape and bool((rms(out - expected) <= limit).all())


def _row(arguments: Any, n: int, shape: torch.Size) -> Any:
    """What belongs to prompt n in arguments of a pass over several, of ids of this shape (prompt, seq)."""

    def row(name: str, x: torch.Tensor) -> torch.Tensor:
        by_position = x.ndim == 2 and x.shape[0] == shape[1]  # a table
        if x.ndim < 2 or x.shape[0] == 1 or by_position:
            return x
        if x.shape[0] != shape[0]:
            raise _Mixed
        return x[n : n + 1]

    return arguments if shape[0] == 1 else mapped(row, arguments)


def _call_of(call: AttentionCall, n: int, shape: torch.Size) -> AttentionCall:
    parts = {name: getattr(call, name) for name in ("q", "k", "v", "mask", "options")}
    return replace(call, **_row(parts, n, shape))


def recorded(
    lm: Model,
    ids: torch.Tensor,
    *,
    sites: Sequence[str],
    count: int = 1,
    edits: Mapping[Place, Edit] | None = None,
    watch: Callable[[int, AttentionCall], None] | None = None,
) -> list[tuple[torch.Tensor, dict[str, dict[int, torch.Tensor]]]]:
    """Of each prompt (prompt, seq) logits (count, vocab) at the last positions, float32, and sites as `record` does."""
    places = {kind: layers_with(lm, kind) for kind in sites}
    wanted = {(kind, layer) for kind, layers in places.items() for layer in layers}
    with lm.busy(), lm.for_patching(), hooked(lm, wanted, edits or {}, watch=watch) as found:
        logits = measured_end(lm, ids, count)
    return [
        (row, {kind: {layer: found[kind, layer][n] for layer in layers} for kind, layers in places.items()})
        for n, row in enumerate(logits)
    ]
