"""Units: one number per row of a collection, such as a neuron's activation or the norm of a head's z."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from labkit.activations.site_kinds import KINDS
from labkit.activations.sites import Site
from labkit.collected.collection import Collection
from labkit.steering.vector import SteeringVector

Direction = SteeringVector | torch.Tensor | np.ndarray | Sequence[float]

_NUMBERED = re.compile(r"\s*(?P<place>[a-z_]+\.-?\d+)\.(?P<number>-?\d+)\s*")
_ROWS = 4096  # that are projected at once


@dataclass(frozen=True, eq=False)
class Unit:
    """One number per row.

    Attributes:
        words: how it is written, such as `mlp_act.5.123`.
        have: the site that is kept.
        head: which head of it; None where it has none, or only this one is kept.
        number: which neuron or expert of it; None where the unit is a vector.
        direction: the unit vector (width,), float32, on which the vector is projected; None: its norm is taken.
    """

    words: str
    have: Site
    head: int | None = None
    number: int | None = None
    direction: np.ndarray | None = None

    @property
    def measure(self) -> str:
        """What the numbers are: a neuron's `activation`, an expert's `weight`, a `projection`, or a `norm`."""
        if self.number is not None:
            return "weight" if KINDS[self.have.kind].unit == "expert" else "activation"
        return "norm" if self.direction is None else "projection"

    def of(self, kept: torch.Tensor) -> np.ndarray:
        """The numbers (rows,), float32, from what is kept of the site (rows, ...); each depends on its row alone."""
        if self.number is not None:
            return kept[:, self.number].float().numpy().copy()
        mine = kept if self.head is None else kept[:, self.head]
        found = np.empty(len(mine), np.float32)
        for start in range(0, len(mine), _ROWS):
            some = mine[start : start + _ROWS].float().numpy()
            # no BLAS: its last bit depends on how many rows and threads there are
            one = np.square(some) if self.direction is None else some * self.direction
            found[start : start + _ROWS] = np.sqrt(one.sum(-1)) if self.direction is None else one.sum(-1)
        return found


def unit_of(collected: Collection, unit: str | Site | Direction, of: str | Site | None) -> Unit:
    """The unit that is meant, checked against the collection.

    Raises:
        KeyError: its site was not collected.
        ValueError: it is none, or is out of range; the message says what is.
    """
    if isinstance(unit, str | Site):
        if of is not None:
            raise ValueError(f"of= says at which site a direction is; {str(unit)!r} is a site itself, so leave it out")
        return _of_site(collected, unit)
    if isinstance(unit, SteeringVector):
        values, of = unit.values.numpy(), Site("resid_post", unit.layer) if of is None else of
    else:
        values = unit.detach().float().cpu().numpy() if isinstance(unit, torch.Tensor) else np.asarray(unit, np.float32)
    if of is None:
        raise ValueError("a direction needs of=, the site that it is a direction of, such as of='resid_post.5'")
    site = Site.parse(of)
    if site.layer is None and KINDS[site.kind].by_layer:
        raise ValueError(f"of={str(of)!r}: a direction is of one layer; write which, such as {site.kind}.5")
    base = _vector(collected, site)
    width = _shape(collected, base.have)[-1]
    if values.shape != (width,):
        raise ValueError(f"{site} has {width} numbers per row; the direction has shape {tuple(values.shape)}")
    norm = float(np.linalg.norm(values.astype(np.float64)))
    if not np.isfinite(norm) or norm == 0:
        raise ValueError("a direction needs finite numbers that are not all zero")
    return Unit(f"a direction of {site}", base.have, base.head, None, (values / norm).astype(np.float32))


def _of_site(collected: Collection, unit: str | Site) -> Unit:
    match = _NUMBERED.fullmatch(str(unit))
    site = Site.parse(match["place"]) if match and _numbered(match["place"]) else Site.parse(unit)
    kind = KINDS[site.kind]
    if site.layer is None and kind.by_layer:
        raise ValueError(f"{unit}: a unit is of one layer; write which, such as {site.kind}.5")
    if kind.name == "experts":
        raise ValueError(f"{unit}: these are numbers of experts; router.{site.layer}.0 is the weight of expert 0")
    if kind.unit not in ("neuron", "expert"):
        return _vector(collected, site)
    if match is None:
        raise ValueError(f"{unit}: which {kind.unit}? Write its number after the layer, such as {site}.0")
    [(have, one)] = collected.places(site)
    width, number = _shape(collected, have)[-1], int(match["number"])
    if not -width <= number < width:
        raise ValueError(f"{unit}: {kind.unit} {number} is out of range; there are {kind.unit}s 0 to {width - 1}")
    return Unit(f"{one}.{number % width}", have, number=number % width)


def _vector(collected: Collection, site: Site) -> Unit:
    """A site with one vector per row: one head of those that have heads."""
    kind = KINDS[site.kind]
    if kind.unit == "head" and site.head is None:
        raise ValueError(f"{site}: which head? Write its number after the layer, such as {site}.0")
    [(have, one)] = collected.places(site)
    if one.head is None:
        return Unit(str(one), have)
    if have.head is not None:
        return Unit(str(have), have)
    count = _shape(collected, have)[0]
    if not -count <= one.head < count:
        raise ValueError(f"{site}: head {one.head} is out of range; there are heads 0 to {count - 1}")
    return Unit(str(Site(one.kind, one.layer, one.head % count)), have, head=one.head % count)


def _numbered(place: str) -> bool:
    kind = KINDS.get(place.split(".")[0])
    return kind is not None and kind.unit in ("neuron", "expert")


def _shape(collected: Collection, have: Site) -> tuple[int, ...]:
    """Of a row of what is kept."""
    return tuple(collected.store.tensor(collected.done[0], str(have)).shape[1:])
