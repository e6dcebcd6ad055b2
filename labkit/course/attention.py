"""Attention: heads found by what they do, and heads that matter."""

from __future__ import annotations

from typing import Any

import torch

from labkit.attention_maps.head_scores import repeated_tokens
from labkit.attention_maps.patterns import attention
from labkit.course.checks import CLEAN, Verdict, a_head, exercise, logit_diff
from labkit.language_model import LanguageModel


@exercise("03.1", "a layer and a head, such as (3, 1)")
def _previous_token_head(answer: Any, lm: LanguageModel) -> Verdict:
    layer, head = a_head(answer, lm)
    if (layer, head) == (16, 0):
        return Verdict(False, "That is the strongest one, which you have seen. Name another.")
    text = "The quick brown fox jumps over the lazy dog, and the slow red hen walks under the old bridge."
    pattern = lm.run(text, read=[f"pattern.{layer}"])[f"pattern.{layer}.{head}"][0]
    score = float(pattern.diagonal(-1).mean())
    said = f"On another sentence layer {layer}, head {head} gives {score:.0%} of its attention to the token before."
    return Verdict(score > 0.5, said if score > 0.5 else said + " Look for more than half.")


@exercise("03.2", "a layer and a head, such as (3, 1)")
def _induction_head(answer: Any, lm: LanguageModel) -> Verdict:
    layer, head = a_head(answer, lm)
    pattern = attention(lm, repeated_tokens(lm, length=20, seed=7)).pattern(layer, head)
    length = len(pattern)
    score = float(pattern.diagonal(-19)[length - 39 :].mean())  # from the second copy to what came after the first
    said = f"On other random tokens, shown twice, layer {layer}, head {head} gives {score:.0%} to the token to copy."
    return Verdict(score > 0.4, said if score > 0.4 else said + " Look for more than two fifths.")


@exercise("03.3", "a layer and a head, such as (3, 1)")
def _head_that_matters(answer: Any, lm: LanguageModel) -> Verdict:
    layer, head = a_head(answer, lm)
    if (layer, head) == (23, 3):
        return Verdict(False, "That is the head of this section. Find another.")
    before = logit_diff(lm, CLEAN, " Mary", " John")
    after = logit_diff(lm, CLEAN, " Mary", " John", write={f"z.{layer}.{head}": torch.zeros(1)})
    said = f"Without layer {layer} head {head} the logit difference goes from {before:.1f} to {after:.1f}."
    if before - after > 1:
        return Verdict(True, said)
    return Verdict(False, said + (" It rises." if after > before + 0.1 else "") + " Look for a drop of more than 1.")


@exercise("03.4", "a layer and a head, such as (3, 1)")
def _head_that_copies(answer: Any, lm: LanguageModel) -> Verdict:
    layer, head = a_head(answer, lm)
    if (layer, head) == (18, 6):
        return Verdict(False, "That is the head of this section. Find another.")
    prompt = "Our cities: Rome, Oslo, Paris, London, Berlin, Madrid. I repeat, our cities: Rome,"
    site = f"pattern.{layer}.{head}"
    written = lm.generate(prompt, max_new_tokens=10, read=[site])
    ids = [token.id for token in written.prompt]
    rows = zip(written[site].float(), written.record.ids, written.record.ids[1:], strict=False)
    comma = ids[-1]
    shares = [float(row[ids.index(after)]) for row, id, after in rows if id == comma and after in ids]
    share = sum(shares) / max(1, len(shares))
    said = f"While the model writes another list, layer {layer}, head {head} gives {share:.0%} to the word to copy."
    return Verdict(share > 0.5, said if share > 0.5 else said + " Look for more than half.")
