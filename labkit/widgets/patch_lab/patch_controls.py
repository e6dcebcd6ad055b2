"""What is patched: the site, the axes of its grid, the layer if it is not an axis, the direction; and the metric."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets

from labkit.activations.metrics import METRICS
from labkit.activations.site_kinds import KINDS
from labkit.activations.sites import absent
from labkit.language_model import LanguageModel
from labkit.patching.spec import DIRECTIONS
from labkit.widgets.base.tool import choice, labelled, link, shown
from labkit.widgets.patch_lab.state import OVER, SITES, PatchState, into


class PatchControls(widgets.HBox):
    """The controls for what is patched; the axes on offer are those that the site has."""

    def __init__(self, lm: LanguageModel, state: PatchState) -> None:
        super().__init__()
        self.add_class("labkit-row")
        self.state = state
        # the sites that the model has, and the one asked for, so that what is wrong with it can be said
        sites = [name for name in SITES if name == state.site or absent(lm, name) is None]
        self._site = choice("Site", sites, "160px")
        self._over = choice("Over", list(OVER.items()), "196px")
        self._layer = labelled(widgets.BoundedIntText, "Layer", "120px", min=0, max=lm.n_layers - 1)
        self._direction = choice("Direction", list(DIRECTIONS), "276px")
        metrics = [("automatic", ""), *((kind.label, name) for name, kind in METRICS.items())]
        self._metric = choice("Metric", metrics, "220px")
        self._metric.tooltip = "automatic: logit difference; log probability with no foil or of several tokens"
        self._offering = False
        state.observe(lambda change: self._new_site(change["old"]), "site")  # before other observers
        link(state, site=self._site, layer=self._layer, metric=self._metric)
        state.observe(lambda _: self._offer(), "over")
        state.observe(lambda change: setattr(self._direction, "value", change["new"]), "direction")
        for name, part in (("over", self._over), ("direction", self._direction)):
            part.observe(lambda change, name=name: self._chose(name, change["new"]), "value")
        self.children = [self._site, self._over, self._layer, self._direction, self._metric]
        self._offer()
        self.name_runs()

    def name_runs(self) -> None:
        """Say in the directions what goes where; the two runs may have other names now."""
        with self._offers():
            self._direction.options = [(f"{name}: {into(name, self.state.runs)}", name) for name in DIRECTIONS]
            self._direction.value = self.state.direction

    def _new_site(self, old: str) -> None:
        """Axes stay where the new site has them too; a site by head that follows another kind shows its heads."""
        state = self.state
        alike = (KINDS[state.site].unit == "head") == (KINDS[old].unit == "head")
        if not alike or state.over not in KINDS[state.site].over:
            state.over = KINDS[state.site].usual
        self._offer()

    def _offer(self) -> None:
        """Offer the axes that the site has, and those asked for, so that what is wrong with them can be said."""
        possible = (*KINDS[self.state.site].over, self.state.over)
        offered = tuple((name, over) for name, over in OVER.items() if over in possible)
        with self._offers():
            if self._over.options != offered:
                self._over.options = offered
            self._over.value = self.state.over
        shown(self._layer, self.state.one_layer)

    @contextmanager
    def _offers(self) -> Iterator[None]:
        """While a block runs nobody chooses: new options choose the first, which is not what anybody asked for."""
        self._offering = True
        try:
            yield
        finally:
            self._offering = False

    def _chose(self, name: str, value: Any) -> None:
        if value is not None and not self._offering:
            setattr(self.state, name, value)
