"""PatchGrid: the effects of patching, with all that is needed to read, draw and repeat them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from labkit.activations.metrics import in_title
from labkit.patching import gap, perturbations
from labkit.patching.pair_runs import ENDS
from labkit.patching.source_model import run_names
from labkit.results.exchange import labelled
from labkit.results.figures import of_patching
from labkit.results.file import save_arrays
from labkit.results.recipe import code_of
from labkit.text.pair import partners
from labkit.text.tokens import Token

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import xarray as xr

USUAL = {"direction": "denoise", "method": "exact", "at": -1}
"""Defaults that the code of a grid or a sweep leaves out."""


@dataclass
class PatchGrid:
    """Patching effects over layers x positions, layers x heads, or any other axes that `labkit.patch` supports.

    Attributes:
        values: the metric of each patched run, float32, one axis for each of `over`; NaN where not computed (yet), and
            where a position has no partner in the other prompt (`unpaired`).
        over: the names of the axes, such as `("layer", "position")`.
        index: what each axis runs over: layer numbers, head numbers, neuron numbers, positions.
        clean, corrupt: the metric on the two unpatched runs.
        clean_tokens, corrupt_tokens: the two prompts, up to the position that the metric reads.
        recipe: what repeats it: model, revision, bits, dtype, prompts, ids, site, metric, direction, versions.
    """

    values: np.ndarray
    over: tuple[str, ...]
    index: tuple[list[int], ...]
    clean: float
    corrupt: float
    clean_tokens: list[Token]
    corrupt_tokens: list[Token]
    recipe: dict[str, Any] = field(repr=False)

    @property
    def site(self) -> str:
        return str(self.recipe["site"])

    @property
    def direction(self) -> str:
        return str(self.recipe["direction"])

    @property
    def answer(self) -> Any:
        """The answer as text; of a set, the list of its texts."""
        return self.recipe["answer"]

    @property
    def foil(self) -> Any:
        """The foil as text; of a set, the list of its texts."""
        return self.recipe["foil"]

    @property
    def tokens(self) -> list[Token]:
        """The tokens of the patched run: corrupt when denoising, clean when noising."""
        return self.corrupt_tokens if self.direction == "denoise" else self.clean_tokens

    @property
    def unpatched(self) -> float:
        """The metric of the patched run before the patch."""
        return self.corrupt if self.direction == "denoise" else self.clean

    @property
    def complete(self) -> bool:
        return not bool((np.isnan(self.values) & ~self.unpaired).any())

    @property
    def alignment(self) -> list[Any] | None:
        """The spans of clean and corrupt that are paired; None if the prompts are paired position by position."""
        return self.recipe.get("alignment")

    @property
    def partners(self) -> list[int | None]:
        """For each position of the patched prompt that of its partner in the other; None where it has none."""
        base, lengths = ENDS[self.direction][1], (len(self.clean_tokens), len(self.corrupt_tokens))
        length, other = lengths if base == "clean" else lengths[::-1]
        return (
            list(range(length))
            if self.alignment is None
            else partners(self.alignment, base, length=length, other=other)
        )

    @property
    def unpaired(self) -> np.ndarray:
        """Which cells are at a position without a partner in the other prompt, bool in the shape of `values`."""
        lone = np.zeros(self.values.shape, bool)
        if self.alignment is None or "position" not in self.over:
            return lone
        axis, beside = self.over.index("position"), self.partners
        alone = np.array([beside[n] is None for n in self.index[axis]])
        return lone | alone.reshape([-1 if n == axis else 1 for n in range(lone.ndim)])

    @property
    def normalized(self) -> np.ndarray:
        """The values on a scale from the corrupt run (0) to the clean run (1); NaN if the two are equal.

        If they hardly differ (`too_close`) this is a ratio of rounding errors; use `values` instead.
        """
        gap = self.clean - self.corrupt
        if gap == 0:
            return np.full_like(self.values, np.nan)
        return ((self.values - self.corrupt) / gap).astype(np.float32)

    @property
    def noise(self) -> float | None:
        """How far re-batching or rounding alone moves the metric, in its unit; None if not measured."""
        return self.recipe.get("noise")

    @property
    def too_close(self) -> bool:
        """Are clean and corrupt hardly further apart than rounding moves them? Then there is nothing to explain."""
        return gap.too_close(self.clean, self.corrupt, self.recipe.get("least_gap"))

    def measured_in(self, unit: str, found: gap.Measured | None) -> None:
        """Keep the metric's unit with the grid, and how far rounding alone moves it, where that was measured."""
        self.recipe |= {"unit": unit} | ({} if found is None else {"noise": found.noise, "least_gap": found.least})

    def warned(self) -> Self:
        """The grid, with a warning to the user if there is nothing to explain in it."""
        if self.too_close:
            gap.warn_of(self.recipe, self.clean, self.corrupt)
        return self

    def labels(self, axis: str) -> list[str]:
        """Labels of an axis: numbers for layers and heads, `position token` for positions."""
        numbers = self.index[self.over.index(axis)]
        if axis == "position":
            return [f"{n} {self.tokens[n].display}" for n in numbers]
        return [str(n) for n in numbers]

    def to_frame(self) -> pd.DataFrame:
        """One row per cell: its place on the axes, the token at its position, the value and the normalised value."""
        import pandas as pd

        places = np.meshgrid(*[np.array(numbers) for numbers in self.index], indexing="ij")
        columns: dict[str, Any] = {name: place.ravel() for name, place in zip(self.over, places, strict=True)}
        if "position" in self.over:
            columns["token"] = [self.tokens[n].text for n in columns["position"]]
        columns["value"] = self.values.ravel()
        columns["normalized"] = self.normalized.ravel()
        return pd.DataFrame(columns)

    def to_xarray(self) -> xr.DataArray:
        """The values with named axes; their numbers and tokens are coordinates, the two runs and the recipe attributes.

        It goes into NetCDF and Zarr files as it is; the recipe is JSON there.

        Raises:
            ImportError: xarray is not installed.
        """
        coords: dict[str, Any] = dict(zip(self.over, self.index, strict=True))
        if "position" in self.over:
            coords["token"] = "position", [self.tokens[n].text for n in self.index[self.over.index("position")]]
        about = {"clean": self.clean, "corrupt": self.corrupt, "title": self.title(), "code": self.code()}
        return labelled(self.values, self.over, coords, name=self.recipe["metric"], about=about, recipe=self.recipe)

    def title(self) -> str:
        """What the grid shows, in one line."""
        names = run_names(self.recipe)
        source, base = (names[name] for name in ENDS[self.direction])
        what = in_title(self.recipe["metric"], self.answer, self.foil)
        estimate = ", gradient estimate" if self.recipe.get("method") == "attribution" else ""
        where = "" if self.recipe.get("layer") is None else f" of layer {self.recipe['layer']}"
        return f"{self.site}{where}: {source} activation put into the {base} run ({what}{estimate})"

    def figure(self, *, normalized: bool | None = None) -> go.Figure:
        """A plotly heatmap with token labels: 0 as the corrupt run, 1 as the clean run, or in the metric's own unit.

        Args:
            normalized: by default true, unless the pair hardly differs (`too_close`) or there is no second run.

        Raises:
            ValueError: the grid has three axes; select one of them first.
        """
        if len(self.over) != 2:
            raise ValueError(f"a figure has two axes; this grid has {self.over}: use to_frame() and select one")
        if normalized is None:
            normalized = not self.too_close and bool(np.isfinite(self.corrupt))
        clean, corrupt = run_names(self.recipe).values()
        return of_patching(
            self.normalized if normalized else self.values,
            self.over,
            (self.labels(self.over[0]), self.labels(self.over[1])),
            nothing=float(self.direction == "noise") if normalized else self.unpatched,
            least=1e-9 if normalized or not self.noise else 2 * self.noise,
            title=self.title() + f"<br>{clean.capitalize()} and {corrupt} hardly differ" * self.too_close,
            unit=f"0 = {corrupt}, 1 = {clean}" if normalized else (self.recipe.get("unit") or self.recipe["metric"]),
            hatched=self.unpaired,
        )

    def code(self) -> str:
        """The Python that computes this grid again."""
        return code_of(self.recipe, "grid = lk.patch", axes_asked(self.recipe, self.over, self.index), usual=USUAL)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write values and recipe to one file (`.npz`), in one step: the file is whole or not there."""
        return save_arrays(path, "grid", about_of(self), values=self.values)

    def __repr__(self) -> str:
        shape = " x ".join(f"{len(n)} {name}s" for name, n in zip(self.over, self.index, strict=True))
        done = int((~np.isnan(self.values)).sum())
        partly = "" if self.complete else f", {done} of {int((~self.unpaired).sum())} cells computed"
        clean, corrupt = run_names(self.recipe).values() if "by" in self.recipe else ("clean", "corrupt")
        other = f", {corrupt} {self.corrupt:.3f}" if np.isfinite(self.corrupt) else f", by {corrupt}"
        return (
            f"PatchGrid({self.site}, {self.direction}, {shape}, {self.recipe['metric']}: "
            f"{clean} {self.clean:.3f}{other}{partly})"
        )


def axes_asked(recipe: dict[str, Any], over: tuple[str, ...], index: tuple[list[int], ...]) -> dict[str, Any]:
    """The arguments that give a grid its site and its axes, without defaults."""
    asked: dict[str, Any] = {"site": recipe["site"]}
    if over != recipe["usual_over"]:
        asked["over"] = over
    if recipe.get("layer") is not None:
        asked["layers"] = [recipe["layer"]]
    if "by" in recipe:
        asked["by"] = perturbations.code_of({name: value for name, value in recipe["by"].items() if name != "name"})
    if recipe.get("window", 1) > 1:
        asked["window"] = recipe["window"]
    if recipe.get("alignment") is not None:
        asked["alignment"] = [tuple(map(tuple, span)) for span in recipe["alignment"]]
    numbers = dict(zip(over, index, strict=True))
    return asked | {f"{axis}s": n for axis, n in numbers.items() if n != list(range(recipe["sizes"][axis]))}


def about_of(grid: PatchGrid) -> dict[str, Any]:
    """Everything about a grid but its values, for JSON."""
    return {
        "over": grid.over,
        "index": grid.index,
        "clean": grid.clean,
        "corrupt": grid.corrupt,
        "clean_tokens": [vars(t) for t in grid.clean_tokens],
        "corrupt_tokens": [vars(t) for t in grid.corrupt_tokens],
        "recipe": grid.recipe,
    }
