"""Colours of the shown tokens by what is read of the model, and the reasons for a token that was written.

One pass over the shown text reads a direction of the residual stream or a head; what a token of the prompt did for a
written one is its occlusion (`lk.input_attribution`). What was registered colours the next text, too; reasons for one
token are gone with its text.
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
from labkit.widgets.prompt_lab.shades import Shade

PLAIN = "the measure"


class Colours(Panel):
    """A menu of what was registered, and a line for the written token that is selected.

    Attributes:
        shades: what was registered, by name.
        shown_by: what the tokens are coloured by now, in words; empty for the measure.
    """

    def __init__(self, lab: Any) -> None:
        super().__init__()
        self.lab, self.shown_by = lab, ""
        self.shades: dict[str, Shade] = {}
        self._line_of_code = ""  # that gives what is shown, if it is about one token
        self._quiet = False  # is the menu set by what was done, and not by a person?
        self._from: tuple[Column, int] | None = None  # the written token that was selected last
        self.menu = choice("or by", [(PLAIN, "")], "260px")
        self.head = labelled(widgets.Text, "Head or layer", "240px", value=f"pattern.{lab.lm.n_layers // 2}")
        self.looked_button = button("Where it looked", partial(self._clicked, self.looked), "Its attention")
        self.why_button = button("Why this token?", partial(self._clicked, self.why), "Remove each token of the prompt")
        self._line = row(self.head, self.looked_button, self.why_button)
        self.menu.observe(self._chosen, "value")
        self.children = [self._line]
        lab.observe(lambda _: self.forget(), "measure")
        for one in lab.columns:
            one.strip.observe(lambda _, one=one: self.offer(one), "selection")
        shown(self.menu, False)
        shown(self._line, False)

    def register(self, name: str, shade: Shade) -> None:
        """Offer a direction at a site, or a head's attention to the prompt.

        Raises:
            ValueError: a model here does not have the site, or the direction another width.
        """
        for lm in self.lab.lms:
            shade.check(lm)
        self.shades[name] = shade
        self._set(self.menu.value, self.shown_by if self._line_of_code else "")

    def offer(self, column: Column) -> None:
        """A token was selected: one that was written has reasons. It stays when its menu closes, over the buttons."""
        at = column.strip.selection
        if at is not None:
            self._from = (column, at) if column.branch is not None and at >= column.offset else None
        shown(self._line, self._from is not None)

    def forget(self) -> None:
        """Back to the measure, in which the tokens are coloured already."""
        self.shown_by, self._line_of_code, self._from = "", "", None
        shown(self._line, False)
        self._set("")

    def follow(self) -> None:
        """Another text is shown, in the colours of the measure. A job that wrote it colours it itself."""
        chosen = self.menu.value if self.menu.value in self.shades else ""
        self.forget()
        self._set(chosen)
        if chosen and not self.lab.queue.busy:
            self.colour(chosen)

    def again(self, *columns: Column) -> None:
        """Colour these columns by what is chosen, in this thread."""
        name = self.menu.value
        if (shade := self.shades.get(name)) is None:
            return
        for column in columns:
            values = shade.values(column.lm, _ids(column), column.offset)
            high = _besides_the_sink(values)
            _show(column, values, f"{name}, {shade.site}", centred=shade.direction is not None, high=high)
        self.shown_by, self._line_of_code = name, ""

    def colour(self, name: str, *, aloud: bool = False) -> None:
        """Colour every column by what was registered, or by the measure; `aloud`: and say so."""
        self._set(name)
        if name in self.shades:
            self.lab.do(lambda _: self._colour_all(aloud))
        elif self.shown_by:
            self.shown_by, self._line_of_code = "", ""
            for column in self.lab.columns:
                column.colour_by(self.lab.measure)
            self.lab.refresh_snapshot()

    def _colour_all(self, aloud: bool) -> None:
        self.again(*self.lab.columns)
        if aloud:
            self.lab.status.say(f"Coloured by {self.shown_by}.")

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
            self._done(f"attention from token {at}", f"lm.run(ids, read=[{site!r}])[{site!r}][0]{rows}")

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
            self._done(f"why token {at}", call)

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
        if not self.shown_by:
            return ""
        column, load = self.lab.columns[0], self.lab.lm.code()
        ids = f"ids = torch.tensor({_ids(column).tolist()})\n"
        before = "" if len(self.lab.columns) == 1 else "lm = models[0]\n"
        shade = self.shades.get(self.shown_by) if not self._line_of_code else None
        if shade is None:
            values = f"values = {self._line_of_code}\n"
        else:
            values = shade.as_code(self.shown_by, column.offset, load)
        return f"\n# {self.shown_by}\nimport torch\n\n{before}{ids}{values}"

    def _selected(self) -> tuple[Column, int]:
        if self._from is None or self._from[1] >= _ids(self._from[0]).shape[1]:
            raise ValueError("no written token is selected; click one first")
        return self._from

    def _done(self, name: str, code: str) -> None:
        self._set(name, name)
        self.shown_by, self._line_of_code = name, code
        self.lab.status.say(f"Coloured by {name}.")

    def _set(self, name: str, other: str = "") -> None:
        """Set the menu without doing what it says; `other` is shown for now and was not registered."""
        names = [*self.shades, *[other] * (other != "")]
        self._quiet = True
        try:
            self.menu.options = [(PLAIN, ""), *((one, one) for one in names)]
            self.menu.value = name
        finally:
            self._quiet = False
        shown(self.menu, bool(names))

    def _chosen(self, change: Any) -> None:
        if not self._quiet:
            self._clicked(partial(self.colour, change["new"], aloud=True))

    def _clicked(self, act: Any) -> None:
        try:
            act()
        except ValueError as error:
            self.lab.status.complain(in_words(error))


class Coloured:
    """The part of a PromptLab that offers colours."""

    colours: Colours

    def colour_by(self, name: str, direction: Any = None, *, site: str | None = None) -> None:
        """Offer a name in the menu: a direction, or how much of a token's attention goes to the prompt.

        Args:
            name: what the menu calls it.
            direction: of which the dot product with each token's activation is shown: a steering vector, numbers
                (d_model,), or a `Probe`, with its bias, so that 0 is where it is undecided; None for a head.
            site: where, such as `resid_post.12`; for a head `pattern.5.2`. By default the layer of the steering vector,
                or the best one of the probe.

        Raises:
            ValueError: the direction or the site does not fit.
        """
        self.colours.register(name, Shade.of(direction, site))


def _ids(column: Column) -> torch.Tensor:
    """Everything that is shown, (1, seq)."""
    ids = column.tree.ids[0].tolist() if column.tree is not None else []
    ids += column.record.ids if column.record is not None else []
    if not ids:
        raise ValueError("nothing is shown yet; press Run first")
    return torch.tensor([ids], dtype=torch.long)


def _besides_the_sink(values: np.ndarray) -> float | None:
    """The largest of the other tokens, where the first one's activation is of another order (Sun et al. 2024)."""
    sizes = np.nan_to_num(np.abs(values))
    rest = float(sizes[1:].max(initial=0))
    return rest if sizes[0] > 5 * rest > 0 else None


def _show(column: Column, values: np.ndarray, unit: str, *, centred: bool, high: float | None = None) -> None:
    """Colour a strip by these values, up to `high` or the largest; directions and reasons around zero."""
    strip, reach = column.strip, high or float(np.nanmax(np.abs(values), initial=0)) or 1.0
    with strip.hold_sync():
        strip.scale, strip.centre = ("effect", 0.0) if centred else ("amount", None)
        strip.low, strip.high, strip.unit = (-reach if centred else 0.0), reach, unit
        strip.values = values.astype(np.float32)
