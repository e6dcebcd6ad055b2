"""AttentionView: every head at a glance, one head large, and where each token looks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import traitlets as t

from labkit.analysis.attention import AttentionPatterns, attention
from labkit.widgets.block import cell
from labkit.widgets.head_grid import HeadGrid
from labkit.widgets.heatmap import Heatmap
from labkit.widgets.prompt_box import PromptBox
from labkit.widgets.snapshot import card, note
from labkit.widgets.token_strip import TokenStrip
from labkit.widgets.tool import Tool, row, special

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel

THUMBNAIL_BYTES = 560_000  # all thumbnails together, so that the first payload stays below a megabyte
MOST_CELLS = 512  # rows and columns of the large picture; longer texts are pooled by their maximum


class AttentionView(Tool):
    """Where the heads of a model look. Click a head to see it large; point at a token to see where it looks.

    Args:
        lm: the model.
        text: the text it reads.
        selection: the head to begin with, (layer, head); by default one that looks at more than the text's beginning.
        background: do the work in a thread of its own; by default everywhere but in Colab.

    Traits:
        text: what the model reads; `start()` or `run()` after changing it.
        selection: (layer, head) shown large.
        token: the position whose looks are shown, or None; follows the pointer.
    """

    text = t.Unicode()
    selection = cell()
    token = t.Int(None, allow_none=True)

    def __init__(
        self,
        lm: LanguageModel,
        text: str = "",
        *,
        selection: tuple[int, int] | None = None,
        background: bool | None = None,
    ) -> None:
        super().__init__(lm, background=background)
        self.patterns: AttentionPatterns | None = None
        self._reading = False
        self._pattern: np.ndarray | None = None  # (query, key) of the head that is shown
        self.box = PromptBox(label="Text", placeholder="Write a text for the model to read. Ctrl+Enter runs it.")
        side = max(12, min(28, 556 // lm.n_layers))
        self.heads = HeadGrid(title="Heads", side=side, max_height=600)
        self.heads.layout.width, self.heads.layout.flex = f"{min(lm.n_heads * side + 64, 420)}px", "0 0 auto"
        self.heatmap = Heatmap(
            row_axis="query (the token that looks)", column_axis="key (the token looked at)", unit="attention",
            low=0.0, high=1.0, square=True,
        )  # fmt: skip
        self.heatmap.layout.flex = "1 1 420px"
        self.strip = TokenStrip(unit="attention", legend=True)
        self.strip.add_class("labkit-short")
        t.link((self, "text"), (self.box, "value"))
        t.link((self, "selection"), (self.heads, "selection"))
        self.text, self.selection = text, selection
        self.box.on_submit(self.start)
        self.observe(lambda _: self._ask_for_head(), "selection")
        self.strip.observe(lambda _: self._follow(), ["hovered", "selection"])
        self.heatmap.observe(lambda _: self._follow(), ["hovered", "selection"])
        self.observe(lambda _: self._shade(), "token")
        self.children = [
            self.box, row(self.run_button, self.stop_button, self.status), self.strip,
            row(self.heads, self.heatmap, wide=True),
        ]  # fmt: skip
        if text:
            self.start()
        else:
            self.status.say("Write a text and run it.")

    def start(self) -> None:
        self._reading = True
        self._ask(self._read)

    def run(self, timeout: float | None = None) -> AttentionPatterns:
        """Read the text, and wait until heads and the large picture are there. Raises what `wait` raises."""
        self.start()
        self.wait(timeout)
        assert self.patterns is not None
        return self.patterns

    def _read(self, stop: threading.Event) -> None:
        try:
            self._read_text(stop)
        finally:
            self._reading = False

    def _read_text(self, stop: threading.Event) -> None:
        if not self.text:
            raise ValueError("the text is empty; write at least one character")
        self.status.say("Reading…")
        patterns = attention(self.lm, self.text)
        thumbnails = patterns.thumbnails(thumbnail_side(patterns.n_layers, patterns.n_heads))
        if stop.is_set():
            self.status.say("Stopped.")
            return
        self.patterns, self._pattern = patterns, None
        self.token = None
        self.heads.thumbnails = thumbnails
        with self.strip.hold_sync():
            self.strip.clear()
            self.strip.tokens = [token.display for token in patterns.tokens]
            self.strip.marks = {"special": special(patterns.tokens)}
        head = self.selection
        if head is None or head[0] not in patterns.layers or head[1] >= patterns.n_heads:
            telling = _telling(thumbnails)
            head = self.selection = telling if telling[0] in patterns.layers else (patterns.layers[0], 0)
        self._show_head(head)
        tokens = "token" if len(patterns.tokens) == 1 else "tokens"
        self.status.say(f"{len(patterns.tokens)} {tokens} · {patterns.n_layers} layers × {patterns.n_heads} heads")

    def _ask_for_head(self) -> None:
        if self._reading or self.patterns is None or self.selection is None:
            return  # the reading ends by showing the head that is selected
        head = self.selection
        self._ask(lambda stop: None if stop.is_set() else self._show_head(head))

    def _show_head(self, head: tuple[int, int]) -> None:
        """Send one head's pattern: float32 where it is small, pooled to 512 x 512 uint8 where the text is long."""
        assert self.patterns is not None
        layer, number = head
        self._pattern = pattern = self.patterns.pattern(layer, number)
        labels = [token.display for token in self.patterns.tokens]
        step = self._step
        if step > 1:
            labels = [f"{at}–{min(at + step, len(labels)) - 1} {labels[at]}" for at in range(0, len(labels), step)]
            pattern = np.round(255 * _pooled(pattern, step)).astype(np.uint8)
        elif len(labels) > 256:
            pattern = np.round(255 * pattern).astype(np.uint8)
        with self.heatmap.hold_sync():
            self.heatmap.selection = self.heatmap.hovered = None
            self.heatmap.row_labels = self.heatmap.column_labels = labels
            self.heatmap.values = pattern
            self.heatmap.title = f"Layer {layer}, head {number}"
        self._shade()

    @property
    def _step(self) -> int:
        """How many tokens one cell of the large picture stands for."""
        return 1 if self.patterns is None else -(-len(self.patterns.tokens) // MOST_CELLS)

    def _follow(self) -> None:
        """The token to show is the one under the pointer, else the one that was selected."""
        for place in (self.strip.hovered, self.heatmap.hovered, self.strip.selection, self.heatmap.selection):
            if place is not None:
                self.token = place if isinstance(place, int) else place[0] * self._step
                return
        self.token = None

    def _shade(self) -> None:
        """Colour the tokens by how much the chosen one looks at them."""
        pattern, token = self._pattern, self.token
        with self.strip.hold_sync():
            if pattern is None or token is None or token >= len(pattern):
                self.strip.values = None
                self.strip.title = "Point at a token to see where it looks"
                self.strip.marks = {name: at for name, at in self.strip.marks.items() if name != "looking"}
                return
            self.strip.values = pattern[token]
            self.strip.title = f"Where {self.strip.tokens[token]} ({token}) looks"
            self.strip.marks = {**self.strip.marks, "looking": [token]}

    def code(self) -> str:
        layer, head = self.selection or (0, 0)
        return (
            f"{self.lm.code()}patterns = lk.attention(lm, {self.text!r})\n"
            f"patterns.pattern({layer}, {head})  # (query, key)\npatterns.figure({layer}, {head})\n"
        )

    def snapshot(self) -> str:
        title = f"AttentionView · {self.lm.name}"
        if self._pattern is None:
            return card(note(self.text or "no text yet"), title=title)
        sides = "".join(
            f'<div><div style="color:#59636e">{name}</div>{picture}</div>'
            for name, picture in (
                ("all heads: layers up, heads across", self.heads.picture()),
                (self.heatmap.title, self.heatmap.picture()),
            )
        )
        side_by_side = f'<div style="display:flex;flex-wrap:wrap;gap:24px">{sides}</div>'
        return card(self.strip.picture(), side_by_side, title=title)

    def __repr__(self) -> str:
        return f"AttentionView({self.lm.name!r}, {self.text!r}, selection={self.selection})"


def thumbnail_side(layers: int, heads: int) -> int:
    """Rows and columns of a thumbnail: as many as all heads together leave room for."""
    return max(4, min(24, int(np.sqrt(THUMBNAIL_BYTES / (layers * heads)))))


def _telling(thumbnails: np.ndarray) -> tuple[int, int]:
    """A head worth seeing first: it looks at something, and not only at the first token or at itself."""
    size = thumbnails.shape[-1]
    elsewhere = np.tril(np.ones((size, size), bool), -1)
    elsewhere[:, 0] = False
    if not elsewhere.any():
        return (0, 0)
    strength = thumbnails[..., elsewhere].mean(-1)
    layer, head = np.unravel_index(int(strength.argmax()), strength.shape)
    return int(layer), int(head)


def _pooled(pattern: np.ndarray, step: int) -> np.ndarray:
    """The largest value of every step x step cells; (query, key) -> (query / step, key / step), rounded up."""
    size = -(-len(pattern) // step)
    padded = np.zeros((size * step, size * step), pattern.dtype)
    padded[: len(pattern), : len(pattern)] = pattern
    return padded.reshape(size, step, size, step).max((1, 3))
