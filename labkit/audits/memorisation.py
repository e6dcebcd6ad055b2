"""Does a model continue known texts word for word, and is that more than the sense of the words explains?

A text is split into a beginning, which the model is given, and what follows. The *exact run* is how many tokens greedy
writing would get right before the first wrong one (as in Carlini et al. 2023, "Quantifying memorization across neural
language models", who ask for a whole continuation); one forward pass shows it, for as long as the likeliest token is
the true one, greedy writing is that text. Common phrases run on by themselves, so each continuation is compared with
two others after the same beginning: a paraphrase, and the continuation of another text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from labkit.activations.run import run
from labkit.datasets.public_domain import OPENINGS
from labkit.results.bootstrap import interval
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, as_code, changed
from labkit.text.encode import encode, following

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from labkit.language_model import LanguageModel

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
        tokens: (text,) int: how many were compared.
        hits: (text,) float32: the share of these at which the true token is the likeliest, given all before it.
        logprobs: (text, 3) float32: the mean log-probability, nats per token, of the true continuation, of a
            paraphrase, and of another text's continuation after the same beginning; NaN where there is none.
        recipe: what repeats it.
    """

    titles: tuple[str, ...]
    run: np.ndarray
    tokens: np.ndarray
    hits: np.ndarray
    logprobs: np.ndarray
    recipe: dict[str, Any] = field(default_factory=dict)

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
        apart = self.logprobs[:, 0] - self.logprobs[:, KINDS.index(over)]
        apart = apart[~np.isnan(apart)].astype(np.float64)
        low, high = interval(lambda weights: weights @ apart, len(apart))
        return float(apart.mean()), float(low), float(high)

    def to_frame(self) -> pd.DataFrame:
        """One row per text: `run`, `tokens`, `hits`, and nats per token of each continuation."""
        import pandas as pd

        frame = pd.DataFrame({"run": self.run, "tokens": self.tokens, "hits": self.hits}, index=list(self.titles))
        for n, kind in enumerate(KINDS):
            frame[kind] = self.logprobs[:, n]
        return frame.rename_axis("text")

    def words(self) -> str:
        """What it shows and what it cannot show."""
        longest = int(np.argmax(self.run))
        said = [
            f"{len(self.exact)} of {len(self.titles)} texts are continued word for word for all tokens compared; the "
            f"longest exact run is {self.run[longest]} of {self.tokens[longest]} tokens ({self.titles[longest]}), the "
            f"median {np.median(self.run):.0f}."
        ]
        for n, kind in enumerate(KINDS[1:], 1):
            if int((~np.isnan(self.logprobs[:, n])).sum()) < 2:
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
        return " ".join([*said, LIMITS])

    def figure(self) -> go.Figure:
        """A row per text: the log-probability of its three continuations, and how long its exact run is."""
        import plotly.graph_objects as go

        order = np.argsort(self.run, kind="stable")
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

    def __repr__(self) -> str:
        return (
            f"Memorisation({len(self.exact)} of {len(self.titles)} texts word for word; longest exact run "
            f"{int(self.run.max())} tokens, median {np.median(self.run):.0f})"
        )


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
        A `Memorisation`.

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

    found = []
    for n, (_, start, ways) in enumerate(tqdm(parts, desc="memorisation", disable=not progress, leave=False)):
        others = [parts[m][2][0] for m in range(len(parts)) if m != n]
        other = others[n % len(others)] if others else []
        three = (*ways, *[[]] * (2 - len(ways)), other)
        found.append([_read(lm, start, ids[: len(ways[0])]) for ids in three])
    hits = [rows[0][1] for rows in found]
    logprobs = [[float(values.mean()) if len(values) else np.nan for values, _ in rows] for rows in found]
    usual: dict[str, Any] = {"texts": None, "given": 16, "tokens": 20}
    own: dict[str, Any] = {"texts": None if texts is None else list(texts), "given": given, "tokens": tokens}
    return Memorisation(
        tuple(title for title, _, _ in parts),
        np.array([len(same) if same.all() else int(np.argmin(same)) for same in hits]),
        np.array([len(same) for same in hits]),
        np.array([same.mean() for same in hits], np.float32),
        np.array(logprobs, np.float32),
        {**made_with(lm), "asked": changed(usual, own)},
    )


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


def _read(lm: LanguageModel, start: torch.Tensor, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of each token (token,) that follows a beginning: its log-probability, nats, and whether it is the likeliest."""
    if not len(ids):
        return np.zeros(0), np.zeros(0, bool)
    whole = torch.cat([start, start.new_tensor([list(ids)])], 1)
    count = start.shape[1]
    logits = run(lm, whole, logits=list(range(count - 1, whole.shape[1] - 1)), to="cpu").logits[0].double()
    target = torch.tensor(list(ids))
    logprobs = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
    return logprobs.numpy(), (logits.argmax(-1) == target).numpy()
