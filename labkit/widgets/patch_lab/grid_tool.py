"""What tools around a live grid have in common: it runs, pauses and resumes, and its cells are looked at closely."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from labkit.collected.collection import Collection
from labkit.language_model import LanguageModel
from labkit.lens.patchscope import patchscope
from labkit.lens.patchscope_result import Patchscope
from labkit.patching.cell_report import Move, Place, code_of, partner_of, site_of
from labkit.patching.continued import Continued, call_of, continue_under
from labkit.patching.grid import PatchGrid
from labkit.patching.pair_runs import ENDS
from labkit.patching.patch import PatchJob
from labkit.patching.spec import PatchSpec
from labkit.widgets.base.job_queue import JobQueue, Work
from labkit.widgets.base.tool import Tool, button
from labkit.widgets.cell_writing import RESIDUAL
from labkit.widgets.export.contents import Contents
from labkit.widgets.patch_lab.exported import STRONGEST, exported
from labkit.widgets.patch_lab.inspector import Inspector
from labkit.widgets.patch_lab.live_grid import Known, LiveGrid, gap_words
from labkit.widgets.patch_lab.state import ASKED, PAIRED, POINTED, PatchState


class GridTool(Tool, PatchState):
    """A live grid, an inspector of its cells, and the buttons that run it; tools put their own parts around these."""

    def __init__(
        self, lm: LanguageModel, *, collection: Collection | None = None, background: bool | None = None
    ) -> None:
        super().__init__(lm, background=background)
        # Queues of their own: a click or a keystroke does not cancel the grid.
        self._close_look, self._writing, self._offers = (self.another_queue() for _ in range(3))
        self._paused = False
        self._asked: PatchSpec | None = None
        self._computing = 0  # requested grids that have not ended
        self.live = LiveGrid(lm, self)
        self.inspector = Inspector(
            lm, collection, continue_under=self.begin_continuation, patchscope=self.begin_patchscope
        )
        self.heatmap, self.bars = self.live.heatmap, self.inspector.bars
        self.pause_button = button(
            "Pause", lambda: self.start() if self._paused else self.pause(), "Pause; Resume continues", disabled=True
        )
        self.stop_button.description = "Cancel"
        self.heatmap.layout.flex, self.heatmap.layout.max_width = "1 1 420px", "760px"  # as wide with the inspector
        self.inspector.layout.flex, self.inspector.layout.width = "0 0 auto", "280px"

    def _watch(self) -> None:
        """From now on a new setting is a new grid, and what is pointed at is shown."""
        self.observe(lambda _: self._again(), [name for name in ASKED if name not in PAIRED])
        self.observe(lambda _: self._look(), POINTED)
        self.heatmap.observe(lambda _: self._offer_to_write(), "values")

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
        self._writing.stop()
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
            grid = self.live.fill(spec, stop, self._tell).grid
        if grid is None or not grid.complete:
            self._stopped()
            return
        how = how or f"in {time.monotonic() - began:.1f} s"
        self.status.say(f"{cells_of(grid)} cells {how} · {gap_words(grid)}")

    def _tell(self, text: str, share: float | None) -> None:
        self.status.say(text, share=share)

    def _stopped(self) -> None:
        if self._computing > 1:
            return  # another grid is to come, or this one again
        what, known = "Paused" if self._paused else "Stopped", self._working
        if known is None:
            self.status.say(f"{what}.")
            return
        goes_on = "Resume continues." if self._paused else "what was computed is kept; Run continues from there."
        self.status.say(f"{what} at {exact_words(known.grid)}; {goes_on}")

    def _settle(self) -> None:
        super()._settle()
        self.stop_button.disabled = self.stop_button.disabled and not self._paused
        self.pause_button.description = "Resume" if self._paused else "Pause"
        self.pause_button.disabled = not (self._paused or self._computing)

    def _again(self) -> None:
        if self.grid is not None and self.spec() != self._asked:
            self.start()

    # -- a closer look -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Show the details of the last selection: a drag, several cells, or one."""
        grid = self.grid
        if grid is None and not self.chosen:
            return
        spec = self.live.spec
        if grid is None or spec is None:
            spec = self.spec()
            try:
                grid = PatchJob(self.lm, spec).grid
            except ValueError:
                return  # the run says so
        self._close_look.stop()
        self._writing.stop()
        work = self.inspector.look(
            self.lm, grid, selection=self.selection, chosen=list(self.chosen), arrow=self.arrow, source=spec.source
        )
        self._offer_to_write()
        if self.selection is not None and grid.over[0] == "layer":
            self.layer = self.selection[0]  # where to look closer, if heads or neurons are asked for next
        if work is not None:
            self._before_the_grid(work, self._close_look)

    def _before_the_grid(self, work: Work, queue: JobQueue) -> None:
        """Work that does not wait for the grid: the grid pauses for it."""
        if busy := self._computing > 0 and not self._paused:
            self._halt()
        self.do(work, queue=queue)
        if busy:
            self._go_on()

    # -- writing from a cell -------------------------------------------------------------------------------------

    @property
    def written(self) -> Continued | Patchscope | None:
        """What a model wrote from the selected cell, if it is shown."""
        return self.inspector.writing.result

    def continue_under(self, timeout: float | None = None) -> Continued:
        """Write on under the patch of the selected cell, and wait for it; `lk.continue_under` gives the same.

        Raises:
            ValueError: no single cell is selected, or it has no value yet.
        """
        return self._wrote(self.begin_continuation, "continue", timeout)

    def patchscope(self, timeout: float | None = None) -> Patchscope:
        """Put what goes into the selected cell into the usual prompt of `lk.patchscope`, and wait for what is written.

        Raises:
            ValueError: no single cell is selected, or it is not one of the residual stream.
        """
        return self._wrote(self.begin_patchscope, "patchscope", timeout)

    def _wrote(self, begin: Callable[[], None], name: str, timeout: float | None) -> Any:
        if why_not := self._why_not()[name]:
            raise ValueError(why_not)
        begin()
        self._writing.wait(timeout)
        return self.written

    def begin_continuation(self) -> None:
        """Begin to write on under the patch of the selected cell."""
        grid, other = self.grid, self.live.spec.source if self.live.spec is not None else None
        cell = dict(zip(grid.over, self.selection, strict=True))
        self._write(lambda stop: continue_under(self.lm, grid, **cell, source=other, stop=stop))

    def begin_patchscope(self) -> None:
        """Begin to put what goes into the selected cell into the usual prompt of `lk.patchscope`."""
        grid, other = self.grid, self.live.spec.source if self.live.spec is not None else None
        source, base = ENDS[grid.direction]
        models = {"clean": other or self.lm, "corrupt": self.lm}
        reader = None if other is None else models[source]
        site = partner_of(grid, site_of(grid, self.selection))
        prompt = grid.recipe[source]
        self._write(lambda stop: patchscope(models[base], prompt, site=site, source=reader, stop=stop, progress=False))

    def _write(self, make: Callable[[threading.Event], Continued | Patchscope]) -> None:
        self._writing.stop()
        self._before_the_grid(self.inspector.writing.work(self.lm, "Writing…", make), self._writing)

    def _offer_to_write(self) -> None:
        for name, why_not in self._why_not().items():
            self.inspector.writing.offer(name, why_not)

    def _why_not(self) -> dict[str, str]:
        """Why a model cannot write from what is selected, by button; empty where it can."""
        grid, at = self.grid, self.selection
        inside = grid is not None and at is not None and all(n in some for n, some in zip(at, grid.index, strict=True))
        if not inside or self.chosen or self.arrow is not None:
            return dict.fromkeys(("continue", "patchscope"), "Click a single cell: one patch is continued at a time")
        row, column = (numbers.index(n) for numbers, n in zip(grid.index, at, strict=True))
        estimated = np.isnan(grid.values[row, column])
        return {
            "continue": "This cell is an estimate so far: let the grid finish" if estimated else "",
            "patchscope": "" if grid.site in RESIDUAL else
            f"A patchscope reads the residual stream, not {grid.site}: choose {', '.join(RESIDUAL)}",
        }  # fmt: skip

    def moves(self) -> list[Move]:
        """What the inspector shows, as moves from the source run into the base run."""
        if self.grid is None:
            return []
        if self.arrow is not None:
            return [Move(*(site_of(self.grid, place) for place in self.arrow))]
        places = self.chosen or ([self.selection] if self.selection else [])
        return [Move(site, site) for site in (site_of(self.grid, place) for place in places)]

    @property
    def _choosing(self) -> Any:
        """The controls that choose which grid is shown; in an exported page those that are known are in their place."""
        raise NotImplementedError

    def exported(self, contents: Contents, *, cells: Iterable[Place] = (), strongest: int = STRONGEST) -> str | None:
        if self.live.spec is None:
            return contents.show(self)
        return exported(
            contents, self, lm=self.lm, live=self.live, inspector=self.inspector, status=self.status,
            controls=self._choosing, cells=list(cells), strongest=strongest,
        )  # fmt: skip

    def provenance(self) -> dict[str, Any]:
        return super().provenance() if self.grid is None else self.grid.recipe

    def _about_grid(self) -> str:
        """The metric on the two runs, and how much is exact, for the snapshot."""
        some = "" if self.grid.complete else f" · {exact_words(self.grid)} exact, dotted ones estimated"
        return gap_words(self.grid) + some

    def _grid_code(self) -> str:
        """The Python that computes the grid that is shown, and makes the patch in the inspector."""
        moves, written = self.moves(), self.written
        code = f"{self.grid.code()}grid.figure()\n" + (f"\n{code_of(self.grid, moves)}" if moves else "")
        if isinstance(written, Continued):
            return f"{code}\n{call_of(written)}"
        if written is None:
            return code
        clean_writes = "source" in self.grid.recipe and self.grid.direction == "noise"  # the clean run's model does
        return f"{code}\n{written.call('source', 'lm') if clean_writes else written.call()}"


def exact_words(grid: PatchGrid) -> str:
    """How much of a grid is exact."""
    return f"{int(np.isfinite(grid.values).sum())} of {cells_of(grid)} cells"


def cells_of(grid: PatchGrid) -> int:
    """How many cells a grid has that can have a value."""
    return int((~grid.unpaired).sum())
