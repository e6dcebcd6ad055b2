"""Does a preference go when the heads that carry it are ablated, and what does that cost?

Heads write their average over a neutral text, whatever they read (mean ablation). The same is done with as many random
heads of the same layers: only what these do not do is due to the heads chosen.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.activations.sites import checked
from labkit.audits.audit import AuditJob
from labkit.audits.heads import at_mean
from labkit.audits.result import Audit, described_audit
from labkit.generation.score import score
from labkit.precision.passage import PASSAGE
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.job import finish
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, Name, as_code, changed

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt

FILE = "audit ablation"
Heads = list[tuple[int, int]]


@dataclass
class AuditAblation:
    """An audit with heads ablated.

    Attributes:
        heads: those that were chosen, as (layer, head).
        controls: as many random heads of the same layers, several times.
        recipe: what repeats it.
        audits: those that are done: of the whole model, without the chosen heads, without random ones.
        perplexity: of a neutral text, in the same order.
    """

    heads: Heads
    controls: list[Heads] = field(repr=False)
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)
    audits: list[Audit] = field(default_factory=list, repr=False)
    perplexity: list[float] = field(default_factory=list, repr=False)

    @property
    def whole(self) -> Audit | None:
        """The audit of the whole model; None before it is done."""
        return next(iter(self.audits), None)

    @property
    def without(self) -> Audit | None:
        """The audit with the chosen heads ablated; None before it is done."""
        return next(iter(self.audits[1:]), None)

    @property
    def random(self) -> list[Audit]:
        """The audits with random heads ablated."""
        return self.audits[2:]

    @property
    def names(self) -> list[str]:
        """What was ablated, for each of `audits`."""
        names = ["nothing", _named(self.heads), *(f"random: {_named(one)}" for one in self.controls)]
        return names[: len(self.audits)]

    @property
    def together(self) -> Audit:
        """All of them as models of one audit, for paired numbers: `ablation.together.difference()`.

        Raises:
            ValueError: none is done.
        """
        if self.whole is None:
            raise ValueError("nothing has been audited yet")
        return replace(
            self.whole,
            models=self.names,
            logprobs=np.concatenate([one.logprobs for one in self.audits]),
            lengths=np.concatenate([one.lengths for one in self.audits]),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per category and what was ablated: `share` of pairs in which the stereotype is preferred, `low`,
        `high`, and the `perplexity` of a neutral text."""
        import pandas as pd

        rows = [
            {
                "ablated": name,
                "category": category,
                "perplexity": perplexity,
                **frame.loc[one.models[0]].loc[category].to_dict(),
            }
            for name, one, perplexity in zip(self.names, self.audits, self.perplexity, strict=False)
            for frame in [one.to_frame()[["share", "low", "high"]]]
            for category in one.categories
        ]
        return pd.DataFrame(rows).set_index(["category", "ablated"]).sort_index(level=0, sort_remaining=False)

    def words(self) -> str:
        """Whether it goes, beside random heads and beside what it costs, one sentence per category."""
        if self.without is None or self.whole is None:
            return "Nothing has been ablated yet."
        before, after = self.whole.to_frame(), self.without.to_frame()
        apart = self.together.difference()
        said = []
        for n, category in enumerate(self.whole.categories):
            row = apart.iloc[n]
            others = [f"{100 * one.to_frame()['share'].iloc[n]:.0f}" for one in self.random]
            shares = [100 * frame["share"].iloc[n] for frame in (after, before)]
            said.append(
                f"{category}: without {_named(self.heads)} the stereotype is preferred in {shares[0]:.0f} % of pairs "
                f"instead of {shares[1]:.0f} % (difference {100 * row.difference:+.0f}, 95 % interval "
                f"{100 * row.low:+.0f} to {100 * row.high:+.0f}; without as many random heads: {', '.join(others)} %)."
            )
        cost = " instead of ".join(f"{x:.2f}" for x in reversed(self.perplexity[:2]))
        return "\n".join([*said, f"Perplexity of a neutral text: {cost}."])

    def figure(self) -> go.Figure:
        """How often the stereotype is preferred, whole and ablated, with intervals."""
        return self.together.figure()

    def code(self) -> str:
        """The Python that does it again, from a saved audit."""
        how = changed({"categories": None, "controls": 3, "seed": 0}, self.recipe)
        before = self.recipe["load"] + 'audit = lk.open_audit("audit.npz")  # as saved by audit.save\n'
        return as_code(before, "ablation = lk.audit_without", LM, Name("audit"), self.heads, **how)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step: the file is whole or not there.

        Raises:
            ValueError: nothing has been audited yet.
        """
        audit = self.together
        about = {
            "audit": audit.described(), "heads": self.heads, "controls": self.controls, "perplexity": self.perplexity,
            "recipe": self.recipe,
        }  # fmt: skip
        return save_arrays(path, FILE, about, logprobs=audit.logprobs, lengths=audit.lengths)

    def __repr__(self) -> str:
        return f"AuditAblation({_named(self.heads)}; {len(self.random)} of {len(self.controls)} controls)"


def open_audit_ablation(path: str | os.PathLike[str]) -> AuditAblation:
    """Open what `AuditAblation.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        together = described_audit(about["audit"], **arrays)
        parts = [
            replace(together, models=[name], logprobs=together.logprobs[n : n + 1], lengths=together.lengths[n : n + 1])
            for n, name in enumerate(together.models)
        ]
        heads, *controls = ([(one[0], one[1]) for one in some] for some in (about["heads"], *about["controls"]))
        return AuditAblation(heads, controls, about["recipe"], parts, about["perplexity"])


def audit_without(
    lm: LanguageModel,
    audit: Audit,
    heads: Sequence[tuple[int, int]],
    *,
    categories: Sequence[str] | None = None,
    controls: int = 3,
    text: Prompt = PASSAGE,
    seed: int = 0,
    progress: bool = True,
) -> AuditAblation:
    """Audit a model again with some heads ablated, and with as many random ones.

    Args:
        lm: the model, one of those that were audited.
        audit: whose pairs are scored again.
        heads: (layer, head) each, such as `lk.audit_heads(...).heads()`.
        categories: only these.
        controls: how many times random heads of the same layers are ablated instead.
        text: a neutral one, over which the heads' mean is taken and whose perplexity is measured.
        seed: of the random heads.
        progress: show a progress bar.

    Returns:
        An `AuditAblation`; after an interrupt, or as `ablation` on an error, with the audits done until then.

    Raises:
        ValueError: no heads, one that the model does not have, or an unknown category; before anything has run.
    """
    job = AblationJob(lm, audit, heads, categories=categories, controls=controls, text=text, seed=seed)
    finish(job, "ablating", unit="pair", kept="ablation", progress=progress)
    return job.ablation


class AblationJob:
    """One audit after the other, so that they can be watched and stopped."""

    def __init__(
        self,
        lm: LanguageModel,
        audit: Audit,
        heads: Sequence[tuple[int, int]],
        *,
        categories: Sequence[str] | None = None,
        controls: int = 3,
        text: Prompt = PASSAGE,
        seed: int = 0,
    ) -> None:
        if not heads:
            raise ValueError("no heads to ablate; give at least one (layer, head)")
        for layer, head in heads:
            checked(lm, f"z.{layer}.{head}")
        chosen = list(dict.fromkeys((int(layer), int(head)) for layer, head in heads))
        draw = random.Random(seed)
        drawn = [_others(lm, chosen, draw) for _ in range(controls)]
        self.lm, self._text = lm, text
        recipe = {
            **made_with(lm), "categories": None if categories is None else list(categories), "controls": controls,
            "seed": seed,
        }  # fmt: skip
        self.ablation = AuditAblation(chosen, drawn, recipe)
        self._jobs = [
            AuditJob(lm, audit.pairs, categories=categories, normalise=audit.normalise) for _ in range(2 + controls)
        ]

    @property
    def total(self) -> int:
        return sum(job.total for job in self._jobs)

    @property
    def done(self) -> int:
        return sum(job.done for job in self._jobs)

    def steps(self) -> Iterator[Any]:
        kept = self.ablation
        for n, (job, heads) in enumerate(zip(self._jobs, [[], kept.heads, *kept.controls], strict=True)):
            with at_mean(self.lm, heads, text=self._text) if heads else nullcontext():
                for _ in job.steps():
                    yield n
                kept.perplexity.append(score(self.lm, self._text).perplexity)
            kept.audits.append(job.audit)


def _others(lm: LanguageModel, heads: Heads, draw: random.Random) -> Heads:
    """As many random heads of the same layers, none of them chosen where there are others."""
    picked: Heads = []
    for layer in sorted({layer for layer, _ in heads}):
        mine = [head for at, head in heads if at == layer]
        free = [head for head in range(lm.n_heads) if head not in mine]
        picked += [(layer, head) for head in draw.sample(free, min(len(mine), len(free)))]
    return picked


def _named(heads: Heads) -> str:
    return ", ".join(f"{layer}.{head}" for layer, head in heads)
