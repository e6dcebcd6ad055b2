"""Heads ablated or frozen, and what the model then predicts.

A pattern says where a head reads from. Whether anything depends on it shows when the head is ablated: its `z` set to
zero, to its mean over the prompt, or to its value on another prompt; or its pattern frozen to another prompt's, with
its own values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from labkit.activations.metrics import kl
from labkit.activations.run import run
from labkit.activations.sites import checked
from labkit.elsewhere import where_the_model_is
from labkit.language_model import LanguageModel
from labkit.models.reference import RefersToModel
from labkit.patching.cell_report import likeliest
from labkit.text.as_code import LM, as_code
from labkit.text.encode import single_token
from labkit.text.pair import align
from labkit.text.prompts import asked
from labkit.text.tokens import describe
from labkit.text.types import Prompt

if TYPE_CHECKING:
    import pandas as pd

HOW = {
    "zero": "z set to zero",
    "mean": "z set to its mean over the prompt",
    "other": "z as in the other prompt",
    "other_pattern": "pattern as in the other prompt",
}


@dataclass(frozen=True, repr=False)
class KnockOut(RefersToModel):
    """The next token with and without some heads.

    Attributes:
        heads: the changed heads, as (layer, head).
        how: one of `HOW`.
        logits_before, logits_after: (vocab,) float32 at the last position.
    """

    heads: list[tuple[int, int]]
    how: str
    logits_before: torch.Tensor
    logits_after: torch.Tensor
    lm: LanguageModel = field(repr=False)
    made_by: str = field(default="", repr=False)
    ids: torch.Tensor | None = field(default=None, repr=False)  # of the prompt (1, seq)

    @property
    def kl(self) -> float:
        """How far the next-token distribution moved: KL divergence of after from before, in nats."""
        return float(kl(self.logits_after[None], clean=self.logits_before).clamp(min=0))

    def top(self, k: int = 10) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """The k likeliest next tokens before and after, as (text, probability)."""
        return likeliest(self.lm, self.logits_before, k), likeliest(self.lm, self.logits_after, k)

    def logit_diff(self, answer: str | int, foil: str | int) -> tuple[float, float]:
        """The logit difference of answer and foil, before and after."""
        a = single_token(self.lm, answer, after=self.ids)
        b = single_token(self.lm, foil, role="foil", after=self.ids)
        return tuple(float(x[a] - x[b]) for x in (self.logits_before, self.logits_after))  # type: ignore[return-value]

    def to_frame(self, k: int = 10) -> pd.DataFrame:
        """The k likeliest tokens before or after: `token`, `before`, `after`, `change`."""
        import pandas as pd

        before, after = (x.softmax(-1) for x in (self.logits_before, self.logits_after))
        ids = sorted({*before.topk(k).indices.tolist(), *after.topk(k).indices.tolist()}, key=lambda n: -before[n])
        frame = pd.DataFrame({"token": [token.text for token in describe(self.lm.tokenizer, ids)]})
        frame["before"], frame["after"] = before[ids].numpy(), after[ids].numpy()
        frame["change"] = frame["after"] - frame["before"]
        return frame

    def code(self) -> str:
        """The Python that repeats it."""
        return self.made_by

    def __repr__(self) -> str:
        names = ", ".join(f"{layer}.{head}" for layer, head in self.heads)
        (before, share), (after, new) = (rows[0] for rows in self.top(1))
        return f"KnockOut({names}: {HOW[self.how]}; {before} {share:.0%} -> {after} {new:.0%}; KL {self.kl:.2f})"


@where_the_model_is(small=True)
def knock_out(
    lm: LanguageModel,
    prompt: Prompt,
    *,
    heads: Sequence[tuple[int, int]],
    how: str = "zero",
    other: Prompt | None = None,
) -> KnockOut:
    """Run a prompt with and without some heads changed, at every position.

    Args:
        prompt: text, chat messages, or token ids (1, seq).
        heads: (layer, head) each.
        how: `zero`, `mean` (over the prompt's positions), `other` (z of the other prompt, position by position), or
            `other_pattern` (its pattern, with this prompt's values).
        other: the other prompt, of the same number of tokens.

    Raises:
        ValueError: no heads, a head that the model does not have, an unknown `how`, or an `other` prompt that is
            missing or has another length.
    """
    if how not in HOW:
        raise ValueError(f"how must be one of {', '.join(HOW)}; got {how!r}")
    if not heads:
        raise ValueError("no heads to ablate; give at least one (layer, head)")
    kind = "pattern" if how == "other_pattern" else "z"
    sites = [checked(lm, f"{kind}.{layer}.{head}") for layer, head in heads]
    prompt, other = asked(lm, prompt), None if other is None else asked(lm, other)
    ids = lm.encode(prompt)
    given = {}
    if how.startswith("other"):
        if other is None or (isinstance(other, str) and not other):
            raise ValueError(f"how={how!r} takes the heads from another prompt; give other=, of the same length")
        pair = align(lm, prompt, other)
        ids, given = pair.clean, {"other": other}
        source = run(lm, pair.corrupt, read=sites)
        values = {site: source[site] for site in sites}
        before = run(lm, ids)
    elif how == "mean":
        before = run(lm, ids, read=sites)
        values = {site: before[site].float().mean(1, keepdim=True).expand_as(before[site]) for site in sites}
    else:
        before = run(lm, ids)
        values = dict.fromkeys(sites, torch.zeros(1))
    after = run(lm, ids, write=values)
    chosen = [(int(layer), int(head)) for layer, head in heads]
    code = as_code(lm.code(), "found = lk.knock_out", LM, prompt, heads=chosen, how=how, **given)
    first, second = (one.logits[0, -1].float().cpu() for one in (before, after))
    return KnockOut(chosen, how, first, second, lm, code, ids)
