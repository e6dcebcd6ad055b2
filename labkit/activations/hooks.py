"""The hooks that read and write sites while a model runs, removed afterwards.

Residual-stream, attention and MLP sites are reached by module hooks, sites by head through the attention function
(`attention_hook`). Everything after a write sees it, and a site that is both written and read is read as written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.activations.attention_interface import (
    AttentionCall,
    Task,
    apply_pattern,
    attention_tasks,
    needs_pattern,
    scores_of,
    softmax_of,
)
from labkit.activations.before_rotary import Before, before_rotary
from labkit.activations.head_layout import Here, heads_of, tracked
from labkit.activations.recurrent_states import state_in
from labkit.activations.site_kinds import ATTENTION_KINDS, HEAD_IN, HEAD_KINDS, KINDS, ROTATED_KINDS
from labkit.models.anatomy import routing
from labkit.models.compiled import HIDDEN, uncompiled
from labkit.models.flow import first_tensor, hidden_input
from labkit.models.mlp_parts import Part
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
    if any(kind in ROTATED_KINDS for kind, _ in touched):
        before_rotary(lm)
    tasks: dict[int, Task] = {}
    with uncompiled(), ExitStack() as stack:
        here = tracked(lm, stack) if lm.anatomy.shared else Here()
        for kind, layer in sorted(touched, key=lambda place: (place[1], [*KINDS, HEAD_IN].index(place[0]))):
            place = (kind, layer)
            if kind in ATTENTION_KINDS and heads_of(lm)[layer].attention is not None:
                tasks[layer] = partial(_by_head, layer, {kind for kind, at in touched if at == layer}, through)
                continue
            _hook(lm, place, partial(through, place), here, stack, written=place in edits)
        if watch is not None:
            for layer, heads in enumerate(heads_of(lm)):
                if heads.attention is not None:
                    unwatched.add(layer)
                    tasks[layer] = partial(_watched, layer, tasks.get(layer, AttentionCall.fast), watch, unwatched)
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


def _by_module(lm: Model, tasks: Mapping[int, Task], here: Here) -> dict[nn.Module, Task]:
    """Tasks by attention module; where several layers share one, the layer that is running decides."""
    modules: dict[nn.Module, dict[int, Task]] = {}
    for layer, task in tasks.items():
        module = heads_of(lm)[layer].attention
        assert module is not None
        modules.setdefault(module, {})[layer] = task

    def chosen(of: dict[int, Task], call: AttentionCall) -> torch.Tensor:
        return next((task for layer, task in of.items() if here.is_in(layer)), AttentionCall.fast)(call)

    return {module: partial(chosen, of) for module, of in modules.items()}


def _module_of(lm: Model, place: Place) -> tuple[nn.Module, bool, slice | Before | None]:
    """The module where a site passes, whether as its input, and which part of it that is; None for all of it."""
    kind, block = place[0], lm.anatomy.blocks[place[1]]
    module: nn.Module | Part | None
    if kind in ("z", "head_out", HEAD_IN):
        module, at_input = block.output_projection, kind != "head_out"
    elif kind in ("router", "experts"):  # if experts are not called with their numbers: what outputs the weights of all
        at_input = block.experts is not None  # (Llama 4)
        module = block.experts if at_input else block.router
    elif kind in ROTATED_KINDS:
        before = before_rotary(lm)[place[1]].before[kind]
        return before.module, False, before
    elif kind == "final_norm":
        module, at_input = lm.anatomy.final_norm, False
    else:
        where, at_input = KINDS[kind].where, KINDS[kind].at_input
        module = lm.anatomy.embed if where is None else where(block)
    assert module is not None
    return (module.module, at_input, module.columns) if isinstance(module, Part) else (module, at_input, None)


def _hook(lm: Model, place: Place, through: Edit, here: Here, stack: ExitStack, *, written: bool) -> None:
    """A hook where a site passes that is not seen by the attention function; removed with the stack."""
    kind, layer = place
    block = lm.anatomy.blocks[layer].module
    if kind == "state":
        in_cache = here.only(layer, _on_cache(layer, through))
        stack.callback(block.register_forward_hook(in_cache, with_kwargs=True).remove)
        return
    module, at_input, part = _module_of(lm, place)
    streams_first = lm.anatomy.streams_first and kind in ("resid_pre", "resid_post")
    shape: list[int] = []  # rows and positions of the block's input; inside some blocks the two are one axis

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = hidden_input(args, kwargs)
        assert x is not None
        shape[:] = x.shape[1:3] if lm.anatomy.streams_first else x.shape[:2]

    def by_head(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (heads_of(lm)[layer].n_heads, -1))

    def passed(x: torch.Tensor) -> torch.Tensor:
        if kind in ("z", HEAD_IN):
            return through(by_head(x)).flatten(-2)
        if streams_first:
            return through(x.movedim(0, 2)).movedim(2, 0)
        if x.ndim == 2 and kind != "final_norm":
            return through(x.unflatten(0, shape)).flatten(0, 1)
        if kind == "latent" and x.ndim == 4:  # an axis of one, for the heads to come
            return through(x[:, 0])[:, None]
        return through(x)

    def in_part(x: torch.Tensor) -> torch.Tensor:
        """The whole output, with what becomes of the part of it that is the site."""
        if isinstance(part, Before):
            return part.through(x, through)
        if part is None or part == slice(None):
            return passed(x)
        own = x[..., part]
        new = passed(own)
        if not is_used(new, own):
            return x
        x = x.clone()
        x[..., part] = new
        return x

    def is_used(new: torch.Tensor, own: torch.Tensor) -> bool:
        """Does the model have to use it: as it was written, or for a gradient to reach what was read?"""
        return written or (new is not own and new.requires_grad)

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = hidden_input(args, kwargs)
        assert x is not None
        new = passed(x)
        if kind == "resid_mid" and written and new is not x:
            # The block still holds this very tensor for its residual connection, so it is changed where it lies.
            x.copy_(new)
        if kind == "resid_mid" or not is_used(new, x):
            return None
        return ((new, *args[1:]), kwargs) if args and args[0] is x else (args, {**kwargs, "hidden_states": new})

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        x = first_tensor(output)
        assert x is not None
        new = in_part(x)
        if not is_used(new, x):
            return None
        return new if isinstance(output, torch.Tensor) else type(output)(new if item is x else item for item in output)

    def on_experts(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The k experts of each token and their weights, spread over all experts."""
        chosen = routing(args, kwargs)
        assert chosen is not None
        index, weight = chosen
        if kind == "experts":
            passed(index)
            return None
        new = passed(weight.new_zeros(len(weight), n_experts(module)).scatter_add(1, index.long(), weight))
        if not is_used(new, weight):
            return None
        most = max(1, int((new != 0).sum(-1).max()))
        new_index = new.abs().topk(most).indices
        new_weight = new.gather(1, new_index).to(weight.dtype)
        swap = {id(index): new_index.to(index.dtype), id(weight): new_weight}
        return tuple(swap.get(id(x), x) for x in args), {name: swap.get(id(x), x) for name, x in kwargs.items()}

    def on_projection(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        """head_out, linear in the input (z, gated or normed in some architectures); a write adds the difference."""
        own = project_heads(module, by_head(args[0]))
        new = through(own)
        return output + (new - own).sum(-2).to(output.dtype) if written else None

    def on_router(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The experts that get a weight, the heaviest first."""
        weights = first_tensor(output)
        assert weights is not None
        passed(weights.topk(max(1, int((weights != 0).sum(-1).max()))).indices)

    if kind in KINDS and not KINDS[kind].by_layer:  # whichever layer ran last
        here = Here()
    if module is not block:
        stack.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
    if at_input:
        hook = here.only(layer, on_experts if kind in ("router", "experts") else on_input)
        stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
    else:
        other = {"head_out": on_projection, "experts": on_router}
        hook = here.only(layer, other.get(kind, on_output))
        stack.callback(module.register_forward_hook(hook).remove)


def _on_cache(layer: int, through: Edit) -> Callable[..., None]:
    """A hook on a block that is given a cache: the state that the block leaves there."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        state = state_in((*args, *kwargs.values()), layer)
        if state is not None:
            through(state)

    return hook


def n_experts(experts: nn.Module) -> int:
    """How many experts a fused module of them holds, those without weights (identities) included."""
    stacks: list[Any] = [p for p in (*experts.parameters(), *experts.children()) if getattr(p, "ndim", 0) == 3]
    return max([int(getattr(experts, "num_experts", 0) or 0), *(int(p.shape[0]) for p in stacks)])


def _watched(
    layer: int, task: Task, watch: Callable[[int, AttentionCall], None], waiting: set[int], call: AttentionCall
) -> torch.Tensor:
    waiting.discard(layer)
    z = task(call)
    watch(layer, call)
    return z


def _by_head(
    layer: int, wants: set[str], through: Callable[[Place, torch.Tensor], torch.Tensor], call: AttentionCall
) -> torch.Tensor:
    """What attention does in a layer where sites by head are read or written."""
    for kind in ("q", "k", "v"):  # inside (batch, head, position, d_head); outside (batch, position, head, d_head)
        if kind in wants:
            setattr(call, kind, through((kind, layer), getattr(call, kind).transpose(1, 2)).transpose(1, 2))
    z = None
    if "scores" in wants or "pattern" in wants:
        scores = scores_of(call)
        new = through(("scores", layer), scores) if "scores" in wants else scores
        # what is only read leaves z as it is to the last bit, so that reading changes nothing
        used = new is not scores or new.requires_grad or needs_pattern(call.options)
        if "pattern" in wants or used:
            shown = softmax_of(call, new)
            pattern = through(("pattern", layer), shown) if "pattern" in wants else shown
            if used or pattern is not shown:
                z = apply_pattern(pattern, call.v)
    if z is None:
        z = call.fast()
    return through(("z", layer), z) if "z" in wants else z


def project_heads(projection: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """head_out (..., head, d_model) from z (..., head, d_head); the bias belongs to no head and is left out."""
    weight = weight_of(projection, dtype=z.dtype)  # (d_model, head * d_head)
    by_head = weight.unflatten(1, z.shape[-2:])  # (d_model, head, d_head)
    return torch.einsum("...hd,mhd->...hm", z, by_head)
