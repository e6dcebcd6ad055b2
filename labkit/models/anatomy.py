"""Anatomy: where blocks, attention, MLP, norms, embedding and unembedding are, in any decoder.

There is no table per model. transformers declares each architecture's block and attention classes
(`_can_record_outputs`); one forward pass over three tokens shows the rest. In that pass every module inside the blocks
notes which tensor came in and which went out, and the places follow from which module passed what to which:

- the MLP's down projection is the layer whose output *is* the MLP's output, likewise attention's output projection;
- the residual stream between attention and MLP (`resid_mid`) enters the first module after attention whose input no
  module of the block made (an addition made it) and that is not the block's own input, as it is in parallel blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import nn

from labkit.models.compiled import HIDDEN, original, plain_name
from labkit.models.devices import runs_on
from labkit.models.weights import is_linear, size_of


@dataclass(frozen=True)
class Block:
    """One decoder layer's parts; None where this architecture has no such part."""

    module: nn.Module
    attention: nn.Module | None
    attn_out: nn.Module | None  # outputs what attention adds: attention, or the last module inside one that adds it
    output_projection: nn.Module | None  # takes z, all heads side by side
    mlp: nn.Module | None
    mlp_out: nn.Module | None
    down_projection: nn.Module | None  # takes the neurons, mlp_act
    mid: nn.Module | None  # takes resid_mid
    experts: nn.Module | None  # called with (tokens, width), expert numbers (tokens, k) and their weights (tokens, k)
    router: nn.Module | None  # if experts are called otherwise: outputs the weights of all, (tokens, expert)
    latent: nn.Module | None  # takes the compressed keys and values of multi-head latent attention


@dataclass(frozen=True)
class Anatomy:
    """The parts of a decoder, in the order of a forward pass."""

    embed: nn.Module
    blocks: tuple[Block, ...]
    tail: tuple[nn.Module, ...]  # from the last residual stream to the unembedding: the final norm, and what follows it
    unembed: nn.Module
    streams_first: bool  # several residual streams on an axis before batch and position, as in Gemma 3n
    repeated: bool  # the layers run more than once in a pass, as in hierarchical reasoning models
    adapted: frozenset[nn.Module]  # that stand for one linear layer: an adapter (LoRA) with the layer inside of it

    @cached_property
    def shared(self) -> frozenset[nn.Module]:
        """Modules that more than one block runs, as Zamba's attention."""
        parts = ({b.attention, b.output_projection, b.mlp, b.down_projection, b.latent} for b in self.blocks)
        blocks = Counter(module for part in parts for module in part)
        return frozenset(module for module, count in blocks.items() if module is not None and count > 1)


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


def find_anatomy(hf: Any) -> Anatomy:
    """The anatomy of a transformers decoder.

    Raises:
        ValueError: it has no stack of blocks, no embedding or no unembedding.
    """
    embed, unembed = original(hf.get_input_embeddings()), original(hf.get_output_embeddings())
    if embed is None or unembed is None:
        raise ValueError(
            f"{type(hf).__name__} has no input embedding or no unembedding; labkit supports decoders that have both"
        )
    blocks = _blocks(hf)
    flow = _watch(hf, embed, blocks)
    missing = [n for n, block in enumerate(blocks) if block not in flow.last]
    if len(missing) == len(blocks):
        raise ValueError(f"a forward pass of {type(hf).__name__} reaches none of its layers. {HIDDEN}")
    if missing:
        raise ValueError(
            f"{type(hf).__name__} skips layers {missing} in its forward pass; labkit supports sequential stacks only"
        )
    rank = getattr(hf.config.get_text_config(decoder=True), "kv_lora_rank", None)
    parts = tuple(_parts(block, _declared(hf, "attentions"), flow, rank) for block in blocks)
    return Anatomy(
        embed,
        parts,
        _tail(blocks[-1], unembed, flow),
        unembed,
        streams_first=flow.last[blocks[0]].shape[:2] != (1, _WATCHED),
        repeated=sum(call.module in blocks for call in flow.calls) > len(blocks),
        adapted=frozenset(flow.adapted),
    )


def _tail(last: nn.Module, unembed: nn.Module, flow: Flow) -> tuple[nn.Module, ...]:
    """The modules, outermost ones, that hand the last residual stream on to the unembedding."""
    tail: list[nn.Module] = []
    at, after = flow.last[last].went_out, flow.last[last].order
    while True:
        takers = [c for c in flow.calls if c.order > after and c.came_in == at and c.module not in flow.hidden]
        outermost = max((c for c in takers if c.module is not unembed), key=lambda c: c.order, default=None)
        if outermost is None or unembed in set(outermost.module.modules()):
            return tuple(tail)
        tail.append(outermost.module)
        at, after = outermost.went_out, outermost.order


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
    stacks = [[original(block) for block in m] for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    of_class = [stack for stack in stacks if declared and all(isinstance(block, declared) for block in stack)]
    if not (of_class or stacks):
        raise ValueError(f"no stack of decoder blocks found in {type(hf).__name__}")
    return max(of_class or stacks, key=len)


_WATCHED = 3  # tokens in the watched pass


@dataclass(frozen=True)
class _Call:
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
        self.calls: list[_Call] = []
        self.last: dict[nn.Module, _Call] = {}  # of each module
        self.adapted: set[nn.Module] = set()
        self.hidden: set[nn.Module] = set()  # what is inside of these

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        came_in, went_out = hidden_input(args, kwargs), first_tensor(output)
        if came_in is None or went_out is None:
            return
        pointers = came_in.data_ptr(), went_out.data_ptr()
        self.last[module] = _Call(module, len(self.calls), args, kwargs, output, came_in.shape, *pointers)
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

    def inside(self, parent: nn.Module) -> Iterator[_Call]:
        members = set(parent.modules()) - {parent} - self.hidden
        return (call for call in self.calls if call.module in members)


def _watch(hf: Any, embed: Any, blocks: Sequence[nn.Module]) -> Flow:
    flow = Flow()
    inside = [m for m in hf.modules() if m is not hf and original(m) is m]
    handles = [m.register_forward_hook(flow.note, with_kwargs=True) for m in inside]
    try:
        with torch.no_grad():
            ids = torch.arange(_WATCHED, device=runs_on(embed))[None]
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


def _parts(block: nn.Module, attention_classes: tuple[type, ...], flow: Flow, rank: int | None) -> Block:
    named_children = {name: original(child) for name, child in block.named_children()}
    children = [child for child in named_children.values() if child in flow.last]
    # a block that delegates to one child (Zamba's shared transformer) is searched there as well
    inner = [m for m in block.modules() if m is not block and m in flow.last]
    attention = next((m for m in inner if attention_classes and isinstance(m, attention_classes)), None)
    if attention is None:
        named = [child for name, child in named_children.items() if "attn" in name or "attention" in name]
        attention = next(
            (c for c in named if c in flow.last and any(_is_projection(m, flow) for m in c.modules())), None
        )
    rest = [c for c in children if c is not attention and not (attention and attention in set(c.modules()))]
    mixing = [c for c in rest if any(_is_projection(m, flow) for m in c.modules()) and not _is_positionwise(c, flow)]
    mixer = attention or max(mixing, key=_size, default=None)
    named_mlp = {m for name, m in named_children.items() if _MLP_NAME.fullmatch(name)}
    mlp = _mlp([c for c in rest if c not in mixing], named_mlp, mixer, flow)
    experts = next((c.module for c in flow.inside(mlp) if _is_experts(c.module, flow)), None) if mlp else None
    router = next((c.module for c in flow.inside(mlp) if _is_router(c.module, flow)), None) if mlp else None
    return Block(
        block,
        attention,
        _adds(attention, flow),
        _last_projection(attention, flow),
        mlp,
        _adds(mlp, flow),
        None if experts or router else _last_projection(mlp, flow),
        _mid(block, children, mixer, flow),
        experts,
        router,
        _latent(attention, rank, flow),
    )


_MLP_NAME = re.compile(r"(.*_)?(mlp|ffn|moe|feed_?forward)(_block)?")


def _adds(part: nn.Module | None, flow: Flow) -> nn.Module | None:
    """The module whose output a part adds: the part, unless it gets the residual and adds to it itself (BLOOM)."""
    if part is None or "residual" not in signature(part.forward).parameters:
        return part
    return max(
        (c.module for c in flow.inside(part) if _is_projection(c.module, flow)),
        key=lambda m: flow.last[m].order,
        default=None,
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _is_positionwise(module: nn.Module, flow: Flow) -> bool:
    """Does a module give the last position the same without the positions before it? An MLP does, a mixer does not."""
    call = flow.last[module]
    before = first_tensor(call.output)
    if call.shape[:2] != (1, _WATCHED) or before is None or before.numel() // before.shape[-1] != _WATCHED:
        return False
    last = lambda x: x[:, -1:] if isinstance(x, torch.Tensor) and x.shape[:2] == (1, _WATCHED) else x  # noqa: E731
    try:
        with torch.no_grad():
            again = module(*map(last, call.args), **{name: last(value) for name, value in call.kwargs.items()})
    except Exception:  # it needs more than its input, so it is not a plain MLP
        return False
    after = first_tensor(again)
    if after is None or after.numel() != before.shape[-1]:
        return False
    last_row = before.reshape(_WATCHED, -1)[-1]  # some hand their tokens on without the batch axis
    return float((after.reshape(-1) - last_row).abs().max()) <= 0.02 * (float(before.abs().max()) or 1.0)


def _mlp(rest: list[nn.Module], named: set[nn.Module], mixer: nn.Module | None, flow: Flow) -> nn.Module | None:
    """The position-wise child with the most weights; where there is none, the last of the block's own projections."""
    with_layers = [
        c for c in rest if any(_is_projection(m, flow) or _is_experts(m, flow) for m in c.modules() if m is not c)
    ]
    if with_layers:
        return max([c for c in with_layers if c in named] or with_layers, key=_size)
    after = flow.last[mixer].order if mixer is not None else -1
    own = [flow.last[c] for c in rest if _is_projection(c, flow) and flow.last[c].order > after]
    return max(own, key=lambda call: call.order).module if len(own) >= 2 else None


def _is_projection(module: nn.Module, flow: Flow) -> bool:
    """Is it a linear layer, or an adapter that stands for one?"""
    return module in flow.adapted or (module not in flow.hidden and is_linear(module))


def routing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Expert numbers and their weights, both (tokens, k), among the arguments of a module that runs experts."""
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
    if len(tensors) != 3 or tensors[1].ndim != 2 or tensors[1].shape != tensors[2].shape:
        return None
    if tensors[1].dtype.is_floating_point or not tensors[2].dtype.is_floating_point:
        return None
    return tensors[1], tensors[2]


def _is_experts(module: nn.Module, flow: Flow) -> bool:
    return module in flow.last and routing(flow.last[module].args, flow.last[module].kwargs) is not None


def _is_router(module: nn.Module, flow: Flow) -> bool:
    """Does it output weights and logits of all experts, both (tokens, expert), as Llama 4's does?"""
    output = flow.last[module].output
    if not isinstance(output, tuple) or [getattr(x, "ndim", None) for x in output] != [2, 2]:
        return False
    return bool(output[0].shape == output[1].shape)


def _last_projection(parent: nn.Module | None, flow: Flow) -> nn.Module | None:
    if parent is None or parent not in flow.last:
        return None
    if _is_projection(parent, flow):
        return parent
    added = _adds(parent, flow)
    if added is not parent:
        return added
    out = flow.last[parent].went_out
    return next((c.module for c in flow.inside(parent) if c.went_out == out and _is_projection(c.module, flow)), None)


def _mid(block: nn.Module, children: list[nn.Module], mixer: nn.Module | None, flow: Flow) -> nn.Module | None:
    if mixer is None or mixer not in flow.last:
        return None
    made = {call.went_out for call in flow.inside(block)}
    later = [flow.last[c] for c in children if flow.last[c].order > flow.last[mixer].order]
    for child in (call.module for call in sorted(later, key=lambda call: call.order)):
        if flow.gets_the_same(child, block):
            return None  # a parallel block: attention and MLP both read the block's input
        if flow.last[child].came_in not in made:
            return child
    return None


def _latent(attention: nn.Module | None, rank: int | None, flow: Flow) -> nn.Module | None:
    """The projection in attention that takes the compressed keys and values, by the width that the config declares."""
    if attention is None or not rank:
        return None
    inner = [c.module for c in flow.inside(attention) if _is_projection(c.module, flow)]
    # with an axis of one for the heads to come, in some versions of transformers
    seen = ((1, _WATCHED, rank), (1, 1, _WATCHED, rank))
    named = [m for m in inner if tuple(flow.last[m].shape) in seen]
    keys = {plain_name(name).rsplit(".", 1)[-1]: m for name, m in attention.named_modules() if m in named}
    return next((m for name, m in keys.items() if "kv" in name), None)
