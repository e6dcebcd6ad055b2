"""LensView: what a model would predict at every layer, what writes the answer, and the effect of steering."""

from __future__ import annotations

import threading
import time
from typing import Any

import ipywidgets as widgets
import traitlets as t

from labkit.activations.sites import Site
from labkit.language_model import LanguageModel
from labkit.lens.logit_lens import SHADES, SITES, LensSite, LogitLens
from labkit.lens.patchscope import patchscope
from labkit.lens.patchscope_result import Patchscope
from labkit.text.prompts import asked
from labkit.text.types import Prompt
from labkit.widgets.base.block import cell
from labkit.widgets.base.snapshot import card, note
from labkit.widgets.base.tool import Tool, link, row, shown
from labkit.widgets.blocks.given_prompt import GivenPrompt, share_prompt
from labkit.widgets.export.contents import Contents
from labkit.widgets.lens_view.attribution_panel import AttributionPanel
from labkit.widgets.lens_view.exported import exported
from labkit.widgets.lens_view.lens_panel import LensPanel
from labkit.widgets.steer_lab import SteerLab

FACES = {"lens": "Lens", "direct": "Direct attribution", "steering": "Steering"}


class LensView(Tool):
    """A prompt under three lenses.

    *Lens*: what each layer would predict next (logit lens, nostalgebraist 2020). Click a cell for its ten likeliest
    tokens and the rank of one token by layer; *Patchscope* lets the model say what it finds there. *Direct
    attribution*: what every head, attention and MLP writes to the logit of an answer less that of a foil (Elhage et al.
    2021). *Steering*: a `SteerLab` on the same prompt.

    Args:
        lm: the model.
        prompt: text, chat messages, or token ids (1, seq).
        answer, foil: for direct attribution, one token each; the model's two likeliest if not given.
        follow: the token whose rank is followed; by default what the model predicts.
        site: what the lens reads: `resid_post`, `attn_out` or `mlp_out`.
        shade: what cells are coloured by: `probability`, `entropy`, `rank` or `kl`.
        face: which of the three is shown: `lens`, `direct` or `steering`.
        background: work in a thread of its own; the default everywhere but in Colab.

    Traits:
        prompt, answer, foil, follow, site, shade, face: the settings.
        selection: (layer, position) of the selected cell.
        lens: the `LogitLens` that is shown; attribution: the `DirectAttribution`.
    """

    prompt = t.Any("")
    answer = t.Unicode()
    foil = t.Unicode()
    follow = t.Unicode()
    site = t.Enum(SITES, "resid_post")
    shade = t.Enum(SHADES, "probability")
    face = t.Enum(tuple(FACES), "lens")
    selection = cell()

    def __init__(
        self,
        lm: LanguageModel,
        prompt: Prompt = "",
        *,
        answer: str | None = None,
        foil: str | None = None,
        follow: str | None = None,
        site: LensSite = "resid_post",
        shade: str = "probability",
        face: str = "lens",
        background: bool | None = None,
    ) -> None:
        super().__init__(lm, background=background)
        self._writing = self.another_queue()
        self._quiet = True  # settings that come now are the first ones
        self._fresh: set[str] = set()  # the faces that show the present prompt
        self._steering: SteerLab | None = None
        self.box = GivenPrompt(
            lm, label="Prompt", placeholder="Write a text for the model to read. Ctrl+Enter runs it."
        )
        self._face = widgets.ToggleButtons(options=[(word, name) for name, word in FACES.items()])
        self._face.style.button_width = "auto"
        self.lens_face = LensPanel(lm, self._again, self.begin_patchscope)
        self.direct_face = AttributionPanel(lm, self._again)
        link(self, face=self._face, answer=self.direct_face, foil=self.direct_face)
        link(self, **dict.fromkeys(("site", "shade", "follow", "selection"), self.lens_face))
        share_prompt(self, self.box)
        self.site, self.shade, self.face = site, shade, face
        self.follow, self.answer, self.foil = follow or "", answer or "", foil or ""
        self.prompt = asked(lm, prompt)
        self._quiet = False
        self.box.on_submit(self.start)
        self.observe(lambda _: self._fresh.clear(), "prompt")
        self.observe(lambda _: self._turn(), "face")
        self.observe(lambda _: self.refresh_snapshot(), ["face", "shade", "selection"])
        self._controls = row(self.run_button, self.stop_button, self.status)
        self.children = [self.box, self._face, self._controls, self.lens_face, self.direct_face]
        self._turn()
        if not self._given:
            self.status.say("Write a text and run it.")

    # -- which face --------------------------------------------------------------------------------------------------

    @property
    def lens(self) -> LogitLens | None:
        """The `LogitLens` that is shown."""
        return self.lens_face.lens

    @property
    def attribution(self) -> Any:
        """The `DirectAttribution` that is shown."""
        return self.direct_face.found

    @property
    def steering(self) -> SteerLab:
        """The `SteerLab` on the same prompt."""
        if self._steering is None:
            self._steering = SteerLab(self.lm, self.prompt, background=self.queue.background)
            self.queues.append(self._steering.queue)
            share_prompt(self, self._steering)
            self._steering.observe(lambda _: self.refresh_snapshot(), "after")
            self._steering.children = self._steering.panel  # the prompt's box is this view's own
            self.children = [*self.children, self._steering]
        return self._steering

    @property
    def _given(self) -> bool:
        return not isinstance(self.prompt, str) or bool(self.prompt)

    def _turn(self) -> None:
        """Show one face; what it shows is computed when it is looked at."""
        faces: dict[str, Any] = {"lens": self.lens_face, "direct": self.direct_face}
        if self.face == "steering" or self._steering is not None:
            faces["steering"] = self.steering
        for name, part in faces.items():
            shown(part, name == self.face)
        shown(self._controls, self.face != "steering")
        if self._given and self.face not in self._fresh:
            self.start()

    def _again(self) -> None:
        if not self._quiet and self._given:
            self.start()

    # -- the work ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.face == "steering":
            self._fresh.add("steering")
            self.steering.start()
        else:
            self.do(self._read)

    def run(self, timeout: float | None = None) -> Any:
        """Read the prompt, wait, and return what the current face shows. Raises what `wait` raises."""
        self.start()
        self.wait(timeout)
        return {"lens": self.lens, "direct": self.attribution}.get(self.face, self._steering)

    def _read(self, stop: threading.Event) -> None:
        if stop.is_set():
            return
        if not self._given:
            raise ValueError("the prompt is empty; write at least one character")
        self.status.say("Reading…")
        face, prompt, began = self.face, self.prompt, time.monotonic()
        if face == "lens":
            lens = self.lens_face.read(prompt, stop)
            size = f"{len(lens.layers)} layers × {len(lens.positions)} positions"
            if len(lens.positions) < len(lens.tokens):
                size += f" of {len(lens.tokens)}"
        else:
            found = self.direct_face.read(prompt)
            size = f"{found.heads.shape[0]} layers × {found.heads.shape[1]} heads"
        self._fresh.add(face)
        self.status.say(f"{size} in {time.monotonic() - began:.1f} s")

    # -- writing from a cell -----------------------------------------------------------------------------------------

    @property
    def written(self) -> Patchscope | None:
        """What a model wrote from the selected cell, if it is shown."""
        return self.lens_face.writing.result

    def patchscope(self, timeout: float | None = None) -> Patchscope | None:
        """Put the selected cell's activation into the usual prompt of `lk.patchscope`, and wait for what is written.

        Raises:
            ValueError: there is no selected cell, or it is not one of the residual stream.
        """
        if why_not := self.lens_face.why_not():
            raise ValueError(why_not)
        self.begin_patchscope()
        self._writing.wait(timeout)
        return self.written

    def begin_patchscope(self) -> None:
        """Begin to put the selected cell's activation into the usual prompt of `lk.patchscope`."""
        lens, prompt = self.lens, self.prompt
        assert lens is not None  # the button waits for it
        layer, position = self.selection
        site = Site(lens.site, layer, position=position)
        make = lambda stop: patchscope(self.lm, prompt, site=site, stop=stop, progress=False)  # noqa: E731
        self._writing.stop()
        self.do(self.lens_face.writing.work(self.lm, "Writing…", make), queue=self._writing)

    # -- the rest ----------------------------------------------------------------------------------------------------

    def code(self) -> str:
        if self.face == "steering":
            return self.steering.code()
        if self.face == "lens" and self.lens is not None:
            shade = "" if self.shade == "probability" else repr(self.shade)
            return f"{self.lens.code()}lens.figure({shade})\nlens.top{self.selection or (-1, -1)}\n" + (
                f"\n{self.written.call()}" if self.written is not None else ""
            )
        if self.face == "direct" and self.attribution is not None:
            return f"{self.attribution.code()}found.figure()\n"
        return f"{self.lm.code()}lk.LensView(lm, {self.box.value!r})\n"

    def exported(self, contents: Contents) -> str | None:
        panels = [self.lens_face, self.direct_face] if self._fresh >= {"lens", "direct"} else []
        return exported(contents, self, lm=self.lm, panel=self.lens_face, faces=self._face, panels=panels)

    def provenance(self) -> dict[str, Any]:
        shown = self.lens if self.face == "lens" else self.attribution if self.face == "direct" else None
        return super().provenance() if shown is None else shown.recipe

    def snapshot(self) -> str:
        title = f"LensView · {self.lm.name} · {FACES[self.face]}"
        if self.face == "steering":
            return card(self.steering.picture(), title=title)
        part = self.lens_face if self.face == "lens" else self.direct_face
        return card(note(self.box.value or "no text yet"), part.picture(), title=title)

    def __repr__(self) -> str:
        return f"LensView({self.lm.name!r}, {self.box.value!r}, face={self.face!r}, selection={self.selection})"
