"""What a grid runs over: layers x positions, layers x heads, or the heads or neurons of one layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.activations.site_kinds import KINDS
from labkit.activations.sites import Site, checked, layers_with, n_heads_of, out_of_range
from labkit.elsewhere import where_the_model_is
from labkit.engine.cells import Cell
from labkit.language_model import LanguageModel
from labkit.models.weights import width_in


@dataclass(frozen=True)
class Axes:
    """The axes of a grid: their names, the numbers each runs over, and the layer if it is not an axis.

    `sizes` says for each axis how many there are in the whole model, and `usual` the default axes of a site's grid.
    """

    over: tuple[str, ...]
    index: tuple[list[int], ...]
    layer: int | None
    sizes: dict[str, int]
    usual: tuple[str, ...]

    def cells(self) -> list[Cell]:
        """One cell each, in the order of the grid's values."""
        cells = []
        for numbers in itertools.product(*self.index):
            at = dict(zip(self.over, numbers, strict=True))
            layer = at["layer"] if self.layer is None else self.layer
            cells.append(Cell(layer, at.get("head", at.get("neuron")), at.get("position")))
        return cells


def axes_of(
    lm: LanguageModel,
    site: str,
    over: Sequence[str] | None = None,
    *,
    length: int,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    neurons: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> Axes:
    """The axes of a grid of a kind of site.

    Args:
        over: the names of the axes; by default layers x heads for a site by head, else layers x positions.
        length: how many positions there are.
        layers, heads, neurons, positions: only these; negative ones count from the end.

    Raises:
        ValueError: axes that this site does not have, numbers out of range, or a layer that has no such site.
    """
    kind = KINDS[site]
    names = tuple(over) if over is not None else kind.usual
    if names not in kind.over:
        raise ValueError(f"over={names!r} is not possible for {site}; use one of {', '.join(map(str, kind.over))}")
    asked = {"layer": layers, "head": heads, "neuron": neurons, "position": positions}
    layer = None
    if "layer" not in names:
        if layers is None or len(layers) != 1:
            raise ValueError(f"over={names!r} is for a single layer; choose it with, for example, layers=[5]")
        (layer,) = _numbers(lm, site, "layer", layers, lm.n_layers)
    sizes = {"layer": lm.n_layers, "position": length}
    if kind.unit == "head":
        sizes["head"] = n_heads_of(lm, site, layer)
    if kind.unit == "neuron":
        sizes["neuron"] = neurons_of(lm, layer)
    index = []
    for name, numbers in asked.items():
        if name in names:
            index.append((names.index(name), _numbers(lm, site, name, numbers, sizes[name])))
            if name == "head" and "layer" in names:
                _in_every_layer(lm, site, index[0][1], index[-1][1])
        elif numbers is not None and name != "layer":
            raise ValueError(f"{name}s={list(numbers)!r} was given, but the grid is over {names!r}")
    return Axes(names, tuple(numbers for _, numbers in sorted(index)), layer, sizes, kind.usual)


def _in_every_layer(lm: LanguageModel, site: str, layers: Sequence[int], heads: Sequence[int]) -> None:
    """Refuse heads that only some of the layers have."""
    counts = sorted({n_heads_of(lm, site, layer) for layer in layers})
    if max(heads) >= counts[0]:
        raise ValueError(
            f"the layers of {lm.name} have {' or '.join(map(str, counts))} heads at {site}; choose heads that all have "
            f"with heads=range({counts[0]}), or layers that have as many with layers=[...]"
        )


@where_the_model_is
def neurons_of(lm: LanguageModel, layer: int | None = None) -> int:
    """How many neurons a layer has, or at most; 0 if none can be read."""
    blocks = lm.anatomy.blocks if layer is None else [lm.anatomy.blocks[layer]]
    return max((width_in(block.down_projection) for block in blocks if block.down_projection is not None), default=0)


def _numbers(lm: LanguageModel, site: str, name: str, asked: Sequence[int] | None, size: int) -> list[int]:
    if asked is None:
        return layers_with(lm, site) if name == "layer" else list(range(size))
    for number in asked:
        if not -size <= number < size:
            raise ValueError(out_of_range(lm, site, name, number, size))
        if name == "layer":
            checked(lm, Site(site, number))
    numbers = [number % size for number in asked]
    if len(set(numbers)) != len(numbers) or not numbers:
        raise ValueError(f"{name}s={list(asked)!r} is empty or has duplicates")
    return numbers
