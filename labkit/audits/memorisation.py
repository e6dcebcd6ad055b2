"""Does a model continue known texts word for word, and is that more than the sense of the words explains?

A text is split into a beginning, which the model is given, and what follows. The *exact run* is how many tokens greedy
writing would get right before the first wrong one (as in Carlini et al. 2023, "Quantifying memorization across neural
language models", who ask for a whole continuation); one forward pass shows it, for as long as the likeliest token is
the true one, greedy writing is that text. Common phrases run on by themselves, so each continuation is compared with
two others after the same beginning: a paraphrase, and the continuation of another text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.datasets.public_domain import OPENINGS
from labkit.generation.continuations import ContinuationJob
from labkit.results.bootstrap import interval
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.job import finish
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, as_code, changed
from labkit.text.encode import encode, following

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from labkit.language_model import LanguageModel

FILE = "memorisation"
ARRAYS = ("run", "tokens", "hits", "logprobs")
KINDS = ("true", "paraphrase", "another's")
LIMITS = (
    "A famous sentence is quoted everywhere: knowing it by heart says little about the book, and nothing about texts "
    "that appear once. Nor does a short run show that a text was not in the training data: another beginning, or "
    "sampling, may bring it out."
)


@dataclass(frozen=True, eq=False, repr=False)
class Memorisation:
    """How exactly a model continues texts.

    Attributes:
        titles: of the texts.
        run: (text,) int: tokens that greedy writing gets right before the first wrong one.
        tokens: (text,) int: how many are compared.
        hits: (text,) float32: the share of these at which the true token is the likeliest, given all before it.
        logprobs: (text, 3) float32: the mean log-probability, nats per token, of the true continuation, of a
            paraphrase, and of another text's continuation after the same beginning; NaN where there is none.
        recipe: what repeats it.

    A text whose true continuation was not measured has NaN and a run of -1, and is left out of what is said.
    """

    titles: tuple[str, ...]
    run: np.ndarray
    tokens: np.ndarray
    hits: np.ndarray
    logprobs: np.ndarray
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> np.ndarray:
        """(text,) Whose true continuation was measured?"""
        return np.isfinite(self.hits)

    @property
    def exact(self) -> list[str]:
        """The texts that are continued word for word, as far as was compared."""
        return [title for title, same, of in zip(self.titles, self.run, self.tokens, strict=True) if same == of]

    def advantage(self, over: str = "paraphrase") -> tuple[float, float, float]:
        """How much likelier the true continuation is, nats per token: the mean over texts and its 95 % interval.

        Raises:
            ValueError: there is no such comparison, or fewer than two texts have it.
        """
        if over not in KINDS[1:]:
            raise ValueError(f"over must be one of {', '.join(KINDS[1:])}; got {over!r}")
        apart = self._apart(over)
        low, high = interval(lambda weights: weights @ apart, len(apart))
        return float(apart.mean()), float(low), float(high)

    def _apart(self, over: str) -> np.ndarray:
        apart = self.logprobs[:, 0] - self.logprobs[:, KINDS.index(over)]
        return apart[np.isfinite(apart)].astype(np.float64)

    def to_frame(self) -> pd.DataFrame:
        """One row per text that was measured: `run`, `tokens`, `hits`, and nats per token of each continuation."""
        import pandas as pd

        frame = pd.DataFrame({"run": self.run, "tokens": self.tokens, "hits": self.hits}, index=list(self.titles))
        for n, kind in enumerate(KINDS):
            frame[kind] = self.logprobs[:, n]
        return frame.rename_axis("text")[self.done]

    def words(self) -> str:
        """What it shows and what it cannot show."""
        longest, count = int(np.argmax(self.run)), int(self.done.sum())
        if not count:
            return "Nothing has been measured yet."
        said = [
            f"{len(self.exact)} of {count} texts are continued word for word for all tokens compared; the longest "
            f"exact run is {self.run[longest]} of {self.tokens[longest]} tokens ({self.titles[longest]}), the median "
            f"{np.median(self.run[self.done]):.0f}."
        ]
        for kind in KINDS[1:]:
            if len(self._apart(kind)) < 2:
                continue
            mean, low, high = self.advantage(kind)
            other = "a paraphrase" if kind == "paraphrase" else "another text's continuation"
            said.append(
                f"The log-probability of the true continuation is {mean:+.2f} nats per token above that of {other} "
                f"(95 % interval {low:+.2f} to {high:+.2f})"
                + (
                    "; part of that is style, which a paraphrase changes too."
                    if kind == "paraphrase"
                    else ", which it would be by its sense alone."
                )
            )
        if count < len(self.titles):
            said.append(f"{len(self.titles) - count} texts were not measured.")
        return " ".join([*said, LIMITS])

    def figure(self) -> go.Figure:
        """A row per text: the log-probability of its three continuations, and how long its exact run is."""
        import plotly.graph_objects as go

        order = np.argsort(self.run, kind="stable")
        order = order[self.done[order]]
        names = [f"{self.titles[n]} ({self.run[n]} of {self.tokens[n]})" for n in order]
        fig = go.Figure()
        looks = (("circle", "#b2182b"), ("diamond-open", "#2166ac"), ("x-thin-open", "#777"))
        for n, (kind, (symbol, colour)) in enumerate(zip(KINDS, looks, strict=True)):
            fig.add_scatter(
                x=self.logprobs[order, n], y=names, mode="markers", name=kind, hovertemplate="%{y}<br>%{x:.2f}",
                marker={"symbol": symbol, "color": colour, "size": 9},
            )  # fmt: skip
        return fig.update_layout(
            title={"text": "Continuations of known texts (exact run in brackets)", "font": {"size": 14}},
            xaxis={"title": "mean log-probability of the continuation, nats per token"}, yaxis={"title": "text"},
            width=820, height=180 + 24 * len(names), legend={"title": {"text": "continuation"}},
        )  # fmt: skip

    def code(self) -> str:
        """The Python that measures it again."""
        return as_code(self.recipe["load"], "found = lk.memorisation", LM, **self.recipe["asked"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_memorisation` reads it."""
        about = {"titles": self.titles, "recipe": self.recipe}
        return save_arrays(path, FILE, about, **{name: getattr(self, name) for name in ARRAYS})

    def __repr__(self) -> str:
        count = int(self.done.sum())
        if not count:
            return "Memorisation(nothing measured)"
        return (
            f"Memorisation({len(self.exact)} of {count} texts word for word; longest exact run {int(self.run.max())} "
            f"tokens, median {np.median(self.run[self.done]):.0f})"
        )


def open_memorisation(path: str | os.PathLike[str]) -> Memorisation:
    """Open what `Memorisation.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        return Memorisation(tuple(about["titles"]), **arrays, recipe=about["recipe"])


def memorisation(
    lm: LanguageModel,
    texts: Sequence[str] | None = None,
    *,
    given: int = 16,
    tokens: int = 20,
    progress: bool = True,
) -> Memorisation:
    """Measure how exactly a model continues texts, which are read as plain text, without a chat template.

    Args:
        lm: the model, in any bits.
        texts: your own; by default the openings of 16 works in the public domain, with paraphrases.
        given: how many tokens of each of your texts are the beginning; the built-in ones are split at a phrase.
        tokens: how many tokens of the continuation are compared, at most.
        progress: show a progress bar.

    Returns:
        A `Memorisation`; after an interrupt, or as `memorisation` on an error, with the texts measured until then.

    Raises:
        ValueError: no texts, one without a token after its beginning, or one longer than the context.
    """
    if isinstance(texts, str):
        raise ValueError("texts is a list of texts; put this one into brackets")
    if given < 1 or tokens < 1:
        raise ValueError(f"given and tokens must be at least 1; got given={given}, tokens={tokens}")
    if texts is not None and not texts:
        raise ValueError("there are no texts; give at least one, or leave texts out for the built-in openings")
    parts = _built_in(lm) if texts is None else [_split(lm, text, given) for text in texts]
    parts = [(title, start, [ids[:tokens] for ids in ways]) for title, start, ways in parts]
    for title, start, ways in parts:
        if not ways[0]:
            raise ValueError(f"{title!r} has no token after the {start.shape[1]} that are given; give a longer text")
        if lm.context and start.shape[1] + len(ways[0]) > lm.context:
            raise ValueError(f"{title!r} is longer than the {lm.context} tokens of {lm.name}'s context")
    usual: dict[str, Any] = {"texts": None, "given": 16, "tokens": 20}
    own: dict[str, Any] = {"texts": None if texts is None else list(texts), "given": given, "tokens": tokens}
    job = MemorisationJob(lm, parts, {**made_with(lm), "asked": changed(usual, own)})
    finish(job, "memorisation", unit="continuation", kept="memorisation", progress=progress)
    return job.memorisation


class MemorisationJob(ContinuationJob):
    """The continuations of each text scored, so that they can be watched and stopped."""

    def __init__(self, lm: LanguageModel, parts: Sequence[_Part], recipe: dict[str, Any]) -> None:
        self._titles = tuple(title for title, _, _ in parts)
        self._tokens = np.array([len(ways[0]) for _, _, ways in parts])
        self._recipe = recipe
        asked = []
        self._which: list[tuple[int, int]] = []  # of each pair, the text and which of its continuations it is
        for n, (_, start, ways) in enumerate(parts):
            others = [parts[m][2][0] for m in range(len(parts)) if m != n]
            other = others[n % len(others)] if others else []
            for kind, ids in enumerate((*ways, *[[]] * (2 - len(ways)), other)):
                if ids:
                    asked.append((start, tuple(ids[: len(ways[0])])))
                    self._which.append((n, kind))
        super().__init__(lm, asked)

    @property
    def memorisation(self) -> Memorisation:
        """What is measured so far."""
        n = len(self._titles)
        hits, logprobs = np.full(n, np.nan, np.float32), np.full((n, len(KINDS)), np.nan, np.float32)
        runs = np.full(n, -1)
        for (text, kind), one in zip(self._which, self.found, strict=True):
            if one is None:
                continue
            logprobs[text, kind] = one.per_token
            if kind == 0:
                hits[text] = one.likeliest.mean()
                runs[text] = len(one.likeliest) if one.greedy else np.argmin(one.likeliest)
        return Memorisation(self._titles, runs, self._tokens, hits, logprobs, self._recipe)


_Part = tuple[str, torch.Tensor, list[list[int]]]
"""A title, the beginning as ids (1, seq), and ways to go on: the true one first."""


def _built_in(lm: LanguageModel) -> list[_Part]:
    found: list[_Part] = []
    for one in OPENINGS:
        start = lm.encode(one.start)
        ways = [following(lm.tokenizer, text, start) for text in (one.continuation, one.paraphrase)]
        found.append((f"{one.author}, {one.title}", start, ways))
    return found


def _split(lm: LanguageModel, text: str, given: int) -> _Part:
    ids = encode(lm, text, most=None)
    title = " ".join(text.split()[:6])
    return f"{title} ..." if title != text else title, ids[:, :given], [ids[0, given:].tolist()]
