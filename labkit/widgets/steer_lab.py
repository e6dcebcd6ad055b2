"""SteerLab: a direction from pairs of prompts, and the text with and without it, side by side, as the slider moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from textwrap import indent
from typing import Any

import ipywidgets as widgets
import traitlets as t

from labkit.engine.wavefront import Cancelled
from labkit.generation.result import Generation
from labkit.generation.token_table import GeneratedToken
from labkit.language_model import LanguageModel
from labkit.steering.directions import steering_vector
from labkit.steering.vector import SteeringVector
from labkit.text.as_code import LM, as_call, as_code
from labkit.text.prompts import asked
from labkit.text.types import Prompt
from labkit.widgets.base.snapshot import card, note
from labkit.widgets.base.tool import FRAME, Tool, labelled, link, row, special
from labkit.widgets.blocks.given_prompt import GivenPrompt, share_prompt
from labkit.widgets.blocks.prompt_box import PromptBox
from labkit.widgets.blocks.token_strip import TokenStrip

# Pairs that differ in one thing, and end in it.
POSITIVE = (
    "The film was wonderful", "What a beautiful day", "The food was delicious", "My neighbours are kind",
    "Everything is going well",
)  # fmt: skip
NEGATIVE = (
    "The film was terrible", "What an awful day", "The food was disgusting", "My neighbours are cruel",
    "Everything is going badly",
)  # fmt: skip
PROMPT = "I went to the new restaurant in town, and"
REACH = 3.0  # the slider goes from minus to plus this


class SteerLab(Tool):
    """Steer what a model writes. Move the strength, and the text on the right is rewritten.

    Args:
        lm: the model.
        prompt: the text to continue; chat messages or token ids (1, seq) as well.
        positive, negative: prompts that have what is wanted, and prompts that lack it.
        layer: after which layer the vector is taken and added; by default a little above the middle.
        strength: how many times the vector is added; negative for the opposite.
        control: use a random direction of the same length instead.
        max_new_tokens: at most this many tokens.
        background: work in a thread of its own; the default everywhere but in Colab.

    Traits:
        prompt, positive, negative, layer, strength, control, max_new_tokens: the settings; the first is any prompt,
            positive and negative are texts with one prompt per line.
        vector: the `SteeringVector`, or None.
        before, after: the two `Generation`s, or None.
    """

    prompt = t.Any("")
    positive = t.Unicode()
    negative = t.Unicode()
    layer = t.Int(0)
    strength = t.Float(1.0)
    control = t.Bool(False)
    max_new_tokens = t.Int(40)
    vector = t.Any(None)
    before = t.Any(None)
    after = t.Any(None)

    def __init__(
        self,
        lm: LanguageModel,
        prompt: Prompt = PROMPT,
        positive: Sequence[str] = POSITIVE,
        negative: Sequence[str] = NEGATIVE,
        *,
        layer: int | None = None,
        strength: float = 1.0,
        control: bool = False,
        max_new_tokens: int = 40,
        background: bool | None = None,
    ) -> None:
        super().__init__(lm, background=background)
        self._known: dict[str, tuple[Any, Any]] = {}  # what was computed last, by name: (from what, what)
        self.box = GivenPrompt(lm, label="Prompt to continue")
        self.sides = {
            "positive": PromptBox(label="Towards: one prompt per line", rows=5),
            "negative": PromptBox(label="Away from: one prompt per line, in the same order", rows=5),
        }
        depth = labelled(widgets.IntSlider, "After layer", "240px", min=0, max=lm.n_layers - 1, continuous_update=False)
        self._strength = labelled(
            widgets.FloatSlider, "Strength", "300px", min=-REACH, max=REACH, step=0.1, readout_format="+.1f",
            continuous_update=self.queue.background,
        )  # fmt: skip
        random = widgets.Checkbox(description="Random baseline", indent=False, layout={"width": "auto"})
        most = labelled(widgets.BoundedIntText, "Max tokens", "150px", min=1, max=lm.context or 100_000)
        self.strips = {
            name: TokenStrip(scale="surprise", unit="probability", title=title, legend=True)
            for name, title in (("before", "Before: not steered"), ("after", "After: steered"))
        }
        for block in (*self.sides.values(), *self.strips.values()):
            block.layout.flex, block.layout.width = "1 1 300px", "auto"
        self.observe(lambda change: self._widen(change["new"]), "strength")  # before the slider hears of it
        link(self, layer=depth, strength=self._strength, control=random, max_new_tokens=most, **self.sides)
        share_prompt(self, self.box)
        self.positive, self.negative = ("\n".join(side) for side in (positive, negative))
        self.layer = round(0.6 * lm.n_layers) if layer is None else layer % lm.n_layers
        self.strength, self.control, self.max_new_tokens = strength, control, max_new_tokens
        self.prompt = asked(lm, prompt)
        self.observe(self._changed, ["layer", "strength", "control"])
        for box in (self.box, *self.sides.values()):
            box.on_submit(self.start)
        self.panel = [
            row(*self.sides.values(), wide=True),
            row(depth, self._strength, random),
            row(self.run_button, self.stop_button, most, self.status),
            row(*self.strips.values(), wide=True),
        ]
        self.children = [self.box, *self.panel]
        self.status.say("Move the slider, or press Run.")

    def _widen(self, strength: float) -> None:
        reach = max(self._strength.max, abs(strength))
        self._strength.min, self._strength.max = -reach, reach

    def _changed(self, _change: Any) -> None:
        if self.before is not None or self.queue.busy:
            self.start()

    # -- the work ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.do(self._steer)

    def run(self, timeout: float | None = None) -> tuple[Generation, Generation]:
        """Write both texts, and wait until they are there. Raises what `wait` raises."""
        self.start()
        self.wait(timeout)
        return self.before, self.after

    def _steer(self, stop: threading.Event) -> None:
        if stop.is_set():
            return  # the slider has moved on
        if isinstance(self.prompt, str) and not self.prompt:
            raise ValueError("the prompt is empty; write at least one character")
        strength, prompt = self.strength, self.prompt
        pairs = tuple(tuple(lines(side)) for side in (self.positive, self.negative))
        self.status.say("Computing the direction from the pairs…")
        vector: SteeringVector = self._kept(
            "vector", (pairs, self.layer), lambda: steering_vector(self.lm, list(pairs[0]), list(pairs[1]), self.layer)
        )
        self.vector = vector = vector.random() if self.control else vector
        ids = tuple(self.lm.encode(prompt)[0].tolist())
        plain = self._kept("before", (ids, self.max_new_tokens), lambda: self._write("before", prompt, stop, None))
        self.before = plain
        if stop.is_set():
            self._known.pop("before", None)  # it was cut short
            raise Cancelled
        what = "the random direction" if self.control else "the direction"
        self.strips["after"].title = f"After: {strength:+.1f} × {what}".replace("-", "−")
        self.after = after = self._write("after", prompt, stop, (vector, strength))
        if stop.is_set():
            raise Cancelled
        self._mark(plain, after)
        length = abs(strength) * vector.norm
        share = f", {length / vector.typical:.2f} of the stream's own length" if vector.typical else ""
        self.status.say(f"Added after layer {vector.layer} at every position: length {length:.1f}{share}.")

    def _kept(self, name: str, made_from: Any, make: Callable[[], Any]) -> Any:
        """What was made last, if it was made from the same; else made now."""
        if name not in self._known or self._known[name][0] != made_from:
            self._known[name] = made_from, make()
        return self._known[name][1]

    def _write(
        self, name: str, prompt: Prompt, stop: threading.Event, steered: tuple[SteeringVector, float] | None
    ) -> Generation:
        """Write into one of the strips, showing progress now and then."""
        written: list[GeneratedToken] = []
        due = time.monotonic()
        strip = self.strips[name]

        def show() -> None:
            with strip.hold_sync():
                strip.selection = None
                strip.tokens = [one.token.display for one in written]
                strip.values = [one.probability for one in written]
                strip.alternatives = [[[text, p] for _, text, p in one.alternatives] for one in written]
                strip.marks = {"special": special([one.token for one in written])}

        def on_token(token: GeneratedToken) -> None:
            nonlocal due
            written.append(token)
            if time.monotonic() >= due and not stop.is_set():
                show()
                due = time.monotonic() + FRAME

        self.status.say("Writing…")
        try:
            with self.lm.steer(*steered) if steered else nullcontext():
                return self.lm.generate(prompt, max_new_tokens=self.max_new_tokens, stop=stop, on_token=on_token)
        finally:
            overtaken = stop.is_set() and self.queue.last is not None and self.queue.last.stop is not stop
            if written and not overtaken:  # where a newer request has come, this text is not worth showing
                show()

    def _mark(self, plain: Generation, after: Generation) -> None:
        """Mark the first token at which the two texts diverge."""
        ids = [[one.id for one in text.tokens] for text in (plain, after)]
        shared = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
        for strip, own in zip(self.strips.values(), ids, strict=True):
            strip.marks = {**strip.marks, "differs": [shared] if shared < len(own) else []}

    # -- the rest ----------------------------------------------------------------------------------------------------

    def code(self) -> str:
        sides, how = map(lines, (self.positive, self.negative)), {"max_new_tokens": self.max_new_tokens}
        code = as_code(self.lm.code(), "vector = lk.steering_vector", LM, *sides, layer=self.layer)
        code += "vector = vector.random()  # the control\n" if self.control else ""
        code = as_code(code, "plain = lm.generate", self.prompt, **how)
        steered = indent(as_call("steered = lm.generate", self.prompt, **how), "    ")
        show = "print(plain.text, steered.text, sep='\\n\\n')\n"
        return f"{code}with lm.steer(vector, {self.strength:g}):\n{steered}{show}"

    def picture(self) -> str:
        """Both texts as HTML without a frame, for the snapshot."""
        if self.after is None:
            return note("Nothing has been written yet.")
        strips = self.strips.values()
        both = "".join(f"<div>{note(one.title)}{one.picture()}</div>" for one in strips)
        return note(str(self.box.value)) + both + note("the warmer a token, the less probable it was")

    def snapshot(self) -> str:
        return card(self.picture(), note(self.status.text), title=f"SteerLab · {self.lm.name}")

    def __repr__(self) -> str:
        which = ", control=True" if self.control else ""
        return f"SteerLab({self.lm.name!r}, {self.box.value!r}, layer={self.layer}, strength={self.strength:g}{which})"


def lines(text: str) -> list[str]:
    """The prompts in a text with one per line; empty lines are none."""
    return [line for line in text.splitlines() if line.strip()]
