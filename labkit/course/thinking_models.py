"""Thinking models: written traces, what each sentence of one does, and exercises about both.

A trace is a list of sentences, one a line between `<think>` and `</think>`; the answer follows. Four products are too
hard for the default model, so that the result has to come from the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from labkit.attribution.units import Unit, units_of
from labkit.audits.choices import choices
from labkit.course.checks import Verdict, exercise
from labkit.language_model import LanguageModel

PRODUCTS = ((17, 8), (23, 7), (14, 12), (19, 6))
ANSWER = "</think>\n\nThe answer is"
NEW = (26, 4)  # of an exercise


def steps(a: int, b: int, *, fourth: int | None = None, fifth: int | None = None) -> list[str]:
    """A trace of five sentences for a times b; `fourth` and `fifth` are other results for the last two."""
    tens, ones = a // 10 * 10, a % 10
    return [
        f"{a} is {tens} plus {ones}.",
        f"{tens} times {b} is {tens * b}.",
        f"{ones} times {b} is {ones * b}.",
        f"{tens * b} plus {ones * b} is {fourth or a * b}.",
        f"So {a} times {b} is {fifth or a * b}.",
    ]


def ask(a: int, b: int, trace: Sequence[str] | None, end: str = ANSWER) -> list[dict[str, str]]:
    """The chat in which the model has thought this trace and goes on after `end`; None for no thoughts at all."""
    thought = "The answer is" if trace is None else "<think>\n" + "".join(f"{one}\n" for one in trace) + end
    return [{"role": "user", "content": f"What is {a} times {b}?"}, {"role": "assistant", "content": thought}]


def chances(lm: LanguageModel, a: int, b: int, trace: Sequence[str] | None) -> np.ndarray:
    """How probable the right result is after a trace, and one that is ten too much, float64 (2,)."""
    return np.exp(choices(lm, ask(a, b, trace), [f" {a * b}", f" {a * b + 10}"]).logprobs())


def sentences(lm: LanguageModel, chat: Sequence[dict[str, str]]) -> list[Unit]:
    """Where the sentences of the trace in a chat stand, without the marks around them."""
    units = units_of(lm, chat, lm.encode(chat)[0].tolist(), "sentence")
    thoughts = [region for region in lm.regions(chat) if region.kind == "thinking"]
    return [
        unit for unit in units
        if "think>" not in unit.text and any(one.start <= unit.start < one.stop for one in thoughts)
    ]  # fmt: skip


def hide(sentence: Unit) -> Callable[[torch.Tensor], torch.Tensor]:
    """What to write to `scores` so that nothing after a sentence attends to it, in any head."""

    def hidden(scores: torch.Tensor) -> torch.Tensor:  # (batch, head, query, key)
        scores = scores.clone()
        scores[..., sentence.stop :, sentence.start : sentence.stop] = -torch.inf
        return scores

    return hidden


def needs(lm: LanguageModel, a: int, b: int, trace: Sequence[str]) -> np.ndarray:
    """How much less likely each later sentence, and the answer at the end, gets when a sentence is hidden.

    Returns:
        nats, float64 (sentence hidden, sentence or answer); NaN for what does not come after it.
    """
    chat = ask(a, b, trace, f"{ANSWER} {a * b}")
    ids, places = lm.encode(chat), sentences(lm, chat)
    later = [(one.start, one.stop) for one in places] + [(lm.encode(ask(a, b, trace)).shape[1], ids.shape[1])]

    def logprobs(**how: Any) -> np.ndarray:
        """Of each token after the first."""
        found = lm.run(ids, **how).logits[0, :-1].float().log_softmax(-1).cpu()
        return found.gather(1, ids[0, 1:, None].cpu())[:, 0].double().numpy()

    whole, table = logprobs(), np.full((len(places), len(later)), np.nan)
    for row, sentence in enumerate(places):
        less = whole - logprobs(write={"scores": hide(sentence)})
        for column, (start, stop) in enumerate(later):
            if start >= sentence.stop:
                table[row, column] = less[start - 1 : stop - 1].sum()
    return table


def _times(ratio: float) -> str:
    return f"{ratio:.3g} times less likely" if ratio > 1 else "no less likely"


def _trace(answer: Any, least: int) -> list[str]:
    if isinstance(answer, str) or not all(isinstance(one, str) for one in answer):
        raise ValueError('the answer must be a list of sentences, such as ["17 is 10 plus 7.", ...]')
    if len(answer) < least:
        raise ValueError(f"at least {least} sentences are needed; got {len(answer)}")
    return list(answer)


@exercise("11.1", 'a list of sentences, such as ["17 is 10 plus 7.", ...]')
def _one_sentence_that_matters(answer: Any, lm: LanguageModel) -> Verdict:
    trace = _trace(answer, 3)
    a, b = PRODUCTS[0]
    whole = chances(lm, a, b, trace)[0]
    if whole < 0.1:
        return Verdict(False, f"After this trace {a * b} has a probability of {whole:.2g}. Look for more than 0.1.")
    times = [whole / chances(lm, a, b, trace[:n] + trace[n + 1 :])[0] for n in range(len(trace))]
    order = np.argsort(times)[::-1]
    first, second = times[order[0]], times[order[1]]
    said = f"Without sentence {order[0] + 1} the answer is {_times(first)}, without any other {_times(second)} at most."
    if first <= 20:
        return Verdict(False, said + " Look for one without which it is more than 20 times less likely.")
    if second >= 3:
        return Verdict(False, said + " A second sentence matters; look for less than 3 times.")
    return Verdict(True, said)


@exercise("11.2", "two sentences, such as (1, 3)")
def _a_sentence_that_needs_another(answer: Any, lm: LanguageModel) -> Verdict:
    early, late = (int(one) for one in answer)
    if not 1 <= early < late <= 5:
        raise ValueError(f"the answer must be two sentences of 1 to 5, the earlier one first; got {(early, late)}")
    if late - early < 2:
        return Verdict(False, "Those stand next to each other. Look for two with another sentence between them.")
    less = needs(lm, *NEW, steps(*NEW))[early - 1, late - 1]
    said = f"With sentence {early} hidden, sentence {late} changes by {-less:+.1f} nats."
    return Verdict(bool(less > 2), said if less > 2 else said + " Look for a loss of more than 2.")


@exercise("11.3", "one sentence, a text")
def _a_sentence_that_repairs(answer: Any, lm: LanguageModel) -> Verdict:
    if not isinstance(answer, str):
        raise ValueError("the answer must be one sentence, a text")
    a, b = PRODUCTS[0]
    wrong = a * b + 10
    right, off = chances(lm, a, b, [*steps(a, b, fourth=wrong, fifth=wrong), answer])
    said = f"After it {a * b} has a probability of {right:.2g} and {wrong} one of {off:.2g}."
    if right > 2 * off:
        return Verdict(True, said)
    return Verdict(False, said + f" Look for {a * b} to be more than twice as likely as {wrong}.")
