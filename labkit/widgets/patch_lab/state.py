"""The state of a PatchLab: one set of traits that all its parts read and change."""

from __future__ import annotations

from collections.abc import Mapping

import traitlets as t

from labkit.activations.site_kinds import KINDS, PATCHED
from labkit.language_model import LanguageModel
from labkit.patching.pair_runs import ENDS
from labkit.patching.spec import DIRECTIONS, PatchSpec
from labkit.widgets.base.block import cell

Over = tuple[str, str]
SITES = tuple(sorted(PATCHED, key=lambda name: (KINDS[name].fine, KINDS[name].unit == "head")))
"""In the order of the menu: those by head after the others, and fine parts of them last."""
OVER: dict[str, Over] = {
    "layers × positions": ("layer", "position"),
    "layers × heads": ("layer", "head"),
    "heads × positions": ("head", "position"),
    "neurons × positions": ("neuron", "position"),
}
PAIR = ("clean", "corrupt", "answer", "foil")
PAIRED = (*PAIR, "alignment")
ASKED = (*PAIRED, "metric", "site", "over", "layer", "direction")
POINTED = ("selection", "chosen", "arrow")


class PatchState(t.HasTraits):
    """A question, its grid, and the selection in the grid.

    Traits:
        clean, corrupt, answer, foil: the pair.
        alignment: the spans of clean and corrupt that are paired, as `lk.patch` takes them; None to find them.
        metric: the name of a metric; "" for the default.
        site, over, layer, direction: what is patched; `layer` only matters if it is not an axis.
        grid: the `PatchGrid` that is shown; exact cells only.
        selection, chosen, arrow: a cell, several, and the last drag, as (layer, position or head).
    """

    clean = t.Unicode()
    corrupt = t.Unicode()
    answer = t.Unicode()
    foil = t.Unicode()
    alignment = t.Any(None)
    metric = t.Unicode()
    site = t.Enum(SITES, "resid_pre")
    over = t.Enum(list(OVER.values()), ("layer", "position"))
    layer = t.Int(0)
    direction = t.Enum(DIRECTIONS, "denoise")
    grid = t.Any(None)
    selection = cell()
    chosen = t.List(t.Tuple(t.Int(), t.Int()))
    arrow = t.Tuple(t.Tuple(t.Int(), t.Int()), t.Tuple(t.Int(), t.Int()), default_value=None, allow_none=True)

    @property
    def other(self) -> LanguageModel | None:
        """The model of the clean run, if it is not that of the corrupt one."""
        return None

    @property
    def runs(self) -> Mapping[str, str]:
        """What the clean and the corrupt run are called."""
        return {"clean": "clean", "corrupt": "corrupt"}

    @property
    def one_layer(self) -> bool:
        """Is the grid over one layer?"""
        return "layer" not in self.over

    def spec(self) -> PatchSpec:
        """The request of the current settings."""
        return PatchSpec(
            self.clean, self.corrupt if self.other is None else self.clean, self.answer or None, self.foil or None,
            metric=self.metric or None, site=self.site, over=self.over, direction=self.direction,
            layers=(self.layer,) if self.one_layer else None, source=self.other,
            alignment=None if self.other else self.alignment,
        )  # fmt: skip


def into(direction: str, runs: Mapping[str, str]) -> str:
    """What goes where: `clean into corrupt`."""
    source, base = ENDS[direction]
    return f"{runs[source]} into {runs[base]}"
