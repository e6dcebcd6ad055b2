"""What is patched: the site, the axes of its grid, the layer where it is no axis, and the direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets as widgets
import traitlets as t

from labkit.activations.site_kinds import KINDS, PATCHED
from labkit.activations.sites import absent
from labkit.patching.spec import DIRECTIONS
from labkit.widgets.patch_lab.live_grid import INTO

if TYPE_CHECKING:
    from labkit.language_model import LanguageModel

Over = tuple[str, str]
SITES = tuple(sorted(PATCHED, key=lambda name: KINDS[name].unit == "head"))  # those by head after the others
OVER: dict[str, Over] = {
    "layers × positions": ("layer", "position"),
    "layers × heads": ("layer", "head"),
    "heads × positions": ("head", "position"),
    "neurons × positions": ("neuron", "position"),
}


class PatchControls(widgets.HBox):
    """The controls for what is patched; the axes on offer are those that the site has.

    Traits:
        site, over, layer, direction: what is chosen; `layer` counts only where it is no axis.
    """

    site = t.Enum(SITES, "resid_pre")
    over = t.Enum(list(OVER.values()), ("layer", "position"))
    layer = t.Int(0)
    direction = t.Enum(DIRECTIONS, "denoise")

    def __init__(self, lm: LanguageModel, *, site: str, over: Over | None, layer: int | None, direction: str) -> None:
        super().__init__()
        self.add_class("labkit-row")
        # the sites that the model has, and the one asked for, so that what is wrong with it can be said
        sites = [name for name in SITES if name == site or absent(lm, name) is None]
        self._site = widgets.Dropdown(options=sites, description="Site")
        self._over = widgets.Dropdown(options=list(OVER.items()), description="Over")
        self._layer = widgets.BoundedIntText(min=0, max=lm.n_layers - 1, description="Layer")
        self._direction = widgets.Dropdown(options=[(f"{name}: {INTO[name]}", name) for name in DIRECTIONS])
        for control, width in zip(
            (self._site, self._over, self._layer, self._direction), ("160px", "196px", "120px", "210px"), strict=True
        ):
            control.style = {"description_width": "initial"}
            control.layout.width = width
        self._offering = False
        self.site, self.direction = site, direction
        self.over = over or KINDS[site].usual
        self.layer = lm.n_layers // 2 if layer is None else layer
        self.observe(lambda change: self._new_site(change["old"]), "site")  # before anybody else hears of it
        for name, control in {"site": self._site, "layer": self._layer, "direction": self._direction}.items():
            t.link((self, name), (control, "value"))
        self.observe(lambda _: self._offer(), "over")
        self._over.observe(lambda change: self._chose(change["new"]), "value")
        self.children = [self._site, self._over, self._layer, self._direction]
        self._offer()

    @property
    def one_layer(self) -> bool:
        """Is the grid over one layer?"""
        return "layer" not in self.over

    def _new_site(self, old: str) -> None:
        """Axes stay where the new site has them too; a site by head that follows another kind shows its heads."""
        alike = (KINDS[self.site].unit == "head") == (KINDS[old].unit == "head")
        if not alike or self.over not in self.overs(self.site).values():
            self.over = KINDS[self.site].usual
        self._offer()

    @staticmethod
    def overs(site: str) -> dict[str, Over]:
        """The axes that a site can have, by name."""
        return {name: over for name, over in OVER.items() if over in KINDS[site].over}

    def _offer(self) -> None:
        """Offer the axes that the site has, and those asked for, so that what is wrong with them can be said."""
        possible = self.overs(self.site)
        offered = tuple((name, over) for name, over in OVER.items() if name in possible or over == self.over)
        self._offering = True
        if self._over.options != offered:
            self._over.options = offered
        self._over.value = self.over
        self._offering = False
        self._layer.layout.display = "" if self.one_layer else "none"

    def _chose(self, over: Over | None) -> None:
        if over is not None and not self._offering:
            self.over = over
