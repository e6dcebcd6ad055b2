"""Where the gate, the up projection and the pre-activations of an MLP are, found by trial in a watched pass.

An MLP's neurons are act(gate) * up, or act(pre). Which projection outputs which, whole, as one half of its output or as
every second column of it, is what gives the very numbers that the down projection took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from labkit.models.flow import Call, Flow, hidden_input, is_projection

ACTIVATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    F.silu,
    F.gelu,
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x: x * torch.sigmoid(1.702 * x),
    F.relu,
    lambda x: F.relu(x).square(),
    torch.sigmoid,
    torch.tanh,
)
"""For those whose activation function is not a module of its own."""


@dataclass(frozen=True)
class Part:
    """Some columns of what a module outputs, on the last axis."""

    module: nn.Module
    first: int | None = None
    end: int | None = None
    step: int | None = None

    @property
    def columns(self) -> slice:
        return slice(self.first, self.end, self.step)


@dataclass(frozen=True)
class MLPParts:
    """Those of one MLP; None where no projection outputs it. One with a gate has no `pre`."""

    gate: Part | None = None
    up: Part | None = None
    pre: Part | None = None


def mlp_parts(down: nn.Module | None, calls: Sequence[Call], flow: Flow) -> MLPParts:
    """The parts of the MLP whose neurons `down` takes, among the calls of its modules."""
    if down is None:
        return MLPParts()
    last = flow.last[down]
    neurons = hidden_input(last.args, last.kwargs)
    assert neurons is not None
    # what a norm before the down projection takes (BitNet) is as good
    before = (c for c in calls if c.went_out == last.came_in != c.came_in and c.module is not down)
    targets = [neurons, *(x for c in before if (x := hidden_input(c.args, c.kwargs)) is not None)]
    width = neurons.shape[-1]
    pieces = list(_pieces([c for c in calls if c.order < last.order and is_projection(c.module, flow)], width))
    others = [c for c in calls if not is_projection(c.module, flow)]
    best, found = 1e-3 if neurons.dtype == torch.float32 else 2e-2, MLPParts()
    for part, x in pieces:
        for acted in _acted(x, others):
            guesses = [(MLPParts(pre=part), acted)]
            guesses += [(MLPParts(part, other), acted * y) for other, y in pieces if other != part]
            for parts, made in guesses:
                if (off := min(_off(made, target) for target in targets)) < best:
                    best, found = off, parts
    return found


def _pieces(calls: Sequence[Call], width: int) -> Iterator[tuple[Part, torch.Tensor]]:
    """What may be a gate or the like, with its values (token, width)."""
    whole, halves = ((),), ((0, width), (width, 2 * width), (0, 2 * width, 2), (1, 2 * width, 2))
    for call in calls:
        out = call.output
        if isinstance(out, torch.Tensor) and out.shape[-1] in (width, 2 * width):
            for columns in whole if out.shape[-1] == width else halves:
                part = Part(call.module, *columns)
                yield part, out[..., part.columns]


def _acted(x: torch.Tensor, calls: Sequence[Call]) -> list[torch.Tensor]:
    """What an activation function makes of it: a module's own output where one took it, else each of those known."""
    taken = [c.output for c in calls if c.came_in == x.data_ptr() and c.shape == x.shape]
    modules = [out for out in taken if isinstance(out, torch.Tensor) and out.shape == x.shape]
    return modules or [act(x) for act in ACTIVATIONS]


def _off(made: torch.Tensor, target: torch.Tensor) -> float:
    """The largest difference, of the largest number."""
    if made.numel() != target.numel():
        return float("inf")
    made, target = made.float().flatten(), target.float().flatten().to(made.device)
    return float((made - target).abs().max() / target.abs().max().clamp(min=1e-30))
