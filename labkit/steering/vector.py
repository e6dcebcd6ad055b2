"""A direction in the residual stream, and the ways to change activations along it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from labkit.models.devices import sent
from labkit.results import gguf_vectors
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.text.as_code import Name, as_call
from labkit.text.whole_numbers import whole

Manner = Literal["add", "project_out", "set", "clamp"]


@dataclass(frozen=True, eq=False, repr=False)
class SteeringVector:
    """A direction in the residual stream. `SteeringVector.of(values, layer)` makes one of any values.

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

    @classmethod
    def of(
        cls, values: Any, layer: int, *, typical: float = 0.0, recipe: dict[str, Any] | None = None
    ) -> SteeringVector:
        """The vector with these values, wherever they come from: a probe, another tool, a difference of your own.

        Args:
            values: (d_model,), numbers of any type, which are copied; (streams, d_model) where a model has several
                residual streams.
            layer: the layer after which it is added, counted from 0.
            typical: the mean norm of the residual stream there, if it is known.
            recipe: what repeats it: its `code`, what it is `about`, the `model_type` that it is for.

        Raises:
            ValueError: another shape, no finite numbers, or a layer below 0.
        """
        found = torch.as_tensor(values).detach().to("cpu", torch.float32, copy=True)
        if found.ndim not in (1, 2) or not found.numel():
            raise ValueError(f"a steering vector has shape (d_model,); these values have {tuple(found.shape)}")
        if not bool(torch.isfinite(found).all()):
            raise ValueError("the values of a steering vector must be finite")
        return cls(found, whole("layer", layer, least=0), float(typical), recipe=dict(recipe or {}))

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
        unit = sent(self.values / self.values.norm(), x.device)
        return (x.float() * unit).sum(tuple(range(-unit.ndim, 0)))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_steering_vector` reads it."""
        (about,), values = to_arrays([self])
        return save_arrays(path, "steering vector", about, values=values[0])

    def to_gguf(self, path: str | os.PathLike[str], *, model_type: str | None = None) -> Path:
        """Write it as a control vector for llama.cpp; `labkit.save_control_vector` says more, and takes several layers.

        Raises:
            ValueError: layer 0, several residual streams, or no `model_type` in its recipe and none given.
        """
        known = model_type or self.recipe.get("model_type")
        if not known:
            raise ValueError("the vector does not say for which model it is; give model_type=lm.config.model_type")
        return gguf_vectors.write(path, {self.layer: self.values.numpy()}, str(known))

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
            new = x + sent((self.strength * self.vector.values).to(x.dtype), x.device)
        else:
            unit = sent(self.vector.values / self.vector.values.norm(), x.device)
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


def to_arrays(vectors: Iterable[SteeringVector]) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Vectors as a file keeps them: what each is about, for JSON, and the values (vectors, d_model)."""
    some = list(vectors)
    about = [{"layer": v.layer, "typical": v.typical, "spread": v.spread, "recipe": v.recipe} for v in some]
    return about, np.stack([v.values.numpy() for v in some]) if some else np.zeros((0, 0), np.float32)


def from_arrays(about: Iterable[dict[str, Any]], values: np.ndarray) -> list[SteeringVector]:
    """The vectors that `to_arrays` took apart."""
    return [
        SteeringVector(torch.from_numpy(row), one["layer"], one["typical"], tuple(one["spread"]), one["recipe"])
        for one, row in zip(about, values, strict=True)
    ]


def open_steering_vector(path: str | os.PathLike[str]) -> SteeringVector:
    """Open a vector that `SteeringVector.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a saved steering vector, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, "steering vector")
    with reading(path, "steering vector"):
        return from_arrays([about], arrays["values"][None])[0]
