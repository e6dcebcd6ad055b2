"""One forward pass with sites read and written.

Residual-stream, attention and MLP sites are reached by module hooks, sites by head through the attention function
(`attention_hook`). Hooks are there only while the pass runs. A pass that reads and writes nothing is the plain forward.
Writes are seen by everything after them, and a site that is both written and read is read as written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.internals.attention_hook import AttentionCall, Task, apply_pattern, attention_tasks, pattern_of
from labkit.internals.sites import ATTENTION_KINDS, KINDS, Site, checked
from labkit.models.anatomy import Block, first_tensor, hidden_input
from labkit.models.weights import weight_of

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel, Prompt

Edit = Callable[[torch.Tensor], torch.Tensor]
"""From the activation of one layer (with its batch) to what takes its place; same shape."""
Place = tuple[str, int]  # (kind, layer)


@dataclass
class Run:
    """One forward pass: `logits` (batch, position, vocab), and `run["resid_pre.5"]` for what was read.

    Activations have the model's dtype and stay on its device. A kind without a layer stacks the layers first.
    In a left-padded batch `mask` (batch, position) is False where there is padding.
    """

    logits: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    activations: dict[Place, torch.Tensor] = field(repr=False)
    lm: LanguageModel = field(repr=False)

    def __getitem__(self, site: str | Site) -> torch.Tensor:
        wanted = checked(self.lm, site, length=self.ids.shape[1])
        layers = wanted.layers(self.lm)
        missing = [layer for layer in layers if (wanted.kind, layer) not in self.activations]
        if missing:
            have = sorted({kind for kind, _ in self.activations}, key=list(KINDS).index) or ["nothing"]
            raise KeyError(f"{wanted} was not read in this run (it read {', '.join(have)}); add it to read=[...]")
        found = [index(self.activations[wanted.kind, layer], wanted) for layer in layers]
        return torch.stack(found) if wanted.layer is None and wanted.kind != "embed" else found[0]


def index(value: torch.Tensor, site: Site) -> torch.Tensor:
    """The head and the position of a site out of its layer's activation; a view."""
    head_axis = 1 if site.kind == "pattern" else 2
    position_axis = 2 if site.kind == "pattern" else 1
    if site.position is not None:
        value = value.select(position_axis, site.position)
        head_axis = min(head_axis, 1 if site.kind == "pattern" else head_axis - 1)
    return value if site.head is None else value.select(head_axis, site.head)


def run(
    lm: LanguageModel,
    prompt: Prompt | Sequence[str],
    *,
    read: Sequence[str | Site] = (),
    write: Mapping[Any, torch.Tensor | Edit] | None = None,
) -> Run:
    """One forward pass over a prompt, or over a list of texts as one left-padded batch.

    Args:
        lm: the model.
        prompt: text, chat messages, token ids (1, seq), or a list of texts.
        read: sites to keep, such as `["resid_pre", "pattern.3", "z.5.3"]`.
        write: for each site the value that takes its place (broadcast to its shape), or a function from the
            activation to the new one.

    Raises:
        ValueError: an unknown site, a layer, head or position out of range, a value of the wrong shape, a bad prompt.
    """
    ids, mask = _batch(lm, prompt)
    length = ids.shape[1]
    reads = {place for site in read for place in places(lm, checked(lm, site, length=length))}
    edits = edits_of(lm, {checked(lm, site, length=length): value for site, value in (write or {}).items()})
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if not bool(mask.all()):
        inputs |= {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
    with lm.busy(), hooked(lm, reads, edits) as activations:
        logits = lm.hf(**inputs).logits
    return Run(logits, ids, mask, activations, lm)


def _batch(lm: LanguageModel, prompt: Prompt | Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (batch, seq), both; texts of different lengths are padded on the left."""
    texts = not isinstance(prompt, str | torch.Tensor) and prompt and all(isinstance(item, str) for item in prompt)
    rows = [lm.encode(item)[0] for item in prompt] if texts else None  # type: ignore[arg-type]
    if rows is None:
        if isinstance(prompt, torch.Tensor) and prompt.ndim == 2 and prompt.shape[0] > 1:
            rows = [lm.encode(row[None])[0] for row in prompt]
        else:
            rows = [lm.encode(prompt)[0]]  # type: ignore[arg-type]
    length = max(len(row) for row in rows)
    pad = lm.tokenizer.pad_token_id if lm.tokenizer.pad_token_id is not None else (lm.tokenizer.eos_token_id or 0)
    ids = torch.full((len(rows), length), pad, device=lm.device)
    mask = torch.zeros(len(rows), length, dtype=torch.bool, device=lm.device)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = row
        mask[i, length - len(row) :] = True
    return ids, mask


def places(lm: LanguageModel, site: Site) -> list[Place]:
    return [(site.kind, layer) for layer in site.layers(lm)]


def edits_of(lm: LanguageModel, write: Mapping[Site, torch.Tensor | Edit]) -> dict[Place, Edit]:
    """One edit a place; several sites of one place (two heads, two positions) follow one another."""
    edits: dict[Place, list[Edit]] = {}
    for site, value in write.items():
        for n, place in enumerate(places(lm, site)):
            stacked = site.layer is None and site.kind != "embed" and not callable(value) and value.ndim > 0
            edits.setdefault(place, []).append(_edit(site, value[n] if stacked else value))  # type: ignore[index]

    def chain(steps: list[Edit]) -> Edit:
        def apply(x: torch.Tensor) -> torch.Tensor:
            for step in steps:
                x = step(x)
            return x

        return apply

    return {place: chain(steps) for place, steps in edits.items()}


def _edit(site: Site, value: torch.Tensor | Edit) -> Edit:
    def apply(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        target = index(x, site)
        new = value(target) if callable(value) else torch.as_tensor(value)
        try:
            target.copy_(new.to(device=target.device, dtype=target.dtype).expand_as(target))
        except RuntimeError:
            raise ValueError(
                f"{site} has shape {tuple(target.shape)}; the value written has {tuple(new.shape)}"
            ) from None
        return x

    return apply


# -- hooks ----------------------------------------------------------------------------------------------------------


@contextmanager
def hooked(
    lm: LanguageModel,
    reads: set[Place],
    edits: Mapping[Place, Edit],
    *,
    keep: Callable[[torch.Tensor], torch.Tensor] = lambda x: x.detach().clone(),
    watch: Callable[[nn.Module, AttentionCall], None] | None = None,
) -> Iterator[dict[Place, torch.Tensor]]:
    """Hold the hooks for a set of reads and edits; yields the dictionary that fills as the model runs.

    `keep` says how an activation is kept; `watch` is shown every layer's attention call as it is carried out.
    """
    found: dict[Place, torch.Tensor] = {}

    def through(place: Place, x: torch.Tensor) -> torch.Tensor:
        if place in edits:
            x = edits[place](x)
        if place in reads:
            found[place] = keep(x)
        return x

    touched = set(reads) | set(edits)
    tasks: dict[nn.Module, Task] = {}
    head_out = [layer for kind, layer in touched if kind == "head_out"]
    with ExitStack() as stack:
        for kind, layer in sorted(touched, key=lambda place: (place[1], list(KINDS).index(place[0]))):
            block = lm.anatomy.blocks[layer]
            if kind in ATTENTION_KINDS or kind == "head_out":
                assert block.attention is not None
                tasks.setdefault(block.attention, _head_task(layer, touched, through, found))
            else:
                stack.enter_context(_module_hook(lm, block, (kind, layer), through, written=(kind, layer) in edits))
        for layer in head_out:
            stack.enter_context(
                _head_out_hook(lm.anatomy.blocks[layer], ("head_out", layer), edits, reads, found, keep)
            )
        if watch is not None:
            every = [block.attention for block in lm.anatomy.blocks if block.attention is not None]
            tasks = {module: _watched(tasks.get(module, AttentionCall.fast), watch) for module in every}
        stack.enter_context(attention_tasks(lm.hf, tasks))
        yield found
        if unmet := {place for place in reads if place not in found}:
            kind, layer = min(unmet)
            raise ValueError(
                f"{lm.name} never passed {kind}.{layer}; its attention does not go through transformers' interface"
            )


@contextmanager
def _module_hook(
    lm: LanguageModel,
    block: Block,
    place: Place,
    through: Callable[[Place, torch.Tensor], torch.Tensor],
    *,
    written: bool,
) -> Iterator[None]:
    """A hook where a residual-stream, attention or MLP site passes."""

    def on_input(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        x = hidden_input(args, kwargs)
        assert x is not None
        new = through(place, x)
        if not written:
            return None
        if place[0] == "resid_mid":
            # The block still holds this very tensor for its residual connection, so it is changed where it lies.
            x.copy_(new)
            return None
        return ((new, *args[1:]), kwargs) if args and args[0] is x else (args, {**kwargs, "hidden_states": new})

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        x = first_tensor(output)
        assert x is not None
        new = through(place, x)
        if not written:
            return None
        return new if isinstance(output, torch.Tensor) else type(output)(new if item is x else item for item in output)

    modules = {
        "embed": (lm.anatomy.embed, False),
        "resid_pre": (block.module, True),
        "resid_mid": (block.mid, True),
        "resid_post": (block.module, False),
        "attn_out": (block.attention, False),
        "mlp_out": (block.mlp, False),
        "mlp_act": (block.down_projection, True),
    }
    module, is_input = modules[place[0]]
    assert module is not None
    if is_input:
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


def _watched(task: Task, watch: Callable[[nn.Module, AttentionCall], None]) -> Task:
    def watched(call: AttentionCall) -> torch.Tensor:
        z = task(call)
        watch(call.module, call)
        return z

    return watched


def _head_task(
    layer: int,
    touched: set[Place],
    through: Callable[[Place, torch.Tensor], torch.Tensor],
    found: dict[Place, torch.Tensor],
) -> Task:
    """What attention does in a layer of which something by head is read or written."""
    wants = {kind for kind, at in touched if at == layer}

    def task(call: AttentionCall) -> torch.Tensor:
        for kind in ("q", "k", "v"):  # inside (batch, head, position, d_head); outside (batch, position, head, d_head)
            if kind in wants:
                setattr(call, kind, through((kind, layer), getattr(call, kind).transpose(1, 2)).transpose(1, 2))
        if "pattern" in wants:
            z = apply_pattern(through(("pattern", layer), pattern_of(call)), call.v)
        else:
            z = call.fast()
        if "z" in wants:
            z = through(("z", layer), z)
        if "head_out" in wants:
            found["head_out", layer] = z  # becomes head_out once the output projection has run
        return z

    return task


@contextmanager
def _head_out_hook(
    block: Block,
    place: Place,
    edits: Mapping[Place, Edit],
    reads: set[Place],
    found: dict[Place, torch.Tensor],
    keep: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[None]:
    """head_out is linear in z; writing a head's adds the difference to what attention puts out."""
    assert block.output_projection is not None
    projection = block.output_projection

    def on_output(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        by_head = project_heads(projection, found.pop(place))
        if place in edits:
            new = edits[place](by_head)
            output = output + (new - by_head).sum(2).to(output.dtype)
            by_head = new
        if place in reads:
            found[place] = keep(by_head)
        return output

    handle = block.output_projection.register_forward_hook(_unnested(on_output))
    try:
        yield
    finally:
        handle.remove()


def _unnested(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that lets through the calls it makes itself: reading a packed weight calls the layer once more."""
    inside = False

    def guarded(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        nonlocal inside
        if inside:
            return None
        inside = True
        try:
            return hook(module, args, output)
        finally:
            inside = False

    return guarded


def project_heads(projection: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """head_out (..., head, d_model) from z (..., head, d_head); the bias belongs to no head and is left out."""
    weight = weight_of(projection, dtype=z.dtype)  # (d_model, head * d_head)
    by_head = weight.unflatten(1, z.shape[-2:])  # (d_model, head, d_head)
    return torch.einsum("...hd,mhd->...hm", z, by_head)
