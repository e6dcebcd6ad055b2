"""One model's part of PromptLab: what it saw and wrote, token by token, and the branches of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from labkit.generation.score import Score
from labkit.generation.token_table import MEASURES, GeneratedToken, Record
from labkit.generation.tree import Branch, Tree
from labkit.language_model import LanguageModel
from labkit.models.memory import in_words
from labkit.text.diff import differing, stretches
from labkit.text.regions import Region, regions, thinking
from labkit.text.tokens import Token, bytes_of, describe, split_characters
from labkit.widgets.base.snapshot import note
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.base.tool import FRAME, Panel, shown, special
from labkit.widgets.blocks.branch_tree import BranchTree
from labkit.widgets.blocks.token_strip import TokenStrip

LOOKS = {  # measure: the value of the warmest colour, that of the plain one, and what to call it
    "probability": (0.0, 1.0, "probability"),
    "surprisal": (12.0, 0.0, "surprisal in bits"),
    "entropy": (8.0, 0.0, "entropy in bits"),
    "rank": (10.0, 1.0, "rank"),
}
ENDS = {
    "length": "reached max tokens", "eos": "the model ended the text", "stopped": "stopped",
    "stop_string": "wrote a stop string", "failed": "failed midway; the text so far is kept", "writing": "writing",
}  # fmt: skip
SURPRISE = 5.0  # bits from which a token of a scored text is pointed out


class Column(Panel):
    """A strip of tokens with their colours, the tree of branches below it, and a line of numbers.

    Attributes:
        tree, branch: what was written, and which branch of it is shown; None where a text was scored, or nothing yet.
        score: a scored text.
    """

    def __init__(self, lm: LanguageModel, *, alone: bool, measure: str = "probability") -> None:
        super().__init__()
        self.lm, self.alone, self.measure = lm, alone, measure
        self.tree: Tree | None
        self.branch: Branch | None
        self.score: Score | None
        self.regions: list[Region]
        self._words: dict[int, str] = {}  # the display text of every token id that was shown
        self._fresh: list[GeneratedToken]
        self._ids: list[int]  # what the strip shows after the prompt
        self.strip = TokenStrip(scale="surprise", legend=True, fact_names=list(MEASURES))
        self.strip.add_class("labkit-long")
        self.compared = TokenStrip(scale="surprise", fact_names=list(MEASURES))
        self.compared.add_class("labkit-long")
        self.branches = BranchTree(title="Branches")
        self.numbers = StatusLine()
        self._look()
        self.branches.observe(self._select, "selection")
        if not alone:
            self.layout.flex, self.layout.width = "1 1 320px", "auto"
        self.children = [self.strip, self.compared, self.branches, self.numbers]
        self.begin(None)

    @property
    def name(self) -> str:
        return f"{self.lm.name}, {self.lm.bits} bits"

    @property
    def offset(self) -> int:
        """Where the written text begins in the strip."""
        return len(self.tree.tokens) if self.tree is not None else 0

    @property
    def record(self) -> Record | None:
        """The numbers of what is shown after the offset."""
        if self.score is not None:
            return self.score.record
        return self.branch.record if self.branch is not None else None

    # -- showing -----------------------------------------------------------------------------------------------------

    def begin(self, tree: Tree | None) -> None:
        """Show the prompt of a tree, or nothing; what comes is added with `add`."""
        self.tree, self.branch, self.score = tree, None, None
        self.regions = []
        if tree is not None and not tree.truncated and not isinstance(tree.prompt, str):
            self.regions = regions(self.lm, tree.prompt)
        self.strip.choosable = True
        self.branches.selection = self.branches.compared = None
        self.branches.branches = []
        self._lay_out(tree.tokens if tree is not None else [])
        self._arrange()

    def _lay_out(self, prompt: Sequence[Token]) -> None:
        self._fresh, self._ids, self._due = [], [], 0.0
        self.strip.clear()
        self._look()
        with self.strip.hold_sync():
            self.strip.tokens = [token.display for token in prompt]
            self.strip.marks = self._prompt_marks(prompt)
            self.strip.folds = self._folds(prompt)
            self.strip.notes = self._notes([token.id for token in prompt])
            self.strip.title = self.name
        self._tail = "".join(token.display for token in prompt[-8:])

    def _prompt_marks(self, prompt: Sequence[Token]) -> dict[str, list[int]]:
        marks = {"prompt": list(range(len(prompt))), "special": special(prompt)}
        held: set[int] = set()
        for region in self.regions:
            if region.kind != "thinking":
                places = range(region.start, min(region.stop, len(prompt)))
                marks[region.kind] = [*marks.get(region.kind, []), *places]
                held.update(places)
        if held:
            marks["template"] = [n for n in range(len(prompt)) if n not in held]
        return marks

    def add(self, token: GeneratedToken) -> bool:
        """Show a new token, with those that came shortly before, the first at once. Was anything shown?"""
        self._fresh.append(token)
        if time.monotonic() < self._due:
            return False
        self.flush()
        self._due = time.monotonic() + FRAME
        return True

    def flush(self) -> None:
        """Show the tokens that have come since."""
        if not self._fresh:
            return
        batch, self._fresh = self._fresh, []
        values = [getattr(token, self.measure) for token in batch]
        facts = np.array([[getattr(token, name) for name in MEASURES] for token in batch], np.float32)
        ids = [token.id for token in batch]
        rows = [self._alternatives(token.top_ids, token.top_probabilities) for token in batch]
        shown_now = self._display(ids)
        self.strip.append(shown_now, values, alternatives=rows, facts=facts)
        self._ids += ids
        self._tail += "".join(shown_now)
        if "think>" in self._tail and self.tree is not None:
            self.strip.folds = self._folds([*self.tree.tokens, *describe(self.lm.tokenizer, self._ids)])
        self._tail = self._tail[-12:]

    def finish(self, branch: Branch) -> None:
        """A branch has been written, as far as it went."""
        self.flush()
        self.branch = branch
        if self._ids == branch.record.ids:
            self.refresh()
        else:
            self.show(branch)

    def show(self, branch: Branch, *, most: int | None = None) -> None:
        """Show a branch of the tree: all of it, or the part before a place, where another continues."""
        assert self.tree is not None
        self.branch = branch
        record = branch.record.part(0, most)
        self._lay_out(self.tree.tokens)
        self._fill(self.strip, record, self.tree.tokens)
        self._ids = record.ids
        if most is None:
            self.refresh()

    def refresh(self) -> None:
        """Update the information about the tree."""
        tree, branch = self.tree, self.branch
        if tree is None or branch is None:
            return
        index = {id(one): n for n, one in enumerate(tree.branches)}
        rows = []
        for one in tree.branches:
            parent, taken = one.parent, one.taken
            left = [int(parent.record.rows["id"][one.at])] if parent and one.at < len(parent) else []
            rest = one.own.ids[1:] if parent else one.own.ids
            rows.append(
                {
                    "name": one.name, "parent": index[id(parent)] if parent else None, "at": one.at,
                    "taken": taken.token.display if taken else "", "instead": "".join(self._display(left)),
                    "text": " ".join(self.lm.tokenizer.decode(rest[:60], skip_special_tokens=True).split()),
                    "tokens": len(one), "bits": -one.logprob / np.log(2) / max(1, len(one)), "finish": one.finish,
                }
            )  # fmt: skip
        with self.branches.hold_trait_notifications():
            self.branches.branches = rows
            self.branches.selection = index.get(id(branch))
        written = describe(self.lm.tokenizer, branch.record.ids)
        self.strip.notes = self._notes([token.id for token in (*tree.tokens, *written)])
        at = self.offset
        self.strip.marks = {
            **self.strip.marks,
            "special": special([*tree.tokens, *written]),
            "branched": [at + one.at for one in tree.branches if one.parent is branch],
        }
        self.numbers.say(self.said())
        self._arrange()

    def show_score(self, score: Score) -> None:
        """Show a scored text."""
        self.begin(None)
        self.score, self.strip.choosable = score, False
        self._fill(self.strip, score.record, [])
        surprises = [place for place, token in score.surprises() if token.surprisal >= SURPRISE]
        self.strip.marks = {"special": special(score.prompt), "surprise": surprises}
        self.numbers.say(self.said())
        self._arrange()

    @cached_property
    def size(self) -> str:
        """The memory that the model's weights take, in words; found when it is first shown."""
        return in_words(self.lm.memory().total)

    def said(self) -> str:
        """The line of numbers."""
        size = self.size
        if self.score is not None:
            score = self.score
            numbers = f"perplexity {score.perplexity:.1f} · {score.bits_per_byte:.2f} bits per byte"
            surprises = [token for _, token in score.surprises(3) if token.surprisal >= SURPRISE]
            least = [f"{one.token.display} {_share(one.probability)}" for one in surprises]
            named = f" · least expected: {', '.join(least)}" if least else ""
            return f"{len(score.record)} tokens · {numbers} · {size}{named}"
        if self.branch is None:
            return ""
        count = len(self.branch)
        tokens = "token" if count == 1 else "tokens"
        ends = ENDS.get(self.branch.finish, self.branch.finish)
        return f"{count} {tokens} · {self.branch.tokens_per_second:.0f} tokens/s · {ends} · {size}"

    def colour_by(self, measure: str) -> None:
        """Colour by another measure."""
        self.measure = measure
        self._look()
        index = self.branches.compared
        other = self.tree.branches[index].record if self.tree is not None and index is not None else None
        for strip, record in ((self.strip, self.record), (self.compared, other)):
            if record is not None and len(strip.tokens):
                before = np.full(max(0, len(strip.tokens) - len(record)), np.nan)
                strip.values = np.concatenate([before, record.measure(measure)])[: len(strip.tokens)]

    def _look(self) -> None:
        low, high, unit = LOOKS[self.measure]
        for strip in (self.strip, self.compared):
            with strip.hold_sync():
                strip.scale, strip.centre = "surprise", None
                strip.low, strip.high, strip.unit = low, high, unit

    # -- comparing ---------------------------------------------------------------------------------------------------

    def compare(self, index: int | None) -> None:
        """Show another branch below the one that is shown, with differences marked; None removes it."""
        self.branches.compared = index
        marks = {name: places for name, places in self.strip.marks.items() if name != "differs"}
        if index is None or self.tree is None or self.branch is None:
            self.compared.clear()
            self.strip.marks = marks
        else:
            other = self.tree.branches[index]
            at = self.tree.shared(self.branch, other)
            sides = [bytes_of(self.lm.tokenizer, one.record.ids[at:]) for one in (self.branch, other)]
            left, right = differing(stretches(sides[0], sides[1]))
            self.strip.marks = {**marks, "differs": [self.offset + at + n for n in left]}
            self.compared.clear()
            self._fill(self.compared, other.record, [])
            self.compared.marks = {"differs": [at + n for n in right]}
            self.compared.title = f"Branch {other.name}, which diverges from {self.branch.name} at {at}"
        self._arrange()

    # -- parts -------------------------------------------------------------------------------------------------------

    def _fill(self, strip: TokenStrip, record: Record, prompt: Sequence[Token]) -> None:
        """A record behind a prompt, all at once."""
        before, ids = len(prompt), record.ids
        blank = np.full(before, np.nan, np.float32)
        rows = record.rows
        tops = zip(rows["top_ids"], rows["top_probabilities"], strict=True)
        alternatives = [self._alternatives(*pair) for pair in tops]
        facts = np.stack([record.measure(name) for name in MEASURES], 1)
        with strip.hold_sync():
            strip.tokens = [*(token.display for token in prompt), *self._display(ids)]
            strip.values = np.concatenate([blank, record.measure(self.measure)])
            strip.alternatives = [*[None] * before, *alternatives]
            strip.facts = np.concatenate([np.full((before, len(MEASURES)), np.nan), facts])
            strip.folds = self._folds([*prompt, *describe(self.lm.tokenizer, ids)])
            strip.notes = self._notes([*(token.id for token in prompt), *ids])

    def _display(self, ids: Sequence[int]) -> list[str]:
        unknown = sorted({int(id) for id in ids} - self._words.keys())
        for token in describe(self.lm.tokenizer, unknown):
            self._words[token.id] = token.display
        return [self._words[int(id)] for id in ids]

    def _alternatives(self, ids: np.ndarray, probabilities: np.ndarray) -> list[tuple[str, float]] | None:
        if not probabilities.any():
            return None
        return list(zip(self._display(ids.tolist()), probabilities.tolist(), strict=True))

    def _notes(self, ids: Sequence[int]) -> dict[str, Any]:
        return {str(n): f"a part of {whole}" for n, whole in split_characters(self.lm.tokenizer, ids).items()}

    @staticmethod
    def _folds(tokens: Sequence[Token]) -> list[dict[str, Any]]:
        found = []
        for region in thinking(tokens):
            closed = "</think>" in "".join(token.text for token in tokens[max(0, region.stop - 8) : region.stop])
            label = "thought" if closed else "thinking"
            found.append({"start": region.start, "stop": region.stop if closed else None, "label": label})
        return found

    def _arrange(self) -> None:
        shown(self.compared, self.branches.compared is not None)
        shown(self.branches, self.tree is not None and len(self.tree) > 1)
        shown(self.numbers, not self.alone)

    def _select(self, change: Any) -> None:
        index = change["new"]
        if self.tree is None or index is None or index >= len(self.tree):
            return
        branch = self.tree.branches[index]
        if branch is not self.branch and branch.finish != "writing":
            self.branches.compared = None
            self.show(branch)

    def on_branch(self, call: Callable[[Column, int, int], Any]) -> None:
        """Call this with (column, place after the prompt, token id) when the user chooses an alternative."""

        def chosen(position: int, place: int) -> None:
            record, at = self.record, position - self.offset
            if record is not None and self.tree is not None and 0 <= at < len(record):
                call(self, at, int(record.rows["top_ids"][at][place]))

        self.strip.on_choose(chosen)

    def picture(self) -> str:
        """The column as HTML, for the snapshot of the tool."""
        title = "" if self.alone else note(self.name)
        tree = self.branches.picture() if self.tree is not None and len(self.tree) > 1 else ""
        return f"<div>{title}{self.strip.picture()}{tree}{note(self.said())}</div>"


def _share(probability: float) -> str:
    return "< 0.01%" if probability < 1e-4 else f"{probability:.2%}" if probability < 0.01 else f"{probability:.1%}"
