"""Cells: what one patch replaces, and how its part of an activation is found and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from labkit.activations.site_kinds import BY_QUERY, KINDS, names
from labkit.models.devices import to_index

UNIT_KINDS = names(kind for kind in KINDS.values() if kind.unit in ("neuron", "expert"))  # on the last axis


@dataclass(frozen=True)
class Cell:
    """One patch: a layer, a head or a neuron (None: the whole vector) and a position (None: all positions)."""

    layer: int
    head: int | None = None  # or, in `mlp_act`, a neuron
    position: int | None = None
    lane: int = 0  # which run it belongs to, where several are patched together


def layers_of(cell: Cell, window: int, n_layers: int) -> range:
    """The layers that a cell patches: its own in the middle of a window, which is cut at the ends of the model."""
    return range(max(0, cell.layer - window // 2), min(n_layers, cell.layer + (window + 1) // 2))


def by_unit(value: torch.Tensor, kind: str) -> torch.Tensor:
    """One layer's activation as (seq, unit, rest): units are heads, neurons or experts, one where there are none.

    Of patterns and scores, seq is the queries.
    """
    if kind in BY_QUERY:
        return value.transpose(0, 1)
    if kind in UNIT_KINDS:
        return value[..., None]
    return value.flatten(2) if value.ndim >= 3 else value[:, None]


def at_cell(table: np.ndarray, cell: Cell) -> np.ndarray:
    """What belongs to a cell in a table (seq, unit)."""
    part = table if cell.position is None else table[cell.position, None]
    return part if cell.head is None else part[:, cell.head]


# -- writing into many rows at once, with no copy to the host and no kernel per row ------------------------------------


def put_rows(x: torch.Tensor, source: torch.Tensor, cells: Sequence[Cell]) -> None:
    """Write the source's values (length, ...) into these cells' rows, the last of x (rows, length, ...), in place.

    A cell that has a position has it where its row starts, so that one write does for all rows.
    """
    if not cells:
        return
    rows, source = x[len(x) - len(cells) :], source.to(x.dtype)
    span = slice(None) if cells[0].position is None else slice(0, 1)
    if cells[0].head is None:
        rows[:, span] = source[span]
        return
    heads = to_index([cell.head or 0 for cell in cells], x.device)
    rows[torch.arange(len(cells), device=x.device), span, heads] = source[span, heads].transpose(0, 1)


def put_whole(source: torch.Tensor, kind: str, cell: Cell) -> Callable[[torch.Tensor], torch.Tensor]:
    """An edit that puts a cell's part of the source's activation (seq, ...) into a whole run's (1, seq, ...)."""

    def edit(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        put_cell(x[0], source.to(x), kind, cell)
        return x

    return edit


def put_cell(into: torch.Tensor, source: torch.Tensor, kind: str, cell: Cell) -> None:
    """Copy a cell's part from one activation to another, both (seq, ...), of patterns and scores (head, seq, seq)."""
    if kind in BY_QUERY:  # positions are queries
        into, source = into.transpose(0, 1), source.transpose(0, 1)
    span = slice(None) if cell.position is None else slice(cell.position, cell.position + 1)
    if cell.head is None:
        into[span] = source[span]
    else:
        into[span, cell.head] = source[span, cell.head]
