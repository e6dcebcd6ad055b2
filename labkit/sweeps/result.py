"""Sweep: the grids of many pairs, and what they have in common.

A position means the same in two pairs only if their prompts have the same layout: the same number of tokens, and the
differences at the same places. Otherwise averaging over positions would mix different words, so it is refused; layers x
heads can always be averaged, and so can positions counted from the end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labkit.patching.grid import USUAL, PatchGrid, axes_asked
from labkit.patching.pair_runs import ENDS
from labkit.results.bootstrap import LEVEL, RESAMPLES, interval
from labkit.results.exchange import labelled
from labkit.results.figures import of_patching
from labkit.results.recipe import measured_by
from labkit.text.as_code import LM, Name, as_code, as_python, changed
from labkit.text.pair import partners

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import xarray as xr


class Layout(NamedTuple):
    """What two pairs share if a position has the same role in both: their length, where they differ, their alignment.

    Positions are those of the patched prompt; `beside` has the partner of each, of prompts that are aligned by spans.
    """

    tokens: int
    differ: tuple[int, ...]
    beside: tuple[int | None, ...] = ()

    def __str__(self) -> str:
        places = ", ".join(map(str, self.differ)) or "none"
        alone = [n for n, other in enumerate(self.beside) if other is None]
        lone = f", without a partner at {', '.join(map(str, alone))}" if alone else ""
        return f"{self.tokens} tokens, different at {places}{lone}"


def layout_of(grid: PatchGrid) -> Layout:
    clean, corrupt = grid.recipe["clean_ids"], grid.recipe["corrupt_ids"]
    if grid.alignment is not None:
        base, other = (clean, corrupt) if ENDS[grid.direction][1] == "clean" else (corrupt, clean)
        beside = partners(grid.alignment, ENDS[grid.direction][1], length=len(base), other=len(other))
        changed = (i for i, n in enumerate(beside) if n is not None and base[i] != other[n])
        return Layout(len(base), tuple(changed), tuple(beside))
    return Layout(len(clean), tuple(i for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b))


@dataclass(frozen=True)
class Sweep:
    """The grids of many pairs, and their average.

    Attributes:
        pairs: the requested pairs.
        grids: a `PatchGrid` for each; None where there is none (yet).
        failures: error messages, by the number of the pair.
        from_end: the positions were given from the end, so they mean the same in every pair.
        load: the Python that loads the model.
    """

    pairs: list[tuple[Any, ...]] = field(repr=False)
    grids: list[PatchGrid | None] = field(repr=False)
    failures: dict[int, str] = field(repr=False)
    from_end: tuple[int, ...] | None = None
    load: str = field(default="", repr=False)

    @cached_property
    def done(self) -> list[PatchGrid]:
        """The grids there are."""
        return [grid for grid in self.grids if grid is not None]

    @cached_property
    def too_close(self) -> list[int]:
        """The numbers of the pairs on which clean and corrupt hardly differ; the normalised mean leaves them out."""
        return [i for i, grid in enumerate(self.grids) if grid is not None and grid.too_close]

    @cached_property
    def _apart(self) -> np.ndarray:
        """Which of the pairs done are far enough apart to be normalised, (pairs done,) bool; all if none is."""
        apart = np.array([not grid.too_close for grid in self.done], bool)
        return apart if apart.any() else ~apart

    @property
    def complete(self) -> bool:
        return len(self.done) == len(self.pairs)

    @cached_property
    def layouts(self) -> dict[Layout, int]:
        """How many pairs have each layout, the commonest first."""
        return dict(Counter(map(layout_of, self.done)).most_common())

    def by_layout(self) -> dict[Layout, Sweep]:
        """One sweep per layout, so that positions can be averaged within each."""
        parts = {}
        for layout in self.layouts:
            mine = [i for i, grid in enumerate(self.grids) if grid is not None and layout_of(grid) == layout]
            parts[layout] = Sweep([self.pairs[i] for i in mine], [self.grids[i] for i in mine], {}, None, self.load)
        return parts

    @cached_property
    def one(self) -> PatchGrid:
        """The first grid, which represents all in axes, labels and recipe.

        Raises:
            ValueError: there is no grid, or the pairs' positions do not mean the same.
        """
        if not self.done:
            raise ValueError("no pair has been computed; there is nothing to average")
        first = self.done[0]
        if "position" in first.over and self.from_end is None and len(self.layouts) > 1:
            said = "; ".join(f"{n} pairs of {layout}" for layout, n in list(self.layouts.items())[:4])
            raise ValueError(
                f"positions cannot be averaged over these pairs, which have {len(self.layouts)} layouts: {said}. A "
                "position means something different in each. Average heads instead (site='z', over layers x heads), "
                "count positions from the end (positions=[-1]), or take one layout at a time: sweep.by_layout()"
            )
        return first

    @property
    def over(self) -> tuple[str, ...]:
        return self.one.over

    @property
    def index(self) -> tuple[list[int], ...]:
        """What each axis runs over; positions counted from the end are negative."""
        if self.from_end is None:
            return self.one.index
        return tuple(
            list(self.from_end) if axis == "position" else numbers
            for axis, numbers in zip(self.over, self.one.index, strict=True)
        )

    @cached_property
    def values(self) -> np.ndarray:
        """The metric of every patched run, float32 (pairs done, ...), one axis for each of `over`."""
        return np.stack([grid.values for grid in self.done], dtype=self.one.values.dtype)

    @cached_property
    def _ends(self) -> np.ndarray:
        """The metric of the two unpatched runs, (2, pairs done): corrupt, clean."""
        return np.array([[grid.corrupt for grid in self.done], [grid.clean for grid in self.done]], np.float64)

    @property
    def corrupt(self) -> float:
        """The metric of the corrupt runs, on average."""
        return float(self._ends[0].mean())

    @property
    def clean(self) -> float:
        """The metric of the clean runs, on average."""
        return float(self._ends[1].mean())

    @property
    def mean(self) -> np.ndarray:
        """The metric of the patched runs, averaged over the pairs."""
        return self.values.mean(0, dtype=np.float64).astype(np.float32)

    @property
    def error(self) -> np.ndarray:
        """The standard error of `mean`; NaN with one pair."""
        n = len(self.done)
        spread = self.values.std(0, ddof=1, dtype=np.float64) if n > 1 else np.full(self.values.shape[1:], np.nan)
        return (spread / np.sqrt(n)).astype(np.float32)

    @property
    def normalized(self) -> np.ndarray:
        """The average on a scale from the average corrupt run (0) to the average clean run (1).

        A ratio of averages, not the average of ratios. Pairs whose two runs hardly differ (`too_close`) are left out,
        unless all do; then the scale means nothing.
        """
        n = int(self._apart.sum())
        return self._scaled(np.full((1, n), 1 / max(1, n)))[0].astype(np.float32)

    def _scaled(self, weights: np.ndarray) -> np.ndarray:
        """From weights (rows, pairs that are apart) to normalised averages (rows, ...)."""
        corrupt, clean = (weights @ end[self._apart] for end in self._ends)
        patched = np.tensordot(weights, self.values[self._apart].astype(np.float64), axes=1)
        wide = (slice(None), *[None] * (self.values.ndim - 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (patched - corrupt[wide]) / (clean - corrupt)[wide]

    def interval(
        self, *, normalized: bool = True, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Low and high ends of each cell's bootstrap interval over the pairs; see `labkit.results.bootstrap`.

        Raises:
            ValueError: there are fewer than two pairs.
        """
        plain = lambda weights: np.tensordot(weights, self.values.astype(np.float64), axes=1)  # noqa: E731
        average, n = (self._scaled, int(self._apart.sum())) if normalized else (plain, len(self.done))
        return interval(average, n, level=level, resamples=resamples, seed=seed)

    def labels(self, axis: str) -> list[str]:
        """Labels of an axis; a position has its token if all pairs share it, else `…`."""
        numbers = self.index[self.over.index(axis)]
        if axis != "position":
            return [str(n) for n in numbers]
        shown = [{grid.tokens[n].display for grid in self.done} for n in numbers]
        return [
            f"{n} {next(iter(tokens)) if len(tokens) == 1 else '…'}" for n, tokens in zip(numbers, shown, strict=True)
        ]

    def to_frame(self, *, level: float = LEVEL) -> pd.DataFrame:
        """One row per cell: its place, the mean of the metric with its standard error, the normalised mean with the
        ends of its bootstrap interval, and the number of pairs."""
        import pandas as pd

        places = np.meshgrid(*[np.array(numbers) for numbers in self.index], indexing="ij")
        columns: dict[str, Any] = {name: place.ravel() for name, place in zip(self.over, places, strict=True)}
        columns |= {"mean": self.mean.ravel(), "error": self.error.ravel(), "normalized": self.normalized.ravel()}
        if self._apart.sum() > 1:
            low, high = self.interval(level=level)
            columns |= {"low": low.ravel(), "high": high.ravel()}
        return pd.DataFrame(columns | {"pairs": len(self.done)})

    def to_xarray(self) -> xr.DataArray:
        """The values of every pair that is done, with the axis `pair` first; see `PatchGrid.to_xarray`.

        Coordinates of a pair: its number, and the metric of its two unpatched runs.

        Raises:
            ImportError: xarray is not installed.
            ValueError: no pair is done, or positions that do not mean the same.
        """
        numbers = [n for n, grid in enumerate(self.grids) if grid is not None]
        coords: dict[str, Any] = {"pair": numbers, **dict(zip(self.over, self.index, strict=True))}
        coords |= {"corrupt": ("pair", self._ends[0]), "clean": ("pair", self._ends[1])}
        about = {"title": self.title(), "code": self.code()}
        name = self.one.recipe["metric"]
        return labelled(self.values, ("pair", *self.over), coords, name=name, about=about, recipe=self.one.recipe)

    def title(self) -> str:
        source, base = ("clean", "corrupt") if self.one.direction == "denoise" else ("corrupt", "clean")
        estimate = ", gradient estimate" if self.one.recipe["method"] == "attribution" else ""
        what = f"{self.one.recipe['metric']}, mean of {len(self.done)} pairs{estimate}"
        where = "" if self.one.recipe["layer"] is None else f" of layer {self.one.recipe['layer']}"
        what += f", {len(self.too_close)} of them without a gap" if self.too_close else ""
        return f"{self.one.site}{where}: {source} activation put into the {base} run ({what})"

    def figure(self, *, sure: bool = False, level: float = LEVEL) -> go.Figure:
        """A plotly heatmap of the normalised mean; the interval of a cell is shown on hover.

        In the metric's own unit if clean and corrupt hardly differ in all pairs.

        Args:
            sure: leave cells white whose interval includes "no effect".
            level: of the intervals.

        Raises:
            ValueError: the sweep has three axes, or positions that cannot be averaged.
        """
        if len(self.over) != 2:
            raise ValueError(f"a figure has two axes; this sweep has {self.over}: use to_frame() and select one")
        scaled = len(self.too_close) < len(self.done)
        shown = self.normalized if scaled else self.mean
        nothing = float(self.one.direction == "noise")
        if not scaled:
            nothing = self.corrupt if self.one.direction == "denoise" else self.clean
        count = int(self._apart.sum()) if scaled else len(self.done)
        ends = self.interval(normalized=scaled, level=level) if count > 1 else None
        if sure and ends is not None:
            shown = np.where((ends[0] <= nothing) & (nothing <= ends[1]), nothing, shown)
        interval = f"<br>{level:.0%} interval %{{customdata[0]:.3f}} to %{{customdata[1]:.3f}}"
        return of_patching(
            shown,
            self.over,
            (self.labels(self.over[0]), self.labels(self.over[1])),
            nothing=nothing,
            least=1e-9 if scaled else 2 * max(grid.noise or 0.0 for grid in self.done) or 1e-9,
            title=self.title(),
            unit="0 = corrupt, 1 = clean" if scaled else str(self.one.recipe.get("unit") or self.one.recipe["metric"]),
            hover="" if ends is None else interval,
            customdata=None if ends is None else np.stack(ends, -1),
        )

    def code(self) -> str:
        """The Python that computes this sweep again, pairs and all."""
        recipe = self.one.recipe
        how = axes_asked(recipe, self.over, self.index) | measured_by(recipe) | changed(USUAL, recipe)
        pairs = "".join(f"    {as_python(tuple(pair))},\n" for pair in self.pairs)
        before = f"{self.load}{recipe.get('metric_code', '')}pairs = [\n{pairs}]\n"
        return as_code(before, "sweep = lk.sweep", LM, Name("pairs"), **how)

    def __repr__(self) -> str:
        if not self.done:
            return f"Sweep(0 of {len(self.pairs)} pairs)"
        some = self.done[0]
        count = f"{len(self.pairs)} pairs" if self.complete else f"{len(self.done)} of {len(self.pairs)} pairs"
        failed = f", {len(self.failures)} failed" if self.failures else ""
        failed += f", {len(self.too_close)} without a gap" if self.too_close else ""
        if "position" in some.over and self.from_end is None and len(self.layouts) > 1:
            shape = f"{len(self.layouts)} layouts"
        else:
            shape = " x ".join(f"{len(n)} {name}s" for name, n in zip(self.over, self.index, strict=True))
        ends = f"clean {self.clean:.3f}, corrupt {self.corrupt:.3f}"
        return f"Sweep({some.site}, {some.direction}, {count}{failed}, {shape}, {some.recipe['metric']}: {ends})"
