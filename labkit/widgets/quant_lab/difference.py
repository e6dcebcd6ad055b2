"""The same grid in two models, and the difference between the two."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets
import numpy as np
import traitlets as t

from labkit.language_model import LanguageModel
from labkit.patching.grid import PatchGrid
from labkit.patching.spec import PatchSpec
from labkit.precision.findings import correlation, overlap
from labkit.widgets.base.snapshot import note
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.base.tool import Panel, minus, shown
from labkit.widgets.blocks.heatmap import Heatmap
from labkit.widgets.patch_lab.live_grid import Known, LiveGrid, Say
from labkit.widgets.patch_lab.state import PatchState

K = 10  # strongest cells that are compared
RUNS = {"own": "corrupt", "source": "clean"}


class DifferencePanel(Panel):
    """Three heatmaps, of which one is shown: this model's, the source's, and the first minus the second.

    Args:
        models: `own` and `source`.
        names: what to call the source, `clean`, and the model looked at, `corrupt`.

    Traits:
        which: `own`, `source` or `difference`.
    """

    which = t.Enum((*RUNS, "difference"), "difference")

    def __init__(self, models: Mapping[str, LanguageModel], names: Mapping[str, str]) -> None:
        super().__init__()
        self.names = {which: names[run] for which, run in RUNS.items()}
        self.lives = {which: LiveGrid(lm, PatchState()) for which, lm in models.items()}
        self._at = "own"  # which is computed
        self._toggle = widgets.ToggleButtons(
            options=[*((name, which) for which, name in self.names.items()), ("difference", "difference")],
            tooltips=["This model's grid", "The source's grid", "This model's minus the source's"],
        )
        self._toggle.style.button_width = "auto"
        self.heatmap = Heatmap(centre=0.0, origin="bottom", max_height=480)
        self.heatmaps = {**{which: live.heatmap for which, live in self.lives.items()}, "difference": self.heatmap}
        self.words = StatusLine()
        for one in self.heatmaps.values():
            one.gestures, one.layout.max_width = False, "760px"
        for live in self.lives.values():
            t.link((live.heatmap, "selection"), (self.heatmap, "selection"))
        t.link((self, "which"), (self._toggle, "value"))
        self.observe(lambda _: self._choose(), "which")
        self.children = [self._toggle, *self.heatmaps.values(), self.words]
        self._choose()

    def _choose(self) -> None:
        for which, heatmap in self.heatmaps.items():
            shown(heatmap, which == self.which)

    def fill(self, spec: PatchSpec, stop: threading.Event, say: Say) -> bool:
        """Compute both grids until `stop`; is everything there?

        Raises:
            ValueError: one of them cannot be computed; the display stays.
        """
        for n, (which, live) in enumerate(self.lives.items()):
            self._at = which

            def tell(text: str, share: float | None, which: str = which, n: int = n) -> None:
                say(f"{self.names[which]}: {text}", None if share is None else (n + share) / 2)
                self.draw()

            known = live.fill(spec, stop, tell)
            self.draw()
            if not known.grid.complete:
                return False
        return True

    @property
    def working(self) -> Known | None:
        """What is known of the grid that is being computed."""
        live = self.lives[self._at]
        return None if live.spec is None else live.known.get(live.spec)

    @property
    def grids(self) -> dict[str, PatchGrid]:
        """By `own` and `source` the grid, so far; those of one question."""
        specs = {live.spec for live in self.lives.values()}
        found = {which: live.state.grid for which, live in self.lives.items()}
        return found if len(specs) == 1 and None not in specs else {}

    @property
    def difference(self) -> np.ndarray | None:
        """This model's normalised grid minus the source's, float32 in the grids' shape; NaN where not computed."""
        grids = self.grids
        return grids["own"].normalized - grids["source"].normalized if grids else None

    def draw(self) -> None:
        """Bring the difference up to what is known."""
        values, grids = self.difference, self.grids
        if values is None:
            self.heatmap.values = None
            self.words.say("")
            return
        live, own, theirs = self.lives["own"].heatmap, *(grids[which].normalized for which in RUNS)
        reach = np.ceil(20 * float(np.abs(values[np.isfinite(values)]).max(initial=0.05))) / 20
        with self.heatmap.hold_sync():
            for name in ("row_labels", "column_labels", "row_axis", "column_axis", "column_marks"):
                setattr(self.heatmap, name, getattr(live, name))
            here, there = self.names.values()
            self.heatmap.title = f"{live.title}, {here} minus {there}"
            self.heatmap.unit = "difference of effects"
            self.heatmap.low, self.heatmap.high = -reach, reach
            self.heatmap.notes = [
                minus(f"{d:+.2f}: {here} {a:.2f}, {there} {b:.2f}")
                for d, a, b in zip(values.flat, own.flat, theirs.flat, strict=True)
            ]
            self.heatmap.values = values
        self.words.say(agreement(grids["own"], grids["source"], (here, there)) if np.isfinite(values).all() else "")

    def picture(self) -> str:
        """What is shown as HTML, for the snapshot of the tool."""
        heatmap = self.heatmaps[self.which]
        return f"{note(heatmap.title)}<div>{heatmap.picture()}</div>{note(self.words.text)}"


def agreement(own: PatchGrid, theirs: PatchGrid, names: tuple[Any, Any]) -> str:
    """How far two grids of one question lead to the same conclusions, in a sentence; `compare_findings` has more."""
    if own.too_close or theirs.too_close:
        which = names[0] if own.too_close else names[1]
        return f"In {which} the clean and corrupt runs hardly differ: the difference is rounding."
    a, b = ((grid.values - grid.unpatched).ravel() for grid in (own, theirs))
    k = min(K, a.size)
    words = f"Of the {k} strongest cells in {names[1]}, {round(k * overlap(a, b, k))} are among those in {names[0]}"
    ranks = correlation(a, b)
    return f"{words}; rank correlation {ranks:.2f}." if np.isfinite(ranks) else f"{words}."
