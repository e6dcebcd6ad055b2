"""Where a preference comes from: the pairs of an audit, patched head by head, and heads ablated to see whether it goes.

Two contexts that differ in the group are a clean and a corrupt prompt; a word stereotyped of the one is the answer, and
a word stereotyped of the other the foil. What patching a head's `z` moves is what that head carries of the preference
(Vig et al. 2020, "Causal Mediation Analysis for Interpreting Neural NLP: The Case of Gender Bias").
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.hooks import hooked
from labkit.activations.run import run
from labkit.activations.sites import checked
from labkit.audits.result import Audit
from labkit.datasets.tasks import PromptPair
from labkit.elsewhere import while_it_runs
from labkit.lens.direct_attribution import direct_logit_attribution
from labkit.patching.patch import patch
from labkit.precision.passage import PASSAGE
from labkit.results.bootstrap import interval
from labkit.results.figures import of_patching
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.job import finish
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, Name, as_code, changed
from labkit.text.encode import single_token
from labkit.text.pair import align

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt

FILE = "audit heads"
PAIRS = 24


@dataclass
class AuditHeads:
    """What each head carries of a preference.

    Attributes:
        category: of the audit.
        pairs: clean and corrupt prompt, answer and foil.
        effects: how far patching a head's `z` from clean into corrupt moves the logit difference, float32 (pair, layer,
            head); NaN where not computed.
        direct: what a head writes to that difference directly, in the clean run minus in the corrupt one, (pair, layer,
            head).
        direct_mlp: the same of each MLP, (pair, layer).
        gaps: the logit difference of the clean run minus that of the corrupt one, (pair,).
        recipe: what repeats it.
    """

    category: str
    pairs: list[PromptPair] = field(repr=False)
    effects: np.ndarray = field(repr=False)
    direct: np.ndarray = field(repr=False)
    direct_mlp: np.ndarray = field(repr=False)
    gaps: np.ndarray = field(repr=False)
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def done(self) -> np.ndarray:
        """Which pairs have been patched, bool (pair,)."""
        return np.isfinite(self.gaps)

    @property
    def shares(self) -> np.ndarray:
        """The share of the preference that each head carries, (layer, head): mean effect by mean gap."""
        return self.effects[self.done].mean(0) / self.gaps[self.done].mean()

    def heads(self, k: int = 5) -> list[tuple[int, int]]:
        """The k heads (layer, head) that carry the most, of those whose 95 % interval over pairs leaves out zero."""
        sure = self._strongest(k)
        return list(zip(sure["layer"].tolist(), sure["head"].tolist(), strict=True))

    def _strongest(self, k: int) -> pd.DataFrame:
        frame = self.to_frame()
        return frame[frame["low"] > 0].head(k)

    def to_frame(self) -> pd.DataFrame:
        """One row per head, those that carry the most first: `layer`, `head`, `share` of the preference with `low` and
        `high` of its 95 % bootstrap interval over pairs (NaN for one pair), and `direct`, the mean of what it writes
        directly, in logits."""
        import pandas as pd

        effects, gaps = self.effects[self.done].astype(np.float64), self.gaps[self.done].astype(np.float64)
        low, high = (np.full(self.shares.shape, np.nan),) * 2
        if len(gaps) > 1:
            low, high = interval(
                lambda weights: np.tensordot(weights, effects, axes=1) / (weights @ gaps)[:, None, None], len(gaps)
            )
        layers, heads = np.indices(self.shares.shape)
        columns = {
            "layer": layers, "head": heads, "share": self.shares, "low": low, "high": high,
            "direct": self.direct[self.done].mean(0),
        }  # fmt: skip
        frame = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
        return frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)

    def words(self) -> str:
        """What was found, in sentences."""
        sure = self._strongest(5)
        found = zip(sure["layer"], sure["head"], sure["share"], strict=True)
        names = ", ".join(f"{layer}.{head} ({100 * share:.0f} %)" for layer, head, share in found)
        carried = f"{names} carry most of it" if names else "no head surely carries a share"
        return (
            f"{self.category}: on {int(self.done.sum())} pairs with the clearest preference, {carried}. The shares "
            "need not add up: heads act through each other. What holds for these pairs need not hold for others."
        )

    def figure(self) -> go.Figure:
        """The share of the preference that each head carries, as a heatmap."""
        shares = self.shares
        layers, heads = (list(range(n)) for n in shares.shape)
        return of_patching(
            shares, ("layer", "head"), (layers, heads), nothing=0.0, least=0.05,
            title=f"Where the preference is: {self.category}", unit="share of the preference",
        )  # fmt: skip

    def code(self) -> str:
        """The Python that finds them again, from a saved audit."""
        how = changed({"category": None, "pairs": PAIRS}, self.recipe)
        before = self.recipe["load"] + 'audit = lk.open_audit("audit.npz")  # as saved by audit.save\n'
        return as_code(before, "heads = lk.audit_heads", LM, Name("audit"), **how)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step: the file is whole or not there."""
        about = {"category": self.category, "pairs": self.pairs, "recipe": self.recipe}
        arrays = {name: getattr(self, name) for name in ("effects", "direct", "direct_mlp", "gaps")}
        return save_arrays(path, FILE, about, **arrays)

    def __repr__(self) -> str:
        return f"AuditHeads({self.category}: {int(self.done.sum())} of {len(self.pairs)} pairs patched)"


def open_audit_heads(path: str | os.PathLike[str]) -> AuditHeads:
    """Open what `AuditHeads.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        pairs = [PromptPair(*pair) for pair in about["pairs"]]
        return AuditHeads(about["category"], pairs, **arrays, recipe=about["recipe"])


def audit_heads(
    lm: LanguageModel, audit: Audit, category: str | None = None, *, pairs: int = PAIRS, progress: bool = True
) -> AuditHeads:
    """Which heads carry a preference that an audit found?

    Of each template and pair of groups, the word stereotyped of the first group with the largest preference is the
    answer, and that of the second the foil; the pairs on which the two prompts differ most are patched.

    Args:
        lm: the model, one of those that were audited.
        audit: of pairs made from templates.
        category: which; by default the one with the clearest preference.
        pairs: how many, at most.
        progress: show a progress bar.

    Returns:
        An `AuditHeads`; after an interrupt, or as `found` on an error, with the pairs patched until then.

    Raises:
        ValueError: an unknown category, or none of whose pairs can be patched: groups of unequal numbers of tokens,
            sentences without a template, words that begin alike; before anything has run.
    """
    job = HeadsJob(lm, audit, category, pairs=pairs)
    finish(job, "patching", unit="pair", kept="found", progress=progress)
    return job.found


class HeadsJob:
    """The pairs patched one after the other, so that they can be watched and stopped."""

    def __init__(self, lm: LanguageModel, audit: Audit, category: str | None = None, *, pairs: int = PAIRS) -> None:
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1; got {pairs}")
        if category is None:
            shares = audit.to_frame()["share"].groupby("category").max()
            category = str((shares - 0.5).idxmax())
        if category not in audit.categories:
            raise ValueError(f"there is no category {category!r}; the audit has {', '.join(audit.categories)}")
        checked(lm, "z")
        made = sorted(_patchable(lm, audit, category), reverse=True)[:pairs]
        if not made:
            raise ValueError(
                f"none of the pairs of {category!r} can be patched: their prompts have unequal numbers of tokens, or "
                "no template, or words that begin with the same token. Use another category, or other groups"
            )
        n, shape = len(made), (lm.n_layers, lm.n_heads)
        blank = lambda *axes: np.full((n, *axes), np.nan, np.float32)  # noqa: E731
        recipe = {**made_with(lm), "category": category, "pairs": pairs}
        self.lm = lm
        self.found = AuditHeads(
            category, [pair for _, pair in made], blank(*shape), blank(*shape), blank(lm.n_layers), blank(), recipe
        )

    @property
    def total(self) -> int:
        return len(self.found.pairs)

    @property
    def done(self) -> int:
        return int(self.found.done.sum())

    def steps(self) -> Iterator[int]:
        kept = self.found
        for n, pair in enumerate(kept.pairs):
            if kept.done[n]:
                continue
            grid = patch(self.lm, *pair, site="z", metric="logit_diff", progress=False)
            kept.effects[n] = grid.values - grid.corrupt
            sides = [direct_logit_attribution(self.lm, side, pair.answer, pair.foil) for side in pair[:2]]
            kept.direct[n] = sides[0].heads - sides[1].heads
            kept.direct_mlp[n] = sides[0].mlp - sides[1].mlp
            kept.gaps[n] = grid.clean - grid.corrupt
            yield n


def _patchable(lm: LanguageModel, audit: Audit, category: str) -> Iterator[tuple[float, PromptPair]]:
    """For each template and groups that give prompts of equal length: how far apart they are, and the pair."""
    asked: dict[tuple[str, str], dict[bool, list[int]]] = {}
    for i in np.flatnonzero(audit.done.all(0)):
        pair = audit.pairs[i]
        if pair.category == category and pair.word and pair.group:
            asked.setdefault((pair.template, pair.group), {True: [], False: []})[pair.first].append(int(i))
    preferred = audit.preferences.mean(0)
    for sides in asked.values():
        if not (sides[True] and sides[False]):
            continue
        here, there = (max(side, key=lambda i: preferred[i]) for side in (sides[True], sides[False]))
        clean, corrupt = audit.pairs[here].stereotype[0], audit.pairs[here].other[0]
        try:
            both = align(lm, clean, corrupt)
            answer, foil = (_first_token(lm, both.clean, audit.pairs[i].stereotype[1]) for i in (here, there))
        except ValueError:
            continue
        if answer != foil and both.differ:
            yield float(preferred[here] + preferred[there]), PromptPair(clean, corrupt, answer, foil)


def _first_token(lm: LanguageModel, after: torch.Tensor, continuation: str) -> str:
    """The text of the first token of a continuation, which has to be a token by itself."""
    first = lm.tokenizer(continuation, add_special_tokens=False)["input_ids"][0]
    text = lm.tokenizer.decode([first])
    single_token(lm, text, after=after)
    return text


@contextmanager
def at_mean(lm: LanguageModel, heads: Sequence[tuple[int, int]], *, text: Prompt = PASSAGE) -> Iterator[None]:
    """While a block runs, some heads write what they write on average over a neutral text, whatever they read.

    Args:
        heads: (layer, head) each.
        text: what the mean of `z` is taken over; its first token is left out.

    Raises:
        ValueError: no heads, or one that the model does not have; before anything has run.
    """
    if not heads:
        raise ValueError("no heads to ablate; give at least one (layer, head)")
    sites = [checked(lm, f"z.{layer}.{head}") for layer, head in heads]
    seen = run(lm, lm.encode(text)[:, : lm.context], read=sites, logits="none")
    means: dict[int, dict[int, torch.Tensor]] = {}
    for site in sites:
        assert site.layer is not None
        assert site.head is not None
        means.setdefault(site.layer, {})[site.head] = seen[site][0, 1:].float().mean(0)

    with lm.lock, heads_written(lm, means):
        yield


@while_it_runs
@contextmanager
def heads_written(lm: LanguageModel, means: Mapping[int, Mapping[int, torch.Tensor]]) -> Iterator[None]:
    """While a block runs, some heads write what is given, by layer and head (d_head,), at every position."""
    for layer, of in means.items():
        for head in of:
            checked(lm, f"z.{layer}.{head}")

    def written(layer: int) -> Any:
        def write(z: torch.Tensor) -> torch.Tensor:  # (batch, position, head, d_head)
            z = z.clone()
            for head, mean in means[layer].items():
                z[:, :, head] = mean.to(device=z.device, dtype=z.dtype)
            return z

        return write

    with hooked(lm, set(), {("z", layer): written(layer) for layer in means}):
        yield
