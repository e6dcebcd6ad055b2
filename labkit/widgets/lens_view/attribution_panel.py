"""Direct logit attribution in LensView: what every head, attention and MLP writes to answer minus foil."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import numpy as np
import traitlets as t

from labkit.activations.unembedding import last_logits
from labkit.language_model import LanguageModel
from labkit.lens.direct_attribution import DirectAttribution, direct_logit_attribution
from labkit.text.tokens import describe
from labkit.text.types import Prompt
from labkit.widgets.base.snapshot import note, side_by_side
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.base.tool import Panel, labelled, link, row, shown
from labkit.widgets.blocks.heatmap import Heatmap


class AttributionPanel(Panel):
    """Two maps of shares, by head and by layer, and the sum; `ask` is called when there is something new to compute.

    Traits:
        answer, foil: one token each; empty for the two likeliest.
        found: the `DirectAttribution` that is shown.
    """

    answer = t.Unicode()
    foil = t.Unicode()
    found = t.Any(None)

    def __init__(self, lm: LanguageModel, ask: Callable[[], None]) -> None:
        self.lm = lm
        self._words = {
            name: labelled(widgets.Text, name.capitalize(), "230px", continuous_update=False)
            for name in ("answer", "foil")
        }
        what: dict[str, Any] = {"row_axis": "layer (0 at the bottom)", "unit": "share in logits", "max_height": 480}
        self.heads = Heatmap(title="By head", column_axis="head", centre=0.0, origin="bottom", **what)
        self.parts = Heatmap(title="By layer", column_axis="part", centre=0.0, origin="bottom", **what)
        self.heads.layout.flex, self.heads.layout.width = "1 1 380px", "auto"
        self.parts.layout.flex, self.parts.layout.width = "0 0 240px", "auto"
        self.sum = StatusLine()
        super().__init__()
        link(self, **self._words)
        self.observe(lambda _: ask(), ["answer", "foil"])
        self.observe(lambda _: self.draw(), "found")
        self.children = [row(*self._words.values()), self.sum, row(self.heads, self.parts, wide=True)]

    def read(self, prompt: Prompt) -> DirectAttribution:
        """Compute the shares with the present settings. Raises what `labkit.direct_logit_attribution` raises."""
        answer, foil = self.pair(prompt)
        self.found = direct_logit_attribution(self.lm, prompt, answer, foil)
        return self.found

    def pair(self, prompt: Prompt) -> tuple[str | int, str | int]:
        """Answer and foil, text or id; where a field is empty, the likeliest token that is not the other."""
        ids = self.lm.encode(prompt)
        with self.lm.busy():
            top = last_logits(self.lm, ids)[0].topk(min(2, self.lm.n_vocab)).indices.tolist()
        first, second = describe(self.lm.tokenizer, top)
        answer: str | int = self.answer or (first.id if self.foil != first.text else second.id)
        foil: str | int = self.foil or (second.id if answer not in (second.id, second.text) else first.id)
        for name, given in (("answer", answer), ("foil", foil)):
            auto = "" if isinstance(given, str) else describe(self.lm.tokenizer, [given])[0].display
            self._words[name].placeholder = f"{auto} (automatic)" if auto else ""
        return answer, foil

    def draw(self) -> None:
        """Fill both maps, on one scale, and write the sum."""
        found: DirectAttribution | None = self.found
        if found is None:
            return
        layers = [str(n) for n in range(len(found.attn))]
        parts = np.stack([found.attn, found.mlp], 1)
        reach = max(float(np.nanmax(np.abs(found.heads), initial=0)), float(np.abs(parts).max()), 1e-6)
        for heatmap, values, labels in (
            (self.heads, found.heads, [str(n) for n in range(found.heads.shape[1])]),
            (self.parts, parts, ["attn", "MLP"]),
        ):
            with heatmap.hold_sync():
                heatmap.max_height = min(1400, max(480, 9 * len(layers)))
                heatmap.low, heatmap.high = -reach, reach
                heatmap.row_labels, heatmap.column_labels, heatmap.values = layers, labels, values
        shown(self.heads, bool(np.isfinite(found.heads).any()))
        self.sum.say("\n".join(sentences(found)))

    def picture(self) -> str:
        """Both maps as HTML without a frame, for the snapshot."""
        if self.found is None:
            return ""
        maps = (f"<div>{note(one.title)}{one.picture()}</div>" for one in (self.heads, self.parts))
        return "".join(note(line) for line in sentences(self.found)) + side_by_side(*maps)


def sentences(found: DirectAttribution) -> list[str]:
    """The sum in words, and the largest shares."""
    what = f"{found.answer!r}" + ("" if found.foil is None else f" minus {found.foil!r}")
    parts: dict[str, Any] = {
        "embedding": found.embed, "attention": float(found.attn.sum()), "MLPs": float(found.mlp.sum()),
        "biases": found.bias, "rounding": found.rest,
    }  # fmt: skip
    added = sum(parts.values())
    shown = " ".join(f"{signed(value)} {name}" for name, value in parts.items())
    frame = found.to_frame().query("part in ('head', 'mlp')").sort_values("share", key=abs, ascending=False)
    most = [
        f"{'MLP' if r.part == 'mlp' else 'head'} {r.layer}{'' if r.part == 'mlp' else f'.{r.head}'} {signed(r.share)}"
        for r in frame.head(6).itertuples()
    ]
    whole = f"The model's own logit difference is {signed(found.total)}; the parts add up to {signed(added)}."
    return [f"{what}: {shown} = {signed(added)}", whole, f"Most of it: {', '.join(most)}."]


def signed(value: Any) -> str:
    """A number with its sign: +1.20, −0.35."""
    return f"{float(value):+.2f}".replace("-", "−")
