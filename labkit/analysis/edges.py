"""Edge attribution: how much each edge between two parts carries, from a few forward and backward passes.

What would the metric lose if receiver v heard from sender u what u says in the corrupt run? Estimated as
(clean u - corrupt u) . d metric / d input of v (edge attribution patching, EAP; Syed et al. 2023), for all edges from
one backward pass. With the gradient averaged over inputs between corrupt and clean, m steps of integrated gradients, it
is a better estimate (EAP-IG; Hanna et al. 2024, "Have Faith in Faithfulness"); one step is EAP.

The steps go up the blocks together as rows of a batch and come back down one layer at a time. A layer's receivers get
their own gradients from one more pass through its query, key and value projections alone, and are multiplied with what
all senders say at once: nothing of the size senders x receivers x positions x width is ever there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from labkit.analysis import gap
from labkit.analysis.attribution import _differentiable
from labkit.analysis.batching import tokens_at_once
from labkit.analysis.metrics import Metric, MetricFunction, metric_of
from labkit.analysis.pair_runs import PairRuns
from labkit.analysis.recipe import code_of, recipe_of
from labkit.analysis.saved import open_arrays, reading, save_arrays
from labkit.analysis.wiring import Wiring
from labkit.internals.parts import Parts, head_counts
from labkit.internals.readout import Readout
from labkit.internals.recording import Unsupported
from labkit.internals.rows import Rows, same_calls
from labkit.tokens import Pair, align, single_token

if TYPE_CHECKING:
    import pandas as pd

    from labkit.analysis.circuit import Circuit
    from labkit.models.language_model import LanguageModel, Prompt


@dataclass(repr=False)
class EdgeScores:
    """How much each edge carries toward the answer, in the metric's unit: what cutting it alone is estimated to cost.

    Attributes:
        values: (sender, receiver) float32; NaN where there is no edge.
        wiring: the names along both axes.
        clean, corrupt: the metric on the two runs.
        recipe: what repeats it.
    """

    values: np.ndarray
    wiring: Wiring
    clean: float
    corrupt: float
    recipe: dict[str, Any] = field(repr=False)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row an edge: `sender`, `receiver`, `score`, the largest first (in size, whatever the sign)."""
        import pandas as pd

        sender, receiver = np.nonzero(self.wiring.exists)
        frame = pd.DataFrame(
            {
                "sender": np.array(self.wiring.senders)[sender],
                "receiver": np.array(self.wiring.receivers)[receiver],
                "score": self.values[sender, receiver],
            }
        )
        return frame.sort_values("score", key=np.abs, ascending=False, kind="stable", ignore_index=True)

    def circuit(self, n_edges: int | None = None, *, threshold: float | None = None) -> Circuit:
        """The edges that carry most, those of them that lie on a path from the embedding to the logits.

        Args:
            n_edges: at most so many, after those on no path have been left out.
            threshold: instead, every edge whose score is at least this large, in size.

        Raises:
            ValueError: neither or both are given, or nothing is left.
        """
        from labkit.analysis.circuit import Circuit

        if (n_edges is None) == (threshold is None):
            raise ValueError("say how large the circuit is: n_edges=200, or threshold=0.01")
        size = np.nan_to_num(np.abs(self.values))
        if threshold is not None:
            kept = self.wiring.pruned(size >= threshold)
        else:
            assert n_edges is not None
            kept = self._largest(size, n_edges)
        if not kept.any():
            best = np.sort(size.ravel())[::-1][:3].tolist()
            raise ValueError(
                f"no path from the embedding to the logits is left; take more edges (the largest scores are {best})"
            )
        how = f"n_edges={n_edges}" if threshold is None else f"threshold={threshold!r}"
        return Circuit(kept, self, f"circuit = edges.circuit({how})\n")

    def _largest(self, size: np.ndarray, n_edges: int) -> np.ndarray:
        """The most edges, from the largest on, of which not more than `n_edges` are on a path."""
        order = np.sort(size[self.wiring.exists])[::-1]
        low, high, best = 1, len(order), np.zeros_like(size, bool)
        while low <= high:  # what is on a path only grows with the number of edges
            middle = (low + high) // 2
            kept = self.wiring.pruned(size >= order[middle - 1])
            if int(kept.sum()) <= n_edges:
                low, best = middle + 1, kept
            else:
                high = middle - 1
        return best

    @classmethod
    def mean(cls, several: Sequence[EdgeScores]) -> EdgeScores:
        """The mean over several pairs of prompts of one model; a circuit made of it is of the task, not of one prompt.

        Raises:
            ValueError: there are none, or they are of different models.
        """
        if not several or any(one.wiring != several[0].wiring for one in several):
            raise ValueError("the mean is over one or more scores of the same model")
        calls = [one.code().removeprefix(one.recipe["load"]).removeprefix("edges = ").rstrip() for one in several]
        mean: np.ndarray = np.stack([one.values for one in several]).mean(0, dtype=np.float64)
        clean, corrupt = (float(np.mean([getattr(one, name) for one in several])) for name in ("clean", "corrupt"))
        inner = ",\n    ".join(call.replace("\n", "\n    ") for call in calls)
        code = f"{several[0].recipe['load']}edges = lk.EdgeScores.mean([\n    {inner},\n])\n"
        return replace(
            several[0],
            values=mean.astype(np.float32),
            clean=clean,
            corrupt=corrupt,
            recipe=several[0].recipe | {"code": code},
        )

    def code(self) -> str:
        """The Python that computes these scores again."""
        return str(self.recipe["code"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write scores and recipe to one file (`.npz`), in one step: the file is whole or not there."""
        about = {"edges": self.wiring.to_json(), "clean": self.clean, "corrupt": self.corrupt, "recipe": self.recipe}
        return save_arrays(path, "edges", about, values=self.values)

    def __repr__(self) -> str:
        """How many edges there are, and the five that carry most."""
        most = ", ".join(f"{e.sender} -> {e.receiver} {e.score:+.2f}" for e in self.scores.head(5).itertuples())
        return (
            f"EdgeScores({int(self.wiring.exists.sum())} edges, {self.recipe['metric']}: clean {self.clean:.3f}, "
            f"corrupt {self.corrupt:.3f}; most: {most})"
        )


def open_edges(path: str | os.PathLike[str]) -> EdgeScores:
    """Open scores that `EdgeScores.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no edge scores, or comes from a newer labkit.
    """
    about, arrays = open_arrays(path, "edges")
    with reading(path, "edges"):
        wiring = Wiring.of(**about["edges"])
        return EdgeScores(arrays["values"], wiring, about["clean"], about["corrupt"], about["recipe"])


def edge_attribution(
    lm: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    answer: str | int | None = None,
    foil: str | int | None = None,
    *,
    steps: int = 5,
    metric: str | MetricFunction | None = None,
    at: int = -1,
    progress: bool = True,
) -> EdgeScores:
    """How much every edge between two parts of a model carries toward the answer.

    Args:
        lm: the model, in any bits.
        clean, corrupt, answer, foil, metric, at: as in `lk.patch`.
        steps: of integrated gradients, inputs between corrupt and clean; 1 is edge attribution patching without them.
        progress: show a progress bar.

    Raises:
        ValueError: bad input, or a model that cannot be taken apart so (`labkit.internals.parts`).
    """
    if steps < 1:
        raise ValueError(f"steps is at least 1; got {steps}")
    work = prepared(lm, clean, corrupt, answer, foil, metric=metric, at=at)
    heads, kv = head_counts(lm)
    wiring = Wiring.of(heads, kv, work.parts["clean"].parallel)
    values = np.full(wiring.exists.shape, np.nan, np.float32)
    with tqdm(total=lm.n_layers, desc="edges", unit="layer", disable=not progress, leave=False) as bar:
        for receivers, part in _Sweep(work, wiring, steps).scores():
            values[:, receivers] = part
            bar.update()
    values[~wiring.exists] = np.nan
    recipe = recipe_of(
        lm, work.pair, clean, corrupt, answer=work.answer, foil=work.foil, metric=metric, steps=steps, at=at,
        unit=work.metric.unit, kind="edges",
    )  # fmt: skip
    recipe["code"] = code_of(recipe, "edges = lk.edge_attribution", [], usual={"steps": 5, "at": -1})
    if work.noise is not None:
        recipe |= {"noise": work.noise.noise, "least_gap": work.noise.least}
    if work.too_close:
        gap.warn(recipe, work.metrics["clean"], work.metrics["corrupt"])
    return EdgeScores(values, wiring, work.metrics["clean"], work.metrics["corrupt"], recipe)


@dataclass
class Prepared:
    """Two prompts run and taken apart, and the metric on them."""

    lm: LanguageModel
    pair: Pair
    parts: dict[str, Parts]  # of `clean` and `corrupt`
    readout: Readout
    metric: Metric
    metrics: dict[str, float]
    answer: int | None
    foil: int | None
    noise: gap.Measured | None = None  # how far rounding alone moves the metric, where that was measured

    @property
    def too_close(self) -> bool:
        """Are the two runs hardly further apart than rounding alone moves them?"""
        least = None if self.noise is None else self.noise.least
        return gap.too_close(self.metrics["clean"], self.metrics["corrupt"], least)

    @property
    def first(self) -> int:
        """The first position at which the prompts differ; before it all parts say the same."""
        return min([*self.pair.differ, self.parts["clean"].base.length - 1])

    def measure(self, x: torch.Tensor) -> torch.Tensor:
        """The metric (rows,) from the last residual stream at the last position (rows, d_model)."""
        return self.metric(self.readout(x, self.metric.columns))


def prepared(
    lm: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    answer: str | int | None,
    foil: str | int | None,
    *,
    metric: str | MetricFunction | None = None,
    at: int = -1,
) -> Prepared:
    """Run both prompts of a pair and take them apart.

    Raises:
        ValueError: bad input, or a model that cannot be taken apart.
    """
    pair = align(lm, clean, corrupt)
    length = pair.clean.shape[1]
    if not -length <= at < length:
        raise ValueError(f"at={at} is out of range; the prompts have positions 0 to {length - 1}")
    end = at % length + 1
    chosen = None if answer is None else single_token(lm, answer, role="answer", after=pair.clean[:, :end])
    against = None if foil is None else single_token(lm, foil, role="foil", after=pair.corrupt[:, :end])
    metric_of(metric, answer=chosen, foil=against, reference=torch.zeros(1))  # a wrong one fails here
    try:
        runs = PairRuns(lm, pair.clean[:, :end], pair.corrupt[:, :end])
        bases = {name: runs.base(name) for name in runs.ids}
        readout = runs.readout("clean")
        with lm.busy():
            parts = {name: Parts(base) for name, base in bases.items()}
        if not same_calls(bases["clean"], bases["corrupt"]):
            raise Unsupported("its layers receive inputs other than the residual stream")
    except Unsupported as why:
        raise ValueError(f"{lm.name} has no edges: {why}") from None
    measure = metric_of(metric, answer=chosen, foil=against, reference=bases["clean"].logits)
    metrics = {name: float(measure.of(base.logits[None])[0]) for name, base in bases.items()}
    return Prepared(lm, pair, parts, readout, measure, metrics, chosen, against, runs.noise(measure))


class _Sweep:
    """The rows of all steps up the blocks, then down one layer at a time."""

    def __init__(self, work: Prepared, wiring: Wiring, steps: int) -> None:
        self.work, self.wiring, self.lm, self.steps = work, wiring, work.lm, steps
        self.rows: Rows = work.parts["clean"].rows
        self.first = work.first
        with self.lm.busy():
            self.changes = self._changes()

    def scores(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Pairs of (receivers, scores (sender, receiver)), from the logits down; senders after them are meaningless."""
        clean, corrupt = (self.work.parts[name].base.resid[0] for name in ("clean", "corrupt"))
        inputs = []
        with self.lm.busy():
            between = torch.arange(1, self.steps + 1, device=clean.device)[:, None, None] / self.steps
            x = (corrupt.float() + between * (clean.float() - corrupt.float())).to(clean.dtype)
            for layer in range(self.lm.n_layers):
                inputs.append(x)
                x, _ = self.rows.block(layer, x)
        with self.lm.busy(gradients=True), _differentiable(self.lm.hf):
            last = x.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(self.work.measure(last[:, -1]).sum(), last)
            yield slice(-1, None), self._products(grad.mean(0, dtype=torch.float32)[None])
            for layer in reversed(range(self.lm.n_layers)):
                grad, by_receiver = self._down(layer, inputs.pop(), grad)
                yield self.wiring.heard_in(layer), self._products(by_receiver)

    def _changes(self) -> torch.Tensor:
        """What each sender says in the clean run more than in the corrupt one, (sender, seq, d_model), float32."""
        clean, corrupt = self.work.parts["clean"], self.work.parts["corrupt"]
        changes = [(clean.embed - corrupt.embed)[None, self.first :]]
        for layer in range(self.lm.n_layers):
            a, b = clean.own(layer), corrupt.own(layer)
            changes += [(a.heads - b.heads)[0, :, self.first :], (a.mlp - b.mlp)[:, self.first :]]
        return torch.cat(changes)

    def _products(self, grads: torch.Tensor) -> np.ndarray:
        """(sender, receiver) from gradients (receiver, seq, d_model)."""
        found: np.ndarray = (self.changes.flatten(1) @ grads[:, self.first :].flatten(1).T).cpu().numpy()
        return found

    def _down(self, layer: int, x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From the gradient at a block's output (steps, seq, d_model) to that at its input, and to each receiver's.

        The receivers' are (receiver, seq, d_model), float32, the mean over the steps.
        """
        x = x.detach().requires_grad_(True)
        mlp = ("mlp_out", layer)
        parallel = self.work.parts["clean"].parallel[layer]
        places = [("q", layer), ("k", layer), ("v", layer), mlp, *([] if parallel else [("resid_mid", layer)])]
        out, found = self.rows.block(layer, x, reads=places, edits={mlp: lambda value: value}, keep=lambda value: value)
        heads = [found[kind, layer] for kind in ("q", "k", "v")]
        down, *by_head, at_mlp = torch.autograd.grad(out, [x, *heads, found[mlp]], grad, retain_graph=True)
        (into_mlp,) = torch.autograd.grad(found[mlp], x if parallel else found["resid_mid", layer], at_mlp)
        del out, found
        receivers = [*self._by_head(layer, x.detach(), by_head), into_mlp.mean(0, dtype=torch.float32)[None]]
        return down, torch.cat(receivers)

    def _by_head(self, layer: int, x: torch.Tensor, grads: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """From the gradients at q, k, v (steps, seq, head, d_head) to those at each head's own copy of the input."""
        steps = len(x)
        each = [(kind, head) for kind, grad in enumerate(grads) for head in range(grad.shape[2])]
        most = max(1, tokens_at_once(self.lm) // (steps * x.shape[1]))
        found = []
        for start in range(0, len(each), most):
            chunk = each[start : start + most]
            copies = x.repeat(len(chunk), 1, 1).requires_grad_(True)
            made = self.rows.attention(layer, copies)
            total = x.new_zeros((), dtype=torch.float32)
            for n, (kind, head) in enumerate(chunk):
                part = made["qkv"[kind]][n * steps : (n + 1) * steps, :, head]
                total = total + (part.float() * grads[kind][:, :, head].float()).sum()
            (grad,) = torch.autograd.grad(total, copies)
            found.append(grad.float().unflatten(0, (len(chunk), steps)).mean(1))
        return found
