"""PatchLab: two prompts side by side, and what each activation of one does in the other.

The tool has four parts: the pair (`pair_editor`), the grid (`live_grid`), the details of a cell (`inspector`) and the
sanity checks (`sanity_panel`). What they share is in `state`. This file puts them together.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from labkit.activations.site_kinds import KINDS
from labkit.datasets.tasks import task
from labkit.language_model import LanguageModel
from labkit.patching.cell_report import Move, Place, code_of, site_of
from labkit.patching.grid import PatchGrid
from labkit.patching.metrics import label_of
from labkit.patching.patch import PatchJob
from labkit.patching.spec import PatchSpec
from labkit.sanity.report import Controls
from labkit.text.as_code import LM, as_code
from labkit.widgets.base.snapshot import card, note
from labkit.widgets.base.tool import Tool, button, row
from labkit.widgets.patch_lab.file import open_lab, save_lab
from labkit.widgets.patch_lab.inspector import Inspector
from labkit.widgets.patch_lab.live_grid import Known, LiveGrid, nothing_words
from labkit.widgets.patch_lab.pair_editor import PairEditor
from labkit.widgets.patch_lab.patch_controls import PatchControls
from labkit.widgets.patch_lab.sanity_panel import SanityPanel
from labkit.widgets.patch_lab.state import ASKED, PAIR, POINTED, Over, PatchState

PAIRS = 12  # of the task that a pair comes from: for the control over many pairs


class _Open:
    """`PatchLab.open(lm, path)` opens a saved lab; `open()` of a widget is what ipywidgets opens its channel with."""

    def __get__(self, lab: PatchLab | None, kind: type[PatchLab]) -> Callable[..., Any]:
        return kind._open if lab is None else super(PatchLab, lab).open


class PatchLab(Tool, PatchState):
    """Activation patching live: an estimate at once, exact cells over it as they are computed.

    Click a cell to see what the model would then predict; Shift+click several to patch them together; drag a cell onto
    another to put its activation there.

    Args:
        lm: the model.
        clean: the prompt with the behaviour to explain.
        corrupt: one with the same number of tokens that lacks it.
        answer: the token that clean calls for, with its space: `" Mary"`.
        foil: the token that corrupt calls for; may be empty.
        metric: the name of a metric, as for `lk.patch`.
        site: which activation is patched.
        over: the grid's axes: `("layer", "position")`; for a site by head also `("layer", "head")`, and in one layer
            `("head", "position")`; for `mlp_act`, in one layer, `("neuron", "position")`.
        layer: the layer of a grid over a single one; by default the middle one, or that of the last cell selected.
        direction: `denoise` puts clean into corrupt, `noise` corrupt into clean.
        chosen: cells to patch together, such as `[(23, 3), (20, 0)]`.
        background: work in a thread of its own; the default everywhere but in Colab.

    Traits:
        clean, corrupt, answer, foil, metric, site, over, layer, direction: the settings.
        grid: the `PatchGrid`, as `labkit.patch` gives it; fills with exact cells while it is computed.
        selection: (layer, position or head) of the selected cell.
        chosen: cells that are patched together.
        arrow: ((layer, position), (layer, position)): the first cell's activation is put at the second.
    """

    def __init__(
        self,
        lm: LanguageModel,
        clean: str = "",
        corrupt: str = "",
        answer: str | None = None,
        foil: str | None = None,
        *,
        metric: str | None = None,
        site: str = "resid_pre",
        over: Over | None = None,
        layer: int | None = None,
        direction: str = "denoise",
        chosen: Sequence[Place] = (),
        background: bool | None = None,
    ) -> None:
        super().__init__(lm, background=background)
        # Queues of their own: a click or a keystroke does not cancel the grid.
        self._close_look, self._offers, self._doubts = (self.another_queue() for _ in range(3))
        self._paused = False
        self._asked: PatchSpec | None = None
        self._computing = 0  # requested grids that have not ended
        self.site, self.direction, self.metric = site, direction, metric or ""
        self.over = over or KINDS[site].usual
        self.layer = lm.n_layers // 2 if layer is None else layer
        self.pair = PairEditor(lm, self, ask=lambda work: self.do(work, queue=self._offers), submit=self.start)
        self.live = LiveGrid(lm, self)
        self.inspector = Inspector()
        self.controls = SanityPanel(lm, check=self.begin_checks)
        self.heatmap, self.bars = self.live.heatmap, self.inspector.bars
        self.what = PatchControls(lm, self)
        self.pause_button = button(
            "Pause", lambda: self.start() if self._paused else self.pause(), "Pause; Resume continues", disabled=True
        )
        self.stop_button.description = "Cancel"
        self.pair.use(clean, corrupt, answer or "", foil or "")
        self.chosen = [tuple(place) for place in chosen]
        self.observe(lambda _: self._again(), [name for name in ASKED if name not in PAIR])
        self.observe(lambda _: self.controls.forget(ready=self.grid.complete), "grid")
        self.observe(lambda _: self._look(), POINTED)
        self.heatmap.layout.flex, self.heatmap.layout.max_width = "1 1 420px", "760px"  # as wide with the inspector
        self.inspector.layout.flex, self.inspector.layout.width = "0 0 auto", "280px"
        self.children = [
            self.pair,
            self.what,
            row(self.run_button, self.pause_button, self.stop_button, self.status),
            row(self.heatmap, self.inspector, wide=True),
            self.inspector.invitation,
            self.controls,
        ]
        if self.pair.fits and answer:
            self.start()
            if self.chosen:
                self._look()
        elif self.pair.fits:
            self.status.say("Choose an answer and a foil from the model's own predictions, then run.")
        self.pair.offer()

    # -- the grid ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Compute what is not known yet for the current settings; any running work here is cancelled."""
        self._halt()
        self._paused = False
        self._go_on()

    def _go_on(self) -> None:
        self._computing += 1
        self._asked = self.spec()
        self.pause_button.description, self.pause_button.disabled = "Pause", False
        self.do(self._patch)

    def run(self, timeout: float | None = None) -> PatchGrid:
        """Compute the grid, and wait until it is done. Raises what `wait` raises."""
        self.start()
        self.wait(timeout)
        return self.grid

    def pause(self) -> None:
        """Stop soon, to resume with `start()`; what is done is kept."""
        self._paused = True
        self._halt()

    def stop(self) -> None:
        """Cancel what is running or paused; what is done is kept."""
        paused, self._paused = self._paused, False
        self._halt()
        self._close_look.stop()
        self._doubts.stop()
        self.controls.stop()
        if paused and not self._computing:
            self._stopped()
            self._settle()

    def _halt(self) -> None:
        self.queue.stop()
        if self._working is not None and (job := self._working.job) is not None:
            job.cancel()  # it ends before the model's next block; the event alone, after the chunk

    @property
    def _working(self) -> Known | None:
        """What is known of the question that is shown, and worked on."""
        return None if self.live.spec is None else self.live.known.get(self.live.spec)

    def _patch(self, stop: threading.Event) -> None:
        try:
            self._fill(stop)
        finally:
            self._computing -= 1

    def _fill(self, stop: threading.Event) -> None:
        began, spec = time.monotonic(), self.spec()
        before = self.live.known.get(spec)
        how = "computed before" if before is not None and before.grid.complete else ""
        grid = None
        if not stop.is_set():
            self.status.say("Waiting for the model…", share=0.0)
            grid = self.live.fill(spec, stop, lambda text, share: self.status.say(text, share=share)).grid
        if grid is None or not grid.complete:
            self._stopped()
            return
        how = how or f"in {time.monotonic() - began:.1f} s"
        self.controls.ready()
        gap = f"{label_of(grid.recipe['metric'])}: clean {grid.clean:.2f}, corrupt {grid.corrupt:.2f}"
        self.status.say(f"{grid.values.size} cells {how} · {gap}{nothing_words(grid)}".replace("-", "−"))

    def _stopped(self) -> None:
        if self._computing > 1:
            return  # another grid is to come, or this one again
        what, grid = "Paused" if self._paused else "Stopped", self.grid
        if grid is None:
            self.status.say(f"{what}.")
            return
        goes_on = "Resume continues." if self._paused else "what was computed is kept; Run continues from there."
        self.status.say(f"{what} at {_exact(grid)} of {grid.values.size} cells; {goes_on}")

    def _settle(self) -> None:
        super()._settle()
        self.stop_button.disabled = self.stop_button.disabled and not self._paused
        self.pause_button.description = "Resume" if self._paused else "Pause"
        self.pause_button.disabled = not (self._paused or self._computing)

    def _again(self) -> None:
        if self.grid is not None and self.spec() != self._asked:
            self.start()

    # -- sanity checks -------------------------------------------------------------------------------------------

    def check(self, timeout: float | None = None) -> Controls | None:
        """Run the standard controls on the finished grid, and wait for them; `lk.controls` gives the same."""
        self.begin_checks()
        self._doubts.wait(timeout)
        return self.controls.result

    def begin_checks(self) -> None:
        """Begin with the checks of the grid that is shown; they are listed as they are made."""
        spec, known = self.live.spec, self._working
        if spec is None or known is None or not known.grid.complete:
            self.status.complain("Finish the grid first: press Run.")
            return
        if spec.layer is not None:
            self.status.complain("Sanity checks need a grid over layers.")
            return
        name, seed = self.pair.task.value, 1 + self.pair.seed
        pairs = task(name).pairs(self.lm, PAIRS, seed=seed) if name else []
        self.do(lambda stop: self.controls.make(spec, known, pairs, stop), queue=self._doubts)

    # -- a closer look -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Show the details of the last selection: a drag, several cells, or one."""
        grid = self.grid
        if grid is None and not self.chosen:
            return
        if grid is None:
            try:
                grid = PatchJob(self.lm, self.spec()).grid
            except ValueError:
                return  # the run says so
        self._close_look.stop()
        work = self.inspector.look(self.lm, grid, selection=self.selection, chosen=list(self.chosen), arrow=self.arrow)
        if self.selection is not None and grid.over[0] == "layer":
            self.layer = self.selection[0]  # where to look closer, if heads or neurons are asked for next
        if work is None:
            return
        # The inspector does not wait for the grid: the grid pauses for it.
        if busy := self._computing > 0 and not self._paused:
            self._halt()
        self.do(work, queue=self._close_look)
        if busy:
            self._go_on()

    # -- the rest ------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the settings and every grid that is known, finished or not, to one file (`.npz`)."""
        return save_lab(path, self.lm, {name: getattr(self, name) for name in (*ASKED, "chosen")}, self.live.known)

    @classmethod
    def _open(cls, lm: LanguageModel, path: str | os.PathLike[str], *, background: bool | None = None) -> PatchLab:
        """Open a lab that `save` wrote: nothing in it is computed again, and unfinished grids can be resumed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a saved lab, or it belongs to another model.
        """
        settings, known = open_lab(path, lm)
        what = {name: settings[name] for name in ("site", "layer", "direction")}
        what["metric"] = settings.get("metric")  # an older file has none
        lab = cls(lm, over=tuple(settings["over"]), background=background, **what)
        lab.pair.use(*(settings[name] for name in PAIR))
        lab.live.known.update(known)
        if lab.spec() in known:
            lab.live.show(lab.spec())
            lab.chosen = [tuple(place) for place in settings["chosen"]]
            lab._paused = not lab.grid.complete
            if lab._paused:
                lab._stopped()
                lab._settle()
            else:
                lab.start()
        lab.pair.offer()
        return lab

    open = _Open()

    def moves(self) -> list[Move]:
        """What the inspector shows, as moves from the source run into the base run."""
        if self.grid is None:
            return []
        if self.arrow is not None:
            return [Move(*(site_of(self.grid, place) for place in self.arrow))]
        places = self.chosen or ([self.selection] if self.selection else [])
        return [Move(site, site) for site in (site_of(self.grid, place) for place in places)]

    def code(self) -> str:
        """The Python that computes the grid that is shown (or requested), and makes the patch in the inspector."""
        grid = self.grid
        if grid is None:
            names = (*PAIR, "metric", "site", "direction")
            given = {name: value for name in names if (value := getattr(self, name))}
            return as_code(self.lm.code(), "grid = lk.patch", LM, **given) + "grid.figure()\n"
        moves = self.moves()
        return f"{grid.code()}grid.figure()\n" + (f"\n{code_of(grid, moves)}" if moves else "")

    def snapshot(self) -> str:
        title = f"PatchLab · {self.lm.name}" + (f" · {self.heatmap.title}" if self.grid is not None else "")
        if self.grid is None:
            return card(self.pair.strip.picture(), note(self.pair.status.text), title=title)
        about = f"{label_of(self.grid.recipe['metric'])}: clean {self.grid.clean:.2f}, corrupt {self.grid.corrupt:.2f}"
        about += nothing_words(self.grid)
        if not self.grid.complete:
            about += f" · {_exact(self.grid)} of {self.grid.values.size} cells exact, dotted ones estimated"
        code = (
            '<details><summary style="color:#59636e">Code</summary>'
            f'<pre style="font-size:12px;margin:4px 0">{escape(self.code())}</pre></details>'
        )
        return card(
            self.pair.strip.picture(), f"<div>{self.heatmap.picture()}</div>", note(about.replace("-", "−")),
            f"<div>{self.inspector.picture()}</div>", self.controls.list.picture(), code, title=title,
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"PatchLab({self.lm.name!r}, clean={self.clean!r}, corrupt={self.corrupt!r}, answer={self.answer!r}, "
            f"foil={self.foil!r}, site={self.site!r}, direction={self.direction!r})"
        )


def _exact(grid: PatchGrid) -> int:
    return int(np.isfinite(grid.values).sum())
