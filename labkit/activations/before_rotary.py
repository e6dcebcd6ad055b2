"""Where queries and keys are before rotary embedding, found by trial.

The rotation is a function between two modules, so nothing can be hooked there. But it is linear, position by position
and head by head: the module that comes right before it (a projection, or the norm of queries or keys) is the last one
in attention of which each head of q, or of k, is that of its output's, turned. Each layer's attention is called once
for every module that may be it, with each head of that module's output made larger by a factor of its own; if it is the
module, these are the factors by which the heads of q, or of k, are larger, and they say which head is where.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from labkit.activations.attention_interface import AttentionCall, attention_tasks
from labkit.activations.head_layout import LENGTH, heads_of, tracked
from labkit.models.flow import Call, Flow
from labkit.models.handle import Model, PerModel

AFTER = {"q_pre": "q", "k_pre": "k"}
"""What a kind of site is after rotary."""
NOT_FOUND = "no one module of its attention outputs all of them, by head, right before rotary"
NOT_ROTATED = "it has no rotary embedding, or norms after it"
ONE = "its keys and values are the same, so that its keys cannot be told apart before rotary"
LARGE = 128.0  # what outputs are scaled to, so that a limit on them shows (DBRX, OLMo)


@dataclass(frozen=True)
class Before:
    """The heads of some module's output that are queries, or keys, before rotary.

    Attributes:
        slots: which of the output's heads, in the order of the model's.
        heads_first: is the output (batch, head, position, d_head), or are positions first, with heads on an axis of
            their own or side by side?
    """

    module: nn.Module
    slots: tuple[int, ...]
    d_head: int
    heads_first: bool

    def split(self, out: torch.Tensor) -> torch.Tensor:
        """All heads of the output, (batch, position, head, d_head); a view if possible."""
        return by_head(out, self.d_head, heads_first=self.heads_first)

    def through(self, out: torch.Tensor, edit: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The output with what an edit makes of the heads (batch, position, head, d_head); itself if nothing."""
        every = self.split(out)
        whole = self.slots == tuple(range(every.shape[2])) and every.numel() == out.numel()
        slots = list(self.slots)
        mine = every if whole else every[:, :, slots]
        new = edit(mine)
        if new is mine:
            return out
        if not whole:
            every = every.clone()
            every[:, :, slots] = new.to(every.dtype)
            new = every
        if self.heads_first:
            return new.transpose(1, 2)
        flat = new.flatten(2)
        rest = out.flatten(2)[..., flat.shape[-1] :]
        return torch.cat([flat, rest], -1).view(out.shape)


@dataclass(frozen=True)
class Rotated:
    """Of one layer what `before` each kind of site is, or why it is `missing`."""

    before: dict[str, Before] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


_seen: PerModel[list[Rotated]] = PerModel(list)


def before_rotary(lm: Model) -> list[Rotated]:
    """Of every layer of a model; found once and kept with the model."""
    if not _seen[lm]:
        with lm.busy():
            _seen[lm][:] = _look(lm)
    return _seen[lm]


def by_head(out: torch.Tensor, d_head: int, *, heads_first: bool) -> torch.Tensor:
    if heads_first:
        return out.transpose(1, 2)
    flat = out.flatten(2)
    count = flat.shape[-1] // d_head
    return flat[..., : count * d_head].unflatten(-1, (count, d_head))


def _look(lm: Model) -> list[Rotated]:
    heads, flow = heads_of(lm), Flow()
    at: dict[int, Call] = {}
    ids = torch.arange(LENGTH, device=lm.device)[None] % lm.n_vocab
    with ExitStack() as stack:
        here = tracked(lm, stack)

        def note(*passed: Any) -> None:
            flow.note(*passed)
            assert here.layer is not None
            if passed[0] in flow.last:
                at[here.layer] = flow.last[passed[0]]

        for module in {h.attention for h in heads if h.attention is not None}:
            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        lm.hf(input_ids=ids, use_cache=False)
    found = []
    for layer, one in enumerate(heads):
        kinds = [kind for kind, after in AFTER.items() if after not in one.missing]
        missing = {kind: one.missing[after] for kind, after in AFTER.items() if after in one.missing}
        before: dict[str, Before] = {}
        if kinds and layer in at:
            before, not_there = _Trial(lm.hf, at[layer]).search(kinds)
            missing |= not_there
        else:
            missing |= dict.fromkeys(kinds, NOT_FOUND)
        found.append(Rotated(before, missing))
    return found


class _Trial:
    """One layer's attention, called again on what it took in a plain pass."""

    def __init__(self, hf: nn.Module, call: Call) -> None:
        self.hf, self.attention, self.args, self.kwargs = hf, call.module, call.args, call.kwargs
        self.outputs: dict[nn.Module, torch.Tensor] = {}  # in the order in which modules return
        often: set[nn.Module] = set()

        def note(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                often.update({module} & set(self.outputs))
                self.outputs[module] = output

        inside = [m for m in self.attention.modules() if m is not self.attention]
        with ExitStack() as stack:
            for module in inside:
                stack.callback(module.register_forward_hook(note).remove)
            self.plain = self._call()
        for module in often:  # one that norms queries and keys alike
            del self.outputs[module]

    def _call(self) -> dict[str, torch.Tensor]:
        """q, k and v (position, head, d_head)."""
        calls: list[AttentionCall] = []

        def task(call: AttentionCall) -> torch.Tensor:
            calls.append(call)
            return call.fast()

        with attention_tasks(self.hf, dict.fromkeys(self.attention.modules(), task)):
            self.attention(*self.args, **self.kwargs)
        return {kind: getattr(calls[0], after)[0].transpose(0, 1) for kind, after in (*AFTER.items(), ("v", "v"))}

    def search(self, kinds: list[str]) -> tuple[dict[str, Before], dict[str, str]]:
        """The module before rotary of each kind, or why there is none."""
        found: dict[str, Before] = {}
        missing = dict.fromkeys(kinds, NOT_FOUND)
        wanted = set(kinds)
        for module, out in reversed(self.outputs.items()):
            for heads_first, d_head in {self._form(out, kind) for kind in wanted} - {None}:  # type: ignore[misc]
                scaled = self._scaled(module, out, d_head, heads_first)
                if scaled is None:
                    continue
                factors, now = scaled
                for kind in list(wanted):
                    slots = self._slots(kind, now[kind], factors)
                    if slots is None:
                        continue
                    wanted.discard(kind)
                    values = self._slots("v", now["v"], factors) if kind == "k_pre" else None
                    if values is not None and not set(values).isdisjoint(slots):
                        missing[kind] = ONE
                    elif self._is(kind, by_head(out, d_head, heads_first=heads_first)[0][:, list(slots)]):
                        missing[kind] = NOT_ROTATED
                    else:
                        found[kind] = Before(module, slots, d_head, heads_first)
                        del missing[kind]
            if not wanted:
                break
        return found, missing

    def _form(self, out: torch.Tensor, kind: str) -> tuple[bool, int] | None:
        """Can an output hold all heads of a kind: are heads first, and how wide is one?"""
        length, n_heads, d_head = self.plain[kind].shape
        if out.shape[0] != 1 or out.ndim not in (3, 4):
            return None
        if out.ndim == 4 and out.shape[2] == length and out.shape[1] >= n_heads and out.shape[3] == d_head:
            return (True, d_head) if out.shape[1] != length else None
        if out.shape[1] != length or out.flatten(2).shape[-1] < n_heads * d_head:
            return None
        return False, d_head

    def _scaled(
        self, module: nn.Module, out: torch.Tensor, d_head: int, heads_first: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]] | None:
        """q and k when each head of a module's output is larger by a factor of its own, and the factors."""
        n = by_head(out, d_head, heads_first=heads_first).shape[2]
        large = LARGE / float(out.abs().max().clamp(min=1e-30))
        factors = torch.linspace(1.0, 2.0, n, device=out.device) * max(2.0, large)
        one = Before(module, tuple(range(n)), d_head, heads_first)

        def larger(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            return one.through(output, lambda x: (x.float() * factors[:, None].to(x.device)).to(x.dtype))

        handle = module.register_forward_hook(larger)
        try:
            return factors, self._call()
        except Exception:  # it cannot take another value
            return None
        finally:
            handle.remove()

    def _slots(self, kind: str, now: torch.Tensor, factors: torch.Tensor) -> tuple[int, ...] | None:
        """Which factor made each head larger; None if they are not just larger by different ones."""
        plain, now = self.plain[kind].float(), now.float()
        if now.shape != plain.shape:
            return None
        share = (now * plain).sum((0, 2)) / plain.square().sum((0, 2)).clamp(min=1e-30)  # (head,)
        off = (now - share[:, None] * plain).norm() / now.norm().clamp(min=1e-30)
        if float(off) > (1e-3 if self.plain[kind].dtype == torch.float32 else 0.02):
            return None
        apart = (share[:, None] - factors.to(share.device)).abs()  # (head, slot)
        nearest = apart.argmin(1)
        step = float(factors[1] - factors[0]) if len(factors) > 1 else float(factors[0])
        if float(apart.min(1).values.max()) > 0.3 * step or len(set(nearest.tolist())) != len(nearest):
            return None
        return tuple(nearest.tolist())

    def _is(self, kind: str, out: torch.Tensor) -> bool:
        """Is q, or k, (position, head, d_head) just a multiple of the output?"""
        after, before = self.plain[kind].float(), out.float()
        share = (after * before).sum() / before.square().sum().clamp(min=1e-30)
        return float((after - share * before).norm()) <= 0.01 * float(after.norm())
