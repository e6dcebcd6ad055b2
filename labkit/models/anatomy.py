"""Anatomy: where blocks, attention, MLP, norms, embedding and unembedding are, in any decoder.

There is no table per model. transformers declares each architecture's block and attention classes
(`_can_record_outputs`); one forward pass over three tokens shows the rest. In that pass every module inside the blocks
notes which tensor came in and which went out, and the places follow from who handed what to whom:

- the MLP's down projection is the layer whose output *is* the MLP's output, likewise attention's output projection;
- the residual stream between attention and MLP (`resid_mid`) enters the first module after attention whose input no
  module of the block made (an addition made it) and that is not the block's own input, as it is in parallel blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Block:
    """One decoder layer's parts; None where this architecture has no such part."""

    module: nn.Module
    attention: nn.Module | None
    output_projection: nn.Module | None  # takes z, all heads side by side
    mlp: nn.Module | None
    down_projection: nn.Module | None  # takes the neurons, mlp_act
    mid: nn.Module | None  # takes resid_mid


@dataclass(frozen=True)
class Anatomy:
    """The parts of a decoder, in the order in which a forward pass meets them."""

    embed: nn.Module
    blocks: tuple[Block, ...]
    norm: nn.Module | None
    unembed: nn.Module


def first_tensor(value: Any) -> torch.Tensor | None:
    """The tensor itself, or the first one of a tuple: what a block, attention or MLP hands on."""
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


def find_anatomy(hf: Any) -> Anatomy:
    """The anatomy of a transformers decoder.

    Raises:
        ValueError: no stack of blocks, no embedding or no unembedding can be found in it.
    """
    embed, unembed = hf.get_input_embeddings(), hf.get_output_embeddings()
    if embed is None or unembed is None:
        raise ValueError(
            f"{type(hf).__name__} has no input embedding or no unembedding; labkit reads decoders with both"
        )
    blocks = _blocks(hf)
    flow = _watch(hf, embed)
    parts = tuple(_parts(block, _declared(hf, "attentions"), flow) for block in blocks)
    after = [call for call in flow.calls if call.order > flow.last_of[blocks[-1]]]
    last_out = flow.outputs[blocks[-1]]
    norm = next((call.module for call in after if call.came_in == last_out and call.module is not unembed), None)
    return Anatomy(embed, parts, norm, unembed)


def _declared(hf: nn.Module, what: str) -> tuple[type, ...]:
    """The classes that transformers declares as recordable under a name, such as `attentions`."""
    classes: list[type] = []
    for module in (hf, getattr(hf, "get_decoder", lambda: None)()):
        entry = (getattr(module, "_can_record_outputs", None) or {}).get(what)
        for item in entry if isinstance(entry, list | tuple) else [entry]:
            target = getattr(item, "target_class", item)
            if isinstance(target, type):
                classes.append(target)
    return tuple(classes)


def _blocks(hf: nn.Module) -> list[nn.Module]:
    declared = _declared(hf, "hidden_states")
    stacks = [list(m) for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    of_class = [stack for stack in stacks if declared and all(isinstance(block, declared) for block in stack)]
    if not (of_class or stacks):
        raise ValueError(f"no stack of decoder blocks found in {type(hf).__name__}")
    return max(of_class or stacks, key=len)


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    order: int  # when it returned
    came_in: int  # addresses, unique while the watch keeps every tensor alive
    went_out: int


class _Flow:
    """What one watched forward pass saw."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.alive: list[torch.Tensor] = []
        self.inputs: dict[nn.Module, int] = {}
        self.outputs: dict[nn.Module, int] = {}
        self.last_of: dict[nn.Module, int] = {}

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        came_in, went_out = hidden_input(args, kwargs), first_tensor(output)
        if came_in is None or went_out is None:
            return
        self.alive += [came_in, went_out]
        call = _Call(module, len(self.calls), came_in.data_ptr(), went_out.data_ptr())
        self.calls.append(call)
        self.inputs[module], self.outputs[module], self.last_of[module] = call.came_in, call.went_out, call.order

    def inside(self, parent: nn.Module) -> Iterator[_Call]:
        members = set(parent.modules()) - {parent}
        return (call for call in self.calls if call.module in members)


def _watch(hf: Any, embed: Any) -> _Flow:
    flow = _Flow()
    handles = [m.register_forward_hook(flow.note, with_kwargs=True) for m in hf.modules() if m is not hf]
    try:
        with torch.no_grad():
            ids = torch.arange(3, device=embed.weight.device)[None]
            hf(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return flow


def _parts(block: nn.Module, attention_classes: tuple[type, ...], flow: _Flow) -> Block:
    children = [child for child in block.children() if child in flow.outputs]
    attention = next((m for m in block.modules() if attention_classes and isinstance(m, attention_classes)), None)
    if attention is None:
        attention = next(
            (child for name, child in block.named_children() if "attn" in name or "attention" in name), None
        )
    mlp = _mlp(block, children, attention)
    return Block(
        block,
        attention,
        _last_projection(attention, flow),
        mlp,
        _last_projection(mlp, flow),
        _mid(block, children, attention, flow),
    )


def _mlp(block: nn.Module, children: list[nn.Module], attention: nn.Module | None) -> nn.Module | None:
    """The child with the most weights that is neither attention nor a norm."""
    rest = [c for c in children if c is not attention and not (attention and attention in set(c.modules()))]
    with_layers = [c for c in rest if any(_is_projection(m) for m in c.modules() if m is not c)]
    return max(with_layers, key=lambda c: sum(p.numel() for p in c.parameters()), default=None)


def _is_projection(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return not list(module.children()) and isinstance(weight, torch.Tensor) and weight.ndim == 2


def _last_projection(parent: nn.Module | None, flow: _Flow) -> nn.Module | None:
    if parent is None or parent not in flow.outputs:
        return None
    out = flow.outputs[parent]
    return next((c.module for c in flow.inside(parent) if c.went_out == out and _is_projection(c.module)), None)


def _mid(block: nn.Module, children: list[nn.Module], attention: nn.Module | None, flow: _Flow) -> nn.Module | None:
    if attention is None or attention not in flow.last_of:
        return None
    made = {call.went_out for call in flow.inside(block)}
    later = sorted((c for c in children if flow.last_of[c] > flow.last_of[attention]), key=lambda c: flow.last_of[c])
    for child in later:
        came_in = flow.inputs[child]
        if came_in == flow.inputs[block]:
            return None  # a parallel block: attention and MLP both read the block's input
        if came_in not in made:
            return child
    return None
