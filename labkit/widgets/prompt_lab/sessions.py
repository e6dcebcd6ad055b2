"""The runs of a PromptLab, to go back to, to keep and to open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from labkit.generation.sampling import DEFAULTS
from labkit.results.file import reading
from labkit.widgets.base.tool import button, choice, in_words, labelled, shown
from labkit.widgets.prompt_lab.parts import Lab
from labkit.widgets.prompt_lab.session_file import KIND, Run, read, save
from labkit.widgets.prompt_lab.shades import Shade


class Sessions(widgets.HBox):
    """A line to go back to an earlier run, and to save and open a session."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab, self._listing = lab, False
        self.history = choice("Runs", [], "330px")
        self.file = labelled(widgets.Text, "Session", "240px", placeholder="session.json")
        save_button = button("Save", lambda: self._with_file(self.keep), "Save all runs to it")
        open_button = button("Open", lambda: self._with_file(self.bring), "Open the file")
        self.history.observe(self._choose, "value")
        self.add_class("labkit-row")
        self.children = [self.history, self.file, save_button, open_button]
        shown(self.history, False)

    def list_runs(self) -> None:
        """Offer the runs there are; the one that is shown is chosen."""
        lab = self.lab
        self._listing = True
        try:
            self.history.options = [(f"{n + 1} · {run.label}", n) for n, run in enumerate(lab.runs)]
            self.history.value = lab.runs.index(lab.now) if lab.now is not None else None
        finally:
            self._listing = False
        shown(self.history, bool(lab.runs))

    def _choose(self, change: Any) -> None:
        if not self._listing and change["new"] is not None:
            self.lab.show_run(int(change["new"]))

    def keep(self, path: str | Path) -> Path:
        lab = self.lab
        settings = {name: getattr(lab, name) for name in (*DEFAULTS, "measure", "template_arguments")}
        if lab.colours.shades:
            kept = {name: shade.to_dict() for name, shade in lab.colours.shades.items()}
            chosen = lab.colours.menu.value
            settings["colours"] = {"chosen": chosen if chosen in kept else "", "shades": kept}
        file = save(path, lab.lms, settings, lab.runs)
        lab.status.say(f"Saved {_count(lab.runs)} to {file}.")
        return file

    def bring(self, path: str | Path) -> None:
        lab = self.lab
        settings, runs, apart = read(path, lab.lms)
        with reading(path, KIND):
            colours = settings.pop("colours", {"chosen": "", "shades": {}})
            shades = {str(name): Shade.from_dict(kept) for name, kept in colours["shades"].items()}
            chosen = str(colours["chosen"])
        for name, value in settings.items():
            if lab.has_trait(name):
                setattr(lab, name, value)
        lab.runs.extend(runs)
        if runs:
            lab.show_run(len(lab.runs) - 1)
        lost = []
        for name, shade in shades.items():
            try:
                lab.colours.register(name, shade)
            except ValueError:  # of another model
                lost.append(name)
        if chosen in lab.colours.shades and runs:
            lab.colours.colour(chosen)
        notes = [apart] * bool(apart) + [f"without the colours {', '.join(lost)}, which do not fit"] * bool(lost)
        lab.status.say(f"Opened {', '.join([_count(runs), *notes])}.")

    def _with_file(self, act: Callable[[str], Any]) -> None:
        try:
            act(self.file.value.strip() or self.file.placeholder)
        except (ValueError, OSError) as error:
            self.lab.status.complain(in_words(error))


def _count(runs: Sequence[Run]) -> str:
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"
