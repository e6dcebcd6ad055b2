"""QuantLab: one prompt in two precisions of a model, and where in the model the difference comes from.

Its parts are those of PatchLab: the grid runs between two models instead of two prompts. What the models predict is in
`predictions`, the grids of a pair in both models in `difference`. This file puts them together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields

import ipywidgets as widgets
import numpy as np
import traitlets as t

from labkit.activations.metrics import code_of_own
from labkit.activations.site_kinds import KINDS
from labkit.elsewhere import LOAD_BOTH, needs_weights
from labkit.language_model import LanguageModel
from labkit.patching.cell_report import Place
from labkit.patching.grid import PatchGrid
from labkit.patching.source_model import check_source, run_names
from labkit.precision.next_tokens import NextTokens, next_tokens
from labkit.results.recipe import loaded_as, made_with
from labkit.text.as_code import LM, Name, as_call
from labkit.widgets.base.snapshot import card, folded_code, note
from labkit.widgets.base.tool import link, row, shown
from labkit.widgets.blocks.prompt_box import PromptBox
from labkit.widgets.export.contents import Contents
from labkit.widgets.patch_lab.answer_picks import AnswerPicks
from labkit.widgets.patch_lab.exported import STRONGEST
from labkit.widgets.patch_lab.grid_tool import GridTool
from labkit.widgets.patch_lab.live_grid import Known, gap_words
from labkit.widgets.patch_lab.patch_controls import PatchControls
from labkit.widgets.patch_lab.state import Over
from labkit.widgets.quant_lab.difference import DifferencePanel
from labkit.widgets.quant_lab.predictions import Predictions

VIEWS = {"lost": "Where it is lost", "difference": "Difference of two prompts"}


class QuantLab(GridTool):
    """One prompt in two models of one architecture: in 4 and in 32 bits, or before and after tuning.

    The tokens are coloured by how far the two models' predictions are apart. *Where it is lost*: for each cell, the
    source's activation is put into this model's run of the same prompt. *Difference*: the grid of a pair of prompts in
    both models, and one minus the other.

    Args:
        lm: the model looked at, such as one in 4 bits.
        source: the model it is compared with, such as the same in 32 bits.
        prompt: the text that both read.
        answer: the token whose logit is followed, with its space: `" Mary"`.
        foil: the token that it is compared with; may be empty.
        corrupt: for the difference, a prompt with the same number of tokens that lacks the behaviour of `prompt`.
        metric, site, over, layer: as `PatchLab` has them.
        view: `lost` or `difference`.
        background: work in a thread of its own; the default everywhere but in Colab.

    Traits:
        prompt, answer, foil, corrupt, metric, site, over, layer, direction, view: the settings.
        next_tokens: the `NextTokens` of the prompt, or None.
        grid: the `PatchGrid` between the two models, as `labkit.patch(..., source=source)` gives it.
        selection, chosen, arrow: cells of it, as `PatchLab` has them.

    Raises:
        ValueError: the models have other sizes, or read the prompt as other tokens.
    """

    prompt = t.Unicode()
    view = t.Enum(tuple(VIEWS), "lost")
    next_tokens = t.Any(None)

    def __init__(
        self,
        lm: LanguageModel,
        source: LanguageModel,
        prompt: str = "",
        answer: str | None = None,
        foil: str | None = None,
        *,
        corrupt: str = "",
        metric: str | None = None,
        site: str = "resid_pre",
        over: Over | None = None,
        layer: int | None = None,
        view: str = "lost",
        background: bool | None = None,
    ) -> None:
        needs_weights("QuantLab puts activations of one model into another", lm, source, instead=LOAD_BOTH)
        check_source(lm, source, prompt or "a")
        self.source = source
        self.names = run_names({**made_with(lm), "source": made_with(source)})
        super().__init__(lm, background=background)
        self.site, self.metric, self.view = site, metric or "", view
        self.over = over or KINDS[site].usual
        self.layer = lm.n_layers // 2 if layer is None else layer
        t.link((self, "prompt"), (self, "clean"))
        boxes = {
            "prompt": PromptBox(label="Prompt", delay=150),
            "corrupt": PromptBox(label="Corrupt prompt: as many tokens, without the behaviour", delay=150),
        }
        link(self, **boxes)
        for box in boxes.values():
            box.on_submit(self.start)
            box.layout.flex, box.layout.width = "1 1 380px", "auto"
        self._corrupt = boxes["corrupt"]
        self.predictions = Predictions(lm.tokenizer, self.names)
        # the answer from what the source predicts, the foil from what this model does
        self.words = AnswerPicks(self, ("clean", "corrupt"))
        self.words.row.layout.flex = "1 1 320px"
        self.what = PatchControls(lm, self)
        self.differences = DifferencePanel({"own": lm, "source": source}, self.names)
        face = widgets.ToggleButtons(options=[(words, name) for name, words in VIEWS.items()])
        face.style.button_width = "auto"
        link(self, view=face)
        self._lost = row(self.heatmap, self.inspector, wide=True)
        self.prompt, self.corrupt, self.answer, self.foil = prompt, corrupt, answer or "", foil or ""
        self.children = [
            row(*boxes.values(), wide=True),
            self.predictions,
            row(self.predictions.bars, self.words.row, wide=True),
            face,
            self.what,
            row(self.run_button, self.pause_button, self.stop_button, self.status),
            self._lost,
            self.inspector.invitation,
            self.differences,
        ]
        self._show_view()
        self._read()
        self.observe(lambda _: self._read(), "prompt")
        self.observe(lambda _: self.words.mark(), ["answer", "foil"])
        self.observe(lambda _: self._turn(), "view")
        self._watch()
        if self._ready:
            self.start()

    @property
    def other(self) -> LanguageModel | None:
        return self.source if self.view == "lost" else None

    @property
    def runs(self) -> Mapping[str, str]:
        return super().runs if self.view == "difference" else self.names

    # -- what the models predict -------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Run the prompt in both models, and show what they predict."""
        if not self.prompt:
            self.next_tokens = None
            self.predictions.show(None)
            self.status.say("Write a prompt; then choose an answer and a foil, and press Run.")
            return
        self.do(self._predict, queue=self._offers)

    def _predict(self, stop: threading.Event) -> None:
        if stop.is_set():
            return
        found: NextTokens = next_tokens(self.lm, self.source, self.prompt)
        if stop.is_set():
            return
        self.next_tokens = found
        self.predictions.show(found)
        for run, name in self.names.items():
            best = found.shares[run][-1], found.ids[run][-1]
            self.words.offer(run, self.lm, *best, title=f"likeliest in {name}")
        self.words.mark()
        if not self.queue.busy and (self.grid is None or self.status.kind == "error"):
            self.status.say("Choose an answer and a foil from what the models predict, then press Run.")

    # -- the two views -----------------------------------------------------------------------------------------------

    @property
    def _ready(self) -> bool:
        """Is there enough to begin with?"""
        return bool(self.prompt and (self.answer or self.metric) and (self.corrupt or self.view == "lost"))

    def _show_view(self) -> None:
        lost = self.view == "lost"
        shown(self._lost, lost)
        shown(self.inspector.invitation, lost and not self.inspector.bars.columns)
        for part in (self._corrupt, self.differences):
            shown(part, not lost)
        self.what.name_runs()

    def _turn(self) -> None:
        self._halt()
        self._show_view()
        if self._ready:
            self.start()
        elif not self.corrupt:
            self.status.say("Write a corrupt prompt with as many tokens, and press Run.")

    def _again(self) -> None:
        if self._asked is not None and self.spec() != self._asked and self._ready:
            self.start()

    @property
    def _working(self) -> Known | None:
        return super()._working if self.view == "lost" else self.differences.working

    def _fill(self, stop: threading.Event) -> None:
        if not self.prompt:
            raise ValueError("the prompt is empty; write at least one character")
        if self.view == "lost":
            super()._fill(stop)
            return
        if not self.corrupt:
            raise ValueError("the difference is that of a pair: write a corrupt prompt with as many tokens")
        check_source(self.lm, self.source, self.prompt)
        check_source(self.lm, self.source, self.corrupt)
        began, spec = time.monotonic(), self.spec()
        if stop.is_set() or not self.differences.fill(spec, stop, self._tell):
            self._stopped()
            return
        gaps = "; ".join(f"{name} {gap_words(self.grids[which])}" for which, name in self.differences.names.items())
        self.status.say(f"Two grids in {time.monotonic() - began:.1f} s · {gaps}")

    def run(self, timeout: float | None = None) -> PatchGrid:
        """Compute what the view shows, and wait until it is done. Raises what `wait` raises.

        Returns:
            The grid between the two models, or of a difference this model's; `grids` has both.
        """
        between = super().run(timeout)
        return between if self.view == "lost" else self.grids["own"]

    @property
    def grids(self) -> dict[str, PatchGrid]:
        """The grids of the pair, `own` and `source`; empty before they are asked for."""
        return self.differences.grids

    @property
    def difference(self) -> np.ndarray | None:
        """This model's normalised grid minus the source's, float32 in the grids' shape; None before it is asked for."""
        return self.differences.difference

    # -- the rest ----------------------------------------------------------------------------------------------------

    def code(self) -> str:
        """The Python that computes what is shown, and makes the patch in the inspector."""
        if self.view == "lost" and self.grid is not None:
            return self._grid_code()
        spec = self.spec()
        asked = {one.name: v for one in fields(spec) if (v := getattr(spec, one.name)) != one.default}
        code = self.lm.code() + loaded_as("source", self.source.code()) + code_of_own(self.metric)
        if self.view == "lost":
            asked |= {"source": Name("source")}
            return code + as_call("grid = lk.patch", LM, **{k: v for k, v in asked.items() if k != "corrupt"})
        both = as_call("own = lk.patch", LM, **asked) + as_call("theirs = lk.patch", Name("source"), **asked)
        return f"{code}{both}difference = own.normalized - theirs.normalized\nown.figure()\ntheirs.figure()\n"

    @property
    def _choosing(self) -> PatchControls:
        return self.what

    def exported(self, contents: Contents, *, cells: Iterable[Place] = (), strongest: int = STRONGEST) -> str | None:
        if self.view == "difference":
            return contents.show(self)
        return super().exported(contents, cells=cells, strongest=strongest)

    def snapshot(self) -> str:
        title = f"QuantLab · {self.lm.name} · {self.names['corrupt']} and {self.names['clean']}"
        parts = [self.predictions.picture() or note(self.status.text)]
        if self.view == "difference" and self.grids:
            parts.append(self.differences.picture())
        elif self.view == "lost" and self.grid is not None:
            parts += [note(self.heatmap.title), f"<div>{self.heatmap.picture()}</div>", note(self._about_grid())]
            parts.append(f"<div>{self.inspector.picture()}</div>")
        return card(*parts, folded_code(self.code()), title=title)

    def __repr__(self) -> str:
        return (
            f"QuantLab({self.lm.name!r}, {self.names['corrupt']!r}, {self.names['clean']!r}, prompt={self.prompt!r}, "
            f"answer={self.answer!r}, foil={self.foil!r}, site={self.site!r}, view={self.view!r})"
        )
