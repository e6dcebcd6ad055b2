"""The controls of PromptLab that say how to sample."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import traitlets as t

from labkit.generation.sampling import CUTS, DEFAULTS, Sampling
from labkit.widgets.base.tool import Panel, labelled, link, row, shown


class Sampled(t.HasTraits):
    """The settings of `generate` as traits."""

    temperature = t.Float(0.0)
    top_p = t.Float(1.0)
    top_k = t.Int(0)
    min_p = t.Float(0.0)
    repetition_penalty = t.Float(1.0)
    max_new_tokens = t.Int(64)
    seed = t.Int(0)
    stop_strings = t.List(t.Unicode())

    def sampling(self) -> Sampling:
        """The settings, without those that have no effect at temperature 0."""
        given: dict[str, Any] = {name: getattr(self, name) for name in DEFAULTS}
        if not self.temperature:
            given |= {name: DEFAULTS[name] for name in CUTS}
        return Sampling(**given | {"stop_strings": tuple(self.stop_strings)})

    def idle(self) -> list[str]:
        """Settings that have no effect at temperature 0."""
        return [] if self.temperature else [name for name in CUTS if getattr(self, name) != DEFAULTS[name]]


def slider(description: str, low: float, high: float, step: float, form: str, width: int = 210) -> widgets.FloatSlider:
    ends = {"min": low, "max": high, "step": step}
    return labelled(widgets.FloatSlider, description, f"{width}px", readout_format=form, **ends)


class Settings(Panel):
    """Temperature, length and seed; the rest behind a button. Linked to the traits of a `Sampled`."""

    def __init__(self, sampled: Sampled, *, longest: int, before: list[Any]) -> None:
        super().__init__()
        self.sampled = sampled
        self.controls: dict[str, Any] = {
            "temperature": slider("Temperature", 0, 2, 0.1, ".1f", 230),
            "max_new_tokens": labelled(widgets.BoundedIntText, "Max tokens", "150px", min=1, max=longest),
            "seed": labelled(widgets.IntText, "Seed", "110px"),
            "top_p": slider("Top-p", 0.01, 1, 0.01, ".2f"),
            "min_p": slider("Min-p", 0, 1, 0.01, ".2f"),
            "top_k": labelled(widgets.BoundedIntText, "Top-k (0: all)", "150px", min=0, max=1_000_000),
            "repetition_penalty": slider("Repetition penalty", 0.5, 2, 0.05, ".2f", 260),
        }
        link(sampled, **self.controls)
        several = r"one or more, such as \n | END"
        self.strings = labelled(widgets.Text, "Stop strings", "300px", placeholder=several, continuous_update=False)
        self.strings.observe(lambda change: setattr(sampled, "stop_strings", parsed(change["new"])), "value")
        sampled.observe(self._tell_strings, "stop_strings")
        self.note = widgets.Label()
        tip = "top-p, min-p, top-k, repetition penalty, stop strings"
        self.more = widgets.ToggleButton(description="More settings", tooltip=tip)
        sampled.observe(lambda _: self._tell_idle(), ["temperature", *CUTS])
        self._often = [*(self.controls[name] for name in ("temperature", "max_new_tokens", "seed")), self.more]
        rest = ("top_p", "min_p", "top_k", "repetition_penalty")
        self._second = row(*(self.controls[name] for name in rest), self.strings, self.note)
        self.children = [row(*before, *self._often), self._second]
        self.more.observe(lambda change: shown(self._second, change["new"]), "value")
        shown(self._second, False)

    def only_buttons(self, yes: bool) -> None:
        """Scoring a text needs none of the settings."""
        for control in self._often:
            shown(control, not yes)
        shown(self._second, self.more.value and not yes)

    def _tell_strings(self, change: Any) -> None:
        if parsed(self.strings.value) != change["new"]:
            self.strings.value = " | ".join(text.replace("\n", r"\n").replace("\t", r"\t") for text in change["new"])

    def _tell_idle(self) -> None:
        words = " and ".join(name.replace("_", "-") for name in self.sampled.idle())
        self.note.value = f"No effect at temperature 0, which takes the likeliest token: {words}." if words else ""


def parsed(text: str) -> list[str]:
    r"""Stop strings from a line: ` | ` between them, `\n` and `\t` for newline and tab."""
    return [part.replace(r"\n", "\n").replace(r"\t", "\t") for part in text.split(" | ") if part]
