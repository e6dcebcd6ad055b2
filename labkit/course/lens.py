"""The logit lens and direct attribution: what a layer would predict, and what writes the answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.course.checks import CLEAN, Verdict, a_head, a_layer, exercise, once
from labkit.language_model import LanguageModel
from labkit.lens.direct_attribution import DirectAttribution, direct_logit_attribution
from labkit.lens.logit_lens import logit_lens

TOWER = "The Eiffel Tower is in the city of"


def first_layer(lm: LanguageModel, prompt: str, answer: str) -> int:
    """The first layer after which the lens puts an answer highest, at the last position."""
    return int(logit_lens(lm, prompt, follow=answer, positions=[-1]).ranks[0, :, 0].argmin())


def parts_for(found: DirectAttribution) -> int:
    """How many heads and MLPs, those that write most first, together write a whole logit difference."""
    shares = np.sort(np.concatenate([found.heads.ravel(), found.mlp]))[::-1]
    return int((np.nancumsum(shares) < found.total).sum()) + 1


@once
def _ranks(lm: LanguageModel) -> np.ndarray:
    """Of Paris, by layer."""
    return logit_lens(lm, TOWER, follow=" Paris", positions=[-1]).ranks[0, :, 0]


@once
def _alone(lm: LanguageModel) -> list[tuple[str, int]]:
    """By layer, what its attention output gives when read on its own, and the rank of Mary."""
    lens = logit_lens(lm, CLEAN, site="attn_out", follow=" Mary", positions=[-1])
    return [(lens.top(layer)[0][0], int(lens.ranks[0, lens.place(layer)[0], 0])) for layer in range(lm.n_layers)]


@once
def _shares(lm: LanguageModel) -> np.ndarray:
    return direct_logit_attribution(lm, CLEAN, " Mary", " John").heads


@exercise("02.1", "a layer, such as 3")
def _where_paris_comes_first(answer: Any, lm: LanguageModel) -> Verdict:
    ranks, layer = _ranks(lm), a_layer(answer, lm)
    first = int((ranks == 1).argmax())
    if abs(layer - first) <= 1:
        return Verdict(True, f"From layer {first} on, the lens reads ' Paris'; one layer earlier it does not.")
    said = f"After layer {layer}, {ranks[layer] - 1} tokens are likelier than ' Paris'."
    return Verdict(False, said if ranks[layer] > 1 else said + " Is there an earlier layer where this holds?")


@exercise("02.2", "a layer, such as 3")
def _attention_that_says_mary(answer: Any, lm: LanguageModel) -> Verdict:
    layer = a_layer(answer, lm)
    top, rank = _alone(lm)[layer]
    said = f"Read on its own, the attention output of layer {layer} gives {top!r}; ' Mary' is at rank {rank}."
    return Verdict(rank == 1, said)


@exercise("02.3", "a layer and a head, such as (3, 1)")
def _head_against_the_answer(answer: Any, lm: LanguageModel) -> Verdict:
    layer, head = a_head(answer, lm)
    share = float(_shares(lm)[layer, head])
    if np.isnan(share):
        return Verdict(False, f"The heads of layer {layer} cannot be separated.")
    said = f"Layer {layer}, head {head} writes {share:+.2f} to the logit difference."
    if share < -0.5:
        return Verdict(True, said)
    return Verdict(False, said + (" That is for the answer." if share > 0.5 else "") + " Look for less than -0.5.")
