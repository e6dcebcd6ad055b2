"""HeadFinder: every head at a glance, ordered by what it does, or only those that look from one token at another."""

from __future__ import annotations

import threading
from collections.abc import Callable

import ipywidgets as widgets
import numpy as np
import traitlets as t

from labkit.attention_maps.head_scores import SCORES, HeadScore
from labkit.attention_maps.patterns import AttentionPatterns
from labkit.widgets.base.block import cell
from labkit.widgets.base.tool import Panel, choice, labelled, link, row, shown
from labkit.widgets.blocks.head_grid import HeadGrid

MOST = 120  # heads in an order
LOOKS = "looks"  # the score of a search: how much one token looks at another
Ask = Callable[[Callable[[threading.Event], None]], None]


class HeadFinder(Panel):
    """A `HeadGrid` with controls to find heads. `ask` runs work off the UI thread.

    Traits:
        selection, chosen: as in `HeadGrid`.
        score: the score that orders the heads, "" for none.
        at_least: heads below this are left out of the order, and faint in the grid.
        ranked: in order of the score, or by layer and head.
        look: (query, key): find the heads in which that token looks at that one; None for no search.
    """

    selection = cell()
    chosen: t.List = t.List()
    score = t.Unicode()
    at_least = t.Float(0.0)
    ranked = t.Bool(True)
    look = cell()

    def __init__(self, ask: Ask, *, n_heads: int, n_layers: int, own: dict[str, HeadScore] | None = None) -> None:
        self._ask_for = ask
        self.patterns: AttentionPatterns | None = None
        self.own = dict(own or {})
        self.given: dict[str, Callable[[], np.ndarray]] = {}  # scores that the owner computes, by name
        side = max(12, min(28, 556 // n_layers))
        self.width = max(330, min(n_heads * side + 64, 420))
        self.heads = HeadGrid(title="Heads", side=side, max_height=600)
        self._score = choice("Order by", [("layer and head", "")])
        self._least = labelled(
            widgets.FloatSlider, "At least", "230px", min=0.0, max=1.0, step=0.05, continuous_update=False
        )
        self._ranked = widgets.Checkbox(value=True, description="Rank", indent=False, layout={"width": "auto"})
        self._from, self._to = choice("Where", [("any token", -1)]), choice("looks at", [("any", -1)])
        super().__init__()
        link(self, selection=self.heads, chosen=self.heads)
        link(self, at_least=self._least, ranked=self._ranked, score=self._score)
        for box in (self._from, self._to):
            box.observe(lambda _: self._search(), "value")
        self.observe(lambda _: self._ask_for(self.arrange), ["score", "look", "at_least", "ranked"])
        self.children = [row(self._score, self._ranked), self._least, row(self._from, self._to), self.heads]
        self.arrange()

    def show(self, patterns: AttentionPatterns, thumbnails: np.ndarray) -> None:
        """Other patterns: their thumbnails, and searches over their tokens."""
        self.patterns = patterns
        self.heads.thumbnails = thumbnails
        names, score = [*SCORES, *self.own, *self.given], self.score
        self._score.options = [("layer and head", ""), *((name.replace("_", " "), name) for name in names)]
        places = [(f"{n} {token.display}", n) for n, token in enumerate(patterns.tokens)]
        for box, nothing in ((self._from, "any token"), (self._to, "any")):
            box.options = [(nothing, -1), *places]
        self.look = None
        self.score = score if score in names else ""
        self.arrange()

    def _search(self) -> None:
        query, key = self._from.value, self._to.value
        self.look = (query, key) if query >= 0 and key >= 0 else None

    def grid(self) -> np.ndarray | None:
        """The numbers that order the heads, (layer, head) float32."""
        if self.patterns is None:
            return None
        if self.look is not None:
            return self.patterns.looks(*self.look)
        if self.score in self.given:
            return self.given[self.score]()
        if self.score in self.own:
            return self.patterns.add_score(self.score, self.own[self.score])
        return self.patterns.grid(self.score) if self.score else None

    def arrange(self, stop: threading.Event | None = None) -> None:
        """Put the heads in order, or in their places."""
        if stop is not None and stop.is_set():
            return
        grid = self.grid()
        heads = self.heads
        with heads.hold_sync():
            heads.scores = grid
            for control in (self._least, self._ranked):  # there is nothing to cut off or rank without an order
                shown(control, grid is not None)
            if grid is None:
                heads.order, heads.faint, heads.title, heads.score = None, [], "Heads", ""
                return
            what = "attention" if self.look is not None else self.score.replace("_", " ")
            most = float(np.nanmax(grid, initial=0.0))
            self._least.max = max(1.0, float(np.ceil(most)))
            self._least.step = 0.05 if self._least.max <= 1 else self._least.max / 40
            order = ranks(grid, at_least=self.at_least)
            heads.score = what
            heads.order = order[:MOST] if self.ranked else None
            low = np.argwhere(~(grid >= self.at_least))
            heads.faint = [] if self.ranked else [(int(layer), int(head)) for layer, head in low]
            counted = f"{len(order)} of {int(np.isfinite(grid).sum())} heads" if self.at_least > 0 else "Heads"
            if self.look is not None and self.patterns is not None:
                query, key = (self.patterns.tokens[at].display for at in self.look)
                heads.title = f"{counted} where {query} looks at {key}"
            else:
                heads.title = f"{counted} by {what}"


def ranks(grid: np.ndarray, *, at_least: float = 0.0) -> list[tuple[int, int]]:
    """The heads with at least this much, the largest first."""
    order = np.argsort(-np.nan_to_num(grid, nan=-np.inf), axis=None, kind="stable")
    heads = [divmod(int(n), grid.shape[1]) for n in order]
    return [head for head in heads if grid[head] >= at_least or (at_least <= 0 and np.isfinite(grid[head]))]
