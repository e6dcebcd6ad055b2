"""What the shards of a sweep hold: the grid of each pair, or the reason why there is none."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np

from labkit.patching.grid import PatchGrid, about_of
from labkit.patching.saved_grid import grid_of
from labkit.results.file import described
from labkit.shards import store
from labkit.text.warn import warn

Results = dict[int, PatchGrid | str]
"""The result of each pair, by its number: its grid, or the reason why there is none."""


class Store(store.Store):
    """The folder of one sweep."""

    kind, worked_on, ending = "sweep", "pairs", ".npz"

    @property
    def pairs(self) -> list[list[Any]]:
        return self.items

    def write(self, number: int, results: Results) -> None:
        """Put a shard in its place, whole."""
        arrays = {f"values.{i}": grid.values for i, grid in results.items() if isinstance(grid, PatchGrid)}
        packed = {str(i): one if isinstance(one, str) else about_of(one) for i, one in results.items()}
        about = {"hash": self.hash, "pairs": packed}
        buffer = io.BytesIO()
        np.savez(buffer, about=described("sweep shard", about), **arrays)  # type: ignore[arg-type]
        store.put(self.path(number), buffer.getvalue())

    def read(self, number: int) -> Results:
        """What a shard holds; nothing where there is no file, or one that is damaged."""
        path = self.path(number)
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                if about["hash"] != self.hash:
                    raise ValueError("it belongs to another sweep")
                results = {
                    int(i): packed if isinstance(packed, str) else grid_of(file[f"values.{i}"], packed)
                    for i, packed in about["pairs"].items()
                }
            if not set(results) <= set(self.shards[number]):
                raise ValueError("it holds other pairs")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            warn(f"{path.name} is damaged ({error}); its pairs will be computed again")
            return {}
        return results
