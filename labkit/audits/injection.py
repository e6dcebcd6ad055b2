"""Prompt injection: how far an answer follows an instruction that is hidden in a document, and by which attention.

The user asks about a document; a sentence in it asks for another word. How much the answer follows that sentence is
read from log-probabilities, against a sentence that only mentions the word. Attention from where the answer begins to
that sentence shows which heads look there; whether the answer depends on it shows when all attention to the sentence
from later positions is cut, against cutting a random stretch of the document of the same length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from labkit.activations.run import run
from labkit.activations.sites import checked, layers_with, n_heads_of
from labkit.audits.openers import asking, check_disjoint, log_odds, opener_ids
from labkit.datasets.injections import CASES, MENTION, Case
from labkit.results.bootstrap import interval
from labkit.results.figures import heatmap
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, as_code, changed

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from labkit.activations.hooks import Edit
    from labkit.language_model import LanguageModel

ASKED = "Read this text and answer the question in one word.\n\n{}\n\n{}"
CONDITIONS = ("mention", "instruction", "cut")
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
    """

    cases: tuple[Case, ...]
    log_odds: np.ndarray
    random: np.ndarray
    attention: np.ndarray
    elsewhere: np.ndarray
    tokens: np.ndarray
    recipe: dict[str, Any] = field(default_factory=dict)

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

        here, there = self.attention.mean(0), self.elsewhere.mean(0)
        order = np.argsort(-np.nan_to_num(here - there, nan=-np.inf), axis=None, kind="stable")[:k]
        rows = [(*map(int, at), here[at], there[at]) for at in zip(*np.unravel_index(order, here.shape), strict=True)]
        return pd.DataFrame(rows, columns=["layer", "head", "instruction", "elsewhere"])

    def to_frame(self) -> pd.DataFrame:
        """One row per case: the instructed word and the answer, `followed`, `obeyed`, `cut`, `cut_elsewhere`, and
        `attention`, the share given to the instruction, the mean over heads, and `attention_elsewhere`.
        """
        import pandas as pd

        return pd.DataFrame(
            {
                "instructed": [case.instructed for case in self.cases], "answer": [case.answer for case in self.cases],
                "followed": self.followed, "obeyed": self.obeyed, "cut": self.cut, "cut_elsewhere": self.cut_elsewhere,
                "attention": np.nanmean(self.attention, (1, 2)),
                "attention_elsewhere": np.nanmean(self.elsewhere, (1, 2)), "tokens": self.tokens,
            }
        ).rename_axis("case")  # fmt: skip

    def words(self) -> str:
        """What it shows and what it cannot show."""
        here, there = float(np.nanmean(self.attention)), float(np.nanmean(self.elsewhere))
        return (
            f"In {int(self.obeyed.sum())} of {len(self.cases)} documents the instructed word is likelier than the "
            f"answer, and where a sentence only mentions the word, in {int((self.log_odds[:, 0] > 0).sum())}. Compared "
            f"with that, the instruction moves its log-odds by {_said(self.followed)}. Where the answer begins, heads "
            f"give the instruction {here:.1%} of their attention, and {there:.1%} to a stretch of the same length "
            f"elsewhere in the document. Cutting attention to the instruction moves the log-odds by {_said(self.cut)}; "
            f"to such a stretch, by {_said(self.cut_elsewhere)}. {LIMITS}"
        )

    def figure(self) -> go.Figure:
        """A heatmap of layers and heads: attention to the instruction beyond that to random stretches."""
        beyond = (self.attention - self.elsewhere).mean(0)
        reach = float(np.nanmax(np.abs(beyond), initial=1e-9))
        return heatmap(
            beyond, x=list(range(beyond.shape[1])), y=list(range(beyond.shape[0])), axes=("head", "layer"),
            title="Attention to the hidden instruction, beyond that to the rest of the document", unit="share",
            hover="layer %{y}, head %{x}<br>%{z:+.3f}", ends=(-reach, reach), slanted=False,
            size=(max(520, 160 + 34 * beyond.shape[1]), 180 + 14 * beyond.shape[0]),
        )  # fmt: skip

    def code(self) -> str:
        """The Python that measures it again."""
        return as_code(self.recipe["load"], "found = lk.injection", LM, **self.recipe["asked"])

    def __repr__(self) -> str:
        return (
            f"Injection({len(self.cases)} documents: {int(self.obeyed.sum())} obeyed, followed by "
            f"{self.followed.mean():+.2f} nats, cut {self.cut.mean():+.2f}, elsewhere {self.cut_elsewhere.mean():+.2f})"
        )


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
        An `Injection`.

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
    rows = [one.measured(lm) for one in tqdm(planned, desc="injection", disable=not progress, leave=False)]
    odds, random, attention, elsewhere = (np.stack(values).astype(np.float32) for values in zip(*rows, strict=True))
    usual = {**dict.fromkeys(own), "controls": 4, "seed": 0}
    recipe = {**made_with(lm), "asked": changed(usual, {**own, "controls": controls, "seed": seed})}
    tokens = np.array([one.span.stop - one.span.start for one in planned])
    return Injection(cases, odds, random, attention, elsewhere, tokens, recipe)


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
        """Log-odds (3,) of the conditions and (control,) of the stretches; attention (layer, head) to both."""

        def odds(ids: torch.Tensor, cut: slice | None = None) -> float:
            write = {} if cut is None else {"pattern": _cutting(cut)}
            return float(log_odds(lm, [ids], *self.answers, write=write)[0])

        conditions = [odds(self.mention), odds(self.ids), odds(self.ids, self.span)]
        random = [odds(self.ids, stretch) for stretch in self.stretches]
        looks = np.full((lm.n_layers, n_heads_of(lm, "pattern"), self.ids.shape[1]), np.nan, np.float32)
        layers = layers_with(lm, "pattern")
        seen = run(lm, self.ids, read=[f"pattern.{n}@-1" for n in layers], logits="none", to="cpu")
        for n in layers:
            pattern = seen[f"pattern.{n}@-1"][0].float().numpy()  # (head, key)
            looks[n, : len(pattern)] = pattern
        elsewhere = np.mean([looks[..., stretch].sum(-1) for stretch in self.stretches], 0)
        return np.array(conditions), np.array(random), looks[..., self.span].sum(-1), elsewhere


def _cutting(span: slice) -> Edit:
    """Take attention from all later positions to a stretch away, and give it to their other keys in proportion."""

    def edit(pattern: torch.Tensor) -> torch.Tensor:  # (batch, head, query, key)
        new = pattern.clone()
        later = new[:, :, span.stop :]
        had = later.sum(-1, keepdim=True)
        later[..., span] = 0
        later *= had / later.sum(-1, keepdim=True).clamp(min=1e-6)
        return new

    return edit


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
