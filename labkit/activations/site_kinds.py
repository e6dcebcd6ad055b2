"""Every kind of site: what it is, its axes, where a block has it and why it may be absent. To add one, add it here.

Menus, errors, documents and tests are built from this list; `labkit.activations.hooks` reaches a kind with a `where` by
a hook on the module that it names, or on some columns of its output, at its input or its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from labkit.models.anatomy import Block
from labkit.models.mlp_parts import Part

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
        where: the module of a block, or the part of its output, at which it passes, None where a block has none. Kinds
            without it are reached in another way: the embedding, the attention function, the router.
        at_input: does it pass at the module's input, or at its output?
        absent: why a block may lack it.
        at_projection: is it at a projection, where a nonlinear adapter can be in the way?
        sent, received: can a path begin or end there (Wang et al. 2022)?
        by_layer: is there one in every layer, or one in the model?
        writable: can it be written? What cannot is not patched either, and has no gradient.
        instead: of what cannot be written, what can, and what that is.
        fine: is it a part of what another kind shows, for when that has shown where to look? Menus have it last.
    """

    name: str
    what: str
    axes: tuple[str, ...]
    where: Callable[[Block], nn.Module | Part | None] | None = None
    at_input: bool = False
    absent: str = ""
    at_projection: bool = False
    sent: bool = False
    received: bool = False
    by_layer: bool = True
    writable: bool = True
    instead: str = ""
    fine: bool = False

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
        """The axes that a patching grid of it can have; () for what no layer has and for what cannot be written."""
        return OVER[self.unit] if self.by_layer and self.writable else ()

    @property
    def by_query(self) -> bool:
        """Are its axes heads, queries and keys, so that its positions are those of the queries?"""
        return "query" in self.axes

    @property
    def by_position(self) -> bool:
        """Is there one for each position, or one for all of them?"""
        return "position" in self.axes or self.by_query

    @property
    def usual(self) -> tuple[str, str]:
        """The default axes of its grid."""
        return ("layer", "head") if self.unit == "head" else ("layer", "position")


_STREAM, _HEADS, _KV = ("position", "d_model"), ("position", "n_heads", "d_head"), ("position", "n_kv_heads", "d_head")
_NEURONS = ("position", "d_mlp")
_NO_GATE = "its MLP has no gate, or no projection outputs what the gate and its partner are before they meet"
_NO_EXPERTS = "it is not a mixture of experts, or its routing has an unsupported form"

KINDS = {
    kind.name: kind
    for kind in (
        SiteKind("embed", "token embeddings", _STREAM, by_layer=False),
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
            "attn_in",
            "input of attention, after the norm before it",
            _STREAM,
            lambda block: block.attention,
            at_input=True,
            absent="it has no attention",
            fine=True,
        ),
        SiteKind(
            "attn_out",
            "output of attention, all heads together",
            _STREAM,
            lambda block: block.attn_out,
            absent="it has no attention",
        ),
        SiteKind(
            "mlp_in",
            "input of the MLP, after the norm before it",
            _STREAM,
            lambda block: block.mlp_in,
            at_input=True,
            absent="it has no MLP",
            fine=True,
        ),
        SiteKind(
            "mlp_out", "output of the MLP", _STREAM, lambda block: block.mlp_out, absent="it has no MLP", sent=True
        ),
        SiteKind(
            "mlp_act",
            "neurons: the input of the MLP's output projection",
            _NEURONS,
            lambda block: block.down_projection,
            at_input=True,
            absent="no single projection reads its neurons",
            at_projection=True,
        ),
        SiteKind(
            "mlp_gate",
            "gates: mlp_act is act(mlp_gate) * mlp_up",
            _NEURONS,
            lambda block: block.mlp_parts.gate,
            absent=_NO_GATE,
            at_projection=True,
            fine=True,
        ),
        SiteKind(
            "mlp_up",
            "what the gates let through",
            _NEURONS,
            lambda block: block.mlp_parts.up,
            absent=_NO_GATE,
            at_projection=True,
            fine=True,
        ),
        SiteKind(
            "mlp_pre",
            "neurons without gates: mlp_act is act(mlp_pre)",
            _NEURONS,
            lambda block: block.mlp_parts.pre,
            absent="its MLP has gates (read mlp_gate and mlp_up), or no projection outputs what its activation takes",
            at_projection=True,
            fine=True,
        ),
        SiteKind("q_pre", "queries by head, right before rotary", _HEADS, fine=True),
        SiteKind("k_pre", "keys by head, right before rotary", _KV, fine=True),
        SiteKind("q", "queries by head, after rotary", _HEADS, received=True),
        SiteKind("k", "keys by head, after rotary", _KV, received=True),
        SiteKind("v", "values by head", _KV, received=True),
        SiteKind(
            "scores",
            "attention scores by head, -inf where masked",
            ("n_heads", "query", "key"),
            fine=True,
        ),
        SiteKind("pattern", "attention pattern by head", ("n_heads", "query", "key")),
        SiteKind("z", "pattern @ v by head, before the output projection", _HEADS, sent=True),
        SiteKind(
            "head_out",
            "output of each head, after the output projection",
            ("position", "n_heads", "d_model"),
            at_projection=True,
            sent=True,
        ),
        SiteKind(
            "router",
            "weight of each expert, 0 where it is not chosen",
            ("position", "n_experts"),
            absent=_NO_EXPERTS,
        ),
        SiteKind(
            "experts",
            "numbers of the experts chosen for a token",
            ("position", "k"),
            absent=_NO_EXPERTS,
            writable=False,
            instead="router, the weights of the experts",
        ),
        SiteKind(
            "latent",
            "compressed keys and values of latent attention",
            ("position", "kv_lora_rank"),
            lambda block: block.latent,
            at_input=True,
            absent="its keys and values are not compressed",
        ),
        SiteKind(
            "state",
            "recurrent state after the last position",
            ("...",),
            absent="no layer leaves a recurrent state in the cache: it is no state-space model and has no linear "
            "attention, or keeps its state elsewhere",
            writable=False,
            instead="resid_pre, what the layer takes",
        ),
        SiteKind(
            "final_norm",
            "output of the last norm, before the unembedding",
            _STREAM,
            absent="no norm comes between its layers and the unembedding, or one that runs more than once",
            by_layer=False,
        ),
    )
}
ATTENTION_KINDS = ("q", "k", "v", "scores", "pattern", "z")  # those that the attention function sees
HEAD_IN = "head_in"  # the input of the output projection, by head: z, or z gated or normed; for the engine only


def names(kinds: Iterable[SiteKind]) -> tuple[str, ...]:
    return tuple(kind.name for kind in kinds)


HEAD_KINDS = names(kind for kind in KINDS.values() if kind.unit == "head")
BY_QUERY = names(kind for kind in KINDS.values() if kind.by_query)
PATCHED = names(kind for kind in KINDS.values() if kind.over)
MODULE_KINDS = names(kind for kind in KINDS.values() if kind.where is not None)
ROTATED_KINDS = ("q_pre", "k_pre")  # found by trial, at the module right before rotary
