"""The inspector: what one patch does, or several together: the tokens, the metric, and the attention at the cell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch

from labkit.activations.metrics import label_of
from labkit.collected.collection import Collection
from labkit.language_model import LanguageModel
from labkit.patching.cell_report import CellReport, JointReport, Place, inspect, site_of, together, transplant
from labkit.patching.grid import PatchGrid
from labkit.patching.pair_runs import ENDS
from labkit.patching.source_model import run_names
from labkit.results.recipe import answer_ids
from labkit.text.tokens import describe
from labkit.widgets.base.job_queue import Work
from labkit.widgets.base.snapshot import note
from labkit.widgets.base.tool import Panel, minus, shown
from labkit.widgets.blocks.heatmap import Heatmap
from labkit.widgets.blocks.token_bars import TokenBars
from labkit.widgets.blocks.unit_panel import UnitPanel
from labkit.widgets.cell_writing import CONTINUE, PATCHSCOPE, CellWriting

HINT = (
    "Click a cell to see what the model would predict after that patch. Shift+click several to patch them together. "
    "Drag a cell onto another to put its activation there."
)
TOKENS = 6  # in each column
OF_HEADS = ("z", "head_out", "pattern", "q")  # whose heads are those that write


class Inspector(Panel):
    """Token bars before and after a patch, the effect in words, what the model writes, the attention at the cell before
    and after, and of a head or a neuron what it writes and where it is strongest in a collection.

    Args:
        continue_under, patchscope: called by the buttons that let the model write.
        units: also look at what the head or neuron of a cell writes.

    Without anything to show it takes no room, and `invitation`, which its owner places, says what can be done.
    """

    def __init__(
        self,
        lm: LanguageModel,
        collection: Collection | None = None,
        *,
        continue_under: Callable[[], Any],
        patchscope: Callable[[], Any],
        units: bool = True,
    ) -> None:
        super().__init__()
        self._units = units
        self.unit = UnitPanel(lm, collection)
        self._turn = threading.RLock()  # of whoever shows something: work, or what is pointed at
        self.bars = TokenBars()
        self.invitation = widgets.HTML(HINT)
        self.invitation.add_class("labkit-muted")
        self.attention = Heatmap(low=0.0, high=1.0, unit="attention", max_height=190)
        self.attention.layout.flex = "0 0 auto"
        self.which = widgets.ToggleButtons(options=["before", "after"], value="after", layout={"display": "none"})
        self.which.style.button_width = "64px"
        self.which.observe(lambda _: self._draw_attention(), "value")
        self._looks: dict[str, np.ndarray] = {}
        self.writing = CellWriting({"continue": (*CONTINUE, continue_under), "patchscope": (*PATCHSCOPE, patchscope)})
        self.children = [self.bars, self.writing, self.which, self.attention, self.unit]
        self.hint()

    def hint(self) -> None:
        """Show what can be done."""
        self.writing.clear()
        self._show("", "")

    def look(
        self,
        lm: LanguageModel,
        grid: PatchGrid,
        *,
        selection: Place | None = None,
        chosen: Sequence[Place] = (),
        arrow: tuple[Place, Place] | None = None,
        source: LanguageModel | None = None,
    ) -> Work | None:
        """What to compute for a drag, several cells, or one, whichever is given first; None for nothing.

        `source` is the other model of a grid between two.

        The work of an earlier call has to be stopped before this is called.
        """
        patched: Callable[[], CellReport]
        if arrow is not None:
            title, place = move_words(grid, arrow), arrow[1]
            patched = partial(transplant, lm, grid, *arrow, k=TOKENS, source=source)
        elif chosen:
            title, place = joint_words(grid, chosen), chosen[0]
            patched = partial(together, lm, grid, chosen, k=TOKENS, source=source)
        elif selection is not None:
            title, place = place_words(grid, selection), selection
            patched = partial(inspect, lm, grid, *selection, k=TOKENS, source=source)
        else:
            self.hint()
            return None
        self.writing.clear()
        self._show(title, "Computing…")

        def work(stop: threading.Event) -> None:
            if stop.is_set():
                return
            try:
                report = patched()
            except ValueError:
                with self._turn:
                    if not stop.is_set():
                        self.hint()
                raise
            base = run_names(grid.recipe)[ENDS[grid.direction][1]] + (" prompt" if source is None else "")
            columns = {f"before: {base}": report.before, "after the patch": report.after}
            ids = [id for id in answer_ids(lm, grid.recipe) if id is not None]
            marked = [token.display for token in describe(lm.tokenizer, ids)]
            with self._turn:
                if not stop.is_set():  # something else, or nothing, was pointed at meanwhile
                    self._show(title, _report_words(grid, report), columns, marked)
                    self._show_attention(grid, place, report)
            if arrow is None and not chosen and self._units:
                self._show_unit(grid, place, report, stop)

        return work

    def _show(
        self,
        title: str,
        words: str,
        columns: Mapping[str, Any] | None = None,
        marked: Sequence[str] = (),
    ) -> None:
        with self._turn:
            shown(self, bool(title))
            shown(self.invitation, not title)
            self._looks = {}
            self._draw_attention()
            self.unit.clear()
            self.bars.marked = list(marked)
            self.bars.show(columns or {}, title=title, note=words)

    def _show_attention(self, grid: PatchGrid, place: Place, report: CellReport) -> None:
        if report.attention_before is None or report.attention_after is None:
            return
        self._looks = {"before": report.attention_before, "after": report.attention_after}
        names = dict(zip(grid.over, place, strict=True))
        tokens = [token.display for token in grid.tokens]
        looker = names.get("position")
        with self.attention.hold_sync():
            self.attention.column_labels = tokens
            self.attention.column_axis = "key (the token looked at)"
            if looker is not None:
                heads = [names["head"]] if "head" in names else range(len(report.attention_after))
                self.attention.row_labels = [str(n) for n in heads]
                self.attention.row_axis, self.attention.square = "head", False
            else:
                self.attention.row_labels, self.attention.row_axis, self.attention.square = tokens, "query", True
        self._draw_attention()

    def _show_unit(self, grid: PatchGrid, place: Place, report: CellReport, stop: threading.Event) -> None:
        """What the head or neuron of a cell writes, and where it is strongest."""
        site = site_of(grid, place)
        if site.head is None or site.kind not in (*OF_HEADS, "mlp_act") or stop.is_set():
            return
        kind = "z" if site.kind in OF_HEADS else site.kind
        layer, number = site.layer, site.head
        assert layer is not None
        try:
            if kind == "mlp_act":
                self.unit.write(lambda writer: writer.neuron(layer, number), stop)
            elif report.attention_after is not None:
                looks = report.attention_after  # (query, key), or (head, key) at a position
                row = looks[0 if len(looks) == 1 else number] if "position" in grid.over else looks[-1]
                rest = row[1:] if len(row) > 1 and row[1:].any() else row  # most heads rest on the first token
                looked = len(row) - len(rest) + int(np.argmax(rest))
                ids = torch.tensor([[token.id for token in grid.tokens]])  # of the run that is patched
                self.unit.write(lambda writer: writer.head(layer, number, ids, looked), stop)
        except ValueError:
            pass  # weights that say nothing; the patch itself is shown
        self.unit.exemplify(f"{kind}.{layer}.{number}", stop)

    def _draw_attention(self) -> None:
        pattern = self._looks.get(self.which.value)
        for part in (self.which, self.attention):
            shown(part, pattern is not None)
        if pattern is None:
            return
        with self.attention.hold_sync():
            self.attention.selection = self.attention.hovered = None
            self.attention.title = f"Where it looks, {self.which.value} the patch"
            self.attention.values = pattern

    def picture(self) -> str:
        """What is shown as HTML, for the snapshot of the tool."""
        if not self.bars.columns:
            return ""
        looks = note(self.attention.title) + self.attention.picture() if self._looks else ""
        bars = note(self.bars.title) + self.bars.picture() + note(self.bars.note)
        return bars + self.writing.picture() + looks + self.unit.picture()


def _report_words(grid: PatchGrid, report: CellReport) -> str:
    """The effect; of several cells, with the single effects."""
    if not isinstance(report, JointReport):
        return effect_words(grid, report)
    singles = f": {' '.join(f'{one:+.2f}' for one in report.singles)}" if len(report.singles) <= 8 else ""
    words = f"together {effect_words(grid, report)}\nsum of single patches {report.sum:+.2f}{singles}"
    return minus(words)


def effect_words(grid: PatchGrid, report: CellReport) -> str:
    """The change of the metric, and where that is between the two runs."""
    if not np.isfinite(report.effect):
        return "not computed yet"
    words = f"{report.effect:+.2f} {label_of(grid.recipe['metric'])}"
    if np.isfinite(report.normalized) and not grid.too_close:
        runs = run_names(grid.recipe)
        words += f"\n{report.normalized:.2f} on the scale from {runs['corrupt']} (0) to {runs['clean']} (1)"
    return minus(words)


def place_words(grid: PatchGrid, place: Place) -> str:
    """A cell in words: `Layer 5, position 9 ·John`."""
    labels = [grid.labels(axis)[grid.index[n].index(place[n])] for n, axis in enumerate(grid.over)]
    return f"{grid.over[0].capitalize()} {labels[0]}, {grid.over[1]} {labels[1]}"


def move_words(grid: PatchGrid, ends: tuple[Place, Place]) -> str:
    """A drag in words."""
    here, there = (place_words(grid, place) for place in ends)
    return f"{here} → {there[:1].lower()}{there[1:]}"


def joint_words(grid: PatchGrid, cells: Sequence[Place]) -> str:
    """Several cells in words."""
    if len(cells) > 4:
        return f"{len(cells)} cells together"
    return " + ".join(f"{grid.over[0]} {a} {grid.over[1]} {b}" for a, b in cells).capitalize()
