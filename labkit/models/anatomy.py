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
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import nn

from labkit.models.compiled import HIDDEN, original, plain_name
from labkit.models.flow import WATCHED, Flow, first_tensor, hidden_input, is_projection, watch
from labkit.models.mlp_parts import MLPParts, mlp_parts


@dataclass(frozen=True)
class Block:
    """One decoder layer's parts; None where this architecture has no such part."""

    module: nn.Module
    attention: nn.Module | None
    attn_out: nn.Module | None  # outputs what attention adds: attention, or the last module inside one that adds it
    output_projection: nn.Module | None  # takes z, all heads side by side
    mlp: nn.Module | None
    mlp_in: nn.Module | None  # takes what the MLP does: the MLP, or the first of a block's own two projections
    mlp_out: nn.Module | None
    mlp_parts: MLPParts
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
    final_norm: nn.Module | None  # the last before the unembedding
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
    flow = watch(hf, embed, blocks)
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
        _final_norm(getattr(hf, "base_model", hf), blocks[-1], unembed, flow),
        _tail(blocks[-1], unembed, flow),
        unembed,
        streams_first=flow.last[blocks[0]].shape[:2] != (1, WATCHED),
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


def _final_norm(base: nn.Module, last: nn.Module, unembed: nn.Module, flow: Flow) -> nn.Module | None:
    """The last module between the blocks and the unembedding to which the size of its input is the same.

    It is in the base model; what comes after that, a model may run at some positions only.
    """
    passes, width = Counter(call.module for call in flow.calls), flow.last[unembed].shape[-1]
    inside = set(base.modules()) - flow.hidden - set(unembed.modules())
    after = [c for c in flow.calls if c.order > flow.last[last].order and c.module in inside]
    for call in sorted(after, key=lambda call: -call.order):
        x, out = hidden_input(call.args, call.kwargs), call.output
        if passes[call.module] > 1 or x is None or not isinstance(out, torch.Tensor):
            continue
        if not x.shape == out.shape == (1, WATCHED, width):
            continue
        try:
            with torch.no_grad():
                rms = x.float().square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
                unit = (x / rms).to(x.dtype)  # of which any eps is a small part
                some, more = (call.module(size * unit).float() for size in (4, 8))
        except Exception:  # it needs more than its input, so it is not a norm
            continue
        if float((some - more).abs().max()) <= 0.02 * float(some.abs().max()):
            return call.module
    return None


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


def _parts(block: nn.Module, attention_classes: tuple[type, ...], flow: Flow, rank: int | None) -> Block:
    named_children = {name: original(child) for name, child in block.named_children()}
    children = [child for child in named_children.values() if child in flow.last]
    # a block that delegates to one child (Zamba's shared transformer) is searched there as well
    inner = [m for m in block.modules() if m is not block and m in flow.last]
    attention = next((m for m in inner if attention_classes and isinstance(m, attention_classes)), None)
    if attention is None:
        named = [child for name, child in named_children.items() if "attn" in name or "attention" in name]
        attention = next(
            (c for c in named if c in flow.last and any(is_projection(m, flow) for m in c.modules())), None
        )
    rest = [c for c in children if c is not attention and not (attention and attention in set(c.modules()))]
    mixing = [c for c in rest if any(is_projection(m, flow) for m in c.modules()) and not _is_positionwise(c, flow)]
    mixer = attention or max(mixing, key=_size, default=None)
    named_mlp = {m for name, m in named_children.items() if _MLP_NAME.fullmatch(name)}
    mlp, mlp_in = _mlp([c for c in rest if c not in mixing], named_mlp, mixer, flow)
    experts = next((c.module for c in flow.inside(mlp) if _is_experts(c.module, flow)), None) if mlp else None
    router = next((c.module for c in flow.inside(mlp) if _is_router(c.module, flow)), None) if mlp else None
    down = None if experts or router else _last_projection(mlp, flow)
    in_mlp = [flow.last[c] for c in rest] if mlp is not mlp_in else list(flow.inside(mlp)) if mlp else []
    return Block(
        block,
        attention,
        _adds(attention, flow),
        _last_projection(attention, flow),
        mlp,
        mlp_in,
        _adds(mlp, flow),
        mlp_parts(down, in_mlp, flow),
        down,
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
        (c.module for c in flow.inside(part) if is_projection(c.module, flow)),
        key=lambda m: flow.last[m].order,
        default=None,
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _is_positionwise(module: nn.Module, flow: Flow) -> bool:
    """Does a module give the last position the same without the positions before it? An MLP does, a mixer does not."""
    call = flow.last[module]
    before = first_tensor(call.output)
    if call.shape[:2] != (1, WATCHED) or before is None or before.numel() // before.shape[-1] != WATCHED:
        return False
    last = lambda x: x[:, -1:] if isinstance(x, torch.Tensor) and x.shape[:2] == (1, WATCHED) else x  # noqa: E731
    try:
        with torch.no_grad():
            again = module(*map(last, call.args), **{name: last(value) for name, value in call.kwargs.items()})
    except Exception:  # it needs more than its input, so it is not a plain MLP
        return False
    after = first_tensor(again)
    if after is None or after.numel() != before.shape[-1]:
        return False
    last_row = before.reshape(WATCHED, -1)[-1]  # some hand their tokens on without the batch axis
    return float((after.reshape(-1) - last_row).abs().max()) <= 0.02 * (float(before.abs().max()) or 1.0)


def _mlp(
    rest: list[nn.Module], named: set[nn.Module], mixer: nn.Module | None, flow: Flow
) -> tuple[nn.Module | None, nn.Module | None]:
    """The position-wise child with the most weights; where there is none, the last of the block's own projections. And
    the module that takes what goes into it.
    """
    with_layers = [
        c for c in rest if any(is_projection(m, flow) or _is_experts(m, flow) for m in c.modules() if m is not c)
    ]
    if with_layers:
        mlp = max([c for c in with_layers if c in named] or with_layers, key=_size)
        return mlp, mlp
    after = flow.last[mixer].order if mixer is not None else -1
    own = [flow.last[c] for c in rest if is_projection(c, flow) and flow.last[c].order > after]
    own.sort(key=lambda call: call.order)
    return (own[-1].module, own[0].module) if len(own) >= 2 else (None, None)


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
    if is_projection(parent, flow):
        return parent
    added = _adds(parent, flow)
    if added is not parent:
        return added
    out = flow.last[parent].went_out
    return next((c.module for c in flow.inside(parent) if c.went_out == out and is_projection(c.module, flow)), None)


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
    inner = [c.module for c in flow.inside(attention) if is_projection(c.module, flow)]
    # with an axis of one for the heads to come, in some versions of transformers
    seen = ((1, WATCHED, rank), (1, 1, WATCHED, rank))
    named = [m for m in inner if tuple(flow.last[m].shape) in seen]
    keys = {plain_name(name).rsplit(".", 1)[-1]: m for name, m in attention.named_modules() if m in named}
    return next((m for name, m in keys.items() if "kv" in name), None)
