"""What one watched forward pass over a few tokens shows: which tensor went into each module, and which came out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from labkit.models.compiled import original
from labkit.models.devices import runs_on
from labkit.models.weights import is_linear, size_of


def first_tensor(value: Any) -> torch.Tensor | None:
    """The tensor itself, or the first one of a tuple: the output of a block, attention or MLP."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, tuple | list):
        return next((item for item in value if isinstance(item, torch.Tensor)), None)
    return None


def hidden_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The hidden states among a module's arguments."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0]
    value = kwargs.get("hidden_states")
    return value if isinstance(value, torch.Tensor) else None


WATCHED = 3  # tokens in the watched pass


@dataclass(frozen=True)
class Call:
    module: nn.Module
    order: int  # when it returned
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    shape: torch.Size  # of what came in
    came_in: int  # addresses, unique while the calls keep every tensor alive
    went_out: int


class Flow:
    """What one watched forward pass saw."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.last: dict[nn.Module, Call] = {}  # of each module
        self.adapted: set[nn.Module] = set()
        self.hidden: set[nn.Module] = set()  # what is inside of these

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        came_in, went_out = hidden_input(args, kwargs), first_tensor(output)
        if came_in is None or went_out is None:
            return
        pointers = came_in.data_ptr(), went_out.data_ptr()
        self.last[module] = Call(module, len(self.calls), args, kwargs, output, came_in.shape, *pointers)
        self.calls.append(self.last[module])

    def gets_the_same(self, module: nn.Module, block: nn.Module) -> bool:
        """Does a module in a block get the block's own input, or a copy of it on the module's device?"""
        calls = self.last[module], self.last[block]
        if calls[0].came_in == calls[1].came_in:
            return True
        if not hasattr(block, "_hf_hook"):  # nothing moves it
            return False
        ours, its = (hidden_input(call.args, call.kwargs) for call in calls)
        return ours is not None and its is not None and torch.equal(ours, its.to(ours.device))

    def inside(self, parent: nn.Module) -> Iterator[Call]:
        members = set(parent.modules()) - {parent} - self.hidden
        return (call for call in self.calls if call.module in members)


def watch(hf: Any, embed: Any, blocks: Sequence[nn.Module]) -> Flow:
    flow = Flow()
    inside = [m for m in hf.modules() if m is not hf and original(m) is m]
    handles = [m.register_forward_hook(flow.note, with_kwargs=True) for m in inside]
    try:
        with torch.no_grad():
            ids = torch.arange(WATCHED, device=runs_on(embed))[None]
            hf(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    # a whole layer adds so little to a small stream that it may pass for linear
    layers = {m for m in inside if not set(blocks).isdisjoint(m.modules())}
    for module in inside:  # outer ones come first
        if module not in flow.hidden and module not in layers and _is_adapted(module, flow):
            flow.adapted.add(module)
            flow.hidden |= set(module.modules()) - {module}
    return flow


def _is_adapted(module: nn.Module, flow: Flow) -> bool:
    """Does a module with a linear layer in it act as a linear layer of that size, as an adapter with its layer does?

    It does if the change of its input is the change of its output, position by position: tried with the watched input
    less itself in another order, eight times as large.
    """
    if module not in flow.last or not list(module.children()):
        return False
    args, kwargs, output = flow.last[module].args, flow.last[module].kwargs, flow.last[module].output
    given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
    if len(given) != 1 or not isinstance(output, torch.Tensor) or not args or given[0] is not args[0]:
        return False
    x = given[0]
    if not x.dtype.is_floating_point or x.ndim < 2 or x.shape[:-1] != output.shape[:-1] or x.shape[-2] < 2:
        return False
    size = {x.shape[-1], output.shape[-1]}
    if not any(is_linear(m) and set(size_of(m)) == size for m in module.modules()):
        return False
    try:
        with torch.no_grad():
            none, changed = (module(8 * y, *args[1:], **kwargs).float() for y in (torch.zeros_like(x), x - x.flip(-2)))
    except Exception:  # it needs more than its input, so it is not a linear layer
        return False
    made = output.float() - none
    expected = 8 * (made - made.flip(-2))
    exact = {x.dtype, *(p.dtype for p in module.parameters())} == {torch.float32}
    return float((changed - none - expected).norm()) <= (1e-3 if exact else 0.05) * float(expected.norm())


def is_projection(module: nn.Module, flow: Flow) -> bool:
    """Is it a linear layer, or an adapter that stands for one?"""
    return module in flow.adapted or (module not in flow.hidden and is_linear(module))
