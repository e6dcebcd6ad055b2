"""The hooks that read and write sites while a model runs, removed afterwards.

Residual-stream, attention and MLP sites are reached by module hooks, sites by head through the attention function
(`attention_hook`). Everything after a write sees it, and a site that is both written and read is read as written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.activations.attention_interface import AttentionCall, Task, apply_pattern, attention_tasks, pattern_of
from labkit.activations.head_layout import heads_of
from labkit.activations.site_kinds import ATTENTION_KINDS, HEAD_IN, HEAD_KINDS, KINDS
from labkit.models.anatomy import first_tensor, hidden_input, routing
from labkit.models.compiled import HIDDEN, uncompiled
from labkit.models.weights import weight_of

if TYPE_CHECKING:
    from labkit.models.handle import Model

Edit = Callable[[torch.Tensor], torch.Tensor]
"""From the activation of one layer (with its batch) to what takes its place; same shape."""
Place = tuple[str, int]  # (kind, layer)


@contextmanager
def hooked(
    lm: Model,
    reads: Set[Place] | Mapping[Place, Callable[[torch.Tensor], torch.Tensor]],
    edits: Mapping[Place, Edit],
    *,
    keep: Callable[[torch.Tensor], torch.Tensor] = lambda x: x.detach().clone(),
    watch: Callable[[int, AttentionCall], None] | None = None,
    may_wait: bool = False,
) -> Iterator[dict[Place, torch.Tensor]]:
    """Hold the hooks for a set of reads and edits; yields the dictionary that fills as the model runs.

    `keep` says how an activation is kept, unless `reads` says it for each place; `watch` is shown every layer's
    attention call as it is carried out. Compiled code is bypassed meanwhile: it would call no hook.

    Raises:
        RuntimeError: at the end, where a place to read or to write was never reached. With `may_wait` writes may be:
            for a caller who does not know when the model runs.
    """
    found: dict[Place, torch.Tensor] = {}
    written: set[Place] = set()
    unwatched: set[int] = set()

    def through(place: Place, x: torch.Tensor) -> torch.Tensor:
        if place in edits:
            written.add(place)
            x = edits[place](x)
        if place in reads:
            found[place] = (reads[place] if isinstance(reads, Mapping) else keep)(x)
        return x

    touched = set(reads) | set(edits)
    if watch is not None or any(kind in (*HEAD_KINDS, HEAD_IN) for kind, _ in touched):
        heads_of(lm)  # looked at now, before there are hooks
    tasks: dict[int, Task] = {}
    with uncompiled(), ExitStack() as stack:
        here = stack.enter_context(_tracked(lm))
        for kind, layer in sorted(touched, key=lambda place: (place[1], [*KINDS, HEAD_IN].index(place[0]))):
            place = (kind, layer)
            if kind in ATTENTION_KINDS and heads_of(lm)[layer].attention is not None:
                if layer not in tasks:
                    tasks[layer] = _head_task(layer, touched, through)
                continue
            at_projection = kind in ("z", "head_out", HEAD_IN)
            hook = _router_hook if kind == "router" else _projection_hook if at_projection else _module_hook
            stack.enter_context(hook(lm, place, through, here, written=place in edits))
        if watch is not None:
            for layer, heads in enumerate(heads_of(lm)):
                if heads.attention is not None:
                    unwatched.add(layer)
                    tasks[layer] = _watched(layer, tasks.get(layer, AttentionCall.fast), watch, unwatched)
        stack.enter_context(attention_tasks(lm.hf, _by_module(lm, tasks, here)))
        yield found
        unmet = {place: "read" for place in reads if place not in found}
        unmet |= {("pattern", layer): "read" for layer in unwatched}
        unmet |= {place: "written" for place in edits if place not in written and not may_wait}
        if unmet:
            raise never_reached(lm, *min(unmet), unmet[min(unmet)])


def never_reached(lm: Model, kind: str, layer: int, what: str) -> RuntimeError:
    """The error of a place that was to be `read` or `written`."""
    return RuntimeError(f"{lm.name} never reached {kind}.{layer} in this run, so nothing was {what} there. {HIDDEN}")


class _Here:
    """The layer that is running, kept only where layers share modules; None elsewhere."""

    layer: int | None = None

    def is_in(self, layer: int) -> bool:
        return self.layer is None or self.layer == layer


@contextmanager
def _tracked(lm: Model) -> Iterator[_Here]:
    here = _Here()
    with ExitStack() as stack:
        if lm.anatomy.shared:
            for layer, block in enumerate(lm.anatomy.blocks):

                def enter(module: nn.Module, args: Any, layer: int = layer) -> None:
                    here.layer = layer

                # before any other hook on the block, whose own hooks may be of the layer that begins here
                stack.callback(block.module.register_forward_pre_hook(enter, prepend=True).remove)
        yield here


def _by_module(lm: Model, tasks: Mapping[int, Task], here: _Here) -> dict[nn.Module, Task]:
    """Tasks by attention module; where several layers share one, the layer that is running decides."""
    modules: dict[nn.Module, dict[int, Task]] = {}
    for layer, task in tasks.items():
        module = heads_of(lm)[layer].attention
        assert module is not None
        modules.setdefault(module, {})[layer] = task

    def chosen(of: dict[int, Task]) -> Task:
        if here.layer is None and not lm.anatomy.shared:
            return next(iter(of.values()))
        return lambda call: next((t for layer, t in of.items() if here.is_in(layer)), AttentionCall.fast)(call)

    return {module: chosen(of) for module, of in modules.items()}


def _module_of(lm: Model, place: Place) -> tuple[nn.Module, bool]:
    """The module where a site passes, and whether as its input."""
    kind, layer = KINDS[place[0]], place[1]
    module = lm.anatomy.embed if kind.where is None else kind.where(lm.anatomy.blocks[layer])
    assert module is not None
    return module, kind.at_input


@contextmanager
def _module_hook(
    lm: Model,
    place: Place,
    through: Callable[[Place, torch.Tensor], torch.Tensor],
    here: _Here,
    *,
    written: bool,
) -> Iterator[None]:
    """A hook where a residual-stream, attention or MLP site passes."""
    kind, layer = place
    module, is_input = _module_of(lm, place)
    block = lm.anatomy.blocks[layer].module
    streams_first = lm.anatomy.streams_first and kind in ("resid_pre", "resid_post")
    shape: list[int] = []

    def passed(x: torch.Tensor) -> torch.Tensor:
        if streams_first:
            return through(place, x.movedim(0, 2)).movedim(2, 0)
        if x.ndim == 2:
            return through(place, x.unflatten(0, shape)).flatten(0, 1)
        if kind == "latent" and x.ndim == 4:  # an axis of one, for the heads to come
            return through(place, x[:, 0])[:, None]
        return through(place, x)

    def on_input(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not here.is_in(layer):
            return None
        x = hidden_input(args, kwargs)
        assert x is not None
        new = passed(x)
        if kind == "resid_mid" and written:
            # The block still holds this very tensor for its residual connection, so it is changed where it lies.
            x.copy_(new)
        if kind == "resid_mid" or not (written or _in_a_gradient(new, x)):
            return None
        return ((new, *args[1:]), kwargs) if args and args[0] is x else (args, {**kwargs, "hidden_states": new})

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not here.is_in(layer):
            return None
        x = first_tensor(output)
        assert x is not None
        new = passed(x)
        if not (written or _in_a_gradient(new, x)):
            return None
        return new if isinstance(output, torch.Tensor) else type(output)(new if item is x else item for item in output)

    with ExitStack() as stack:
        if kind != "embed" and module is not block:
            stack.enter_context(_noted(lm, block, shape))
        if is_input:
            stack.callback(module.register_forward_pre_hook(on_input, with_kwargs=True).remove)
        else:
            stack.callback(module.register_forward_hook(on_output).remove)
        yield


def _in_a_gradient(new: torch.Tensor, own: torch.Tensor) -> bool:
    """Does the model have to use what was read, for a gradient to reach it? Its own tensor it uses anyway."""
    return new is not own and new.requires_grad


@contextmanager
def _noted(lm: Model, block: nn.Module, shape: list[int]) -> Iterator[None]:
    """Keep in `shape` how many rows and positions a block is called with; inside some the two are one axis."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = hidden_input(args, kwargs)
        assert x is not None
        shape[:] = x.shape[1:3] if lm.anatomy.streams_first else x.shape[:2]

    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _router_hook(
    lm: Model,
    place: Place,
    through: Callable[[Place, torch.Tensor], torch.Tensor],
    here: _Here,
    *,
    written: bool,
) -> Iterator[None]:
    """Where a mixture's experts are called: the k experts of each token and their weights, spread over all experts.

    If they are called in another way: the router's output, weights of all experts (Llama 4).
    """
    block = lm.anatomy.blocks[place[1]]
    shape: list[int] = []

    def on_input(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        chosen = routing(args, kwargs)
        assert chosen is not None
        index, weight = chosen
        spread = weight.new_zeros(len(weight), n_experts(module)).scatter_add(1, index.long(), weight)
        new = through(place, spread.view(*shape, -1)).flatten(0, 1)
        if not (written or _in_a_gradient(new, weight)):
            return None
        most = max(1, int((new != 0).sum(-1).max()))
        new_index = new.abs().topk(most).indices
        new_weight = new.gather(1, new_index).to(weight.dtype)
        swap = {id(index): new_index.to(index.dtype), id(weight): new_weight}
        return tuple(swap.get(id(x), x) for x in args), {name: swap.get(id(x), x) for name, x in kwargs.items()}

    def on_output(module: nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> Any:
        new = through(place, output[0].view(*shape, -1)).flatten(0, 1)
        return (new, *output[1:]) if written or _in_a_gradient(new, output[0]) else None

    with _noted(lm, block.module, shape), ExitStack() as stack:
        if block.experts is not None:
            stack.callback(block.experts.register_forward_pre_hook(on_input, with_kwargs=True).remove)
        else:
            assert block.router is not None
            stack.callback(block.router.register_forward_hook(on_output).remove)
        yield


def n_experts(experts: nn.Module) -> int:
    """How many experts a fused module of them holds, those without weights (identities) included."""
    stacks: list[Any] = [p for p in (*experts.parameters(), *experts.children()) if getattr(p, "ndim", 0) == 3]
    return max([int(getattr(experts, "num_experts", 0) or 0), *(int(p.shape[0]) for p in stacks)])


def _watched(layer: int, task: Task, watch: Callable[[int, AttentionCall], None], waiting: set[int]) -> Task:
    def watched(call: AttentionCall) -> torch.Tensor:
        waiting.discard(layer)
        z = task(call)
        watch(layer, call)
        return z

    return watched


def _head_task(layer: int, touched: set[Place], through: Callable[[Place, torch.Tensor], torch.Tensor]) -> Task:
    """What attention does in a layer where a site by head is read or written."""
    wants = {kind for kind, at in touched if at == layer}

    def task(call: AttentionCall) -> torch.Tensor:
        for kind in ("q", "k", "v"):  # inside (batch, head, position, d_head); outside (batch, position, head, d_head)
            if kind in wants:
                setattr(call, kind, through((kind, layer), getattr(call, kind).transpose(1, 2)).transpose(1, 2))
        if "pattern" in wants:
            z = apply_pattern(through(("pattern", layer), pattern_of(call)), call.v)
        else:
            z = call.fast()
        return through(("z", layer), z) if "z" in wants else z

    return task


@contextmanager
def _projection_hook(
    lm: Model,
    place: Place,
    through: Callable[[Place, torch.Tensor], torch.Tensor],
    here: _Here,
    *,
    written: bool,
) -> Iterator[None]:
    """At the output projection: head_out, and z of attention that does not go through transformers' interface.

    head_out is linear in the projection's input (z, gated or normed in some architectures); writing a head's adds the
    difference to the projection's output.
    """
    kind, layer = place
    projection = lm.anatomy.blocks[layer].output_projection
    assert projection is not None
    heads = heads_of(lm)[layer].n_heads

    def on_input(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not here.is_in(layer):
            return None
        z = through(place, args[0].unflatten(-1, (heads, -1)))
        return (z.flatten(-2), *args[1:]) if written or _in_a_gradient(z, args[0]) else None

    def on_output(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        if not here.is_in(layer):
            return None
        by_head = project_heads(projection, args[0].unflatten(-1, (heads, -1)))
        new = through(place, by_head)
        return output + (new - by_head).sum(-2).to(output.dtype) if written else None

    if kind != "head_out":
        handle = projection.register_forward_pre_hook(on_input)
    else:
        handle = projection.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


def project_heads(projection: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """head_out (..., head, d_model) from z (..., head, d_head); the bias belongs to no head and is left out."""
    weight = weight_of(projection, dtype=z.dtype)  # (d_model, head * d_head)
    by_head = weight.unflatten(1, z.shape[-2:])  # (d_model, head, d_head)
    return torch.einsum("...hd,mhd->...hm", z, by_head)
