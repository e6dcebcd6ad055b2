"""Colours of the shown tokens by what is read of the model, and the reasons for a token that was written.

One pass over the shown text reads a direction of the residual stream or a head; what a token of the prompt did for a
written one is its occlusion (`lk.input_attribution`). Another text, or another branch, goes back to the measure.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch

from labkit.activations.sites import Site
from labkit.attribution.input_attribution import input_attribution
from labkit.widgets.base.tool import Panel, button, choice, in_words, labelled, row, shown
from labkit.widgets.prompt_lab.column import Column

PLAIN = "the measure"


class Colours(Panel):
    """A menu of what was registered, and a line for the written token that is selected.

    Attributes:
        shown_by: what the tokens are coloured by now, in words; empty for the measure.
    """

    def __init__(self, lab: Any) -> None:
        super().__init__()
        self.lab, self.shown_by = lab, ""
        self._read: dict[str, tuple[str, np.ndarray | None]] = {}  # name: a site, and a direction (d_model,)
        self._lines: list[str] = []  # the Python of what is shown
        self._from: tuple[Column, int] | None = None  # the written token that was selected last
        self.menu = choice("or by", [(PLAIN, "")], "260px")
        self.head = labelled(widgets.Text, "Head or layer", "240px", value=f"pattern.{lab.lm.n_layers // 2}")
        self.looked_button = button("Where it looked", partial(self._clicked, self.looked), "Its attention")
        self.why_button = button("Why this token?", partial(self._clicked, self.why), "Remove each token of the prompt")
        self._line = row(self.head, self.looked_button, self.why_button)
        self.menu.observe(lambda change: self._clicked(partial(self.colour, change["new"])), "value")
        self.children = [self._line]
        lab.observe(lambda _: self.forget(), "measure")
        for one in lab.columns:
            one.strip.observe(lambda _, one=one: self.offer(one), "selection")
        shown(self.menu, False)
        shown(self._line, False)

    def register(self, name: str, direction: Any, site: str) -> None:
        """Offer a direction at a site, or with none a head's attention to the prompt."""
        place = Site.parse(site)
        given = None
        if direction is None:
            if place.kind != "pattern" or place.layer is None or place.head is None:
                raise ValueError(f"without a direction the site must be a head, such as 'pattern.5.2'; got {site!r}")
        else:
            given = torch.as_tensor(direction).detach().float().cpu().numpy()
            if given.shape != (self.lab.lm.d_model,):
                raise ValueError(f"a direction has shape ({self.lab.lm.d_model},) here; got {given.shape}")
            if place.kind == "pattern" or place.layer is None:
                raise ValueError(f"the site of a direction is one layer's stream, such as 'resid_post.5'; got {site!r}")
        self._read[name] = (site, given)
        self.menu.options = [(PLAIN, ""), *((one, one) for one in self._read)]
        shown(self.menu, True)

    def offer(self, column: Column) -> None:
        """A token was selected: one that was written has reasons. It stays when its menu closes, over the buttons."""
        at = column.strip.selection
        if at is not None:
            self._from = (column, at) if column.branch is not None and at >= column.offset else None
        shown(self._line, self._from is not None)

    def forget(self) -> None:
        """Another text is shown, by the measure."""
        self.shown_by, self._lines, self._from = "", [], None
        shown(self._line, False)
        self.menu.value = ""

    def colour(self, name: str) -> None:
        """Colour every column by what was registered, or by the measure."""
        if not name:
            if self.shown_by:
                self.shown_by, self._lines = "", []
                for column in self.lab.columns:
                    column.colour_by(self.lab.measure)
                self.lab.refresh_snapshot()
            return
        site, direction = self._read[name]

        def work(stop: threading.Event) -> None:
            for column in self.lab.columns:
                ids = _ids(column)
                found = column.lm.run(ids, read=[site], logits="none")[site][0].float().cpu().numpy()
                if direction is not None:
                    values = found @ direction
                else:  # what each token looks at in the prompt; a token of the prompt has nothing to tell
                    values = found[:, : column.offset].sum(-1)
                    values[: column.offset] = np.nan
                _show(column, values, f"{name}, {site}", centred=direction is not None)
            reduced = "@ direction" if direction is not None else f"[:, :{self.lab.columns[0].offset}].sum(-1)"
            self._done(name, [f"lm.run(ids, read=[{site!r}])[{site!r}][0] {reduced}"])

        self.lab.do(work)

    def looked(self) -> None:
        """Show the attention from the selected token: of a head, or the mean of a layer's heads."""
        column, at = self._selected()
        site = self.head.value.strip()
        place = Site.parse(site)
        if place.kind != "pattern" or place.layer is None:
            raise ValueError(f"name a head or a layer, such as 'pattern.5.2' or 'pattern.5'; got {site!r}")

        def work(stop: threading.Event) -> None:
            found = column.lm.run(_ids(column), read=[site], logits="none")[site][0].float().cpu().numpy()
            values = found[at] if place.head is not None else found[:, at].mean(0)
            values = np.where(np.arange(len(values)) <= at, values, np.nan)
            _show(column, values, f"attention from token {at}, {site}", centred=False)
            rows = f"[{at}]" if place.head is not None else f"[:, {at}].mean(0)"
            self._done(f"attention from token {at}", [f"lm.run(ids, read=[{site!r}])[{site!r}][0]{rows}"])

        self.lab.do(work)

    def why(self) -> None:
        """Show what each token before the selected one added to its log-probability, by removing it."""
        column, at = self._selected()
        ids = _ids(column)
        before, written = ids[:, :at], [int(ids[0, at])]

        def work(stop: threading.Event) -> None:
            found = input_attribution(column.lm, before, written=written, method="occlusion", progress=False)
            values = np.full(ids.shape[1], np.nan, np.float32)
            values[:at] = found.values
            _show(column, values, f"nats for token {at}", centred=True)
            call = f"lk.input_attribution(lm, ids[:, :{at}], written={written}, method='occlusion').values"
            self._done(f"why token {at}", [call])

        self.lab.do(work)

    def said(self) -> str:
        """What the colours mean, below the snapshot."""
        if self.shown_by:
            return f"coloured by {self.shown_by}"
        measure = self.lab.measure
        higher = "the less probable it was" if measure == "probability" else f"the higher its {measure}"
        return f"the warmer a token, {higher}"

    def code(self) -> str:
        """The lines that give the shown values; empty while the measure is shown."""
        if not self._lines or not self.shown_by:
            return ""
        ids = _ids(self.lab.columns[0]).tolist()
        return f"\n# {self.shown_by}\nimport torch\n\nids = torch.tensor({ids})\nvalues = {self._lines[0]}\n"

    def _selected(self) -> tuple[Column, int]:
        if self._from is None or self._from[1] >= _ids(self._from[0]).shape[1]:
            raise ValueError("no written token is selected; click one first")
        return self._from

    def _done(self, name: str, lines: list[str]) -> None:
        self.shown_by, self._lines = name, lines
        self.lab.status.say(f"Coloured by {name}.")

    def _clicked(self, act: Any) -> None:
        try:
            act()
        except ValueError as error:
            self.lab.status.complain(in_words(error))


class Coloured:
    """The part of a PromptLab that offers colours."""

    colours: Colours

    def colour_by(self, name: str, direction: Any = None, *, site: str) -> None:
        """Offer a name in the menu: a direction, or how much of a token's attention goes to the prompt.

        Args:
            name: what the menu calls it.
            direction: (d_model,), of which the dot product with each token's activation is shown; None for a head.
            site: where, such as `resid_post.12`; for a head `pattern.5.2`.

        Raises:
            ValueError: the direction or the site does not fit.
        """
        self.colours.register(name, direction, site)


def _ids(column: Column) -> torch.Tensor:
    """Everything that is shown, (1, seq)."""
    ids = column.tree.ids[0].tolist() if column.tree is not None else []
    ids += column.record.ids if column.record is not None else []
    if not ids:
        raise ValueError("nothing is shown yet; press Run first")
    return torch.tensor([ids], dtype=torch.long)


def _show(column: Column, values: np.ndarray, unit: str, *, centred: bool) -> None:
    """Colour a strip by these values; directions and reasons around zero."""
    strip, reach = column.strip, float(np.nanmax(np.abs(values), initial=0)) or 1.0
    with strip.hold_sync():
        strip.scale, strip.centre = ("effect", 0.0) if centred else ("amount", None)
        strip.low, strip.high, strip.unit = (-reach if centred else 0.0), reach, unit
        strip.values = values.astype(np.float32)
