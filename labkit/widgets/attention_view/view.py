"""AttentionView: every head at a glance, one head large, where each token looks, and what happens without a head."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ipywidgets as widgets
import numpy as np
import traitlets as t

from labkit.attention_maps.ablation import KnockOut
from labkit.attention_maps.base import UNITS
from labkit.attention_maps.head_scores import HeadScore
from labkit.attention_maps.patterns import AttentionPatterns, attention
from labkit.attention_maps.weighting import LogitContribution
from labkit.collected.collection import Collection
from labkit.engine.wavefront import Cancelled
from labkit.features.writes import Writes
from labkit.language_model import LanguageModel
from labkit.text.as_code import LM, as_code, as_python, changed
from labkit.text.prompts import asked
from labkit.text.types import Prompt
from labkit.widgets.attention_view.exported import exported
from labkit.widgets.attention_view.head_actions import HeadAction
from labkit.widgets.attention_view.head_finder import HeadFinder
from labkit.widgets.attention_view.head_maps import HeadMaps, Side, telling_head, thumbnail_side
from labkit.widgets.base.block import cell
from labkit.widgets.base.snapshot import card, note, side_by_side
from labkit.widgets.base.tool import Panel, Tool, choice, headed, labelled, link, row
from labkit.widgets.blocks.prompt_box import PromptBox
from labkit.widgets.blocks.token_looks import DIRECTIONS, OVER, TokenLooks
from labkit.widgets.patch_lab.lab import PatchLab

WEIGHTINGS = {
    "pattern": "attention", "value": "value-weighted attention", "logit": "contribution to a logit",
    "rollout": "rollout (all heads up to the layer)",
}  # fmt: skip
COMPARE = {"nothing": "nothing", "head": "another head", "prompt": "another prompt", "model": "the other model"}


class AttentionView(Tool):
    """Where the heads of a model look. Click a head to see it large; point at a token to see where it looks.

    Args:
        lm: the model, or two of them to compare.
        text: what it reads: text, chat messages, or token ids (1, seq).
        selection: the head to begin with, (layer, head); by default one that looks beyond the first token.
        against: another prompt, to compare with and to take heads from.
        scores: scores of your own by name, each from a head's pattern (query, key) to a number.
        collection: activations of many texts, from `lk.collect`: beside what a head writes, where its `z` is strongest.
        background: work in a thread of its own; the default everywhere but in Colab.

    Traits:
        text: what the model reads; `start()` or `run()` after changing it.
        against: the other prompt.
        selection: (layer, head) shown large; other_head: the one next to it.
        chosen: list of (layer, head), for the text view and for knocking out.
        token: the position whose looks are shown, or None; follows the pointer, unless one is locked by a click.
        direction: `from` the token, or `to` it.
        over: whose looks the text shows: of the `selection`, or the `mean` or `max` of those chosen.
        weighting: `pattern`, `value`, `logit` or `rollout`; hide_sink: leave the first token out.
        compare: `nothing`, `head`, `prompt` or `model`.
        answer, foil: tokens, for `logit` and for the effect of a knock-out.
    """

    text = t.Unicode()
    against = t.Unicode()
    selection = cell()
    other_head = cell()
    chosen: t.List = t.List()
    token = t.Int(None, allow_none=True)
    direction = t.Enum(list(DIRECTIONS), "from")
    over = t.Enum(list(OVER), "selection")
    weighting = t.Enum(list(WEIGHTINGS), "pattern")
    hide_sink = t.Bool(False)
    compare = t.Enum(list(COMPARE), "nothing")
    answer = t.Unicode()
    foil = t.Unicode()

    def __init__(
        self,
        lm: LanguageModel | Sequence[LanguageModel],
        text: Prompt = "",
        *,
        selection: tuple[int, int] | None = None,
        against: str = "",
        scores: Mapping[str, HeadScore] | None = None,
        collection: Collection | None = None,
        background: bool | None = None,
        **traits: Any,
    ) -> None:
        models = list(lm) if isinstance(lm, Sequence) else [lm]
        if not 1 <= len(models) <= 2:
            raise ValueError(f"one model, or two to compare; got {len(models)}")
        super().__init__(models[0], background=background)
        self.other_lm = models[1] if len(models) > 1 else None
        self._given: tuple[str, Prompt] | None = None  # what `text` stands for, if it was not text
        if not isinstance(text, str):
            text = asked(self.lm, text)
            self._given = ("".join(token.text for token in self.lm.tokens(text)), text)
            text = self._given[0]
        self.patterns: AttentionPatterns | None = None
        self._others: dict[tuple[str, str], AttentionPatterns] = {}  # what is compared with
        self._contributed: tuple[tuple[str, str], LogitContribution] | None = None  # of an answer and a foil
        self._reading = False
        self._finding, self._acting = self.another_queue(), self.another_queue()
        self._build(scores, collection)
        self.text, self.selection, self.against = text, selection, against
        for name, value in traits.items():
            setattr(self, name, value)
        self._wire()
        if text:
            self.start()
        else:
            self.status.say("Write a text and run it.")

    @t.validate("compare")
    def _can_compare(self, proposal: Any) -> str:
        if proposal["value"] == "model" and self.other_lm is None:
            raise t.TraitError("there is one model; lk.AttentionView([lm_a, lm_b], text) compares two")
        return str(proposal["value"])

    # -- its parts -------------------------------------------------------------------------------------------------

    def _build(self, scores: Mapping[str, HeadScore] | None, collection: Collection | None) -> None:
        self.box = PromptBox(label="Text", placeholder="Write a text for the model to read. Ctrl+Enter runs it.")
        self.against_box = PromptBox(label="Another prompt", placeholder="To compare with, and to take heads from.")
        self.finder = HeadFinder(
            lambda work: self.do(work, queue=self._finding) if not self._reading else None,
            n_heads=self.lm.n_heads, n_layers=self.lm.n_layers, own=dict(scores or {}),
        )  # fmt: skip
        self.finder.given["contribution"] = lambda: np.abs(self._contribution().heads)
        self.heads = self.finder.heads
        self.maps = HeadMaps()
        self.heatmap, self.other_map, self.difference = self.maps.heatmap, self.maps.other, self.maps.difference
        self.looks = TokenLooks()
        self.strip = self.looks.strip
        self.action = HeadAction(self.lm, collection)
        others = {k: v for k, v in COMPARE.items() if k != "model" or self.other_lm is not None}
        self._choices = {"weighting": choice("Values", WEIGHTINGS), "compare": choice("Compare with", others)}
        self._sink = widgets.Checkbox(description="Hide the first token", indent=False, layout={"width": "auto"})
        self._other_head = labelled(widgets.Text, "Head", "130px", placeholder="layer.head", continuous_update=False)
        self._beside = Panel()
        self._patching = Panel()
        find = headed("Find heads", self.finder)
        how = row(self._choices["weighting"], self._sink, self._choices["compare"], self._other_head)
        picture = headed("Show", how, self._beside, self.maps.box)
        find.layout.flex, find.layout.width = "0 0 auto", f"{self.finder.width}px"
        picture.layout.flex = "1 1 420px"
        self.interventions = headed("Intervene on these heads", self.action)
        self.children = [
            self.box, row(self.run_button, self.stop_button, self.status), self.looks,
            row(find, picture, wide=True), self.interventions, self._patching,
        ]  # fmt: skip

    def _wire(self) -> None:
        link(self, text=self.box, against=self.against_box, hide_sink=self._sink, **self._choices)
        link(self, selection=self.finder, chosen=self.finder, answer=self.action, foil=self.action)
        link(self, token=self.looks, direction=self.looks, over=self.looks)
        for box in (self.box, self.against_box):
            box.on_submit(self.start)
        shown = ["selection", "other_head", "weighting", "hide_sink", "compare", "over", "chosen", "answer", "foil"]
        self.observe(lambda _: self._ask_to_show(), shown)
        self.observe(lambda _: self._name_heads(), ["selection", "chosen"])
        self.observe(lambda _: self._arrange(), "compare")
        self._other_head.observe(lambda change: self._read_head(change["new"]), "value")
        self.heatmap.observe(lambda change: self.looks.point(change["new"] and change["new"][0]), "hovered")
        t.dlink((self.heatmap, "selection"), (self.strip, "selection"), lambda at: at and at[0])  # locks its row
        self.action.knock_button.on_click(lambda _: self.start_knock_out())
        self.action.writes_button.on_click(lambda _: self.start_writes())
        self.action.send_button.on_click(lambda _: self.do(lambda stop: self._open_patch_lab(), queue=self._acting))
        self._arrange()
        self._name_heads()

    def _arrange(self) -> None:
        self._other_head.layout.display = "" if self.compare == "head" else "none"
        self._beside.children = [self.against_box] if self.compare == "prompt" or self.against else []

    def _name_heads(self) -> None:
        self.action.heads = list(self.chosen) or ([self.selection] if self.selection else [])

    def _read_head(self, words: str) -> None:
        try:
            layer, head = (int(number) for number in words.replace(",", ".").split("."))
        except ValueError:
            self.status.complain(f"Write a head as layer.head, such as 11.1; got {words!r}")
            return
        self.other_head = (layer, head)

    # -- reading the text ------------------------------------------------------------------------------------------

    @property
    def prompt(self) -> Prompt:
        """What the model reads: the text, or the messages or ids that it stands for."""
        return self._given[1] if self._given is not None and self._given[0] == self.text else self.text

    def start(self) -> None:
        self._reading = True
        self.do(self._read)

    def run(self, timeout: float | None = None) -> AttentionPatterns:
        """Read the text, and wait until heads and the large picture are there. Raises what `wait` raises."""
        self.start()
        self.wait(timeout)
        assert self.patterns is not None
        return self.patterns

    def _read(self, stop: threading.Event) -> None:
        try:
            if not self.text:
                raise ValueError("the text is empty; write at least one character")
            self.status.say("Reading…")
            patterns = attention(self.lm, self.prompt)
            layers = patterns.layers

            def each(layer: int, pictures: np.ndarray, scores: dict[str, np.ndarray]) -> None:
                if stop.is_set():
                    raise Cancelled
                if len(patterns.tokens) > 300:
                    self.status.say(f"Layer {layer}", share=(1 + layers.index(layer)) / len(layers))

            side = thumbnail_side(patterns.n_layers, patterns.n_heads)
            self._take(patterns, patterns.survey(size=side, each=each))
        finally:
            self._reading = False

    def _take(self, patterns: AttentionPatterns, thumbnails: np.ndarray) -> None:
        self.patterns = patterns
        self.maps.forget()
        self._others.clear()
        self._contributed = None
        self.finder.show(patterns, thumbnails)
        self.looks.begin(patterns.tokens)
        head = self.selection
        if head is None or head[0] not in patterns.layers or head[1] >= patterns.n_heads:
            telling = telling_head(thumbnails)
            self.selection = telling if telling[0] in patterns.layers else (patterns.layers[0], 0)
        tokens = "token" if len(patterns.tokens) == 1 else "tokens"
        self.status.say(f"{len(patterns.tokens)} {tokens} · {patterns.n_layers} layers × {patterns.n_heads} heads")
        self._show()

    # -- the pictures ----------------------------------------------------------------------------------------------

    def _ask_to_show(self) -> None:
        if not self._reading and self.patterns is not None and self.selection is not None:
            # the reading ends by showing what is selected; a request that is overtaken is carried out by the next
            self.do(lambda stop: None if stop.is_set() else self._show())

    def _show(self) -> None:
        """Everything that follows from the settings: one head or two and their difference, and what the text shows."""
        assert self.selection is not None
        if self.status.kind == "error":
            self.status.say("")
        if self.weighting == "logit":
            found, (layer, head) = self._contribution(), self.selection
            values = self.maps.show_contributions(found, layer, hide_sink=self.hide_sink)
            one = f"What layer {layer}, head {head} adds to {found.what} by attending to each token"
            self.looks.show(values[head][None], unit="logits", one=one)
            return
        sides = self.sides_of(self.selection)
        if not self.maps.show(sides, self.weighting):
            lengths = " and ".join(str(len(matrix)) for *_, matrix in sides)
            self.status.say(f"{lengths} tokens: shown side by side; a difference needs two prompts of the same length")
        self.looks.show(self._over_chosen(sides[0][2]), unit=UNITS[self.weighting])

    def sides_of(self, head: tuple[int, int]) -> list[Side]:
        """(title, token labels, matrix) of the head, and of the one that it is compared with."""
        assert self.patterns is not None
        pairs = [(self.patterns, head, "")]
        if self.compare == "head":
            pairs.append((self.patterns, self.other_head or head, ""))
        elif self.compare == "prompt":
            if not self.against:
                raise ValueError("write another prompt to compare with")
            pairs.append((self._other(self.lm, self.against), head, "other prompt · "))
        elif self.compare == "model" and self.other_lm is not None:
            pairs[0] = (self.patterns, head, f"{self.lm.bits}-bit · ")
            pairs.append((self._other(self.other_lm, self.prompt), head, f"{self.other_lm.bits}-bit · "))
        labels = lambda patterns: [token.display for token in patterns.tokens]  # noqa: E731
        return [(f"{before}{self._title(at)}", labels(one), self._matrix(one, at)) for one, at, before in pairs]

    def _title(self, head: tuple[int, int]) -> str:
        where = f"ayer {head[0]}" + ("" if self.weighting == "rollout" else f", head {head[1]}")
        return {"value": "Value-weighted, l", "rollout": "Rollout to l"}.get(self.weighting, "L") + where

    def _other(self, lm: LanguageModel, prompt: Prompt) -> AttentionPatterns:
        key = (str(id(lm)), as_python(prompt))
        if key not in self._others:
            self._others[key] = attention(lm, prompt)
        return self._others[key]

    def _matrix(self, patterns: AttentionPatterns, head: tuple[int, int]) -> np.ndarray:
        return self.maps.matrix(patterns, head, self.weighting, hide_sink=self.hide_sink)

    def _contribution(self) -> LogitContribution:
        assert self.patterns is not None
        if not self.answer:
            raise ValueError("write an answer, such as ' Mary', to see what heads contribute to its logit")
        words = (self.answer, self.foil)
        if self._contributed is None or self._contributed[0] != words:
            self._contributed = (words, self.patterns.contribution(self.answer, self.foil or None))
        return self._contributed[1]

    def _over_chosen(self, one: np.ndarray) -> np.ndarray:
        """(query, key) of what the text shows."""
        if self.over == "selection" or not self.chosen or self.weighting == "rollout":
            return one
        assert self.patterns is not None
        total = np.zeros_like(one)
        for head in self.chosen:
            matrix = self._matrix(self.patterns, tuple(head))
            total = np.maximum(total, matrix) if self.over == "max" else total + matrix / len(self.chosen)
        return total

    # -- doing something -------------------------------------------------------------------------------------------

    def start_knock_out(self) -> None:
        """Ask for the next token without the chosen heads."""

        def act(stop: threading.Event) -> None:
            if not stop.is_set():
                self.action.act(self.lm, self.prompt, self.against or None)

        self.do(act, queue=self._acting)

    def knock_out(self, timeout: float | None = None) -> KnockOut:
        """The next token without the chosen heads, or the selected one; waits. Raises what `wait` raises."""
        self.start_knock_out()
        self._acting.wait(timeout)
        assert self.action.found is not None
        return self.action.found

    def start_writes(self) -> None:
        """Ask what the large head writes when it looks at the selected token, or at the last."""
        if self.patterns is not None and self.selection is not None:
            at = len(self.patterns.tokens) - 1 if self.token is None else self.token
            self.do(partial(self.action.write, self.selection, self.prompt, at), queue=self._acting)

    def what_it_writes(self, timeout: float | None = None) -> Writes:
        """The tokens that the large head writes for and against, looking at the selected token, or the last; waits."""
        self.start_writes()
        self._acting.wait(timeout)
        assert self.action.written is not None
        return self.action.written

    def patch_lab(self) -> PatchLab:
        """A PatchLab of this prompt as clean and the other as corrupt, with these heads chosen.

        Raises:
            ValueError: there is no other prompt or no answer.
        """
        if not self.against or not self.answer:
            raise ValueError("PatchLab takes two prompts and an answer: write another prompt and an answer first")
        words = (self.text, self.against, self.answer, self.foil)
        chosen: dict[str, Any] = {"chosen": self.action.heads, "collection": self.action.unit.collection}
        return PatchLab(self.lm, *words, site="z", **chosen, background=self.queue.background)

    def _open_patch_lab(self) -> None:
        if not self.against:
            self._beside.children = [self.against_box]
        self._patching.children = [self.patch_lab()]

    # -- the rest --------------------------------------------------------------------------------------------------

    def code(self) -> str:
        layer, head = self.selection or (0, 0)
        code = as_code(self.lm.code(), "patterns = lk.attention", LM, self.prompt)
        if self.weighting == "logit":
            words = (self.answer, self.foil) if self.foil else (self.answer,)
            code += f"{as_code('', 'patterns.contribution', *words)[:-1]}.values[{layer}, {head}]  # (key,)\n"
        else:
            shown = {"weighting": self.weighting, "hide_sink": self.hide_sink}
            how = changed({"weighting": "pattern", "hide_sink": False}, shown)
            code += f"patterns.pattern({layer}, {head})  # (query, key)\n"
            code += as_code("", "patterns.figure", layer, head, **how)
        if self.action.found is not None:
            code += self.action.found.code().split(self.lm.code(), 1)[1]
        if self.action.written is not None:
            code += self.action.written.code.split(self.lm.code(), 1)[1]
        return code

    def snapshot(self) -> str:
        title = f"AttentionView · {self.lm.name}"
        if self.looks.matrix is None:
            return card(note(self.text or "no text yet"), title=title)
        large = [one for one in self.maps.box.children if one.values is not None]
        pictures = [("all heads: layers up, heads across", self.heads), *((one.title, one) for one in large)]
        sides = (f"<div>{note(name)}{one.picture()}</div>" for name, one in pictures)
        done = note(self.action.bars.title) + self.action.bars.picture() if self.action.found else ""
        done += self.action.unit.picture()
        return card(self.strip.picture(), side_by_side(*sides), done, title=title)

    exported = exported

    def __repr__(self) -> str:
        return f"AttentionView({self.lm.name!r}, {self.text!r}, selection={self.selection})"
