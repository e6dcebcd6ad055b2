"""PromptLab: write a prompt, watch the model continue it, see how sure it was of every token."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import traitlets as t

from labkit.widgets.prompt_box import PromptBox
from labkit.widgets.snapshot import card, note
from labkit.widgets.token_strip import TokenStrip
from labkit.widgets.tool import FRAME, Tool, row, special

if TYPE_CHECKING:
    from labkit.generation import GeneratedToken, Generation
    from labkit.models.language_model import LanguageModel, Prompt


class PromptLab(Tool):
    """Prompt a model. Tokens appear as they come, warm where the model was unsure; point at one for its alternatives.

    Args:
        lm: the model.
        prompt: the text to continue.
        temperature: 0 takes the likeliest token each time.
        max_new_tokens: at most this many tokens.
        seed: the same seed gives the same text.
        chat: put the prompt into the model's chat template as a message of the user.
        background: do the work in a thread of its own; by default everywhere but in Colab.

    Traits:
        prompt, temperature, max_new_tokens, seed, chat: the settings.
        generation: the last `Generation`, or None.
    """

    prompt = t.Unicode()
    temperature = t.Float(0.0)
    max_new_tokens = t.Int(64)
    seed = t.Int(0)
    chat = t.Bool(False)
    generation = t.Any(None)

    def __init__(self, lm: LanguageModel, prompt: str = "", *, background: bool | None = None, **settings: Any) -> None:
        super().__init__(lm, background=background)
        self.box = PromptBox(label="Prompt", placeholder="Write the beginning of a text. Ctrl+Enter runs it.")
        wide = {"description_width": "initial"}
        self._temperature = widgets.FloatSlider(
            description="temperature", min=0, max=2, step=0.1, readout_format=".1f", style=wide
        )
        self._temperature.layout.width = "250px"
        self._most = widgets.BoundedIntText(description="max tokens", min=1, max=lm.context or 100_000, style=wide)
        self._most.layout.width = "150px"
        self._seed = widgets.IntText(description="seed", style=wide)
        self._seed.layout.width = "110px"
        self._chat = widgets.Checkbox(description="chat template", indent=False)
        self._chat.layout.width = "auto"
        self.strip = TokenStrip(scale="surprise", unit="probability", legend=True, title="Continuation")
        for name, control in {
            "prompt": self.box, "temperature": self._temperature, "max_new_tokens": self._most,
            "seed": self._seed, "chat": self._chat,
        }.items():  # fmt: skip
            t.link((self, name), (control, "value"))
        for name, value in {"prompt": prompt, **settings}.items():
            if not self.has_trait(name):
                raise TypeError(f"PromptLab has no setting {name!r}")
            setattr(self, name, value)
        self.box.on_submit(self.start)
        controls = [self.run_button, self.stop_button, self._temperature, self._most, self._seed]
        if lm.tokenizer.chat_template:
            controls.append(self._chat)
        self.children = [self.box, row(*controls), self.status, self.strip]
        self.status.say("Ready.")

    @property
    def text(self) -> str:
        """What the model wrote last, without the prompt."""
        return self.generation.text if self.generation is not None else ""

    def start(self) -> None:
        self._ask(self._generate)

    def run(self, timeout: float | None = None) -> Generation:
        """Continue the prompt, and wait until it is done. Raises what `wait` raises."""
        self.start()
        self.wait(timeout)
        return self.generation

    def _asked(self) -> Prompt:
        return [{"role": "user", "content": self.prompt}] if self.chat else self.prompt

    def _generate(self, stop: threading.Event) -> None:
        if not self.prompt:
            raise ValueError("the prompt is empty; write at least one character")
        prompt = self._asked()
        tokens = self.lm.tokens(prompt)
        self.strip.clear()
        self.strip.tokens = [token.display for token in tokens]
        self.strip.marks = {"prompt": list(range(len(tokens))), "special": special(tokens)}
        self.status.say("Waiting for the model…")
        fresh: list[GeneratedToken] = []
        shown, began = 0, time.monotonic()
        due = began

        def show() -> None:
            nonlocal shown
            if not fresh:
                return
            batch = fresh.copy()
            fresh.clear()
            self.strip.append(
                [one.token for one in batch],
                [one.probability for one in batch],
                alternatives=[[(text, p) for _, text, p in one.alternatives] for one in batch],
            )
            shown += len(batch)
            speed = shown / max(time.monotonic() - began, 1e-9)
            self.status.say(f"{shown} tokens · {speed:.0f} tokens/s", share=min(1.0, shown / self.max_new_tokens))

        def on_token(token: GeneratedToken) -> None:
            nonlocal due, began
            if not shown and not fresh:
                began = time.monotonic()
            fresh.append(token)
            if time.monotonic() >= due:
                show()
                due = time.monotonic() + FRAME

        try:
            self.generation = self.lm.generate(
                prompt, max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed,
                stop=stop, on_token=on_token,
            )  # fmt: skip
        finally:
            show()
        ends = {"length": "reached max tokens", "eos": "the model ended the text", "stopped": "stopped"}
        done = self.generation
        written = [one.token for one in done.tokens]
        ended = [len(tokens) + i for i in special(written)]
        self.strip.marks = {**self.strip.marks, "special": [*self.strip.marks["special"], *ended]}
        plural = "token" if len(written) == 1 else "tokens"
        why = ends.get(done.finish, done.finish)
        self.status.say(f"{len(written)} {plural} · {done.tokens_per_second:.0f} tokens/s · {why}")

    def code(self) -> str:
        settings = f"    max_new_tokens={self.max_new_tokens},\n"
        if self.temperature:
            settings += f"    temperature={self.temperature:g},\n    seed={self.seed},\n"
        asked = f"generation = lm.generate(\n    {self._asked()!r},\n{settings})\n"
        return f"{self.lm.code()}{asked}print(generation.text)\n"

    def snapshot(self) -> str:
        if not self.strip.tokens:
            return card(note(self.prompt or "no prompt yet"), title=f"PromptLab · {self.lm.name}")
        about = "the warmer a token, the less probable it was"
        return card(self.strip.picture(), note(about), title=f"PromptLab · {self.lm.name}")

    def __repr__(self) -> str:
        return f"PromptLab({self.lm.name!r}, {self.prompt!r}, temperature={self.temperature:g}, seed={self.seed})"
