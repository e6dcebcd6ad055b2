"""Sanity checks: the controls of a grid as a list that fills in: the face of `labkit.sanity.checks`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import traitlets as t

from labkit.language_model import LanguageModel
from labkit.patching.spec import PatchSpec, given
from labkit.sanity.checks import ControlsJob, ControlsSpec
from labkit.widgets.base.tool import Panel, button, row
from labkit.widgets.blocks.check_list import CheckList
from labkit.widgets.patch_lab.live_grid import Known


class SanityPanel(Panel):
    """A button, and the checks below it as they are made.

    Args:
        lm: the model.
        check: called when the user asks for the checks.

    Traits:
        result: the `Controls`, or None before the first check.
    """

    result = t.Any(None)

    def __init__(self, lm: LanguageModel, *, check: Callable[[], Any]) -> None:
        super().__init__()
        self.lm = lm
        self._job: ControlsJob | None = None
        self.button = button("Sanity checks", check)
        self.list = CheckList()
        self.children = [row(self.button), self.list]
        self.forget()

    def forget(self, *, ready: bool = False) -> None:
        """Another grid: drop the old results. `ready`: it is finished, and can be checked."""
        self.ready(ready)
        self.result = None
        with self.list.hold_sync():
            self.list.checks, self.list.title = [], ""

    def ready(self, yes: bool = True) -> None:
        """Is there a finished grid to check? The button says what is missing."""
        self.button.disabled = not yes
        self.button.tooltip = "Run the standard controls on this grid" if yes else "Finish the grid first: press Run"

    def make(self, spec: PatchSpec, known: Known, pairs: Sequence[Any], stop: threading.Event) -> None:
        """Make the checks of a finished grid, one after the other, until `stop`.

        Raises:
            ValueError: the grid cannot be checked; the message says why.
        """
        job = self._job = ControlsJob(self.lm, ControlsSpec(**given(spec), pairs=pairs, grid=known.grid))
        self.list.title, self.list.checks = "Running the checks…", []
        try:
            for _ in job.steps():
                self.result = job.result
                self.list.checks = [[check.name, check.ok, check.says] for check in job.result.checks]
                if stop.is_set():
                    job.cancel()
        finally:
            self._job = None
            done = len(job.result.checks) == len(job.names)
            self.list.title = job.result.verdict if done else f"{job.result.verdict} Stopped before the rest."

    def stop(self) -> None:
        """End soon; the current check is left out."""
        if (job := self._job) is not None:
            job.cancel()
