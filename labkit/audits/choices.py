"""Which of several answers does a model prefer? Answers of any length, under four ways to compare them.

Log-probabilities of answers are not comparable as they are: a longer answer has more tokens to be wrong about, and some
words are likely whatever was asked. So besides the plain sum (`raw`) there is the mean per token and per byte, and the
difference to the same answer after a prompt that asks nothing (`prior`): domain conditional PMI, Holtzman et al. 2021
("Surface form competition: why the highest probability answer isn't always right"). Where these disagree about the best
answer, the preference is one of wording at least in part.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.elsewhere import where_the_model_is
from labkit.generation.continuations import Continuation, ContinuationJob
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.job import finish
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, as_code, changed
from labkit.text.prompts import as_json, asked, each_prompt, from_json
from labkit.text.tokens import visible
from labkit.text.warn import warn

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from labkit.models.handle import Model
    from labkit.text.types import Prompt

FILE = "choices"
WAYS = {
    "raw": "log-probability",
    "per_token": "per token",
    "per_byte": "per byte",
    "prior": "compared with the prior",
}
"""How answers are compared, and what figures call it."""


@dataclass(frozen=True)
class Choices:
    """Answers to one prompt, as a model prefers them.

    Attributes:
        answers: as they were given, (n,).
        scored: each after the prompt; None where it was not reached.
        scored_after_prior: each after the prior prompt; empty without one.
        recipe: what repeats it.
    """

    answers: tuple[str, ...]
    scored: tuple[Continuation | None, ...] = field(repr=False)
    scored_after_prior: tuple[Continuation | None, ...] = field(repr=False)
    recipe: dict[str, Any] = field(repr=False)

    @property
    def finish(self) -> str:
        """`stopped` where answers are missing, else `complete`."""
        return "stopped" if None in (*self.scored, *self.scored_after_prior) else "complete"

    @property
    def ways(self) -> tuple[str, ...]:
        """How these answers can be compared: those of `raw`, `per_token`, `per_byte` and `prior` that there are."""
        return tuple(way for way in WAYS if way != "prior" or self.scored_after_prior)

    def logprobs(self, way: str = "raw") -> np.ndarray:
        """The log-probability of each answer in nats, float64 (n,); `per_token` and `per_byte` are means. NaN where it
        was not reached.

        `prior` is how much likelier the prompt makes the answer than the prior prompt does.

        Raises:
            ValueError: there is no such way, or no prior was given.
        """
        if way not in self.ways:
            why = "; prior= of lk.choices gives the prompt that `prior` needs" if way == "prior" else ""
            raise ValueError(
                f"there is no way {way!r} to compare these answers; use one of {', '.join(self.ways)}{why}"
            )
        if way == "prior":
            return self.logprobs() - _each(self.scored_after_prior, "logprob")
        return _each(self.scored, "logprob" if way == "raw" else way)

    def probabilities(self, way: str = "raw") -> np.ndarray:
        """The same as shares of these answers alone, float64 (n,), which sum to 1; NaN where one was not reached."""
        logprobs = self.logprobs(way)
        shares = np.exp(logprobs - logprobs.max())
        return shares / shares.sum()

    def best_by(self, way: str) -> str:
        """The answer that one way prefers; the first of equals.

        Raises:
            ValueError: there is no such way, or answers are missing.
        """
        logprobs = self.logprobs(way)
        if np.isnan(logprobs).any():
            raise ValueError(
                f"{int(np.isnan(logprobs).sum())} of {len(self.answers)} answers were not reached; ask again"
            )
        return self.answers[int(logprobs.argmax())]

    @property
    def best(self) -> str:
        """The likeliest answer, as a whole (`raw`)."""
        return self.best_by("raw")

    def to_frame(self) -> pd.DataFrame:
        """One row per answer: its tokens and bytes, whether each token is the likeliest (`greedy`), and for each way
        the log-probability and, as `p_...`, the share of the answers."""
        import pandas as pd

        rows = {
            "tokens": [one and len(one.tokens) for one in self.scored],
            "bytes": [one and one.n_bytes for one in self.scored],
            "greedy": [one and one.greedy for one in self.scored],
        }
        rows |= {way: list(self.logprobs(way)) for way in self.ways}
        rows |= {f"p_{way}": list(self.probabilities(way)) for way in self.ways}
        return pd.DataFrame(rows, index=pd.Index(self.answers, name="answer"))

    def figure(self) -> go.Figure:
        """Bars: the share of each answer, for each way to compare them."""
        import plotly.graph_objects as go

        names = [visible(answer) for answer in self.answers]
        drawn = [
            go.Bar(
                x=names, y=self.probabilities(way), name=WAYS[way], customdata=self.logprobs(way),
                hovertemplate=f"%{{x}}, {WAYS[way]}<br>share %{{y:.3f}}<br>%{{customdata:.3f}} nats<extra></extra>",
            )
            for way in self.ways
        ]  # fmt: skip
        return go.Figure(drawn).update_layout(
            title={"text": "Share of each answer among the answers given", "font": {"size": 14}},
            xaxis={"title": "answer", "type": "category"},
            yaxis={"title": "probability among these", "range": [0, 1]},
            barmode="group",
            legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
            width=max(560, 160 + 110 * len(names)),
            height=400,
        )

    def code(self) -> str:
        """The Python that asks again."""
        more = changed({"prior": None}, self.recipe)
        more, prompt = {name: from_json(value) for name, value in more.items()}, from_json(self.recipe["prompt"])
        return as_code(self.recipe["load"], "choices = lk.choices", LM, prompt, list(self.answers), **more)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_choices` reads it."""
        every = [*self.scored, *self.scored_after_prior]
        about = {
            "answers": self.answers, "recipe": self.recipe,
            "scored": [one and [one.tokens, one.n_bytes] for one in every],
        }  # fmt: skip
        arrays = {
            name: np.concatenate([kind(()), *(getattr(one, name) for one in every if one is not None)])
            for name, kind in PARTS.items()
        }
        return save_arrays(path, FILE, about, **arrays)

    def __repr__(self) -> str:
        if self.finish == "stopped":
            return f"Choices({len(self.answers)} answers, of which not all were reached)"
        shares = ", ".join(f"{a!r} {p:.1%}" for a, p in zip(self.answers, self.probabilities(), strict=True))
        others = [f"{way} prefers {self.best_by(way)!r}" for way in self.ways if self.best_by(way) != self.best]
        return f"Choices({'; '.join([shares, *others])})"


PARTS = {
    "logprobs": lambda values: np.array(values, np.float32),
    "likeliest": lambda values: np.array(values, bool),
}
"""What is kept of each token."""


def _each(scored: Sequence[Continuation | None], name: str) -> np.ndarray:
    return np.array([np.nan if one is None else getattr(one, name) for one in scored])


def open_choices(path: str | os.PathLike[str]) -> Choices:
    """Open what `Choices.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        scored, start = [], 0
        for one in about["scored"]:
            span = slice(start, start := start + len(one[0] if one else ()))
            logprobs, likeliest = (arrays[name][span] for name in PARTS)
            scored.append(Continuation(tuple(one[0]), logprobs, one[1], likeliest) if one else None)
        n = len(about["answers"])
        return Choices(tuple(about["answers"]), tuple(scored[:n]), tuple(scored[n:]), about["recipe"])


@where_the_model_is
@each_prompt
def choices(
    lm: Model, prompt: Prompt, answers: Sequence[str], *, prior: Prompt | None = None, batch: int | None = None
) -> Choices:
    """How probable a model finds each of several answers to a prompt.

    Args:
        lm: the model.
        prompt: text, chat messages or token ids (1, seq); or a list of these, with the same answers.
        answers: two or more texts of any length, with the space that comes before them: `[" Paris", " Rome"]`.
        prior: a prompt that asks nothing, such as `"Answer:"`, after which the same answers are likely for their words
            alone. With it there is a fourth way to compare answers, `prior`.
        batch: how many rows to run at once; by default as many as fit.

    Returns:
        A `Choices`, or a list of them for several prompts. After an interrupt, or as `choices` on an error, it has the
        answers scored until then.

    Raises:
        ValueError: fewer than two answers, the same answer twice, an empty one, or one that does not fit into the
            context after the prompt.
        TypeError: an answer is not text, or a prompt no prompt.
    """
    if isinstance(answers, str):
        raise TypeError(f"answers is a list of texts, such as [' yes', ' no']; got the text {answers!r:.60}")
    if len(answers) < 2:
        raise ValueError(f"give two answers or more; got {list(answers)!r:.60}")
    if twice := {answer for answer in answers if list(answers).count(answer) > 1}:
        raise ValueError(f"these answers are there more than once: {', '.join(map(repr, sorted(twice)))}")
    prompts = [asked(lm, one) for one in ([prompt] if prior is None else [prompt, prior])]
    recipe = made_with(lm) | {"prompt": as_json(prompts[0]), "prior": None if prior is None else as_json(prompts[1])}
    job = ChoicesJob(lm, prompts, answers, batch, recipe)
    _expect_space(prompt, answers)
    finish(job, "choices", unit="answer", kept="choices", progress=False)
    return job.choices


class ChoicesJob(ContinuationJob):
    """The answers scored after the prompts, the prior after the other, so that what is done is kept."""

    def __init__(
        self, lm: Model, prompts: Sequence[Prompt], answers: Sequence[str], batch: int | None, recipe: dict[str, Any]
    ) -> None:
        super().__init__(lm, [(one, answer) for one in prompts for answer in answers], batch=batch)
        self._answers, self._recipe = tuple(answers), recipe

    @property
    def choices(self) -> Choices:
        """What is scored so far."""
        n = len(self._answers)
        return Choices(self._answers, tuple(self.found[:n]), tuple(self.found[n:]), self._recipe)


def _expect_space(prompt: Prompt, answers: Sequence[str]) -> None:
    """Warn of answers that are glued to the last word of the prompt."""
    if not isinstance(prompt, str) or not prompt or prompt[-1].isspace():
        return
    if glued := [answer for answer in answers if answer[0].isalnum() and prompt[-1] not in "([{'\"“‘-/"]:
        warn(
            f"answers follow the prompt with no space between: {prompt[-12:] + glued[0]!r:.60}. Most words begin with "
            f"one: {' ' + glued[0]!r:.40}"
        )
