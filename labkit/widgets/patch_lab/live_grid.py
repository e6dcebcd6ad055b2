"""The live grid: an estimate of every cell first, then exact cells over it, the most important ones first.

Results are kept per question: switching the site or the direction and back computes nothing again, and a grid that was
paused, stopped or saved unfinished resumes where it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.activations.metrics import label_of
from labkit.activations.sites import layers_with
from labkit.language_model import LanguageModel
from labkit.patching.cell_report import Place, cone
from labkit.patching.grid import PatchGrid
from labkit.patching.pair_runs import ENDS, PairRuns
from labkit.patching.patch import PatchJob
from labkit.patching.source_model import run_names
from labkit.patching.spec import PatchSpec
from labkit.widgets.base.tool import FRAME, minus
from labkit.widgets.blocks.heatmap import Heatmap
from labkit.widgets.patch_lab.state import POINTED, PatchState, into

TOGETHER = ("resid_pre", "attn_out", "mlp_out", "z")  # estimated in one pass: what people switch between
UNPAIRED = "no partner in the other prompt"
Say = Callable[[str, float | None], None]


@dataclass
class Known:
    """What is known of a question: exact cells (NaN where not computed), the estimate, and the job for the rest."""

    grid: PatchGrid
    estimate: np.ndarray | None = None
    job: PatchJob | None = None

    @property
    def shown(self) -> np.ndarray:
        """Exact cells, and the estimate where there are none."""
        if self.estimate is None:
            return self.grid.values
        return np.where(np.isnan(self.grid.values), self.estimate, self.grid.values)

    @property
    def estimated(self) -> np.ndarray:
        """Where what is shown is an estimate, uint8."""
        return (np.isnan(self.grid.values) & np.isfinite(self.shown)).astype(np.uint8)


class LiveGrid:
    """A heatmap that fills in, and all that is known so far. The grid that is shown is the state's, and so is what is
    pointed out in it."""

    def __init__(self, lm: LanguageModel, state: PatchState) -> None:
        self.lm, self.state = lm, state
        self.known: dict[PatchSpec, Known] = {}
        self.spec: PatchSpec | None = None
        self._runs: PairRuns | None = None
        self.heatmap = Heatmap(centre=0.0, origin="bottom", max_height=480, gestures=True)
        self.heatmap.observe(self._from_heatmap, POINTED)
        state.observe(self._to_heatmap, POINTED)

    # -- the work ------------------------------------------------------------------------------------------------

    def fill(self, spec: PatchSpec, stop: threading.Event, say: Say) -> Known:
        """Compute what is asked until `stop`; the heatmap fills on the way.

        Raises:
            ValueError: it cannot be answered; the display stays.
        """
        known = self.known.get(spec)
        if known is None or (known.job is None and not known.grid.complete):
            job = self._job(spec)
            if known is None:
                known = Known(job.grid)
            else:  # saved half done
                job.take(known.grid.values)
            known.job = job
        self.known[spec] = known
        self.show(spec)
        if known.job is not None and not stop.is_set():
            if known.estimate is None:
                say("Estimating every cell…", 0.0)
                self._estimate(known, known.job)
                self.draw()
            self._compute(known, known.job, stop, say)
        return known

    def _job(self, spec: PatchSpec) -> PatchJob:
        """The work for what is asked; what the last pair left is used if it is the same."""
        job = PatchJob(self.lm, spec)
        if self._runs is not None and self._runs.same(job.runs):
            return PatchJob(self.lm, spec, runs=self._runs)
        job.runs.together = tuple(site for site in TOGETHER if layers_with(self.lm, site))
        for known in self.known.values():
            known.job = None  # another pair's activations; its cells are kept, so it can resume
        self._runs = job.runs
        return job

    def _estimate(self, known: Known, job: PatchJob) -> None:
        try:
            known.estimate = job.estimates
        except (RuntimeError, NotImplementedError, ValueError):
            return  # no gradient, or no memory for it: exact cells need none
        if known.grid is not job.grid:
            known.grid.clean, known.grid.corrupt = job.grid.clean, job.grid.corrupt
            known.grid.recipe |= {n: v for n, v in job.grid.recipe.items() if n in ("unit", "noise", "least_gap")}

    def _compute(self, known: Known, job: PatchJob, stop: threading.Event, say: Say) -> None:
        work, begun, due = _work(job), None, 0.0
        try:
            while not known.grid.complete and not stop.is_set():  # a cancel that came too early is repeated
                for done in job.steps():
                    if stop.is_set():
                        job.cancel()
                    now = time.monotonic()
                    if known.grid is not job.grid and done >= np.isfinite(known.grid.values).sum():
                        self.state.grid = known.grid = job.grid  # it has taken over what was saved
                    finished = float(work[~np.isnan(job.grid.values)].sum())
                    begun = begun or (now, finished)
                    if now < due:
                        continue
                    self.draw()
                    say(f"{done} of {job.total} cells exact{_time_left(begun, now, finished, work)}", done / job.total)
                    due = now + FRAME
        finally:
            if known.grid.complete:
                known.job = None  # its activations are not needed any more
            self.draw()

    # -- what is shown -------------------------------------------------------------------------------------------

    def show(self, spec: PatchSpec) -> None:
        """Show what is known of a spec."""
        known, before = self.known[spec], self.spec
        if before is not None and before != spec:
            with self.state.hold_trait_notifications():
                self.state.arrow = None  # type: ignore[assignment]
                self.state.selection = None
                if (before.site, before.over, before.layer) != (spec.site, spec.over, spec.layer):
                    self.state.chosen = []
        self.spec, self.state.grid = spec, known.grid
        grid, (down, across) = known.grid, known.grid.over
        runs = run_names(grid.recipe)
        prompt = "position" if spec.source is not None else f"position ({ENDS[grid.direction][1]} prompt)"
        about = {"layer": "layer (0 at the bottom)", "position": prompt}
        other = grid.clean_tokens if grid.direction == "denoise" else grid.corrupt_tokens
        beside = [None if n is None else other[n].id for n in grid.partners]
        differ = {n for n, token in enumerate(grid.tokens) if token.id != beside[n]}
        with self.heatmap.hold_sync():
            where = "" if spec.layer is None else f" in layer {spec.layer}"
            self.heatmap.title = f"{grid.site}{where}: {into(grid.direction, runs)}"
            self.heatmap.row_labels, self.heatmap.column_labels = grid.labels(down), grid.labels(across)
            self.heatmap.row_axis, self.heatmap.column_axis = about.get(down, down), about.get(across, across)
            marked = [n for n, at in enumerate(grid.index[1]) if at in differ]
            self.heatmap.column_marks = marked if across == "position" else []
            lone = grid.unpaired
            self.heatmap.notes = [UNPAIRED * bool(one) for one in lone.ravel()] if lone.any() else []
            self.draw()
        for name in POINTED:  # selected before there was a grid to show
            self._to_heatmap({"name": name, "new": getattr(self.state, name)})

    def draw(self) -> None:
        """Bring the heatmap up to what is known."""
        assert self.spec is not None
        known = self.known[self.spec]
        values, unit = effects(known.grid, known.shown)
        exact = np.abs(values[~np.isnan(known.grid.values)])
        finite = exact if exact.any() else np.abs(values[np.isfinite(values)])
        reach = float(finite.max(initial=0.0))
        if known.grid.too_close:  # noise is not drawn in full colour
            reach = max(reach, 2 * (known.grid.noise or 0.0)) or 1.0
        else:
            reach = 1.0 if reach < 1.1 else reach  # a little beyond the whole way is the whole way
        with self.heatmap.hold_sync():
            self.heatmap.low, self.heatmap.high, self.heatmap.unit = -reach, reach, unit
            self.heatmap.estimated = known.estimated
            self.heatmap.values = values

    # -- rows and columns of the heatmap, and the numbers they stand for -------------------------------------------

    def _row(self, place: Place) -> Place | None:
        index = self.state.grid.index
        inside = place[0] in index[0] and place[1] in index[1]
        return (index[0].index(place[0]), index[1].index(place[1])) if inside else None

    def _number(self, at: Place) -> Place:
        index = self.state.grid.index
        return index[0][at[0]], index[1][at[1]]

    def _from_heatmap(self, change: Any) -> None:
        name, new = change["name"], change["new"]
        if self.state.grid is None or new is None:
            setattr(self.state, name, [] if name == "chosen" else None)
        elif name == "selection":
            self.state.selection = self._number(new)
        else:
            setattr(self.state, name, type(new)(self._number(at) for at in new))

    def _to_heatmap(self, change: Any) -> None:
        name, new = change["name"], change["new"]
        if (grid := self.state.grid) is None:
            return
        if name == "selection":
            at = None if new is None else self._row(new)
            with self.heatmap.hold_sync():
                self.heatmap.selection = at
                by_layer = grid.over[0] == "layer"  # in one layer nothing reaches anything else
                self.heatmap.cone = cone(grid, new) if at is not None and by_layer else None
        elif name == "chosen":
            self.heatmap.chosen = [at for place in new if (at := self._row(place))]
        else:
            ends = () if new is None else tuple(self._row(place) for place in new)
            self.heatmap.arrow = ends if ends and all(ends) else None  # type: ignore[assignment]


def effects(grid: PatchGrid, values: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """What to colour: the share of the way from the run that is patched to the other one, and what to call it."""
    values = grid.values if values is None else values
    base, source = (grid.corrupt, grid.clean) if grid.direction == "denoise" else (grid.clean, grid.corrupt)
    if grid.too_close or not np.isfinite(source - base):
        return values - base, f"change of {label_of(grid.recipe['metric'])}"
    from_, to = (run_names(grid.recipe)[name] for name in reversed(ENDS[grid.direction]))
    return ((values - base) / (source - base)).astype(np.float32), f"effect: 0 = {from_}, 1 = {to}"


def nothing_words(grid: PatchGrid) -> str:
    """What to add where there is nothing to explain."""
    if not grid.too_close:
        return ""
    runs = run_names(grid.recipe)
    if "source" not in grid.recipe and grid.recipe["clean_ids"] == grid.recipe["corrupt_ids"]:
        return " · the two prompts are the same: nothing to explain"
    moved = f" (re-batching alone moves it by {grid.noise:.2g})" if grid.noise else ""
    return f" · {runs['clean']} and {runs['corrupt']} hardly differ{moved}: nothing to explain"


def gap_words(grid: PatchGrid) -> str:
    """The metric on the two unpatched runs, and what to add where there is nothing to explain."""
    runs = run_names(grid.recipe)
    both = f"{runs['clean']} {grid.clean:.2f}, {runs['corrupt']} {grid.corrupt:.2f}"
    return minus(f"{label_of(grid.recipe['metric'])}: {both}{nothing_words(grid)}")


def _work(job: PatchJob) -> np.ndarray:
    """How much each cell costs, in blocks times positions, in the shape of the grid."""
    cost = [(job.lm.n_layers - cell.layer) * (job.at + 1 - (cell.position or 0)) for cell in job.cells]
    return np.where(job.grid.unpaired, 0.0, np.array(cost, np.float64).reshape(job.grid.values.shape))


def _time_left(begun: tuple[float, float], now: float, finished: float, work: np.ndarray) -> str:
    """In words, once there is something to go by."""
    seconds, share = now - begun[0], finished - begun[1]
    if seconds < 0.5 or share <= 0:
        return ""
    left = seconds * (float(work.sum()) - finished) / share
    return f" · about {left:.0f} s left" if left < 90 else f" · about {left / 60:.0f} min left"
