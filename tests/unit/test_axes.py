"""Axes of a grid: which cells it has, in which order, and what is refused before anything is computed."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loud import loud
from torch import nn

from labkit.activations.site_kinds import KINDS, PATCHED
from labkit.activations.sites import layers_with
from labkit.engine.cells import Cell
from labkit.patching.axes import Axes, axes_of, neurons_of

LENGTH = 7
GRIDS = [(site, over) for site in PATCHED for over in KINDS[site].over]
LLAMA = loud("llama")  # 2 layers, 4 heads, 2 key-value heads, 96 neurons
HERE = [(site, over) for site, over in GRIDS if layers_with(LLAMA, site)]


def size_of(site: str, axis: str) -> int:
    return {"layer": 2, "position": LENGTH, "neuron": 96, "head": 2 if site in ("k_pre", "k", "v") else 4}[axis]


def some(draw: Callable[[Any], Any], size: int) -> list[int] | None:
    """Numbers on an axis, some from the end; None for all."""
    numbers = draw(st.none() | st.lists(st.integers(0, size - 1), min_size=1, max_size=3, unique=True))
    return None if numbers is None else [number - size * draw(st.integers(0, 1)) for number in numbers]


@st.composite
def asked(draw: Callable[[Any], Any]) -> tuple[str, tuple[str, ...], dict[str, list[int] | None]]:
    site, over = draw(st.sampled_from(HERE))
    numbers = {axis: some(draw, size_of(site, axis)) for axis in over}
    if "layer" not in over:
        numbers["layer"] = [draw(st.integers(-2, 1))]
    return site, over, numbers


@given(asked())
def test_a_grid_has_a_cell_for_each_combination_in_order(
    given: tuple[str, tuple[str, ...], dict[str, list[int] | None]],
) -> None:
    site, over, numbers = given
    axes = axes_of(LLAMA, site, over, length=LENGTH, **{f"{axis}s": asked for axis, asked in numbers.items()})
    full = {axis: size_of(site, axis) for axis in numbers}
    expected = {
        axis: list(range(full[axis])) if asked is None else [n % full[axis] for n in asked]
        for axis, asked in numbers.items()
    }
    assert axes.over == over
    assert axes.index == tuple(expected[axis] for axis in over)
    assert {axis: axes.sizes[axis] for axis in full} == full
    assert set(axes.sizes) == {"layer", "position", *({KINDS[site].unit} & {"head", "neuron"})}
    assert axes.layer == (None if "layer" in over else expected["layer"][0])
    cells = axes.cells()
    assert len(cells) == len(set(cells)) == math.prod(map(len, axes.index))
    for cell, at in zip(cells, itertools.product(*axes.index), strict=True):
        where = {"layer": axes.layer, "head": None, "neuron": None, "position": None} | dict(zip(over, at, strict=True))
        head = where["head"] if where["neuron"] is None else where["neuron"]
        assert cell == Cell(where["layer"], head, where["position"])


@pytest.mark.parametrize("site", [site for site in PATCHED if layers_with(LLAMA, site)])
def test_a_grid_is_over_what_is_usual_for_its_site(site: str) -> None:
    axes = axes_of(LLAMA, site, length=LENGTH)
    assert axes.over == axes.usual == ("layer", "head" if KINDS[site].unit == "head" else "position")
    assert axes == axes_of(LLAMA, site, axes.over, length=LENGTH)


@pytest.mark.parametrize(
    ("site", "settings", "says"),
    [
        ("resid_pre", {"over": ("layer", "head")}, r"over=\('layer', 'head'\).*resid_pre.*\('layer', 'position'\)"),
        ("resid_pre", {"over": []}, r"over=\(\)"),
        ("z", {"over": ("position", "layer")}, r"over=\('position', 'layer'\)"),
        ("z", {"heads": [4]}, "head 4 is out of range.*0 to 3"),
        ("k", {"heads": [2]}, "key-value head 2 is out of range.*0 to 1"),
        ("z", {"heads": [-5]}, "head -5 is out of range"),
        ("z", {"layers": [2]}, "layer 2 is out of range.*0 to 1"),
        ("resid_pre", {"positions": [0, LENGTH]}, f"position {LENGTH} is out of range.*0 to {LENGTH - 1}"),
        ("resid_pre", {"positions": [-LENGTH - 1]}, "position -8 is out of range"),
        ("resid_pre", {"positions": [1, 1]}, r"positions=\[1, 1\].*duplicates"),
        ("resid_pre", {"positions": [6, -1]}, r"positions=\[6, -1\].*duplicates"),
        ("resid_pre", {"layers": []}, r"layers=\[\] is empty"),
        ("resid_pre", {"heads": [0]}, r"heads=\[0\].*\('layer', 'position'\)"),
        ("z", {"positions": [0]}, r"positions=\[0\].*\('layer', 'head'\)"),
        ("z", {"neurons": [0]}, r"neurons=\[0\]"),
        ("z", {"over": ("head", "position")}, r"single layer.*layers="),
        ("z", {"over": ("head", "position"), "layers": [0, 1]}, r"single layer.*layers="),
        ("z", {"over": ("head", "position"), "layers": [2]}, "layer 2 is out of range"),
        ("mlp_act", {"over": ("layer", "neuron"), "neurons": [96]}, "neuron 96 is out of range.*0 to 95"),
        ("router", {"layers": [0]}, "no router.*mixture of experts"),
    ],
)
def test_what_a_site_does_not_have_is_refused(site: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        axes_of(LLAMA, site, **settings, length=LENGTH)


def test_numbers_at_either_end_are_in_range() -> None:
    for number in (-LENGTH, -1, 0, LENGTH - 1):
        assert axes_of(LLAMA, "resid_pre", positions=[number], length=LENGTH).index[1] == [number % LENGTH]


def widths(*neurons: int | None) -> Any:
    blocks = [SimpleNamespace(down_projection=n and nn.Linear(n, 3)) for n in neurons]
    return SimpleNamespace(anatomy=SimpleNamespace(blocks=blocks))


def test_neurons_are_those_of_a_layer_or_of_the_widest() -> None:
    assert neurons_of(widths(5, None, 8, 6)) == 8
    assert [neurons_of(widths(5, None, 8), layer) for layer in (0, 1, 2, -1)] == [5, 0, 8, 8]
    assert neurons_of(widths(None)) == neurons_of(widths()) == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_without_a_site_are_left_out_and_refused() -> None:
    jamba = loud("jamba")  # attention in layer 1, neurons in layer 0
    assert axes_of(jamba, "z", length=LENGTH).index == ([1], [0, 1, 2, 3])
    assert axes_of(jamba, "resid_pre", length=LENGTH).index[0] == [0, 1]
    neurons = axes_of(jamba, "mlp_act", ("neuron", "position"), layers=[0], length=LENGTH)
    assert (neurons.sizes["neuron"], len(neurons.index[0])) == (96, 96)
    for site, layer in (("z", 0), ("mlp_act", 1)):
        with pytest.raises(ValueError, match=f"no {site} in layer {layer}"):
            axes_of(jamba, site, layers=[layer], length=LENGTH)


def test_a_grid_without_a_layer_axis_has_one_layer_in_all_its_cells() -> None:
    axes = Axes(("neuron",), ([3, 1],), 0, {"layer": 2, "neuron": 4}, ("layer", "position"))
    assert axes.cells() == [Cell(0, 3), Cell(0, 1)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        axes.layer = 1  # type: ignore[misc]


def test_heads_that_some_layers_lack_are_refused_with_those_that_all_have() -> None:
    lm = loud("mimo_v2_flash")  # 2 and 4 key-value heads
    with pytest.raises(ValueError, match=r"have 2 or 4 heads at k; choose heads that all have with heads=range\(2\)"):
        axes_of(lm, "k", length=LENGTH)
    assert axes_of(lm, "k", length=LENGTH, heads=range(2)).index[1] == [0, 1]
    assert axes_of(lm, "k", length=LENGTH, layers=[1]).index[1] == [0, 1, 2, 3]
    assert axes_of(lm, "q", length=LENGTH).index[1] == [0, 1, 2, 3]
