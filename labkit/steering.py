"""Steering: a direction in the residual stream, found from pairs of prompts and added while the model writes.

The vector is the mean output of a layer for the positive prompts minus that for the negative ones (Turner et al. 2023,
"Steering language models with activation engineering"; Rimsky et al. 2024, "Steering Llama 2 via contrastive activation
addition"). `lm.steer(vector, strength)` adds it to that layer's output at every position: those of the prompt and, in
generation, each new one. Whether a change of the text is due to *this* direction shows in comparison with a random one
of the same norm, `vector.random()`. What the direction is needed for shows when it is projected out of every layer,
`lm.steer(vector, manner="project_out")` (Arditi et al. 2024, arXiv:2406.11717).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from labkit.activations.hooks import Edit, Place, hooked, never_reached
from labkit.activations.run import run
from labkit.activations.sites import checked, layers_with
from labkit.models.handle import Model
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, as_code
from labkit.text.prompts import asked, packed, prompts_of
from labkit.text.types import Prompt

At = Literal["last", "mean"]
Manner = Literal["add", "project_out"]


@dataclass(frozen=True, eq=False, repr=False)
class SteeringVector:
    """A direction in the residual stream.

    Attributes:
        values: (d_model,) float32 on the CPU; (streams, d_model) where a model has several residual streams.
        layer: the layer after which it was found and is added.
        typical: the mean norm of the residual stream where it was found, to judge a strength by.
        spread: for each pair, the distance of its sides along the vector, in units of its norm: all near 1 if the pairs
            agree. Empty if the sides are not pairs.
        recipe: what repeats it.
    """

    values: torch.Tensor
    layer: int
    typical: float
    spread: tuple[float, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        return float(self.values.norm())

    def random(self, seed: int = 0) -> SteeringVector:
        """A random direction of the same norm for the same layer: the control."""
        noise = torch.randn(self.values.shape, generator=torch.Generator().manual_seed(seed))
        code = self.code() + f"vector = vector.random({seed})\n"
        recipe = {**self.recipe, "code": code, "about": f"random direction {seed}, as long as {self._about()}"}
        return replace(self, values=noise * (self.norm / noise.norm()), spread=(), recipe=recipe)

    def __mul__(self, strength: float) -> SteeringVector:
        """The vector so many times as long: what `steer` adds with that strength."""
        code = self.code() + f"vector = {float(strength)!r} * vector\n"
        recipe = {**self.recipe, "code": code, "about": f"{strength:g} times {self._about()}"}
        return replace(self, values=float(strength) * self.values, spread=(), recipe=recipe)

    __rmul__ = __mul__

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_steering_vector` reads it."""
        about = {"layer": self.layer, "typical": self.typical, "spread": self.spread}
        return save_arrays(path, "steering vector", {**about, "recipe": self.recipe}, values=self.values.numpy())

    def code(self) -> str:
        """The Python that makes it again."""
        return str(self.recipe.get("code", ""))

    def _about(self) -> str:
        return str(self.recipe.get("about", "given values"))

    def __repr__(self) -> str:
        share = f", {self.norm / self.typical:.2f} of the residual stream's" if self.typical else ""
        return f"SteeringVector(layer {self.layer}, norm {self.norm:.3g}{share}; {self._about()})"


def steering_vector(
    lm: Model,
    positive: Prompt | Sequence[Prompt],
    negative: Prompt | Sequence[Prompt],
    layer: int,
    *,
    at: At = "last",
) -> SteeringVector:
    """The direction from some prompts to others in the output of a layer: a difference of means.

    Args:
        lm: the model, in any bits.
        positive, negative: prompts that have what is wanted, and prompts that lack it; one or a list of each, as text,
            chat messages or token ids. Pairs that differ in nothing else give the cleanest direction.
        layer: after which layer; from the end if negative.
        at: `last` takes each prompt's last position, `mean` the mean of all positions but the first.

    Raises:
        ValueError: no prompts, a bad one, a layer out of range, a model without a residual stream to read, or two equal
            sides.
    """
    site = checked(lm, f"resid_post.{layer}")
    assert site.layer is not None
    if at not in ("last", "mean"):
        raise ValueError(f"at must be 'last' or 'mean'; got {at!r}")
    sides = {
        name: [asked(lm, prompt) for prompt in prompts_of(side)]
        for name, side in (("positive", positive), ("negative", negative))
    }
    found: dict[str, torch.Tensor] = {}  # (prompt, d_model)
    for name, prompts in sides.items():
        if not prompts:
            raise ValueError(f"there are no {name} prompts; give at least one, preferably five")
        found[name] = torch.stack([_leaving(lm, prompt, site.layer, at) for prompt in prompts])
    if torch.equal(found["positive"].mean(0), found["negative"].mean(0)):
        raise ValueError(
            f"positive and negative give the same activations at layer {site.layer}; they must differ where "
            "they are read, " + ("at their last token" if at == "last" else "after their first token")
        )
    how = {} if at == "last" else {"at": at}
    recipe = {
        "code": as_code(lm.code(), "vector = lk.steering_vector", LM, *sides.values(), site.layer, **how),
        "about": f"{len(sides['positive'])} positive and {len(sides['negative'])} negative prompts",
        **made_with(lm),
        **{
            name: [one.flatten().tolist() if isinstance(one, torch.Tensor) else packed(one) for one in prompts]
            for name, prompts in sides.items()
        },
    }
    return of_means(found["positive"], found["negative"], site.layer, recipe)


def of_means(
    positive: torch.Tensor, negative: torch.Tensor, layer: int, recipe: dict[str, Any] | None = None
) -> SteeringVector:
    """The vector from one mean to another, of activations (prompt, d_model) that a layer has for some prompts."""
    vector = positive.mean(0) - negative.mean(0)
    spread: tuple[float, ...] = ()
    if len(positive) == len(negative) and bool(vector.any()):
        apart = (positive - negative).flatten(1) @ vector.flatten() / vector.norm() ** 2
        spread = tuple(round(float(x), 4) for x in apart)
    typical = float(torch.cat([positive, negative]).flatten(1).norm(dim=-1).mean())
    return SteeringVector(vector, layer, typical, spread, recipe or {})


def open_steering_vector(path: str | os.PathLike[str]) -> SteeringVector:
    """Open a vector that `SteeringVector.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a saved steering vector, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, "steering vector")
    with reading(path, "steering vector"):
        values = torch.from_numpy(arrays["values"])
        return SteeringVector(values, about["layer"], about["typical"], tuple(about["spread"]), about["recipe"])


@contextmanager
def steer(
    lm: Model,
    vector: SteeringVector | torch.Tensor,
    strength: float = 1.0,
    *,
    layer: int | None = None,
    manner: Manner = "add",
) -> Iterator[None]:
    """Add `strength` times a vector to a layer's output, at every position, while the block runs.

    It acts on everything this thread does with the model meanwhile: `lm.run`, `lm.generate`, patching. Other threads
    are not affected. Blocks can be nested; their vectors add up. The model is always restored afterwards.

    Args:
        vector: a `SteeringVector`, or any values (d_model,), which need a `layer`.
        strength: how many times; negative for the opposite direction. 1 is the distance of the two sides.
        layer: after this layer instead of the one where the vector was found.
        manner: `add`, or `project_out`: what the residual stream has along the vector is taken out `strength` times,
            1 for all of it, before and after attention and after the MLP of every layer.

    Raises:
        ValueError: the vector does not fit the model, the layer is out of range, or there is no such manner.
        RuntimeError: the model ran without passing a layer, so nothing was changed there.
    """
    values = vector.values if isinstance(vector, SteeringVector) else torch.as_tensor(vector)
    if manner not in ("add", "project_out"):
        raise ValueError(f"manner must be 'add' or 'project_out'; got {manner!r}")
    if values.ndim not in (1, 2) or values.shape[-1] != lm.d_model:
        raise ValueError(
            f"a vector for {lm.name} has shape ({lm.d_model},), its residual stream's; this one has "
            f"{tuple(values.shape)}. A vector fits only the model it was made with."
        )
    if not bool(torch.isfinite(values).all()) or not abs(strength) < float("inf"):
        raise ValueError("vector and strength must be finite")
    values = values.detach().float()
    if manner == "project_out":
        if layer is not None:
            raise ValueError("a direction is projected out of every layer; leave out layer=, which is for adding")
        if not bool(values.any()):
            raise ValueError("the vector is zero everywhere: it has no direction to project out")
        edit: Edit = _without(values / values.norm(), strength)
        places = _everywhere(lm)
    else:
        after = vector.layer if layer is None and isinstance(vector, SteeringVector) else layer
        if after is None:
            raise ValueError("a plain tensor has no layer to be added after; give layer=...")
        place = checked(lm, f"resid_post.{after}")
        assert place.layer is not None
        added = strength * values
        edit = lambda x: x + added.to(device=x.device, dtype=x.dtype)  # noqa: E731
        places = [("resid_post", place.layer)]
    mine = threading.get_ident()
    reached: set[Place] = set()

    def changed(place: Place, x: torch.Tensor) -> torch.Tensor:
        if threading.get_ident() != mine:
            return x
        reached.add(place)
        return edit(x)

    def passed(*_: Any) -> None:
        if threading.get_ident() != mine:
            return
        for place in places:
            if place not in reached:
                raise never_reached(lm, *place, "written")
        reached.clear()

    if not strength:
        yield
        return
    with hooked(lm, set(), {place: partial(changed, place) for place in places}, may_wait=True):
        handle = lm.hf.register_forward_hook(passed)  # after each pass over the whole model
        try:
            yield
        finally:
            handle.remove()


def _everywhere(lm: Model) -> list[Place]:
    """Where the residual stream can be written so that nothing of the model reads it unwritten."""
    checked(lm, "resid_post")
    kinds = ("resid_pre", "resid_mid", "resid_post")
    return [(kind, n) for kind in kinds for n in layers_with(lm, kind) if kind != "resid_pre" or n == 0]


def _without(unit: torch.Tensor, share: float) -> Edit:
    """Take a share of the component along a unit vector, (d_model,) or (streams, d_model), out of an activation."""
    over = tuple(range(-unit.ndim, 0))

    def edit(x: torch.Tensor) -> torch.Tensor:
        along, exact = unit.to(x.device), x.float()
        return (exact - share * (exact * along).sum(over, keepdim=True) * along).to(x.dtype)

    return edit


def _leaving(lm: Model, prompt: Prompt, layer: int, at: At) -> torch.Tensor:
    """A layer's output (d_model,), float32, at the last position, or its mean without the first, of unusual norm in
    many models.
    """
    site = f"resid_post.{layer}" + ("@-1" if at == "last" else "")
    found = run(lm, prompt, read=[site], logits="none", to="cpu")[site][0].float()
    return found if at == "last" else found[1:].mean(0) if len(found) > 1 else found[0]
