"""One patched cell looked at closely: what would the model write next, without the patch and with it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labkit.analysis.grid import PatchGrid
from labkit.internals.run import run
from labkit.internals.sites import Site
from labkit.tokens import describe

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel


@dataclass(frozen=True)
class CellReport:
    """One patched cell looked at closely: the likeliest next tokens before and after, as (text, probability)."""

    before: list[tuple[str, float]]
    after: list[tuple[str, float]]
    effect: float  # change of the metric
    normalized: float  # 0 = corrupt, 1 = clean


def inspect(lm: LanguageModel, grid: PatchGrid, layer: int, column: int, *, k: int = 10) -> CellReport:
    """Rerun one cell of a two-axis grid whole, and say what the model would write next, without and with the patch.

    Args:
        layer: the layer number.
        column: the position, or the head, as the grid's second axis has it.
        k: how many tokens.

    Raises:
        ValueError: the cell is not in the grid.
    """
    if layer not in grid.index[0] or column not in grid.index[1]:
        raise ValueError(f"the grid has no cell layer {layer}, {grid.over[1]} {column}")
    recipe = grid.recipe
    clean, corrupt = (torch.tensor([recipe[f"{name}_ids"]], device=lm.device) for name in ("clean", "corrupt"))
    end = None if recipe["at"] == -1 else recipe["at"] + 1
    source, base = (clean, corrupt) if grid.direction == "denoise" else (corrupt, clean)
    site = Site(grid.site, layer, **{grid.over[1]: column})
    value = run(lm, source[:, :end], read=[site])[site]
    rows = [run(lm, base[:, :end], write=write).logits[0, -1].float() for write in ({}, {site: value})]
    tops = [list(zip(*(part.tolist() for part in row.softmax(-1).topk(k)), strict=True)) for row in rows]
    before, after = ([(describe(lm.tokenizer, [id])[0].display, p) for p, id in top] for top in tops)
    place = grid.index[0].index(layer), grid.index[1].index(column)
    unpatched = grid.corrupt if grid.direction == "denoise" else grid.clean
    return CellReport(before, after, float(grid.values[place]) - unpatched, float(grid.normalized[place]))
