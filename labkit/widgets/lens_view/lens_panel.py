"""The lens in LensView: a logit lens as a map of words, the ten likeliest tokens of a cell, one token's rank."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
import traitlets as t

from labkit.activations.unembedding import last_logits
from labkit.language_model import LanguageModel
from labkit.lens.logit_lens import SHADES, SITES, LogitLens, logit_lens
from labkit.text.encode import word_for
from labkit.text.tokens import describe
from labkit.text.types import Prompt
from labkit.widgets.base.block import cell
from labkit.widgets.base.snapshot import note, side_by_side
from labkit.widgets.base.tool import Panel, choice, labelled, link, row, shown
from labkit.widgets.blocks.curve import Curve
from labkit.widgets.blocks.heatmap import Heatmap
from labkit.widgets.blocks.token_bars import TokenBars
from labkit.widgets.cell_writing import PATCHSCOPE, RESIDUAL, CellWriting

AT_FIRST = 20  # positions of a long prompt that are read at first: the last ones
MOST_WORDS = 64  # positions beyond which cells are too narrow for words
_SITE_WORDS = {
    "resid_post": "resid_post (whole stream)",
    "attn_out": "attn_out (attention)",
    "mlp_out": "mlp_out (MLP)",
}
_SHADE_WORDS = {
    "probability": "probability",
    "entropy": "entropy",
    "rank": "rank of followed token",
    "kl": "KL to final layer",
}


class LensPanel(Panel):
    """Controls, map, bars and curve of a logit lens, and what the model writes from a cell.

    Args:
        ask: called when the model has to be read again.
        patchscope: called by the button that puts the selected cell's activation into another prompt.

    Traits:
        site, shade, follow: the settings; an empty `follow` is the token that the model predicts.
        window: (first, last) position that is read; None for the end of the prompt.
        lens: the `LogitLens` that is shown.
        selection: (layer, position) of the selected cell.
    """

    site = t.Enum(SITES, "resid_post")
    shade = t.Enum(SHADES, "probability")
    follow = t.Unicode()
    window = cell()
    lens = t.Any(None)
    selection = cell()

    def __init__(self, lm: LanguageModel, ask: Callable[[], None], patchscope: Callable[[], None]) -> None:
        self.lm = lm
        self.writing = CellWriting({"patchscope": (*PATCHSCOPE, patchscope)})
        self._reading = False
        self._followed: Any = None
        site, shade = choice("Site", _SITE_WORDS, "250px"), choice("Colour", _SHADE_WORDS, "234px")
        self._follow = labelled(widgets.Text, "Follow", "200px", continuous_update=False)
        self._window = labelled(widgets.IntRangeSlider, "Positions", "340px", continuous_update=False)
        shown(self._window, False)
        self.heatmap = Heatmap(row_axis="layer (0 at the bottom)", column_axis="position", origin="bottom", low=0.0)
        self.bars = TokenBars()
        self.bars.layout.flex, self.bars.layout.width = "0 0 auto", "264px"
        self.curve = Curve(axis="layer")
        self.curve.layout.flex, self.curve.layout.width = "1 1 380px", "auto"
        super().__init__()
        link(self, site=site, shade=shade, follow=self._follow)
        self.observe(lambda _: None if self._reading else ask(), ["site", "follow", "window"])
        self.observe(lambda _: self.draw(), ["lens", "shade"])
        self.observe(lambda _: self._look(), "selection")
        self.observe(lambda _: self._offer_to_write(), ["lens", "selection"])
        self._window.observe(self._moved, "value")
        self.heatmap.observe(self._clicked, "selection")
        self.curve.observe(self._climbed, "selection")
        controls = row(site, shade, self._follow, self._window)
        self.children = [controls, self.heatmap, row(self.bars, self.curve, wide=True), self.writing]

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, prompt: Prompt, stop: threading.Event) -> LogitLens:
        """Read the model again with the present settings. Raises what `labkit.logit_lens` raises."""
        ids = self.lm.encode(prompt)
        length = ids.shape[1]
        self._fit_window(length)
        first, last = self.window or (max(0, length - AT_FIRST), length - 1)
        whole = (first, last) == (0, length - 1)
        lens = logit_lens(
            self.lm, prompt, site=self.site, positions=None if whole else range(first, last + 1),
            follow=self._token(ids), stop=stop,
        )  # fmt: skip
        self._followed = lens.followed[0]
        self._follow.placeholder = "" if self.follow else f"{self._followed.display} (automatic)"
        self.lens, at = lens, self.selection
        if at is None or at[0] not in lens.layers or at[1] not in lens.positions:
            self.selection = (lens.layers[-1], lens.positions[-1])
        return lens

    def _token(self, ids: torch.Tensor) -> str | int:
        """The token to follow, as text where its text is that one token."""
        if self.follow and not (self._followed and self.follow == self._followed.text):
            return self.follow
        token = self._followed
        if not self.follow:
            with self.lm.busy():
                token = describe(self.lm.tokenizer, [int(last_logits(self.lm, ids)[0].argmax())])[0]
        return word_for(self.lm, token.id, after=ids)

    def _fit_window(self, length: int) -> None:
        """The slider's range is the prompt's; a window beyond it goes back to the prompt's end."""
        self._reading = True
        try:
            if self.window is not None and self.window[1] >= length:
                self.window = None
            first, last = self.window or (max(0, length - AT_FIRST), length - 1)
            if self._window.max < length - 1:
                self._window.max = length - 1
            self._window.value = (first, last)
            self._window.max = length - 1
            shown(self._window, length > AT_FIRST)
        finally:
            self._reading = False

    def _moved(self, change: Any) -> None:
        if not self._reading:
            self.window = tuple(change["new"])

    # -- showing -----------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Fill the map."""
        lens = self.lens
        if lens is None:
            return
        values = lens.shade(self.shade)
        look: dict[str, Any] = {"scale": "amount", "low": 0.0, "ticks": []}
        if self.shade == "rank":
            values = np.log10(values)
            look |= {
                "scale": "order",
                "high": float(np.log10(self.lm.n_vocab)),
                "ticks": rank_ticks(self.lm.n_vocab),
                "unit": f"rank of {lens.followed[0].display}",
            }
        elif self.shade == "probability":
            look |= {"high": 1.0, "unit": "probability"}
        else:
            look |= {"high": max(float(values.max()), 1e-3), "unit": f"{_SHADE_WORDS[self.shade]} (nats)"}
        worded = len(lens.positions) <= MOST_WORDS
        words = [lens.words[int(id)].display for id in lens.top_ids[:, :, 0].ravel()] if worded else []
        with self.heatmap.hold_sync():
            self.heatmap.max_height = min(1400, max(16 * len(lens.layers), 60))
            self.heatmap.row_labels, self.heatmap.column_labels = [str(n) for n in lens.layers], lens.labels()
            self.heatmap.title = f"What each layer would predict next, read from {lens.site}"
            for name, value in look.items():
                setattr(self.heatmap, name, value)
            self.heatmap.texts, self.heatmap.notes = words, self._notes(lens) if worded else []
            self.heatmap.values = values
        self._look()

    def _notes(self, lens: LogitLens) -> list[str]:
        word = lens.followed[0].display
        each = zip(
            lens.top_probabilities[:, :, 0].ravel(), lens.entropy.ravel(), lens.kl.ravel(), lens.ranks[0].ravel(),
            strict=True,
        )  # fmt: skip
        return [f"{p:.1%}\nentropy {h:.2f}, KL {kl:.2f} nats\nrank of {word}: {r}" for p, h, kl, r in each]

    def _look(self) -> None:
        """The ten likeliest tokens of the selected cell, and the followed token's rank at its position."""
        lens = self.lens
        if lens is None or self.selection is None:
            return
        try:
            r, c = lens.place(*self.selection)
        except ValueError:
            return
        layer, position = self.selection
        self._reading = True
        try:
            self.heatmap.selection, self.curve.selection = (r, c), r
        finally:
            self._reading = False
        word, at = lens.followed[0].display, lens.labels()[c]
        about = f"entropy {lens.entropy[r, c]:.2f} nats, KL to the final layer {lens.kl[r, c]:.2f} nats\n"
        about += f"{word} is at rank {lens.ranks[0, r, c]} (1 is the likeliest), {lens.probabilities[0, r, c]:.2%}"
        self.bars.marked = [word]
        self.bars.show({f"after {at}": lens.top(layer, position)}, title=f"Layer {layer}, {lens.site}", note=about)
        ranks, shares = lens.ranks[0, :, c], lens.probabilities[0, :, c]
        ticks = rank_ticks(self.lm.n_vocab)
        with self.curve.hold_sync():
            self.curve.title = f"Rank of {word} after {at}"
            self.curve.labels = [str(n) for n in lens.layers]
            self.curve.notes = [f"rank {n} · {p:.2%}" for n, p in zip(ranks, shares, strict=True)]
            self.curve.ticks, self.curve.low, self.curve.high = ticks, float(np.log10(self.lm.n_vocab)), 0.0
            self.curve.height = 230
            self.curve.values = np.log10(ranks)

    # -- writing from a cell -----------------------------------------------------------------------------------------

    def _offer_to_write(self) -> None:
        """Another cell or another lens: what was written from the last one is gone."""
        self.writing.clear()
        self.writing.offer("patchscope", self.why_not())

    def why_not(self) -> str:
        """Why a patchscope cannot read the selected cell; empty where it can."""
        if self.lens is None or self.selection is None:
            return "Read a text and click a cell first"
        if self.lens.site not in RESIDUAL:
            return f"A patchscope reads the residual stream, not {self.lens.site}: choose resid_post"
        return ""

    def _clicked(self, change: Any) -> None:
        if self._reading or self.lens is None or change["new"] is None:
            return
        r, c = change["new"]
        if r < len(self.lens.layers) and c < len(self.lens.positions):
            self.selection = (self.lens.layers[r], self.lens.positions[c])

    def _climbed(self, change: Any) -> None:
        if not self._reading and self.lens is not None and change["new"] is not None and self.selection is not None:
            self.selection = (self.lens.layers[change["new"]], self.selection[1])

    def picture(self) -> str:
        """The map as HTML without a frame, for the snapshot."""
        if self.lens is None:
            return ""
        curve = f"<div>{note(self.curve.title)}{self.curve.picture()}</div>"
        both = side_by_side(f"<div>{self.bars.picture()}</div>", curve)
        return self.heatmap.picture() + both + self.writing.picture()


def rank_ticks(n_vocab: int) -> list[tuple[float, str]]:
    """Ranks at equal steps of their order of magnitude, as (log10(rank), label)."""
    tens = [10**n for n in range(1, 7) if 10**n < n_vocab]
    names = {1000: "1k", 10_000: "10k", 100_000: "100k", 1_000_000: "1M"}
    return [(0.0, "1 (top)"), *((float(np.log10(ten)), names.get(ten, str(ten))) for ten in tens)]
