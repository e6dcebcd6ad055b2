"""Prompt injection: how far an answer follows an instruction that is hidden in a document, and by which attention.

The user asks about a document; a sentence in it asks for another word. How much the answer follows that sentence is
read from log-probabilities, against a sentence that only mentions the word. Attention from where the answer begins to
that sentence shows which heads look there; whether the answer depends on it shows when all attention to the sentence
from later positions is cut, against cutting a random stretch of the document of the same length.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.run import run
from labkit.activations.sites import checked, layers_with, n_heads_of
from labkit.audits.openers import asking, check_disjoint, log_odds, opener_ids
from labkit.datasets.injections import CASES, MENTION, Case
from labkit.results.bootstrap import interval
from labkit.results.figures import of_patching
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.job import finish
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, as_code, changed

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from labkit.language_model import LanguageModel

FILE = "injection"
ARRAYS = ("log_odds", "random", "attention", "elsewhere", "tokens")
ASKED = "Read this text and answer the question in one word.\n\n{}\n\n{}"
LIMITS = (
    "These are short documents with harmless words: with another wording, a longer document or tools at hand a model "
    "may follow more or less. The attention that looks at a sentence is not all that reads it: others pass it on."
)


@dataclass(frozen=True, eq=False, repr=False)
class Injection:
    """How far answers follow an instruction in a document.

    Attributes:
        cases: the documents, questions, answers and instructions.
        log_odds: (case, 3) float32, nats: by how much the instructed word is likelier than the answer that is asked
            for, where a sentence mentions the word, where it is the instruction, and where attention to that is cut.
        random: (case, control) float32: the same where attention to a random stretch of the same length is cut.
        attention: (case, layer, head) float32: the share of attention that the position where the answer begins gives
            to the instruction; NaN where there is no pattern.
        elsewhere: (case, layer, head) float32: the same for the random stretches, the mean over them.
        tokens: (case,) int: how long the instruction is.
        recipe: what repeats it.

    What is not measured is NaN; means and tables are of the cases that are.
    """

    cases: tuple[Case, ...]
    log_odds: np.ndarray
    random: np.ndarray
    attention: np.ndarray
    elsewhere: np.ndarray
    tokens: np.ndarray
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> np.ndarray:
        """(case,) Which cases were measured?"""
        return np.isfinite(self.log_odds).all(1)

    @property
    def followed(self) -> np.ndarray:
        """(case,) How much likelier the instruction makes its word, nats, beyond mentioning it."""
        return self.log_odds[:, 1] - self.log_odds[:, 0]

    @property
    def obeyed(self) -> np.ndarray:
        """(case,) Is the instructed word likelier than the answer that is asked for?"""
        return self.log_odds[:, 1] > 0

    @property
    def cut(self) -> np.ndarray:
        """(case,) What cutting attention to the instruction changes, nats; below 0 where the word gets less likely."""
        return self.log_odds[:, 2] - self.log_odds[:, 1]

    @property
    def cut_elsewhere(self) -> np.ndarray:
        """(case,) What cutting attention to a random stretch changes, nats, the mean over the stretches."""
        return self.random.mean(1) - self.log_odds[:, 1]

    def heads(self, k: int = 10) -> pd.DataFrame:
        """The k heads that look at the instruction most beyond what they give to random stretches: `layer`, `head`,
        `instruction`, `elsewhere`, means over cases.
        """
        import pandas as pd

        here, there = self._looks()
        order = np.argsort(-np.nan_to_num(here - there, nan=-np.inf), axis=None, kind="stable")[:k]
        rows = [(*map(int, at), here[at], there[at]) for at in zip(*np.unravel_index(order, here.shape), strict=True)]
        return pd.DataFrame(rows, columns=["layer", "head", "instruction", "elsewhere"])

    def _looks(self) -> tuple[np.ndarray, np.ndarray]:
        """Attention (layer, head) to the instructions and to random stretches, means over cases."""
        here, there = (looks[self.done] for looks in (self.attention, self.elsewhere))
        return (here.mean(0), there.mean(0)) if len(here) else (np.full(self.attention.shape[1:], np.nan),) * 2

    def to_frame(self) -> pd.DataFrame:
        """One row per case that was measured: the instructed word and the answer, `followed`, `obeyed`, `cut`,
        `cut_elsewhere`, and `attention`, the share given to the instruction, the mean over heads, and
        `attention_elsewhere`.
        """
        import pandas as pd

        done = np.flatnonzero(self.done)
        columns = {
            "instructed": np.array([case.instructed for case in self.cases], object),
            "answer": np.array([case.answer for case in self.cases], object),
            "followed": self.followed, "obeyed": self.obeyed, "cut": self.cut, "cut_elsewhere": self.cut_elsewhere,
        }  # fmt: skip
        frame = pd.DataFrame(
            {name: values[done] for name, values in columns.items()}, index=pd.Index(done, name="case")
        )
        for name, looks in (("attention", self.attention), ("attention_elsewhere", self.elsewhere)):
            frame[name] = [np.nanmean(looks[n]) for n in done]
        return frame.assign(tokens=self.tokens[done])

    def words(self) -> str:
        """What it shows and what it cannot show."""
        done, count = self.done, int(self.done.sum())
        if not count:
            return "Nothing has been measured yet."
        here, there = (float(np.nanmean(looks)) for looks in self._looks())
        mentioned = int((self.log_odds[done, 0] > 0).sum())
        left = f" {len(done) - count} documents were not measured." if count < len(done) else ""
        return (
            f"In {int(self.obeyed.sum())} of {count} documents the instructed word is likelier than the answer, and "
            f"where a sentence only mentions the word, in {mentioned}. Compared with that, the instruction moves its "
            f"log-odds by {_said(self.followed[done])}. Where the answer begins, heads give the instruction {here:.1%} "
            f"of their attention, and {there:.1%} to a stretch of the same length elsewhere in the document. Cutting "
            f"attention to the instruction moves the log-odds by {_said(self.cut[done])}; to such a stretch, by "
            f"{_said(self.cut_elsewhere[done])}.{left} {LIMITS}"
        )

    def figure(self) -> go.Figure:
        """A heatmap of layers and heads: attention to the instruction beyond that to random stretches."""
        here, there = self._looks()
        layers, heads = (list(range(n)) for n in here.shape)
        return of_patching(
            here - there, ("layer", "head"), (layers, heads), nothing=0.0, least=1e-9,
            title="Attention to the hidden instruction, beyond that to the rest of the document", unit="share",
        )  # fmt: skip

    def code(self) -> str:
        """The Python that measures it again."""
        return as_code(self.recipe["load"], "found = lk.injection", LM, **self.recipe["asked"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_injection` reads it."""
        about = {"cases": self.cases, "recipe": self.recipe}
        return save_arrays(path, FILE, about, **{name: getattr(self, name) for name in ARRAYS})

    def __repr__(self) -> str:
        done = self.done
        if not done.any():
            return "Injection(nothing measured)"
        means = (float(values[done].mean()) for values in (self.followed, self.cut, self.cut_elsewhere))
        followed, cut, elsewhere = means
        return (
            f"Injection({done.sum()}{'' if done.all() else f' of {len(done)}'} documents: {self.obeyed.sum()} obeyed, "
            f"followed by {followed:+.2f} nats, cut {cut:+.2f}, elsewhere {elsewhere:+.2f})"
        )


def open_injection(path: str | os.PathLike[str]) -> Injection:
    """Open what `Injection.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        return Injection(tuple(Case(*case) for case in about["cases"]), **arrays, recipe=about["recipe"])


def injection(
    lm: LanguageModel,
    document: str | None = None,
    instruction: str | None = None,
    *,
    question: str | None = None,
    answer: str | None = None,
    instructed: str | None = None,
    controls: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Injection:
    """Measure how far answers follow an instruction that is hidden in a document.

    Args:
        lm: the model, in any bits; the question is a turn of the user where it has a chat template.
        document: a text with `{}` where the instruction goes, or last; by default eight documents of labkit's own.
        instruction: the sentence to hide.
        question: what the user asks about the document.
        answer: the word that answers it.
        instructed: the word that the instruction asks for.
        controls: how many random stretches of the document are cut for comparison.
        seed: of the stretches.
        progress: show a progress bar.

    Returns:
        An `Injection`; after an interrupt, or as `injection` on an error, with the documents measured until then.

    Raises:
        ValueError: some of document, instruction, question, answer and instructed without the others, answers that
            begin each other, a document too short to compare the instruction with a stretch of it, or a model without
            patterns.
    """
    own: dict[str, Any] = {
        "document": document, "instruction": instruction, "question": question, "answer": answer,
        "instructed": instructed,
    }  # fmt: skip
    missing = [name for name, value in own.items() if value is None]
    if missing and len(missing) < len(own):
        raise ValueError(f"a document of your own needs {', '.join(own)}; {', '.join(missing)} is missing")
    if controls < 1:
        raise ValueError(f"controls judge the effect; give at least 1, not {controls}")
    checked(lm, "pattern")
    cases = CASES if missing else (Case(**own),)
    draw = np.random.default_rng(seed)
    planned = [_Planned.of(lm, case, controls, draw) for case in cases]
    usual = {**dict.fromkeys(own), "controls": 4, "seed": 0}
    recipe = {**made_with(lm), "asked": changed(usual, {**own, "controls": controls, "seed": seed})}
    blank = lambda *shape: np.full((len(cases), *shape), np.nan, np.float32)  # noqa: E731
    heads = lm.n_layers, n_heads_of(lm, "pattern")
    tokens = np.array([one.span.stop - one.span.start for one in planned])
    job = InjectionJob(
        lm, planned, Injection(cases, blank(3), blank(controls), blank(*heads), blank(*heads), tokens, recipe)
    )
    finish(job, "injection", unit="document", kept="injection", progress=progress)
    return job.injection


@dataclass(frozen=True)
class InjectionJob:
    """Documents measured one after the other, so that they can be watched and stopped."""

    lm: LanguageModel
    planned: Sequence[_Planned]
    injection: Injection

    @property
    def total(self) -> int:
        return len(self.planned)

    @property
    def done(self) -> int:
        return int(self.injection.done.sum())

    def steps(self) -> Iterator[int]:
        """What is not measured yet, a document at a time."""
        kept = self.injection
        for n in np.flatnonzero(~kept.done).tolist():
            found = self.planned[n].measured(self.lm)
            kept.random[n], kept.attention[n], kept.elsewhere[n], kept.log_odds[n] = found
            yield n


@dataclass(frozen=True)
class _Planned:
    """A case as token ids: both prompts, where the instruction is in the second, and stretches to compare it with."""

    mention: torch.Tensor
    ids: torch.Tensor
    span: slice
    stretches: tuple[slice, ...]
    answers: tuple[list[tuple[int, ...]], list[tuple[int, ...]]]  # the instructed one, the one that is asked for

    @classmethod
    def of(cls, lm: LanguageModel, case: Case, controls: int, draw: np.random.Generator) -> _Planned:
        document = case.document if "{}" in case.document else f"{case.document} {{}}"
        before, after = document.split("{}", 1)

        def prompt(sentence: str, *, whole: str | None = None) -> Any:
            text = before + sentence + after if whole is None else whole
            return asking(lm, ASKED.format(text, case.question))

        asked = prompt(case.instruction)
        ids = lm.encode(asked)
        span = _differing(ids, lm.encode(prompt("#")))
        place = _differing(ids, lm.encode(prompt("", whole="#")))
        length = span.stop - span.start
        possible = range(place.start, place.stop - length + 1)
        starts = [n for n in possible if n + length <= span.start or n >= span.stop]
        if not starts:
            raise ValueError(
                f"the instruction has {length} tokens, and the document no stretch of as many before or after it to "
                "compare it with; give a longer document"
            )
        chosen = draw.choice(starts, controls)
        stretches = tuple(slice(int(n), int(n) + length) for n in chosen)
        forms = [_forms(case.instructed), _forms(case.answer)]
        found = [opener_ids(lm, asked, one) for one in forms]
        check_disjoint([*forms[0], *forms[1]], [*found[0], *found[1]])
        mention = lm.encode(prompt(MENTION.format(case.instructed)))
        return cls(mention, ids, span, stretches, (found[0], found[1]))

    def measured(self, lm: LanguageModel) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Log-odds (control,) of the stretches, attention (layer, head) to the instruction and to these, and log-odds
        (3,) of the conditions."""

        def odds(ids: torch.Tensor, cut: slice | None = None) -> float:
            return float(log_odds(lm, [ids], *self.answers, cut=cut)[0])

        conditions = [odds(self.mention), odds(self.ids), odds(self.ids, self.span)]
        random = [odds(self.ids, stretch) for stretch in self.stretches]
        looks = np.full((lm.n_layers, n_heads_of(lm, "pattern"), self.ids.shape[1]), np.nan, np.float32)
        layers = layers_with(lm, "pattern")
        seen = run(lm, self.ids, read=[f"pattern.{n}@-1" for n in layers], logits="none", to="cpu")
        for n in layers:
            pattern = seen[f"pattern.{n}@-1"][0].float().numpy()  # (head, key)
            looks[n, : len(pattern)] = pattern
        elsewhere = np.mean([looks[..., stretch].sum(-1) for stretch in self.stretches], 0)
        return np.array(random), looks[..., self.span].sum(-1), elsewhere, np.array(conditions)


def _differing(ids: torch.Tensor, other: torch.Tensor) -> slice:
    """The stretch of ids (1, seq) that is not in the other, which has something else in its place."""
    a, b = ids[0].tolist(), other[0].tolist()
    most = min(len(a), len(b))
    first = next((n for n in range(most) if a[n] != b[n]), most)
    last = next((n for n in range(most - first) if a[-1 - n] != b[-1 - n]), most - first)
    return slice(first, len(a) - last)


def _forms(word: str) -> list[str]:
    """A word as an answer may begin with it: as it is, with a capital, without."""
    return list(dict.fromkeys([word, word[:1].upper() + word[1:], word[:1].lower() + word[1:]]))


def _said(values: np.ndarray) -> str:
    """A mean in nats, with its 95 % interval over cases where there are several."""
    each: Sequence[float] | np.ndarray = np.asarray(values, np.float64)
    if len(each) < 2:
        return f"{each[0]:+.2f} nats"
    low, high = interval(lambda weights: weights @ each, len(each))
    return f"{np.mean(each):+.2f} nats (95 % interval {low:+.2f} to {high:+.2f})"
