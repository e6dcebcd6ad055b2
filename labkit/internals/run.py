"""One forward pass with sites read and written.

Hooks (`internals.hooks`) are there only while the pass runs. A pass that reads and writes nothing is the plain forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from labkit.internals.hooks import Edit, Place, hooked
from labkit.internals.sites import KINDS, Site, checked
from labkit.models.reference import RefersToModel
from labkit.prompts import prompts_of

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel, Prompt


@dataclass
class Run(RefersToModel):
    """One forward pass: `logits` (batch, position, vocab), and `run["resid_pre.5"]` for what was read.

    Activations have the model's dtype and stay on its device. A kind without a layer stacks the layers that have it
    first. A residual stream of several copies (hyper-connections) has them on an axis before d_model.
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
        if wanted.layer is not None or wanted.kind == "embed":
            return found[0]
        if len(shapes := {value.shape for value in found}) > 1:
            raise ValueError(f"{wanted} differs in shape between layers ({shapes}); read them one by one")
        return torch.stack([value.to(found[0].device) for value in found])


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
    prompt: Prompt | Sequence[Prompt],
    *,
    read: Sequence[str | Site] = (),
    write: Mapping[Any, torch.Tensor | Edit] | None = None,
) -> Run:
    """One forward pass over a prompt, or over a list of prompts as one left-padded batch.

    Args:
        lm: the model.
        prompt: text, chat messages, token ids (1, seq), or a list of these.
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
    if mask.shape[0] > 1 and not bool(mask.all()):  # one row is never padded
        inputs |= {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
    with lm.busy(), hooked(lm, reads, edits) as activations:
        logits = lm.hf(**inputs).logits
    return Run(logits, ids, mask, activations, lm)


def _batch(lm: LanguageModel, prompt: Prompt | Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (batch, seq), both; prompts of different lengths are padded on the left."""
    if isinstance(prompt, torch.Tensor) and prompt.ndim == 2 and prompt.shape[0] > 1:
        rows = [lm.encode(row[None])[0] for row in prompt]
    else:
        rows = [lm.encode(one)[0] for one in prompts_of(prompt) or [prompt]]  # type: ignore[list-item]
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
