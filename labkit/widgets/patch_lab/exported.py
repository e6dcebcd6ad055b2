"""What an exported grid holds: every grid of the pair that is known, and a close look at its strongest cells."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from labkit.language_model import LanguageModel
from labkit.patching.cell_report import Place, cone
from labkit.patching.grid import PatchGrid
from labkit.patching.spec import PatchSpec
from labkit.widgets.base.block import to_wire
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.export.contents import Contents, look_of, page_choice, silent
from labkit.widgets.patch_lab.inspector import Inspector
from labkit.widgets.patch_lab.live_grid import LiveGrid, effects, gap_words
from labkit.widgets.patch_lab.state import PatchState

STRONGEST = 48
CLICK = "Click a cell to see what the model would predict after that patch. In this file are the {} strongest cells."
ABSENT = "What the model would predict after this patch is not in this file: export with cells=[{}] to put it in."


def exported(
    into: Contents,
    tool: Any,
    *,
    lm: LanguageModel,
    live: LiveGrid,
    inspector: Inspector,
    status: StatusLine,
    controls: Any,
    cells: Sequence[Place],
    strongest: int,
) -> str | None:
    """Fill the contents; the id of the whole.

    Args:
        tool: the whole.
        controls: what chooses a grid in a notebook; the page has the grids that are known in its place.
        cells: those that are looked at closely beside the strongest, as (layer, position or head).
        strongest: how many of these there are, over all grids.
    """
    now = live.spec
    assert now is not None
    pair = lambda spec: (spec.clean, spec.corrupt, spec.alignment)  # noqa: E731
    specs = [now, *(spec for spec in live.known if spec != now and pair(spec) == pair(now))]
    for place in cells:
        if not any(_inside(live.known[spec].grid, place) for spec in specs):
            raise ValueError(f"no grid of this pair has a cell {place}")
    grids = LiveGrid(lm, PatchState())
    silent(grids.heatmap).gestures = False
    grids.known = live.known
    names = _names(grids, specs)
    which = page_choice("Grid", list(zip(names, range(len(specs)), strict=True)), 0)
    root = into.show(tool, live=[which], instead={controls: which if len(specs) > 1 else None})
    grids.show(now)
    into.set(live.heatmap, **look_of(grids.heatmap))
    into.set(status, text=_about(live.known[now].grid), kind="info", share=None)
    on = [(which, "value"), (live.heatmap, "selection")] if len(specs) > 1 else [(live.heatmap, "selection")]
    if len(specs) > 1:
        shown = into.switch((which, "value"))
        for n, spec in enumerate(specs):
            grids.show(spec)
            nothing: dict[str, Any] = {"selection": None, "chosen": [], "arrow": None, "cone": None} if n else {}
            line = {"text": _about(live.known[spec].grid), "kind": "info", "share": None}
            shown.when(n, parts={live.heatmap: look_of(grids.heatmap) | nothing, status: line})
    parts = _Closer(into, inspector, live)
    close = into.switch(*on, otherwise=parts.absent(ABSENT.format("(" + ", ".join(live.known[now].grid.over) + ")")))
    each = -(-strongest // len(specs))
    count = 0
    for n, spec in enumerate(specs):
        key = (n,) if len(specs) > 1 else ()
        close.when(*key, None, parts=parts.nothing())
        grid = live.known[spec].grid
        first = [live.state.selection] if spec == now and live.state.selection is not None else []
        for place in _cells(grid, [*first, *cells], each):
            scratch = parts.look(lm, grid, place, spec)
            at = [index.index(number) for index, number in zip(grid.index, place, strict=True)]
            if not close.when(*key, at, parts=scratch, optional=True):
                break
            count += 1
    into.set(inspector.invitation, text=CLICK.format(count))
    return root


class _Closer:
    """The inspector of the page, in each of its states."""

    def __init__(self, into: Contents, inspector: Inspector, live: LiveGrid) -> None:
        self.into, self.there, self.heatmap = into, inspector, live.heatmap
        self.scratch: Inspector | None = None

    def look(self, lm: LanguageModel, grid: PatchGrid, place: Place, spec: PatchSpec) -> dict[Any, Any]:
        """What the inspector shows of a cell."""
        if self.scratch is None:
            self.scratch = silent(Inspector(lm, continue_under=lambda: None, patchscope=lambda: None, units=False))
        work = self.scratch.look(lm, grid, selection=place, source=spec.source)
        assert work is not None
        work(threading.Event())
        reach = to_wire(cone(grid, place), None) if grid.over[0] == "layer" else None
        return {
            self.there: {"hidden": False},
            self.there.invitation: {"hidden": True},
            self.there.bars: self.scratch.bars,
            self.there.attention: self.scratch.attention,
            self.heatmap: {"cone": reach},
        }

    def nothing(self) -> dict[Any, Any]:
        return {self.there: {"hidden": True}, self.there.invitation: {"hidden": False}, self.heatmap: {"cone": None}}

    def absent(self, words: str) -> dict[Any, Any]:
        return {
            self.there: {"hidden": False},
            self.there.invitation: {"hidden": True},
            self.there.bars: {"columns": [], "title": "Not in this file", "note": words},
            self.there.attention: {"hidden": True},
            self.heatmap: {"cone": None},
        }


def _names(grids: LiveGrid, specs: list[PatchSpec]) -> list[str]:
    """The grids by their title, with answer, foil, axes or metric where only these tell them apart."""
    names = []
    for spec in specs:
        grids.show(spec)
        names.append(grids.heatmap.title)
    for more in (
        lambda spec: " × ".join(spec.over or ()),
        lambda spec: f"{spec.answer!r}" + (f" over {spec.foil!r}" if spec.foil else ""),
        lambda spec: str(spec.metric or "automatic metric"),
    ):
        alike = [names.count(name) > 1 for name in names]
        names = [f"{name} · {more(spec)}" if one else name for name, spec, one in zip(names, specs, alike, strict=True)]
    return names


def _about(grid: PatchGrid) -> str:
    done = int(np.isfinite(grid.values).sum())
    every = int((~grid.unpaired).sum())
    return f"{every} cells · {gap_words(grid)}" if done == every else f"{done} of {every} cells · {gap_words(grid)}"


def _cells(grid: PatchGrid, first: list[Place], most: int) -> list[Place]:
    """The cells to look at closely: those that were asked for, then the strongest."""
    values, _ = effects(grid)
    strength = np.where(np.isfinite(values), np.abs(values), -1.0)
    order = np.argsort(-strength, axis=None, kind="stable")[: int((strength > 0).sum())]
    places = [tuple(np.unravel_index(int(n), values.shape)) for n in order[:most]]
    strongest = [(grid.index[0][int(row)], grid.index[1][int(column)]) for row, column in places]
    asked = [(int(row), int(column)) for row, column in first]
    return list(dict.fromkeys([*(place for place in asked if _inside(grid, place)), *strongest]))


def _inside(grid: PatchGrid, place: Place) -> bool:
    return place[0] in grid.index[0] and place[1] in grid.index[1]
