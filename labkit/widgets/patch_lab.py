"""PatchLab: two prompts side by side, and what each activation of one does in the other."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
import traitlets as t

from labkit.analysis.grid import PatchGrid
from labkit.analysis.inspect import inspect
from labkit.analysis.patching import DIRECTIONS, PatchJob
from labkit.tokens import align
from labkit.widgets.block import cell
from labkit.widgets.heatmap import Heatmap
from labkit.widgets.jobs import Desk
from labkit.widgets.prompt_box import PromptBox
from labkit.widgets.snapshot import card, note
from labkit.widgets.token_bars import TokenBars
from labkit.widgets.token_strip import TokenStrip
from labkit.widgets.tool import FRAME, Tool, column, in_words, row, special

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel

SITES = (
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out",  # layers x positions
    "z", "q", "k", "v", "pattern", "head_out",  # layers x heads
)  # fmt: skip
_WORDS = {"denoise": "denoise: clean into corrupt", "noise": "noise: corrupt into clean"}


class PatchLab(Tool):
    """Activation patching to watch: cells fill in as they are computed; click one for what the model would then write.

    Args:
        lm: the model.
        clean: the prompt with the behaviour to explain.
        corrupt: one with the same number of tokens that lacks it.
        answer: the token that clean calls for, with its space: `" Mary"`.
        foil: the token that corrupt calls for; may be empty.
        site: which activation is patched.
        direction: `denoise` puts clean into corrupt, `noise` corrupt into clean.
        background: do the work in a thread of its own; by default everywhere but in Colab.

    Traits:
        clean, corrupt, answer, foil, site, direction: the settings.
        grid: the `PatchGrid`, as `labkit.patch` gives it; fills in while the work goes on.
        selection: (layer, position or head) of the cell that is looked at closely.
    """

    clean = t.Unicode()
    corrupt = t.Unicode()
    answer = t.Unicode()
    foil = t.Unicode()
    site = t.Enum(SITES, "resid_pre")
    direction = t.Enum(DIRECTIONS, "denoise")
    grid = t.Any(None)
    selection = cell()

    def __init__(
        self,
        lm: LanguageModel,
        clean: str = "",
        corrupt: str = "",
        answer: str | None = None,
        foil: str | None = None,
        *,
        site: str = "resid_pre",
        direction: str = "denoise",
        background: bool | None = None,
    ) -> None:
        super().__init__(lm, background=background)
        self._job: PatchJob | None = None
        self._close_look = Desk(lm, background=background)  # a desk of its own: a click does not cancel the grid
        self.boxes = {name: PromptBox(label=f"{name.capitalize()} prompt") for name in ("clean", "corrupt")}
        self.strips = {name: TokenStrip() for name in ("clean", "corrupt")}
        for strip in self.strips.values():
            strip.add_class("labkit-short")
        self._words = {name: widgets.Text(description=name) for name in ("answer", "foil")}
        self._site = widgets.Dropdown(options=SITES, description="site")
        self._direction = widgets.Dropdown(options=[(_WORDS[name], name) for name in DIRECTIONS])
        for control, width in (*((word, "150px") for word in self._words.values()), (self._site, "160px")):
            control.style = {"description_width": "initial"}
            control.layout.width = width
        self._direction.layout.width = "210px"
        self.heatmap = Heatmap(row_axis="layer (0 at the bottom)", centre=0.0, origin="bottom", max_height=480)
        self.heatmap.layout.flex = "1 1 460px"
        self.bars = TokenBars()
        self.bars.layout.flex, self.bars.layout.width = "0 0 auto", "264px"
        for name, control in {**self.boxes, **self._words, "site": self._site, "direction": self._direction}.items():
            t.link((self, name), (control, "value"))
        t.link((self, "selection"), (self.heatmap, "selection"))
        for name, value in {"clean": clean, "corrupt": corrupt, "answer": answer, "foil": foil}.items():
            setattr(self, name, value or "")
        self.site, self.direction = site, direction
        self.observe(lambda _: self._align(), ["clean", "corrupt"])
        self.observe(lambda _: self.start() if self.grid is not None else None, ["site", "direction"])
        self.observe(lambda _: self._ask_for_cell(), "selection")
        for box in self.boxes.values():
            box.on_submit(self.start)
            box.layout.flex = "1 1 380px"
            box.layout.width = "auto"
        self.children = [
            row(*self.boxes.values(), wide=True),
            column(*self.strips.values()),
            row(*self._words.values(), self._site, self._direction, self.run_button, self.stop_button),
            self.status,
            row(self.heatmap, self.bars, wide=True),
        ]
        fits = self._align()
        if fits and answer:
            self.start()

    # -- prompts ---------------------------------------------------------------------------------------------------

    def _align(self) -> bool:
        """Show both prompts token by token; say in plain words where they do not fit each other."""
        tokens = {}
        for name in self.strips:
            prompt = getattr(self, name)
            try:
                tokens[name] = self.lm.tokens(prompt) if prompt else []
            except ValueError as error:
                self.status.complain(f"{name.capitalize()}: {error}")
                return False
        left, right = tokens["clean"], tokens["corrupt"]
        longest = max(len(left), len(right))
        differ = [i for i in range(longest) if i >= min(len(left), len(right)) or left[i].id != right[i].id]
        widths = [max(len(side[i].display) for side in (left, right) if i < len(side)) for i in range(longest)]
        for name, strip in self.strips.items():
            with strip.hold_sync():
                strip.selection = strip.hovered = None
                strip.tokens = [token.display for token in tokens[name]]
                strip.widths = widths
                strip.title = ""
                strip.marks = {
                    "differs": [i for i in differ if i < len(tokens[name])] if left and right else [],
                    "special": special(tokens[name]),
                }
        if not left or not right:
            self.status.say("Write two prompts with the same number of tokens, and the token each calls for.")
            return False
        try:
            align(self.lm, self.clean, self.corrupt)
        except ValueError as error:
            self.status.complain(in_words(error))
            return False
        where = ", ".join(map(str, differ[:6])) + ("…" if len(differ) > 6 else "")
        said = f"they differ at position {where}" if differ else "they are the same"
        self.status.say(f"{len(left)} tokens each; {said}.")
        return True

    # -- the grid ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.stop()
        self._ask(self._patch)

    def run(self, timeout: float | None = None) -> PatchGrid:
        """Compute the grid, and wait until it is done. Raises what `wait` raises."""
        self.start()
        self.wait(timeout)
        return self.grid

    def stop(self) -> None:
        super().stop()
        self._close_look.stop()
        if self._job is not None:
            self._job.cancel()  # it ends before the model's next block; the event alone, after the chunk

    def wait(self, timeout: float | None = None) -> None:
        super().wait(timeout)
        self._close_look.wait(timeout)

    def _patch(self, stop: threading.Event) -> None:
        self.selection = None
        self.bars.show({}, note="Click a cell to see what the model would write after this patch.")
        job = PatchJob(
            self.lm, self.clean, self.corrupt, self.answer or None, self.foil or None,
            site=self.site, direction=self.direction,
        )  # fmt: skip
        self.status.say("Waiting for the model…", share=0.0)
        self._job, self.grid = job, job.grid
        began = due = time.monotonic()
        self._label(job.grid)
        try:
            for done in job.steps():
                if stop.is_set():
                    job.cancel()
                if time.monotonic() < due:
                    continue
                self._fill(job.grid)
                self.status.say(f"{done} of {job.total} cells", share=done / job.total)
                due = time.monotonic() + FRAME
        finally:
            self._fill(job.grid)
        seconds = time.monotonic() - began
        if job.done < job.total:
            self.status.say(f"Stopped at {job.done} of {job.total} cells; what was computed is kept. Run starts over.")
        else:
            gap = f"{_metric_words(job.grid)}: clean {job.grid.clean:.2f}, corrupt {job.grid.corrupt:.2f}"
            self.status.say(f"{job.total} cells in {seconds:.1f} s · {gap}".replace("-", "−"))

    def _label(self, grid: PatchGrid) -> None:
        other = grid.over[1]
        base = "corrupt" if grid.direction == "denoise" else "clean"
        with self.heatmap.hold_sync():
            self.heatmap.title = f"{grid.site}: {_WORDS[grid.direction].split(': ')[1]}"
            self.heatmap.values = grid.values
            self.heatmap.row_labels = grid.labels("layer")
            self.heatmap.column_labels = grid.labels(other)
            self.heatmap.column_axis = f"position ({base} prompt)" if other == "position" else "head"
            self.heatmap.column_marks = self.strips["clean"].marks["differs"] if other == "position" else []

    def _fill(self, grid: PatchGrid) -> None:
        shown, unit = effects(grid)
        known = shown[np.isfinite(shown)]
        reach = float(np.abs(known).max(initial=0.0))
        reach = 1.0 if reach < 1.1 else reach  # a little beyond the whole way is the whole way
        with self.heatmap.hold_sync():
            self.heatmap.low, self.heatmap.high, self.heatmap.unit = -reach, reach, unit
            self.heatmap.values = shown

    # -- one cell ----------------------------------------------------------------------------------------------------

    def _ask_for_cell(self) -> None:
        if self.selection is None or self.grid is None:
            return
        grid, (layer, place) = self.grid, self.selection
        other = grid.over[1]
        if layer >= len(grid.index[0]) or place >= len(grid.index[1]):
            return
        at = f"Layer {grid.index[0][layer]}, {other} {grid.labels(other)[place]}"
        self.bars.show({}, title=at, note="Computing…")

        def look(stop: threading.Event) -> None:
            if stop.is_set():
                return
            report = inspect(self.lm, grid, grid.index[0][layer], grid.index[1][place])
            effect = "not computed yet"
            if np.isfinite(report.effect):
                effect = f"{report.effect:+.2f} {_metric_words(grid)}"
            if np.isfinite(report.normalized):
                effect += f"\n{report.normalized:.2f} on the scale from corrupt (0) to clean (1)"
            base = "corrupt" if grid.direction == "denoise" else "clean"
            self.bars.marked = [word.display for word in self._answer_tokens()]
            self.bars.show(
                {f"before: {base} prompt": report.before, "after the patch": report.after}, title=at, note=effect
            )

        self._ask(look, desk=self._close_look)

    def _answer_tokens(self) -> list[Any]:
        from labkit.tokens import describe, single_token

        return describe(self.lm.tokenizer, [single_token(self.lm, w) for w in (self.answer, self.foil) if w])

    # -- the rest ----------------------------------------------------------------------------------------------------

    def code(self) -> str:
        given = [("clean", self.clean), ("corrupt", self.corrupt), ("answer", self.answer), ("foil", self.foil)]
        given += [("site", self.site), ("direction", self.direction)]
        arguments = "".join(f"    {name}={value!r},\n" for name, value in given if value)
        return f"{self.lm.code()}grid = lk.patch(\n    lm,\n{arguments})\ngrid.figure()\n"

    def snapshot(self) -> str:
        prompts = "".join(
            f'<div><span style="color:#59636e">{name}</span>{strip.picture()}</div>'
            for name, strip in self.strips.items()
        )
        grid = self.heatmap.picture() if self.grid is not None else ""
        parts = f"<div>{grid}</div>" + (f"<div>{note(self.bars.title)}{self.bars.picture()}</div>" if grid else "")
        title = f"PatchLab · {self.lm.name}" + (f" · {self.heatmap.title}" if self.grid is not None else "")
        return card(prompts, parts, note(self.status.text), title=title)

    def __repr__(self) -> str:
        return (
            f"PatchLab({self.lm.name!r}, clean={self.clean!r}, corrupt={self.corrupt!r}, answer={self.answer!r}, "
            f"foil={self.foil!r}, site={self.site!r}, direction={self.direction!r})"
        )


def effects(grid: PatchGrid) -> tuple[np.ndarray, str]:
    """What to colour: the share of the way from the run that is patched to the other one, and what to call it."""
    if grid.clean == grid.corrupt:
        return grid.values - grid.corrupt, f"change of {_metric_words(grid)}"
    if grid.direction == "denoise":
        return grid.normalized, "effect: 0 = corrupt, 1 = clean"
    return 1 - grid.normalized, "effect: 0 = clean, 1 = corrupt"


def _metric_words(grid: PatchGrid) -> str:
    return {"logit_diff": "logit difference", "logprob": "log probability"}.get(
        str(grid.recipe["metric"]), str(grid.recipe["metric"])
    )
