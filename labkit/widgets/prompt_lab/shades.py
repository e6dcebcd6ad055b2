"""What tokens can be coloured by: the component of an activation along a direction, or a head's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from labkit.activations.sites import Site, checked
from labkit.models.handle import Model
from labkit.probing.result import Probe
from labkit.steering.vector import SteeringVector


@dataclass(frozen=True, eq=False)
class Shade:
    """One way to colour a text.

    Attributes:
        site: where it reads, such as `resid_post.12`; for a head `pattern.5.2`.
        direction: (d_model,) float32, of which the dot product with each token's activation is shown; None for a head.
        bias: what is added to that.
        code: the lines that make the direction, ending in `direction = ...`; empty if it was given as numbers.
    """

    site: str
    direction: np.ndarray | None = None
    bias: float = 0.0
    code: str = ""

    @classmethod
    def of(cls, direction: Any, site: str | None) -> Shade:
        """From numbers and a site, a steering vector, a probe with its bias, or with None a head.

        Raises:
            ValueError: there is no site, or the probe has no single direction or no bias.
        """
        if isinstance(direction, Probe):
            return _of_probe(direction, site)
        code = ""
        if isinstance(direction, SteeringVector):
            site = site or f"resid_post.{direction.layer}"
            code = direction.code() and f"{direction.code()}direction = vector.values\n"
            direction = direction.values
        if site is None:
            raise ValueError("say where to read, such as site='resid_post.12', or site='pattern.5.2' for a head")
        if direction is None:
            return cls(site)
        return cls(site, torch.as_tensor(direction).detach().float().cpu().numpy(), 0.0, code)

    def check(self, lm: Model) -> None:
        """
        Raises:
            ValueError: the model does not have this site, or the direction another width.
        """
        place = Site.parse(self.site)
        if self.direction is None:
            if place.kind != "pattern" or place.layer is None or place.head is None:
                raise ValueError(
                    f"without a direction the site must be a head, such as 'pattern.5.2'; got {self.site!r}"
                )
        else:
            if self.direction.shape != (lm.d_model,):
                raise ValueError(f"a direction has shape ({lm.d_model},) here; got {self.direction.shape}")
            if place.kind == "pattern" or place.layer is None:
                raise ValueError(
                    f"the site of a direction is one layer's stream, such as 'resid_post.5'; got {self.site!r}"
                )
        checked(lm, self.site)

    def values(self, lm: Any, ids: torch.Tensor, prompt: int) -> np.ndarray:
        """What each token of `ids` (1, seq) is coloured by, (seq,): a token of the prompt looks at nothing else."""
        found = lm.run(ids, read=[self.site], logits="none")[self.site][0].float().cpu().numpy()
        if self.direction is not None:
            return np.asarray(found @ self.direction + self.bias)
        values = found[:, :prompt].sum(-1)
        values[:prompt] = np.nan
        return np.asarray(values)

    def as_code(self, name: str, prompt: int, load: str) -> str:
        """The lines that give the values, after `ids`, of a model that `load` has loaded."""
        read = f"lm.run(ids, read=[{self.site!r}])[{self.site!r}][0].float().cpu()"
        if self.direction is None:
            return f"values = {read}[:, :{prompt}].sum(-1)\nvalues[:{prompt}] = torch.nan\n"
        made = self.code.removeprefix(load)
        if not made:
            asked = f"put in the {len(self.direction)} numbers that lab.colour_by({name!r}, ...) was given"
            made = f"direction = None  # {asked}\nif direction is None:\n    raise ValueError({asked!r})\n"
            made += "direction = torch.as_tensor(direction).float()\n"
        return f"{made}values = {read} @ direction{f' + {self.bias!r}' if self.bias else ''}\n"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        numbers = None if self.direction is None else [float(str(one)) for one in self.direction]
        return {"site": self.site, "direction": numbers, "bias": self.bias, "code": self.code}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Shade:
        given = kept["direction"]
        direction = None if given is None else np.asarray(given, np.float32)
        return cls(str(kept["site"]), direction, float(kept["bias"]), str(kept["code"]))


def _of_probe(probe: Probe, site: str | None) -> Shade:
    kind = Site.parse(probe.site).kind
    place = Site.parse(site or f"{kind}.{probe.best}")
    if place.kind != kind or place.layer is None:
        raise ValueError(f"the probe is of {probe.site}; name one of its layers, such as site='{kind}.{probe.best}'")
    direction, bias = probe.direction(place.layer), probe.bias(place.layer)
    return Shade(str(place), direction.values.numpy(), bias, f"{direction.code()}direction = vector.values\n")
