"""Answers of several tokens, and sets of answers: what is appended to both prompts, and the metric that reads it.

The log probability of a text is the sum of its tokens' log probabilities, each given the tokens before it (teacher
forcing). So a continuation is appended to both prompts, less its last token, and the metric reads the logits at the
prompt's last position and at those of the appended tokens. A row that is patched has one *lane* for each continuation;
continuations that begin alike share one. The probability of a set of answers is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from labkit.activations.metrics import METRICS, Metric, MetricFunction, usual_metric
from labkit.models.devices import columns_of, to_index
from labkit.text.encode import following, single_token
from labkit.text.tokens import describe
from labkit.text.types import TextModel
from labkit.text.warn import warn

Answer = str | int | Sequence[str | int] | None
"""An answer or a foil: a text of any number of tokens, the id of a token, or several of these: a set."""
SUMMED = ("logprob", "logprob_diff")
"""The metrics of answers of several tokens."""


@dataclass(frozen=True)
class Answers:
    """Answers and foils as ids, at least one of them of several tokens or one of several.

    Attributes:
        answer, foil: the ids of each text of the set; no foil is an empty set.
        lanes: what is appended to both prompts, once for each lane.
    """

    answer: tuple[tuple[int, ...], ...]
    foil: tuple[tuple[int, ...], ...]

    @property
    def lanes(self) -> tuple[tuple[int, ...], ...]:
        forced = list(dict.fromkeys(ids[:-1] for ids in (*self.answer, *self.foil)))
        longer = lambda one: any(other != one and other[: len(one)] == one for other in forced)  # noqa: E731
        return tuple(one for one in forced if not longer(one))

    @property
    def reads(self) -> tuple[int, ...]:
        """How many last positions of each lane are read."""
        return tuple(len(forced) + 1 for forced in self.lanes)

    def metric(self, asked: str | MetricFunction | None) -> Metric:
        """The metric, from the logits (rows * reads, vocab) of all lanes' positions to (rows,).

        Raises:
            ValueError: it is not one of `SUMMED`, or is a difference and there is no foil.
        """
        name = asked or usual_metric(self.foil or None, several=True)
        if name not in SUMMED:
            called = getattr(name, "__name__", name)
            raise ValueError(
                f"{called} reads the logits of one position, but the answer or foil is several tokens, or a set; use "
                f"one of {', '.join(SUMMED)}, or give one token"
            )
        assert isinstance(name, str)
        if not self.answer:
            raise ValueError(f"the metric {name} needs an answer, such as answer=' Mary'")
        if name == "logprob_diff" and not self.foil:
            raise ValueError("logprob_diff needs a foil too, such as foil=' John'; or use metric='logprob'")
        foil = self.foil if name == "logprob_diff" else ()
        kind = METRICS[name]
        first = {forced: sum(self.reads[:n]) for n, forced in enumerate(self.lanes)}
        places = []
        for ids in (*self.answer, *foil):
            row = next(row for forced, row in first.items() if forced[: len(ids) - 1] == ids[:-1])
            places.append([(row + n, id) for n, id in enumerate(ids)])
        function = partial(_summed, places=places, answers=len(self.answer), reads=sum(self.reads))
        return Metric(name, kind.unit, function, None, (name, self.answer, foil), kind, self.reads)


def _summed(
    logits: torch.Tensor, *, places: Sequence[Sequence[tuple[int, int]]], answers: int, reads: int
) -> torch.Tensor:
    """Log probability of the answers less that of the foils: (rows * reads, vocab) -> (rows,), float32."""
    wide = logits.float().unflatten(0, (-1, reads))  # (rows, reads, vocab)
    all_tokens = wide.logsumexp(-1)  # (rows, reads)
    each = []
    for continuation in places:
        rows, ids = (to_index(part, wide.device) for part in zip(*continuation, strict=True))
        each.append((wide[:, rows, ids] - all_tokens[:, rows]).sum(-1))
    told = torch.stack(each, -1)  # (rows, continuations)
    value = told[:, :answers].logsumexp(-1)
    return value if answers == len(places) else value - told[:, answers:].logsumexp(-1)


def on_lane(metric: Metric, lane: int, known: torch.Tensor) -> Metric:
    """A metric as a function of one lane's logits (reads, columns), with those of the others (..., vocab) as known."""
    if len(metric.reads) == 1:
        return metric
    known = columns_of(known, metric.columns)
    first = sum(metric.reads[:lane])
    parts = known[:first].detach(), known[first + metric.reads[lane] :].detach()
    return replace(metric, function=lambda x: metric(torch.cat([parts[0], x, parts[1]])), reads=(metric.reads[lane],))


def resolved(
    lm: TextModel, answer: Answer, foil: Answer, *, after: dict[str, torch.Tensor]
) -> tuple[int | None, int | None] | Answers:
    """The ids of answer and foil where both are one token, or none; else an `Answers`.

    Args:
        after: the ids (1, seq) that each follows, by `answer` and `foil`.

    Raises:
        ValueError: an empty text or set, or a text without tokens of its own.
    """
    found = {
        role: _ids_of(lm, given, role=role, after=after[role]) for role, given in (("answer", answer), ("foil", foil))
    }
    sets = any(given is not None and not isinstance(given, str | int) for given in (answer, foil))
    if not sets and all(len(ids) == 1 for texts in found.values() for ids in texts):
        one, other = (texts[0][0] if texts else None for texts in found.values())
        return one, other
    return Answers(found["answer"], found["foil"])


def _ids_of(lm: TextModel, given: Answer, *, role: str, after: torch.Tensor) -> tuple[tuple[int, ...], ...]:
    if given is None:
        return ()
    texts = [given] if isinstance(given, str | int) else list(given)
    if not texts:
        raise ValueError(f"the set of {role}s is empty; give at least one text, such as ' Mary'")
    found = []
    for text in texts:
        if not isinstance(text, str | int):
            raise TypeError(f"{role} is a text, the id of a token, or a list of these; got {text!r:.60}")
        ids = following(lm.tokenizer, text, after) if isinstance(text, str) and text else []
        if len(ids) > 1:
            found.append(tuple(ids))
            _expect_a_space(lm, str(text), role=role, after=after)
        else:
            found.append((single_token(lm, text, role=role, after=after),))
    if len(set(found)) < len(found):
        raise ValueError(f"the {role}s {texts!r:.80} have duplicates, which would count twice")
    return tuple(found)


def _expect_a_space(lm: TextModel, text: str, *, role: str, after: torch.Tensor) -> None:
    """Warn of a word that would be written on to the last word of the prompt."""
    last = describe(lm.tokenizer, after[0, -1:].tolist())[0]
    if text[0].isalnum() and last.text[-1:].isalnum() and not last.special:
        warn(
            f"the {role} {text!r} continues the prompt's last word, {last.text + text!r}; most words in a sentence "
            f"start with a space: {' ' + text!r}"
        )


def as_given(answer: Answer) -> Any:
    """An answer as it is written in a recipe: texts, ids, or a list of these."""
    return answer if answer is None or isinstance(answer, str | int) else list(answer)
