"""What a model writes under the patch of one cell, beside what it writes without it.

A grid says how far a patch moves a metric; the text says what the model then does. The prompt of the patched run is
read once with the source's activation in the cell, as in the run behind the cell's value, and written on greedily. The
patch acts on the prompt alone: what is written afterwards sees it through the keys and values of the prompt.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.hooks import Edit, Place
from labkit.activations.site_kinds import BY_QUERY
from labkit.elsewhere import where_the_model_is
from labkit.engine.cells import Cell, layers_of, put_cell
from labkit.generation.generate import Begun, room_for
from labkit.generation.loop import extend_records
from labkit.generation.result import Generation, generation_of
from labkit.generation.sampling import Sampling
from labkit.language_model import LanguageModel
from labkit.patching.cell_report import models_of
from labkit.patching.grid import USUAL, PatchGrid, axes_asked
from labkit.patching.pair_runs import ENDS, engine_kind
from labkit.patching.patch import PatchJob
from labkit.patching.perturbations import perturbation_from
from labkit.patching.source_model import run_names
from labkit.patching.spec import PatchSpec
from labkit.results.figures import heatmap, width_for
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.recipe import code_of
from labkit.text.as_code import LM, Name, as_call

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "continued"
AXES = ("layer", "head", "neuron", "position")
TOKENS = 20  # that are written unless more are asked for


@dataclass(frozen=True, repr=False)
class Continued:
    """What a model writes without a patch and under it.

    Attributes:
        before, after: the two texts, each a `Generation`.
        cell: the cell by its axes, such as `{"layer": 21, "position": 13}`.
        recipe: what repeats it.
    """

    before: Generation
    after: Generation
    cell: dict[str, int]
    recipe: dict[str, Any] = field(repr=False)

    @property
    def parts(self) -> int | None:
        """The first token that differs, counted from 0; None if the shorter text is all there is of both."""
        both = zip(self.before.record.ids, self.after.record.ids, strict=False)
        return next((n for n, (a, b) in enumerate(both) if a != b), None)

    def to_frame(self) -> pd.DataFrame:
        """One row per token of each text: which text, its number there, and what a `Generation` says about it."""
        import pandas as pd

        frames = {"before": self.before.to_frame(), "after": self.after.to_frame()}
        return pd.concat(frames, names=["written", "token"]).reset_index()

    def figure(self) -> go.Figure:
        """The two texts token by token, coloured by the probability that each token had."""
        texts = {"after": self.after, "before": self.before}  # from the bottom
        length = max(1, *(len(one.record) for one in texts.values()))
        values, words = np.full((2, length), np.nan), [[""] * length for _ in texts]
        for row, one in enumerate(texts.values()):
            for n, token in enumerate(one.tokens):
                values[row, n] = token.probability
                words[row][n] = token.token.display
        return heatmap(
            values,
            x=list(range(length)),
            y=list(texts),
            axes=("written token", "patch"),
            title=f"{self.recipe['site']}, {cell_words(self.cell)}: what is written without the patch, and under it",
            unit="probability",
            hover="%{y}, token %{x}: %{hovertext}<br>%{z:.3f}",
            size=(max(560, width_for(length, least=50, most=64)), 260),
            colours="Blues",
            ends=(0, 1),
            words=words,
        )

    def code(self) -> str:
        """The Python that writes both again: the grid of this one cell, and the texts."""
        return self.recipe["grid"] + call_of(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_continued` reads it."""
        texts = {name: getattr(self, name).about(Path(path)) for name in ("before", "after")}
        return save_arrays(path, FILE, texts | {"cell": self.cell, "recipe": self.recipe})

    def __repr__(self) -> str:
        return (
            f"Continued({self.recipe['site']}, {cell_words(self.cell)}: {self.before.text!r:.60} -> "
            f"{self.after.text!r:.60})"
        )


def open_continued(path: str | os.PathLike[str]) -> Continued:
    """Open what `Continued.save` wrote. No model is needed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, _ = open_arrays(path, FILE)
    with reading(path, FILE):
        before, after = (generation_of(about[name], Path(path), {}) for name in ("before", "after"))
        return Continued(before, after, {axis: int(n) for axis, n in about["cell"].items()}, about["recipe"])


@where_the_model_is
def continue_under(
    lm: LanguageModel,
    grid: PatchGrid,
    *,
    layer: int | None = None,
    head: int | None = None,
    neuron: int | None = None,
    position: int | None = None,
    max_new_tokens: int = TOKENS,
    draw: int = 0,
    source: LanguageModel | None = None,
    stop: threading.Event | None = None,
) -> Continued:
    """Write on under the patch of one cell of a grid, and without it: greedily, after the position that the metric
    reads.

    What is put into the cell, and where, is what the grid has: its direction, window, alignment and perturbation, and
    for a grid between two models the other one. The model reads the prompt as in the run behind the cell's value, so
    the first token is chosen from the distribution that was measured there.

    Args:
        lm: the model that was given to `patch`.
        grid: what `patch` gave.
        layer, head, neuron, position: the cell, a number for each of the grid's axes.
        max_new_tokens: the most tokens to write.
        draw: of a grid with `by=lk.Resample(...)` or `lk.Noise(...)`, whose cells are means over several draws, which
            of them, counted from 0.
        source: of a grid between two models, the one that was given to `patch` as `source`.
        stop: an event that, once set from any thread, ends the writing within one token.

    Returns:
        A `Continued`. After an interrupt, with a warning, it has what was written until then.

    Raises:
        ValueError: the cell is not in the grid, has no value, or has no partner in the other prompt; there is no such
            draw; `source` is missing, or superfluous; or there is no room for the text in the context.
    """
    given = {"layer": layer, "head": head, "neuron": neuron, "position": position}
    cell = _cell(grid, {axis: int(n) for axis, n in given.items() if n is not None})
    models = models_of(lm, grid, source)
    job = PatchJob(lm, _one_cell(grid, cell, source))
    lanes, base = job.runs.lanes, ENDS[grid.direction][1]
    if not 0 <= draw < len(lanes):
        several = f"counted from 0: it has {len(lanes)}" if len(lanes) > 1 else "and it has one: leave draw out"
        raise ValueError(f"draw={draw} is none of the grid's draws, {several}")
    lane = lanes[draw]
    prompt, sampling = lane.ids[base], Sampling(max_new_tokens)
    room_for(models[base], prompt, max_new_tokens)
    kind, (place,) = engine_kind(job.site), job.cells
    taken, others = lane.put_in(grid.direction, kind), lane.edits(base)
    layers = [n for n in layers_of(place, job.spec.window, job.base.n_layers) if n in taken]
    patch: dict[Place, Edit] = {(kind, n): partial(_put, taken[n], kind, place) for n in layers}
    texts: list[Generation] = []
    for edits in ({**others, **patch}, others):  # what is asked for first, should there be an interrupt
        begun = Begun(models[base], prompt, sampling, edits=edits)
        begun.recipe |= _named(edits, grid.site, kind)
        if texts and (texts[0].finish == "stopped" or (stop is not None and stop.is_set())):
            texts.append(begun.result("stopped", 0.0, 0.0))
        else:
            texts.append(begun.result(*extend_records(models[base], [begun.draft], stop=stop)[0]))
    after, before = texts
    recipe = {
        "grid": _code_of_one(grid, cell), "site": grid.site,
        "base": run_names(grid.recipe)[base], "source": source is not None,
        "max_new_tokens": max_new_tokens, "draw": draw,
    }  # fmt: skip
    return Continued(before, after, cell, recipe)


def call_of(continued: Continued) -> str:
    """The Python that writes both texts, where `lm` and `grid` are there, and `source` if there is one."""
    recipe = continued.recipe
    more: dict[str, Any] = dict(continued.cell)
    more |= {name: recipe[name] for name, usual in (("max_new_tokens", TOKENS), ("draw", 0)) if recipe[name] != usual}
    more |= {"source": Name("source")} if recipe["source"] else {}
    return as_call("continued = lk.continue_under", LM, Name("grid"), **more)


def cell_words(cell: Mapping[str, int]) -> str:
    """A cell in words: `layer 21, position 13`."""
    return ", ".join(f"{axis} {n}" for axis, n in cell.items())


def _cell(grid: PatchGrid, cell: dict[str, int]) -> dict[str, int]:
    """The cell, in the order of the grid's axes.

    Raises:
        ValueError: it is not in the grid, has no partner, or no value.
    """
    if "kind" in grid.recipe:
        raise ValueError("only the cells of a grid that `patch` gave are continued; this grid is of paths")
    if "layer" not in grid.over and cell.get("layer") == grid.recipe["layer"]:
        del cell["layer"]  # that of the whole grid
    if set(cell) != set(grid.over):
        needed = ", ".join(f"{axis}=" for axis in grid.over)
        raise ValueError(f"a cell of this grid is named by {needed.rstrip()}; got {cell_words(cell) or 'none of them'}")
    cell = {axis: cell[axis] for axis in grid.over}
    if any(n not in numbers for n, numbers in zip(cell.values(), grid.index, strict=True)):
        raise ValueError(f"the grid has no cell at {cell_words(cell)}")
    at = tuple(numbers.index(n) for n, numbers in zip(cell.values(), grid.index, strict=True))
    if grid.unpaired[at]:
        raise ValueError(
            f"position {cell['position']} has no partner in the other prompt, so nothing can be put there; choose a "
            "cell that is not hatched"
        )
    if np.isnan(grid.values[at]):
        raise ValueError(f"the cell at {cell_words(cell)} has no value yet; compute the grid first")
    return cell


def _one_cell(grid: PatchGrid, cell: Mapping[str, int], source: LanguageModel | None) -> PatchSpec:
    """What was asked, for one cell alone; the metric is not needed."""
    recipe = grid.recipe
    ids = {name: torch.tensor([recipe[f"{name}_ids"]]) for name in ("clean", "corrupt")}
    alone = source is not None or "by" in recipe
    layer = cell.get("layer", recipe.get("layer"))
    spans = recipe.get("alignment")
    only: dict[str, Any] = {f"{axis}s": [n] for axis, n in cell.items() if axis != "layer"}
    return PatchSpec(
        ids["clean"], None if alone else ids["corrupt"],  # type: ignore[arg-type]
        metric=_nothing, at=recipe["at"], site=grid.site, direction=grid.direction, over=grid.over, source=source,
        layers=None if layer is None else [layer], alignment=spans and [tuple(map(tuple, span)) for span in spans],
        by=perturbation_from(recipe["by"]) if "by" in recipe else "prompt", window=recipe.get("window", 1),
        **only,
    )  # fmt: skip


def _nothing(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0]


def _named(edits: Mapping[tuple[str, int], Any], site: str, kind: str) -> dict[str, Any]:
    """What is written, as the recipe of a generation names what has no source of its own."""
    if not edits:
        return {}
    sites = [name if name == "embed" else f"{site if name == kind else name}.{n}" for name, n in edits]
    about = f"# patched: what lk.continue_under put into {', '.join(sites)}\n"
    return {"write": dict.fromkeys(sites, "patched"), "write_code": about, "write_at": "prompt"}


def _code_of_one(grid: PatchGrid, cell: Mapping[str, int]) -> str:
    index = tuple([cell[axis]] for axis in grid.over)
    return code_of(grid.recipe, "grid = lk.patch", axes_asked(grid.recipe, grid.over, index), usual=USUAL)


def _put(source: torch.Tensor, kind: str, cell: Cell, x: torch.Tensor) -> torch.Tensor:
    """The prompt's part (1, seq, ...) with a cell's part of the source's (seq, ...) in it.

    Without a cache the prompt is read again with the text after it, which it cannot see: its patterns are wider then.
    """
    x = x.clone()
    within = x[0][..., : source.shape[-1]] if kind in BY_QUERY else x[0]
    put_cell(within, source.to(x), kind, cell)
    return x
