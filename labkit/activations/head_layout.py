"""What can be read of each layer's heads, found by trial.

A short prompt is run three times: plainly; through our own attention function, which notes its calls and computes every
pattern explicitly; and with one head's z set to zero. If the second run does not give the logits of the first, the
architecture has an attention feature that our function does not support, and its q, k, v, pattern and z are declared
absent rather than shown wrong. The third shows whether the output projection reads the heads side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from labkit.activations.attention_interface import AttentionCall, apply_pattern, attention_tasks, pattern_of
from labkit.models.flow import Flow, first_tensor

if TYPE_CHECKING:
    from labkit.models.handle import Model

LENGTH = 6  # tokens of the prompt that is looked at
_QKV = ("q", "k", "v", "scores", "pattern")


@dataclass(frozen=True)
class Heads:
    """One layer's heads.

    `attention` is the module whose attention call labkit can see, or None: then z is the input of the output
    projection, if there is one. `missing` says why each absent kind of site is absent.
    """

    attention: nn.Module | None = None
    n_heads: int = 0
    n_kv_heads: int = 0
    missing: dict[str, str] = field(default_factory=dict)


_seen: WeakKeyDictionary[Model, tuple[Heads, ...]] = WeakKeyDictionary()


def heads_of(lm: Model) -> tuple[Heads, ...]:
    """The heads of every layer of a model; found once and kept with the model."""
    if lm not in _seen:
        with lm.busy():
            _seen[lm] = _look(lm)
    return _seen[lm]


def _look(lm: Model) -> tuple[Heads, ...]:
    ids = torch.arange(LENGTH, device=lm.device)[None] % lm.n_vocab
    blocks = lm.anatomy.blocks
    plain = _logits(lm, ids)
    seen: list[list[AttentionCall]] = [[] for _ in blocks]

    def look(layer: int, call: AttentionCall) -> torch.Tensor:
        seen[layer].append(call)
        return apply_pattern(pattern_of(call), call.v)

    why = ""
    try:
        ours = _ours(lm, ids, look)
    except Exception as error:  # a model that cannot run on another attention function than its own
        seen, why = [[] for _ in blocks], f"its attention cannot be replaced ({type(error).__name__})"
    else:
        if not (_close(lm, ours, plain) or (any(seen) and _each_close(lm, ids))):
            why = "its attention has a feature that labkit's attention function does not support"
    legacy = not any(seen)
    inputs = {} if why and not legacy else _projected(lm, ids, zeroed=not legacy)
    return tuple(_layer(lm, calls, why, legacy=legacy, projected=inputs.get(layer)) for layer, calls in enumerate(seen))


def _layer(lm: Model, calls: list[AttentionCall], why: str, *, legacy: bool, projected: torch.Tensor | None) -> Heads:
    if legacy:
        n = lm.n_heads
        outside = "its attention does not go through transformers' interface" if n else "it has no attention"
        missing = dict.fromkeys(_QKV, outside)
        if projected is None or not n or projected.shape[-1] % n:
            missing |= dict.fromkeys(("z", "head_out"), outside)
        return Heads(None, n, n, missing)
    if not calls:
        why = "this layer has no softmax attention"
    elif len(calls) > 1:
        why = why or f"its layers compute attention {len(calls)} times"
    if why:
        return Heads(missing=dict.fromkeys((*_QKV, "z", "head_out"), why))
    call = calls[0]
    n_heads, width = call.q.shape[1], call.v.shape[-1]
    missing = {}
    if projected is None or projected.shape[-1] != n_heads * width:
        missing["head_out"] = "no single projection reads its heads"
    elif float(projected[..., :width].abs().max()) > 0 or not float(projected[..., width:].abs().max()) > 0:
        missing["head_out"] = "its heads are mixed before the output projection"
    return Heads(call.module, n_heads, call.k.shape[1], missing)


def _close(lm: Model, a: torch.Tensor, b: torch.Tensor) -> bool:
    tolerance = 1e-3 if lm.dtype == torch.float32 and lm.bits != 8 else 0.1
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


def _each_close(lm: Model, ids: torch.Tensor) -> bool:
    """Is each layer's attention the same through our function, on its inputs from a plain run?

    Rounding grows from layer to layer, in 8 bits up to meaningless logits; within one layer it does not.
    """
    flow = Flow()
    modules = {block.attention for block in lm.anatomy.blocks if block.attention is not None}
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(flow.note, with_kwargs=True).remove)
        _logits(lm, ids)
    inside = {m for module in modules for m in module.modules()}
    with attention_tasks(lm.hf, dict.fromkeys(inside, lambda call: apply_pattern(pattern_of(call), call.v))):
        again = [first_tensor(call.module(*call.args, **call.kwargs)) for call in flow.calls]
    plain = [first_tensor(call.output) for call in flow.calls]
    pairs = zip(again, plain, strict=True)
    return bool(plain) and all(a is not None and b is not None and _close(lm, a, b) for a, b in pairs)


def _logits(lm: Model, ids: torch.Tensor) -> torch.Tensor:
    return lm.hf(input_ids=ids, use_cache=False).logits.float()


def _ours(lm: Model, ids: torch.Tensor, look: Any) -> torch.Tensor:
    """The logits when every attention call inside a block goes to `look(layer, call)`."""
    with ExitStack() as stack:
        here = tracked(lm, stack)
        inside = {m for block in lm.anatomy.blocks for m in block.module.modules()}
        stack.enter_context(attention_tasks(lm.hf, dict.fromkeys(inside, lambda call: look(here.layer, call))))
        return _logits(lm, ids)


class Here:
    """The layer that is running; None where that is not kept."""

    layer: int | None = None

    def is_in(self, layer: int) -> bool:
        return self.layer is None or self.layer == layer

    def only(self, layer: int, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The hook, for when that layer is running."""
        return lambda *passed: hook(*passed) if self.is_in(layer) else None


def tracked(lm: Model, stack: ExitStack) -> Here:
    """The layer that is running, by hooks that are removed with the stack."""
    here = Here()
    for layer, block in enumerate(lm.anatomy.blocks):

        def enter(module: nn.Module, args: Any, layer: int = layer) -> None:
            here.layer = layer

        # before any other hook on the block, whose own hooks may be of the layer that begins here
        stack.callback(block.module.register_forward_pre_hook(enter, prepend=True).remove)
    return here


def _projected(lm: Model, ids: torch.Tensor, *, zeroed: bool) -> dict[int, torch.Tensor]:
    """The input of each layer's output projection, with the first head's z set to zero if asked."""
    found: dict[int, torch.Tensor] = {}

    def without_first(layer: int, call: AttentionCall) -> torch.Tensor:
        z = apply_pattern(pattern_of(call), call.v)
        z[:, :, 0] = 0
        return z

    with ExitStack() as stack:
        here = tracked(lm, stack)
        for layer, block in enumerate(lm.anatomy.blocks):
            if block.output_projection is None:
                continue

            def note(module: nn.Module, args: tuple[Any, ...], layer: int = layer) -> None:
                found[layer] = args[0].detach()

            stack.callback(block.output_projection.register_forward_pre_hook(here.only(layer, note)).remove)
        if zeroed:
            _ours(lm, ids, without_first)
        else:
            _logits(lm, ids)
    return found
