"""The logit lens and direct attribution: what a layer would predict, and what writes the answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.course.checks import CLEAN, Verdict, a_head, exercise
from labkit.language_model import LanguageModel
from labkit.lens.direct_attribution import direct_logit_attribution
from labkit.lens.logit_lens import logit_lens

TOWER = "The Eiffel Tower is in the city of"


@exercise("02.1")
def _where_paris_comes_first(answer: Any, lm: LanguageModel) -> Verdict:
    ranks = logit_lens(lm, TOWER, follow=" Paris", positions=[-1]).ranks[0, :, 0]
    layer = int(answer)
    if not 0 <= layer < lm.n_layers:
        raise ValueError(f"layers go from 0 to {lm.n_layers - 1}")
    first = int((ranks == 1).argmax())
    if abs(layer - first) <= 1:
        return Verdict(True, f"From layer {first} on, the lens reads ' Paris'; one layer earlier it does not.")
    said = f"After layer {layer}, {ranks[layer] - 1} tokens are likelier than ' Paris'."
    return Verdict(False, said if ranks[layer] > 1 else said + " Is there an earlier layer where this holds?")


@exercise("02.2")
def _attention_that_says_mary(answer: Any, lm: LanguageModel) -> Verdict:
    lens = logit_lens(lm, CLEAN, site="attn_out", follow=" Mary", positions=[-1])
    row, _ = lens.place(int(answer))
    rank, top = int(lens.ranks[0, row, 0]), lens.top(int(answer))[0][0]
    said = f"Read on its own, the attention output of layer {answer} gives {top!r}; ' Mary' is at rank {rank}."
    return Verdict(rank == 1, said)


@exercise("02.3")
def _head_against_the_answer(answer: Any, lm: LanguageModel) -> Verdict:
    layer, head = a_head(answer, lm)
    share = float(direct_logit_attribution(lm, CLEAN, " Mary", " John").heads[layer, head])
    if np.isnan(share):
        return Verdict(False, f"The heads of layer {layer} cannot be separated.")
    said = f"Layer {layer}, head {head} writes {share:+.2f} to the logit difference."
    return Verdict(share < -0.5, said if share < -0.5 else said + " Look for less than -0.5.")
