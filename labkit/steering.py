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
from typing import Any, Literal, get_args

import torch

from labkit.activations.hooks import Place, hooked, never_reached
from labkit.activations.run import run
from labkit.activations.sites import checked, layers_with
from labkit.models.handle import Model
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, Name, as_call, as_code
from labkit.text.prompts import asked, packed, prompts_of
from labkit.text.types import Prompt

At = Literal["last", "mean"]
Manner = Literal["add", "project_out", "set", "clamp"]


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

    def edit(
        self,
        manner: Manner = "add",
        strength: float = 1.0,
        *,
        to: float | None = None,
        low: float | None = None,
        high: float | None = None,
        when: tuple[SteeringVector, float] | None = None,
    ) -> Steering:
        """What steers along this vector where it is written: `lm.generate(prompt, write={"resid_post.10":
        vector.edit("clamp", high=2.0)})`, in any layers and, with `write_at`, at any positions; see `Steering`.
        """
        return Steering(self, manner, strength, to=to, low=low, high=high, when=when)

    def along(self, x: torch.Tensor) -> torch.Tensor:
        """The component of activations (..., d_model) along the vector, (...,): in units of the activations."""
        unit = (self.values / self.values.norm()).to(x.device)
        return (x.float() * unit).sum(tuple(range(-unit.ndim, 0)))

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


@dataclass(frozen=True, eq=False)
class Steering:
    """A change of activations along a vector: from (..., d_model) to the same shape.

    Attributes:
        vector: along which.
        manner: `add`: the vector is added, `strength` times. `project_out`: the component along it is taken out. `set`:
            the component becomes `to`, such as its mean over other prompts (`vector.along`). `clamp`: the component is
            kept from `low` to `high`.
        strength: how many times, and in the other manners how much of the way; 1 is all of it.
        to, low, high: components, in units of the activations.
        when: a vector and a number: only where the component along that vector is above the number.

    Raises:
        ValueError: an unknown manner, or one without the numbers it needs or with those of another.
    """

    vector: SteeringVector
    manner: Manner = "add"
    strength: float = 1.0
    to: float | None = field(default=None, kw_only=True)
    low: float | None = field(default=None, kw_only=True)
    high: float | None = field(default=None, kw_only=True)
    when: tuple[SteeringVector, float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.manner not in get_args(Manner):
            raise ValueError(f"manner must be one of {', '.join(map(repr, get_args(Manner)))}; got {self.manner!r}")
        values = [self.vector.values, *([self.when[0].values] if self.when else [])]
        numbers = [self.strength, self.to, self.low, self.high, *([self.when[1]] if self.when else [])]
        if not all(bool(torch.isfinite(one).all()) for one in values) or not all(
            n is None or abs(n) < float("inf") for n in numbers
        ):
            raise ValueError("vector and strength must be finite")
        needs = {"set": ("to",), "clamp": ("low", "high")}.get(self.manner, ())
        given = [name for name in ("to", "low", "high") if getattr(self, name) is not None]
        if other := [name for name in given if name not in needs]:
            raise ValueError(f"manner={self.manner!r} has no use for {other[0]}=")
        if needs and not given:
            raise ValueError(f"manner={self.manner!r} needs {' or '.join(f'{name}=' for name in needs)}, a component")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low must be at most high; got {self.low} and {self.high}")
        for vector in values[self.manner == "add" :]:
            if not bool(vector.any()):
                what = "project out" if self.manner == "project_out" else "steer along"
                raise ValueError(f"the vector is zero everywhere: it has no direction to {what}")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.manner == "add":
            new = x + (self.strength * self.vector.values).to(device=x.device, dtype=x.dtype)
        else:
            unit = (self.vector.values / self.vector.values.norm()).to(x.device)
            along = self.vector.along(x)
            if self.manner == "clamp":
                wanted = along.clamp(self.low, self.high)
            else:
                wanted = torch.full_like(along, self.to or 0.0)
            new = (x.float() + (self.strength * (wanted - along))[(..., *[None] * unit.ndim)] * unit).to(x.dtype)
        if self.when is None:
            return new
        other, above = self.when
        return torch.where((other.along(x) > above)[(..., *[None] * other.values.ndim)], new, x)

    def as_code(self) -> tuple[dict[str, str], str]:
        """The lines that make its vectors, by name, and the expression that makes it of them."""
        lines = {"vector": self.vector.code()}
        settings: dict[str, Any] = {name: getattr(self, name) for name in ("to", "low", "high")}
        settings = {name: value for name, value in settings.items() if value is not None}
        if self.when is not None:
            lines["other"] = self.when[0].code()
            settings["when"] = (Name("other"), self.when[1])
        return lines, as_call("vector.edit", self.manner, self.strength, **settings).strip()


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
    layer: int | Sequence[int] | None = None,
    manner: Manner = "add",
    to: float | None = None,
    low: float | None = None,
    high: float | None = None,
    when: tuple[SteeringVector, float] | None = None,
) -> Iterator[None]:
    """Add `strength` times a vector to a layer's output, at every position, while the block runs; or steer along it in
    another manner.

    It acts on everything this thread does with the model meanwhile: `lm.run`, `lm.generate`, patching. Other threads
    are not affected. Blocks can be nested; their vectors add up. The model is always restored afterwards. To steer only
    the prompt or only what is written, give `lm.generate(write={site: vector.edit(...)}, write_at=...)`.

    Args:
        vector: a `SteeringVector`, or any values (d_model,), which need a `layer`.
        strength: how many times; negative for the opposite direction. 1 is the distance of the two sides.
        layer: after this layer, or these, instead of the one where the vector was found.
        manner: `add`, `set` or `clamp` after those layers, as in `Steering`; or `project_out`: what the residual stream
            has along the vector is taken out `strength` times, 1 for all of it, before and after attention and after
            the MLP of every layer.
        to, low, high, when: as in `Steering`.

    Raises:
        ValueError: the vector does not fit the model, a layer is out of range, or there is no such manner.
        RuntimeError: the model ran without passing a layer, so nothing was changed there.
    """
    values = vector.values if isinstance(vector, SteeringVector) else torch.as_tensor(vector)
    for one in (values, *([when[0].values] if when else [])):
        if one.ndim not in (1, 2) or one.shape[-1] != lm.d_model:
            raise ValueError(
                f"a vector for {lm.name} has shape ({lm.d_model},), its residual stream's; this one has "
                f"{tuple(one.shape)}. A vector fits only the model it was made with."
            )
    edit = SteeringVector(values.detach().float(), 0, 0.0).edit(manner, strength, to=to, low=low, high=high, when=when)
    if manner == "project_out":
        if layer is not None:
            raise ValueError("a direction is projected out of every layer; leave out layer=, which is for adding")
        places = _everywhere(lm)
    else:
        after = vector.layer if layer is None and isinstance(vector, SteeringVector) else layer
        if after is None:
            raise ValueError("a plain tensor has no layer to be added after; give layer=...")
        found = [checked(lm, f"resid_post.{one}").layer for one in ([after] if isinstance(after, int) else after)]
        places = [("resid_post", one) for one in dict.fromkeys(found) if one is not None]
        if not places:
            raise ValueError("layer=[] names no layer to steer after")
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


def _leaving(lm: Model, prompt: Prompt, layer: int, at: At) -> torch.Tensor:
    """A layer's output (d_model,), float32, at the last position, or its mean without the first, of unusual norm in
    many models.
    """
    site = f"resid_post.{layer}" + ("@-1" if at == "last" else "")
    found = run(lm, prompt, read=[site], logits="none", to="cpu")[site][0].float()
    return found if at == "last" else found[1:].mean(0) if len(found) > 1 else found[0]
