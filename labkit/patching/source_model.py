"""Patching between two models of one architecture: one prompt, and the activations of another model's run of it.

The two differ in their weights alone: in 16 bits and in 4, before and after tuning, with an adapter and without. What
is put in comes from the *source*, in the place of the clean run; what it is put into is the model's own run of the same
prompt, in the place of the corrupt one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from labkit.text.tokens import describe

if TYPE_CHECKING:
    from labkit.models.handle import Model
    from labkit.text.types import Prompt

SIZES = ("n_layers", "d_model", "n_heads", "n_kv_heads")
"""In what two models have to be alike to be compared place by place."""


def check_sizes(lm: Model, source: Model) -> None:
    """Are two models built alike?

    Raises:
        ValueError: they have other sizes.
    """
    sizes = {name: (getattr(lm, name), getattr(source, name)) for name in SIZES}
    if unlike := [f"{name} {b} instead of {a}" for name, (a, b) in sizes.items() if a != b]:
        raise ValueError(
            f"the source {source.name} is built otherwise than {lm.name}: {', '.join(unlike)}. Activations can only be "
            "exchanged between models of the same sizes, such as one model in 4 and in 16 bits, or before and after "
            "tuning"
        )


def check_source(lm: Model, source: Model, prompt: Prompt) -> None:
    """Can activations of one model's run of a prompt be put into the other's?

    Raises:
        ValueError: the models have other sizes, or read the prompt as other tokens.
    """
    check_sizes(lm, source)
    mine, theirs = (model.encode(prompt)[0].tolist() for model in (lm, source))
    if mine != theirs:
        shared = min(len(mine), len(theirs))
        first = next((i for i in range(shared) if mine[i] != theirs[i]), shared)
        shown = [
            describe(model.tokenizer, ids[first : first + 1])[0].text if first < len(ids) else "the end"
            for model, ids in ((lm, mine), (source, theirs))
        ]
        raise ValueError(
            f"the two models read the prompt as different tokens ({len(mine)} and {len(theirs)}), first at position "
            f"{first}: {shown[0]!r} and {shown[1]!r}. Give token ids, or plain text instead of a chat"
        )


def run_names(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What to call the two runs of a grid: `clean` and `corrupt`, or their models where these are what differs."""
    source = recipe.get("source")
    if "by" in recipe:
        return {"clean": "clean", "corrupt": recipe["by"]["name"]}
    if source is None:
        return {"clean": "clean", "corrupt": "corrupt"}
    both = {"clean": source, "corrupt": recipe}
    for told in (
        lambda made: f"{made['bits']}-bit",
        lambda made: f"{made['bits']}-bit {made['dtype']}",
        lambda made: made["model"],
    ):
        names = {name: told(made) for name, made in both.items()}
        if names["clean"] != names["corrupt"]:
            return names
    return {"clean": "source", "corrupt": "own"}


def alike(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """An activation of one model as the other computes: in the dtype and on the device of its own.

    Raises:
        ValueError: they have other shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"the source's activations have shape {tuple(a.shape)}, this model's {tuple(b.shape)}")
    return a if a.dtype == b.dtype and a.device == b.device else a.to(b)
