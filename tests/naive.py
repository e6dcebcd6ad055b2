"""Grids without the fast engine: one whole forward per cell, and how near the engine has to come to it."""

import numpy as np
from pair import CLEAN, CORRUPT

import labkit as lk


def naive(lm, grid: lk.PatchGrid, cells: np.ndarray) -> np.ndarray:
    """One whole forward a cell: write what the source run has at the site, read the logit difference."""
    source, base = (CLEAN, CORRUPT) if grid.direction == "denoise" else (CORRUPT, CLEAN)
    answer, foil = lm.encode(" Mary")[0, 0], lm.encode(" John")[0, 0]
    sites = []
    for cell in cells:
        place = dict(zip(grid.over, cell, strict=True))
        site = f"{grid.site}.{place['layer']}"
        site += f".{place['head']}" if "head" in place else ""
        sites.append(site + (f"@{place['position']}" if "position" in place else ""))
    given = lm.run(source, read=sites)
    values = []
    for site in sites:
        logits = lm.run(base, write={site: given[site]}).logits[0, -1].float()
        values.append(float(logits[answer] - logits[foil]))
    return np.array(values, np.float32)


def some(grid: lk.PatchGrid, n: int = 12) -> np.ndarray:
    """A fixed spread of the cells that have an effect."""
    cells = np.argwhere(grid.values != (grid.corrupt if grid.direction == "denoise" else grid.clean))
    return cells[np.linspace(0, len(cells) - 1, n).astype(int)]


def close(lm, fast: np.ndarray, slow: np.ndarray) -> bool:
    """1e-4 in fp32. In NF4 on bf16, another batch rounds otherwise: steps of 1/8 at this size of logits, twice."""
    return bool(np.abs(fast - slow).max() <= (1e-4 if lm.bits == 32 else 0.5))
