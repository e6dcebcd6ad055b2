"""Edge attribution: how much each edge between two parts carries, from a few forward and backward passes.

What would the metric lose if receiver v read the corrupt output of sender u? Estimated as (clean u - corrupt u) . d
metric / d input of v (edge attribution patching, EAP; Syed et al. 2023), for all edges from one backward pass. With the
gradient averaged over inputs between corrupt and clean, m steps of integrated gradients, it is a better estimate
(EAP-IG; Hanna et al. 2024, "Have Faith in Faithfulness"); one step is EAP.

The steps go up the blocks together as rows of a batch and come back down one layer at a time. A layer's receivers get
their own gradients from one more pass through its query, key and value projections alone, and are multiplied with all
sender outputs at once: nothing of size senders x receivers x positions x width is ever in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from labkit.activations.gradients import differentiable
from labkit.circuits.prepare import Prepared, prepared
from labkit.circuits.scores import EdgeScores
from labkit.elsewhere import where_the_model_is
from labkit.engine.batching import tokens_at_once
from labkit.engine.block_runner import BlockRunner
from labkit.language_model import LanguageModel
from labkit.patching import gap
from labkit.patching.spec import PairSpec, asks
from labkit.results.recipe import code_of


@dataclass(frozen=True, kw_only=True)
class EdgeSpec(PairSpec):
    """What `edge_attribution` is asked for."""

    steps: int = 5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")


@where_the_model_is
@asks(EdgeSpec)
def edge_attribution(lm: LanguageModel, spec: EdgeSpec) -> EdgeScores:
    """How much every edge between two parts of a model carries toward the answer.

    Args:
        lm: the model, in any bits.
        clean, corrupt, answer, foil, metric, at, progress: as in `lk.patch`.
        steps: of integrated gradients, inputs between corrupt and clean; 1 is edge attribution patching without them.

    Raises:
        ValueError: bad input, or a model that cannot be decomposed (`labkit.engine.decomposition`).
    """
    work = prepared(lm, spec)
    wiring = work.wiring
    values = np.full(wiring.exists.shape, np.nan, np.float32)
    with tqdm(total=lm.n_layers, desc="edges", unit="layer", disable=not spec.progress, leave=False) as bar:
        for receivers, part in _Sweep(work, spec.steps).scores():
            values[:, receivers] = part
            bar.update()
    values[~wiring.exists] = np.nan
    recipe = work.asked.recipe(steps=spec.steps, unit=work.metric.unit, kind="edges")
    recipe["code"] = code_of(recipe, "edges = lk.edge_attribution", {}, usual={"steps": 5, "at": -1})
    if work.noise is not None:
        recipe |= {"noise": work.noise.noise, "least_gap": work.noise.least}
    if work.too_close:
        gap.warn_of(recipe, work.metrics["clean"], work.metrics["corrupt"])
    return EdgeScores(values, wiring, work.metrics["clean"], work.metrics["corrupt"], recipe)


class _Sweep:
    """The rows of all steps up the blocks, then down one layer at a time."""

    def __init__(self, work: Prepared, steps: int) -> None:
        self.work, self.wiring, self.lm, self.steps = work, work.wiring, work.lm, steps
        self.rows: BlockRunner = work.parts["clean"].rows
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
        with self.lm.busy(gradients=True), differentiable(self.lm.hf):
            last = x.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(self.work.measure(last[:, -1]).sum(), last)
            yield slice(-1, None), self._products(grad.mean(0, dtype=torch.float32)[None])
            for layer in reversed(range(self.lm.n_layers)):
                grad, by_receiver = self._down(layer, inputs.pop(), grad)
                yield self.wiring.receivers_of_layer(layer), self._products(by_receiver)

    def _changes(self) -> torch.Tensor:
        """Each sender's clean output minus its corrupt one, (sender, seq, d_model), float32."""
        clean, corrupt = self.work.parts["clean"], self.work.parts["corrupt"]
        changes = [(clean.embed - corrupt.embed)[None, self.first :]]
        for layer in range(self.lm.n_layers):
            a, b = clean.own(layer), corrupt.own(layer)
            changes += [(a.heads - b.heads)[0, :, self.first :], (a.mlp - b.mlp)[:, self.first :]]
        return torch.cat(changes)

    def _products(self, grads: torch.Tensor) -> np.ndarray:
        """(sender, receiver) from gradients (receiver, seq, d_model)."""
        return (self.changes.flatten(1) @ grads[:, self.first :].flatten(1).T).cpu().numpy()

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
