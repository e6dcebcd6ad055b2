"""Every kind of site: what it is, its axes, where a block has it and why it may be absent. To add one, add it here.

Menus, errors, documents and tests are built from this list; `labkit.activations.hooks` reaches a kind with a `where` by
a hook on the module that it names, at its input or its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from labkit.models.anatomy import Block

Unit = Literal["head", "neuron", "expert"]
BY_POSITION = (("layer", "position"),)
OVER: dict[Unit | None, tuple[tuple[str, ...], ...]] = {
    None: BY_POSITION,
    "expert": BY_POSITION,
    "neuron": (*BY_POSITION, ("layer", "neuron"), ("neuron", "position")),
    "head": (*BY_POSITION, ("layer", "head"), ("layer", "head", "position"), ("head", "position")),
}


@dataclass(frozen=True)
class SiteKind:
    """A kind of place in a forward pass.

    Attributes:
        name: how it is written.
        what: what passes there, in a few words.
        axes: of one layer's activation, after the batch. Heads come right before the last axis or the last two, as
            they do in the literature: (position, head, d_head) for vectors, (head, query, key) for patterns.
        where: the module of a block at which it passes, None where a block has none. Kinds without it are reached in
            another way: the embedding, the attention function, the router.
        at_input: does it pass at the module's input, or at its output?
        absent: why a block may lack it.
        at_projection: is it at a projection, where a nonlinear adapter can be in the way?
        sent, received: can a path begin or end there (Wang et al. 2022)?
    """

    name: str
    what: str
    axes: tuple[str, ...]
    where: Callable[[Block], nn.Module | None] | None = None
    at_input: bool = False
    absent: str = ""
    at_projection: bool = False
    sent: bool = False
    received: bool = False

    @property
    def shape(self) -> str:
        """The axes of one layer's activation, as text."""
        return f"(batch, {', '.join(self.axes)})"

    @property
    def unit(self) -> Unit | None:
        """What one axis counts besides positions: heads, neurons or experts."""
        units: dict[str, Unit] = {"n_heads": "head", "n_kv_heads": "head", "d_mlp": "neuron", "n_experts": "expert"}
        return next((units[axis] for axis in self.axes if axis in units), None)

    @property
    def over(self) -> tuple[tuple[str, ...], ...]:
        """The axes that a patching grid of it can have; () for what comes before the first layer."""
        return () if self.name == "embed" else OVER[self.unit]

    @property
    def usual(self) -> tuple[str, str]:
        """The default axes of its grid."""
        return ("layer", "head") if self.unit == "head" else ("layer", "position")


_STREAM, _HEADS, _KV = ("position", "d_model"), ("position", "n_heads", "d_head"), ("position", "n_kv_heads", "d_head")

KINDS = {
    kind.name: kind
    for kind in (
        SiteKind("embed", "token embeddings", _STREAM),
        SiteKind(
            "resid_pre",
            "residual stream entering a layer",
            _STREAM,
            lambda block: block.module,
            at_input=True,
            received=True,
        ),
        SiteKind(
            "resid_mid",
            "residual stream between attention and MLP",
            _STREAM,
            lambda block: block.mid,
            at_input=True,
            absent="its blocks have no point between attention and MLP: they run in parallel, or one is missing",
            received=True,
        ),
        SiteKind("resid_post", "residual stream leaving a layer", _STREAM, lambda block: block.module, received=True),
        SiteKind(
            "attn_out",
            "output of attention, all heads together",
            _STREAM,
            lambda block: block.attn_out,
            absent="it has no attention",
        ),
        SiteKind(
            "mlp_out", "output of the MLP", _STREAM, lambda block: block.mlp_out, absent="it has no MLP", sent=True
        ),
        SiteKind(
            "mlp_act",
            "neurons: the input of the MLP's output projection",
            ("position", "d_mlp"),
            lambda block: block.down_projection,
            at_input=True,
            absent="no single projection reads its neurons",
            at_projection=True,
        ),
        SiteKind("q", "queries by head, after rotary", _HEADS, received=True),
        SiteKind("k", "keys by head, after rotary", _KV, received=True),
        SiteKind("v", "values by head", _KV, received=True),
        SiteKind("pattern", "attention pattern by head", ("n_heads", "query", "key")),
        SiteKind("z", "pattern times values by head, before the output projection", _HEADS, sent=True),
        SiteKind(
            "head_out",
            "output of each head, after the output projection",
            ("position", "n_heads", "d_model"),
            at_projection=True,
            sent=True,
        ),
        SiteKind(
            "router",
            "weight of each expert for a token, 0 where it is not chosen",
            ("position", "n_experts"),
            absent="it is not a mixture of experts, or its routing has an unsupported form",
        ),
        SiteKind(
            "latent",
            "compressed keys and values of multi-head latent attention",
            ("position", "kv_lora_rank"),
            lambda block: block.latent,
            at_input=True,
            absent="its keys and values are not compressed",
        ),
    )
}
ATTENTION_KINDS = ("q", "k", "v", "pattern", "z")  # those that the attention function sees
HEAD_IN = "head_in"  # the input of the output projection, by head: z, or z gated or normed; for the engine only


def names(kinds: Iterable[SiteKind]) -> tuple[str, ...]:
    return tuple(kind.name for kind in kinds)


HEAD_KINDS = names(kind for kind in KINDS.values() if kind.unit == "head")
PATCHED = names(kind for kind in KINDS.values() if kind.over)
MODULE_KINDS = names(kind for kind in KINDS.values() if kind.where is not None)
