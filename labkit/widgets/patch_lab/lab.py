"""PatchLab: two prompts side by side, and what each activation of one does in the other.

The tool has four parts: the pair (`pair_editor`), the grid (`live_grid`), the details of a cell (`inspector`) and the
sanity checks (`sanity_panel`). What they share is in `state`, how the grid runs in `grid_tool`. This file puts them
together.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from labkit.activations.site_kinds import KINDS
from labkit.collected.collection import Collection
from labkit.datasets.tasks import task
from labkit.language_model import LanguageModel
from labkit.patching.cell_report import Place
from labkit.sanity.report import Controls
from labkit.text.as_code import LM, as_code
from labkit.widgets.base.snapshot import card, folded_code, note
from labkit.widgets.base.tool import row
from labkit.widgets.patch_lab.file import open_lab, save_lab
from labkit.widgets.patch_lab.grid_tool import GridTool
from labkit.widgets.patch_lab.pair_editor import PairEditor
from labkit.widgets.patch_lab.patch_controls import PatchControls
from labkit.widgets.patch_lab.sanity_panel import SanityPanel
from labkit.widgets.patch_lab.state import ASKED, PAIR, PAIRED, Over

PAIRS = 12  # of the task that a pair comes from: for the control over many pairs


class _Open:
    """`PatchLab.open(lm, path)` opens a saved lab; `open()` of a widget is what ipywidgets opens its channel with."""

    def __get__(self, lab: PatchLab | None, kind: type[PatchLab]) -> Callable[..., Any]:
        return kind._open if lab is None else super(PatchLab, lab).open


class PatchLab(GridTool):
    """Activation patching live: an estimate at once, exact cells over it as they are computed.

    Click a cell to see what the model would then predict; Shift+click several to patch them together; drag a cell onto
    another to put its activation there.

    Args:
        lm: the model.
        clean: the prompt with the behaviour to explain.
        corrupt: one that lacks it, best with the same number of tokens. Else both are paired along what is equal, or
            along `alignment`, and cells without a partner are hatched.
        answer: what clean calls for, with its space: `" Mary"`; a text of several tokens is as good.
        foil: what corrupt calls for; may be empty.
        alignment: which positions belong together, `[((start, stop), (start, stop)), ...]`, as for `lk.patch`.
        metric: the name of a metric, as for `lk.patch`.
        site: which activation is patched.
        over: the grid's axes: `("layer", "position")`; for a site by head also `("layer", "head")`, and in one layer
            `("head", "position")`; for `mlp_act`, in one layer, `("neuron", "position")`.
        layer: the layer of a grid over a single one; by default the middle one, or that of the last cell selected.
        direction: `denoise` puts clean into corrupt, `noise` corrupt into clean.
        chosen: cells to patch together, such as `[(23, 3), (20, 0)]`.
        collection: activations of many texts, from `lk.collect`: of a selected head (`z`) or neuron (`mlp_act`) the
            inspector then shows where in them it is strongest.
        background: work in a thread of its own; the default everywhere but in Colab.

    Traits:
        clean, corrupt, answer, foil, alignment, metric, site, over, layer, direction: the settings.
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
        alignment: Sequence[tuple[tuple[int, int], tuple[int, int]]] | None = None,
        metric: str | None = None,
        site: str = "resid_pre",
        over: Over | None = None,
        layer: int | None = None,
        direction: str = "denoise",
        chosen: Sequence[Place] = (),
        collection: Collection | None = None,
        background: bool | None = None,
    ) -> None:
        super().__init__(lm, collection=collection, background=background)
        self._doubts = self.another_queue()
        self.site, self.direction, self.metric = site, direction, metric or ""
        self.over = over or KINDS[site].usual
        self.layer = lm.n_layers // 2 if layer is None else layer
        self.alignment = None if alignment is None else list(alignment)
        self.pair = PairEditor(lm, self, ask=lambda work: self.do(work, queue=self._offers), submit=self.start)
        self.controls = SanityPanel(lm, check=self.begin_checks)
        self.what = PatchControls(lm, self)
        self.pair.use(clean, corrupt, answer or "", foil or "", self.alignment)
        self.chosen = [tuple(place) for place in chosen]
        self._watch()
        self.observe(lambda _: self.controls.forget(ready=self.grid.complete), "grid")
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

    def stop(self) -> None:
        super().stop()
        self._doubts.stop()
        self.controls.stop()

    def _fill(self, stop: threading.Event) -> None:
        super()._fill(stop)
        if self.grid is not None and self.grid.complete:
            self.controls.ready()

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
        lab.pair.use(**{name: settings[name] for name in PAIR}, alignment=settings.get("alignment"))
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

    def code(self) -> str:
        """The Python that computes the grid that is shown (or requested), and makes the patch in the inspector."""
        grid = self.grid
        if grid is None:
            names = (*PAIRED, "metric", "site", "direction")
            given = {name: value for name in names if (value := getattr(self, name))}
            return as_code(self.lm.code(), "grid = lk.patch", LM, **given) + "grid.figure()\n"
        return self._grid_code()

    @property
    def _choosing(self) -> PatchControls:
        return self.what

    def snapshot(self) -> str:
        title = f"PatchLab · {self.lm.name}" + (f" · {self.heatmap.title}" if self.grid is not None else "")
        if self.grid is None:
            return card(self.pair.strip.picture(), note(self.pair.status.text), title=title)
        return card(
            self.pair.strip.picture(), f"<div>{self.heatmap.picture()}</div>", note(self._about_grid()),
            f"<div>{self.inspector.picture()}</div>", self.controls.list.picture(), folded_code(self.code()),
            title=title,
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"PatchLab({self.lm.name!r}, clean={self.clean!r}, corrupt={self.corrupt!r}, answer={self.answer!r}, "
            f"foil={self.foil!r}, site={self.site!r}, direction={self.direction!r})"
        )
