"""PromptLab: write a prompt, watch models continue it, see how sure they were of every token, and branch.

The work is done by `lm.tree` and `lk.score`; this is their interface. A run is a `Run` with a tree or a score for each
model; `Column` shows one model's part of it, `PaneDiff` compares several, `branch_actions` acts on their branches,
`ChatTurns` is the chat, `Settings` how to sample, `Sessions` keeps runs, `LookInside` is the way into the other tools.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import traitlets as t

from labkit.engine.wavefront import Cancelled
from labkit.generation.score import Score, score
from labkit.generation.token_table import MEASURES
from labkit.generation.tree import Branch, Tree
from labkit.language_model import LanguageModel
from labkit.text.chat import Chat, template_of
from labkit.text.encode import TooLong, single_token
from labkit.text.types import Prompt
from labkit.widgets.base.snapshot import card, note
from labkit.widgets.base.tool import Tool, button, choice, link, row, shown
from labkit.widgets.blocks.prompt_box import PromptBox
from labkit.widgets.prompt_lab.branch_actions import take, tend
from labkit.widgets.prompt_lab.chat_turns import ChatTurns, as_asked, with_answers
from labkit.widgets.prompt_lab.code import written_code
from labkit.widgets.prompt_lab.colours import Coloured, Colours
from labkit.widgets.prompt_lab.column import Column
from labkit.widgets.prompt_lab.exported import exported
from labkit.widgets.prompt_lab.look_inside import LookInside
from labkit.widgets.prompt_lab.pane_diff import PaneDiff
from labkit.widgets.prompt_lab.session_file import Run
from labkit.widgets.prompt_lab.sessions import Sessions
from labkit.widgets.prompt_lab.settings import Sampled, Settings

if TYPE_CHECKING:
    import pandas as pd

MODES = {"text": "Text", "chat": "Chat", "score": "Score a text"}
BOXES = {
    "text": ("Prompt", "Write the beginning of a text. Ctrl+Enter runs it."),
    "chat": ("Your message", "Write to the model. Ctrl+Enter sends it; leave empty to continue the last answer."),
    "score": ("Text to score", "Paste a text to see how probable the model finds each of its tokens."),
}


class PromptLab(Sampled, Coloured, Tool):
    """Prompt a model, or several side by side.

    Tokens appear as they come, warm where the model was unsure. Hover over one for its alternatives, click it to branch
    from one of these, or look inside at any place.

    Args:
        lm: the model, or a list of models that get the same prompt.
        prompt: the text to continue, to send or to score.
        mode: `text` continues, `chat` sends the prompt in the model's chat template, `score` reads it.
        background: work in a thread of its own; the default everywhere but in Colab.
        settings: any of the traits below.

    Traits:
        mode, prompt, system, messages: what is asked; `messages` are the turns of the chat so far. An empty
            box continues the last of them.
        template_arguments: arguments of the chat template, by name, as in `lk.Chat`: `enable_thinking`, `date`, ...
        temperature, top_p, top_k, min_p, repetition_penalty, max_new_tokens, seed, stop_strings: how to sample.
        measure: the measure tokens are coloured by: `probability`, `surprisal`, `entropy` or `rank`.
        generation: what the first model shows: a `Branch` or a `Score`; None before the first run.

    Attributes:
        columns: one `Column` per model, with its `tree` and `branch`.
        runs: every run so far.
    """

    mode = t.Enum(list(MODES), "text")
    prompt = t.Unicode()
    system = t.Unicode()
    messages = t.List(t.Dict())
    template_arguments = t.Dict()
    measure = t.Enum(MEASURES, "probability")
    generation = t.Any(None)

    def __init__(
        self,
        lm: LanguageModel | Sequence[LanguageModel],
        prompt: str = "",
        *,
        background: bool | None = None,
        **settings: Any,
    ) -> None:
        self.lms = list(lm) if isinstance(lm, Sequence) else [lm]
        if not self.lms:
            raise ValueError("PromptLab needs a model, or a list of at least one")
        super().__init__(self.lms[0], background=background)
        self.runs: list[Run] = []
        self.now: Run | None = None  # the run that is shown
        self._leave_out = False  # may the beginning of the prompt be left out, once?
        self._make_parts()
        self._compose()
        for name, value in {"prompt": prompt, **settings}.items():
            if not self.has_trait(name):
                raise TypeError(f"PromptLab has no setting {name!r}")
            setattr(self, name, value)
        self._arrange()
        self.status.say("Ready.")

    def _make_parts(self) -> None:
        self.columns = [Column(lm, alone=len(self.lms) == 1) for lm in self.lms]
        self._beside = PaneDiff(self.columns)
        self.strip = self.columns[0].strip
        self.box, self.turns = PromptBox(), ChatTurns()
        chats = any(template_of(lm) is not None for lm in self.lms)
        modes = [(words, name) for name, words in MODES.items() if chats or name != "chat"]
        self._mode = widgets.ToggleButtons(options=modes, value="text", style={"button_width": "auto"})
        self.measure_choice = choice("Colour by", MEASURES, "180px")
        longest = min(lm.context or 100_000 for lm in self.lms)
        self.settings = Settings(self, longest=longest, before=[self.run_button, self.stop_button])
        self._shorten, self.sessions = button("", self._run_shortened, button_style="warning"), Sessions(self)
        self.look, self.colours = LookInside(self.status, background=self.queue.background), Colours(self)

    def _compose(self) -> None:
        """Every part has a fixed place; `_arrange` shows and hides them."""
        link(self, prompt=self.box, measure=self.measure_choice, system=self.turns, messages=self.turns)
        self._mode.observe(lambda change: setattr(self, "mode", change["new"]), "value")
        self.observe(lambda _: self._arrange(), "mode")
        self.box.on_submit(self.start)
        self.turns.on_rerun(self._rerun)
        for one in self.columns:
            one.on_branch(partial(take, self))
            one.branches.on_action(partial(tend, self, one))
            one.branches.observe(lambda _: self._note_result(), "selection")
            one.strip.observe(lambda _, one=one: self._beside.point(one), "hovered")
            one.strip.observe(lambda _, one=one: self.look.offer(one), "selection")
        self.children = [
            row(self._mode, self.measure_choice, self.colours.menu), self.turns, self.box, self.settings,
            row(self.status, self._shorten),
            row(*self.columns, wide=True) if len(self.columns) > 1 else self.columns[0],
            self.colours, self.look, self.sessions,
        ]  # fmt: skip

    @t.validate("mode")
    def _possible(self, proposal: Any) -> str:
        mode = str(proposal["value"])
        if mode == "chat" and all(template_of(lm) is None for lm in self.lms):
            raise t.TraitError(f"{self.lm.name} has no chat template; use mode text or score")
        return mode

    def _arrange(self) -> None:
        self._mode.value = self.mode
        self.box.label, self.box.placeholder = BOXES[self.mode]
        self.run_button.description = {"text": "Run", "chat": "Send", "score": "Score"}[self.mode]
        shown(self.turns, self.mode == "chat")
        self.settings.only_buttons(self.mode == "score")
        shown(self._shorten, bool(self._shorten.description))

    @t.observe("measure")
    def _recolour(self, _: Any) -> None:
        for one in self.columns:
            one.colour_by(self.measure)

    # -- running -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.do(self._work)

    def run(self, timeout: float | None = None) -> Branch | Score:
        """Run with the present settings, and wait until it is done; returns the result of the first model.

        Raises what `wait` raises.
        """
        self.start()
        self.wait(timeout)
        return self.generation

    @property
    def text(self) -> str:
        """What the first model wrote, on the branch that is shown, without the prompt."""
        branch = self.columns[0].branch
        return branch.text if branch is not None else ""

    def asked(self, column: int = 0, messages: Sequence[dict[str, Any]] | None = None) -> Prompt:
        """The prompt of a model as `lm.generate` takes it; without a chat template it gets messages as plain text."""
        if self.mode != "chat":
            return self.prompt
        found = as_asked(self.system, self.messages if messages is None else messages, column)
        if template_of(self.lms[column]) is None:
            return "\n\n".join(message["content"] for message in found)
        return Chat(found, **self.template_arguments) if self.template_arguments else found

    def turns_to_answer(self) -> list[dict[str, Any]]:
        """The turns of the chat and the text in the box, up to where the model answers; with an empty box, up to the
        end of its last answer, which it continues.

        Raises:
            ValueError: there is nothing to answer.
        """
        if self.prompt:
            return [*self.messages, {"role": "user", "content": self.prompt}]
        if self.messages:
            return list(self.messages)
        raise ValueError("the message is empty; write at least one character")

    def _work(self, stop: threading.Event) -> None:
        self._offer_to_shorten(0)
        leave_out, self._leave_out = self._leave_out, False
        messages = self.turns_to_answer() if self.mode == "chat" else []
        if self.mode != "chat" and not self.prompt:
            raise ValueError("the prompt is empty; write at least one character")
        new = Run(self.mode, self.prompt, self.system, messages)
        try:
            if self.mode == "score":
                self._score(new, stop, leave_out)
            else:
                self._continue(new, stop, leave_out)
        except TooLong as error:
            self._offer_to_shorten(error.over)
            raise

    def _continue(self, new: Run, stop: threading.Event, leave_out: bool) -> None:
        """Each model in turn, so that the speeds can be compared."""
        sampling = self.sampling()
        asked = [self.asked(n, new.messages) for n in range(len(self.lms))]
        pairs = zip(self.lms, asked, strict=True)
        trees = [Tree(lm, prompt, sampling, truncate_left=leave_out) for lm, prompt in pairs]
        if new.mode == "chat":
            self.messages, self.prompt = new.messages, ""
        self._keep(new)
        for column, tree in zip(self.columns, trees, strict=True):
            column.begin(tree)
        for number, (column, tree) in enumerate(zip(self.columns, trees, strict=True)):
            if stop.is_set() and number:
                break  # those that had their turn keep what they wrote
            new.results.append(tree)
            self.write(column, partial(tree.start, stop=stop))
        self.answered()

    def _score(self, new: Run, stop: threading.Event, leave_out: bool) -> None:
        scores = []
        for lm in self.lms:
            if stop.is_set():
                raise Cancelled
            self.status.say("Reading…")
            scores.append(score(lm, self.prompt, truncate_left=leave_out))
        self._keep(new)
        new.results.extend(scores)
        for column, one in zip(self.columns, scores, strict=True):
            column.show_score(one)
        self._note_result()
        self.colours.again(*self.columns)
        self.status.say(self.columns[0].said())
        self._compare()

    def write(self, column: Column, write: Callable[..., Branch]) -> None:
        """Write a branch, shown as it comes; what was written is always shown and kept."""
        tree = column.tree
        assert tree is not None
        self.status.say("Waiting for the model…" if column.alone else f"Waiting for {column.name}…")
        most, count = self.max_new_tokens, 0

        def on_token(token: Any) -> None:
            nonlocal count
            count += 1
            if column.add(token):
                self.status.say(f"{count} token{'s' * (count != 1)}", share=min(1.0, count / most))

        before, branch = len(tree), None
        try:
            branch = write(on_token=on_token)
        finally:
            branch = branch or (tree.branches[-1] if len(tree) > before else column.branch)
            if branch is not None:
                column.finish(branch)
                self._note_result()
        self.colours.again(column)
        self.status.say(column.said() + self._waiting())

    def _waiting(self) -> str:
        idle = " and ".join(name.replace("_", "-") for name in self.idle())
        return f" · no effect at temperature 0: {idle}" if idle else ""

    def _note_result(self) -> None:
        self.colours.follow()
        if (result := self.columns[0].branch or self.columns[0].score) is not None:
            self.generation = result

    def answered(self) -> None:
        """The columns show the models' answers: each one's own answer joins the chat."""
        if (now := self.now) is not None and now.mode == "chat":
            answered = with_answers(self.messages, now.messages, [one.branch for one in self.columns])
            self.messages = self.messages if answered is None else answered
        self._compare()

    def _compare(self) -> None:
        if len(self.columns) > 1:
            self._beside.align()
            self.status.say(self._beside.in_words() + self._waiting())

    def _rerun(self, number: int) -> None:
        """Continue from a turn: after one of the user, or in place of one of the model."""
        turn = self.messages[number]
        self.prompt = ""
        self.messages = self.messages[: number + (turn["role"] == "user")]
        self.start()

    def _offer_to_shorten(self, over: int) -> None:
        self._shorten.description = f"Leave out the first {over} token{'s' * (over != 1)}, and run" if over else ""
        shown(self._shorten, bool(over))

    def _run_shortened(self) -> None:
        self._leave_out = True
        self.start()

    def branch(self, at: int, token: int | str, *, column: int = 0) -> None:
        """Take another token at a place of the shown branch, and continue from there; `wait()` waits for it."""
        one = self.columns[column]
        after = None
        if one.tree is not None and one.branch is not None and 0 <= at < len(one.branch):
            after = one.tree.prefix(one.branch, at)
        take(self, one, at, single_token(self.lms[column], token, role="token", after=after))

    # -- keeping -----------------------------------------------------------------------------------------------------

    def _keep(self, new: Run) -> None:
        self.runs.append(new)
        self.now = new
        self.sessions.list_runs()

    def show_run(self, number: int) -> None:
        """Show an earlier run, with its settings."""
        if self.queue.busy:
            self.stop()
            self.queue.wait()
        now = self.now = self.runs[number]
        self.mode, self.system = now.mode, now.system
        self.messages, self.prompt = now.messages, "" if now.mode == "chat" else now.prompt
        for column, result in zip_longest(self.columns, now.results):
            if isinstance(result, Score):
                column.show_score(result)
            elif isinstance(result, Tree) and result.branches:
                column.begin(result)
                column.show(result.branches[-1])
            else:
                column.begin(None)
        self._note_result()
        self.status.say(self.columns[0].said())
        self.answered()
        self.sessions.list_runs()

    def save_session(self, path: str | Path) -> Path:
        """Write every run and the settings to a JSON file."""
        return self.sessions.keep(path)

    def open_session(self, path: str | Path) -> PromptLab:
        """Read a session that `save_session` wrote; its runs come after those that are here.

        Raises:
            ValueError: it is not a session, or belongs to other models; nothing here changes.
        """
        self.sessions.bring(path)
        return self

    # -- the rest ----------------------------------------------------------------------------------------------------

    def to_frame(self) -> pd.DataFrame:
        """One row per token of everything that is shown, with its model, its branch and place."""
        import pandas as pd

        frames = []
        for column in self.columns:
            if (result := column.score or column.tree) is not None:
                frame = result.to_frame()
                frame.insert(0, "model", column.name)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def code(self) -> str:
        return written_code(self) + self.colours.code()

    exported = exported

    def snapshot(self) -> str:
        title = f"PromptLab · {' | '.join(one.name for one in self.columns)}"
        if not any(one.strip.tokens for one in self.columns):
            return card(note(self.prompt or "no prompt yet"), title=title)
        return card(*(one.picture() for one in self.columns), note(self.colours.said()), title=title)

    def __repr__(self) -> str:
        names = repr(self.lm.name)
        if len(self.lms) > 1:
            names = f"[{', '.join(f'{lm.name!r} ({lm.bits} bits)' for lm in self.lms)}]"
        mode = f", mode={self.mode!r}" if self.mode != "text" else ""
        return f"PromptLab({names}, {self.prompt!r}{mode}, temperature={self.temperature:g}, seed={self.seed})"
