"""Opening saved grids, of cells or of paths."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from labkit.patching.grid import PatchGrid
from labkit.patching.path_grid import PathGrid
from labkit.results.file import open_arrays, reading
from labkit.text.tokens import Token


def grid_of(values: np.ndarray, about: dict[str, Any]) -> PatchGrid:
    """The grid that `about_of` described."""
    recipe = {**about["recipe"], "usual_over": tuple(about["recipe"]["usual_over"])}
    clean, corrupt = ([Token(**t) for t in about[f"{name}_tokens"]] for name in ("clean", "corrupt"))
    over, index = tuple(about["over"]), tuple(about["index"])
    first = 0
    if recipe.get("unit") == "tokens above":  # an older file, whose ranks count from 0
        first, recipe["unit"] = 1, "ranks"
    metrics = about["clean"] + first, about["corrupt"] + first
    kind = PathGrid if recipe.get("kind") == "paths" else PatchGrid
    return kind(values + first, over, index, *metrics, clean, corrupt, recipe)


def open_grid(path: str | os.PathLike[str]) -> PatchGrid:
    """Open a grid that `PatchGrid.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a saved grid, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, "grid")
    with reading(path, "grid"):
        return grid_of(arrays["values"], about)
