"""Gradients of a written text's log-probability at the embeddings of its prompt.

*Gradient x input* is the gradient at the embeddings times their difference to what replaces a removed token: the linear
estimate of what removing does, and with zeros in its place the product of that name. *Integrated gradients*
(Sundararajan et al. 2017) average the gradient over the straight path from the prompt with all units removed to the
prompt as it is; the sum over all units is then the whole difference in log-probability (completeness).

The first token of a prompt keeps its embedding all the way. Heads that have nothing to attend to attend to it, and on
the way to removing it what a model says jumps so often that no number of steps would do.

The path is cut into stretches, each integrated by Gauss and Legendre's rule of four points. How far a stretch misses
the difference between its own ends is known, so those that miss most are halved until the sum is complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np
import torch

from labkit.activations.hooks import hooked
from labkit.activations.unembedding import measured_tail
from labkit.attribution.embeddings import embedded, of_embeddings
from labkit.attribution.removal import Ids, Replacement
from labkit.attribution.units import Unit
from labkit.engine.batching import in_chunks
from labkit.language_model import LanguageModel
from labkit.models.handle import Model

POINTS = 4
STRETCHES = 5  # to begin with: 20 steps
TOKENS = 1024, 16384  # of a batch on a CPU and elsewhere; what a backward pass needs is kept for each

_wide: WeakKeyDictionary[Model, bool] = WeakKeyDictionary()


@dataclass
class _Stretch:
    """A part of the path, from `start` to `stop`, of 1.

    Attributes:
        sums: the integral of the gradient times the embeddings' difference, (row, unit).
        miss: how far it is from the difference of the ends, in nats.
    """

    start: float
    stop: float
    sums: np.ndarray = field(repr=False)
    miss: float

    @property
    def middle(self) -> float:
        return (self.start + self.stop) / 2


class InputGradients:
    """The gradient estimates for the units of a prompt.

    Args:
        spans: the texts, with the sign that each counts with.
        per_token: a row for each token of the texts, which takes a backward pass for each; else one row.

    Attributes:
        ends: the log-probability with all units removed and with none, with the signs.
        steps: how many gradients were taken.
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompt: Ids,
        spans: Sequence[tuple[Ids, int]],
        units: Sequence[Unit],
        replacement: Replacement,
        *,
        per_token: bool,
    ) -> None:
        self.lm, self.prompt, self.spans, self.units, self.per_token = lm, prompt, tuple(spans), units, per_token
        removed = torch.zeros(len(prompt), dtype=torch.bool)
        for unit in units:
            removed[unit.start : unit.stop] = True
        removed[0] = False
        self.steps = 0
        self._inputs = [torch.tensor([[*prompt, *span[:-1]]], device=lm.device) for span, _ in self.spans]
        self._paths = [self._path(ids, removed.to(lm.device), replacement) for ids in self._inputs]
        self.dtype = torch.float32 if self._carries_float32() else lm.dtype
        self.ends = self.values(0.0), self.values(1.0)

    @property
    def difference(self) -> float:
        """What all units do together, in nats."""
        return self.ends[1] - self.ends[0]

    def values(self, at: float) -> float:
        """The log-probability at a place of the path."""
        total = 0.0
        for (span, sign), ids, (start, change) in zip(self.spans, self._inputs, self._paths, strict=True):
            x = (start + at * change).to(self.dtype)
            with self.lm.busy(), hooked(self.lm, set(), embedded(self.lm, x)):
                total += sign * float(self._logprobs(measured_tail(self.lm, ids, len(span)), span).double().sum())
        return total

    def _carries_float32(self) -> bool:
        """Does the model take a residual stream in float32, and say about the same then?"""
        lm, (ids, *_), ((start, change), *_) = self.lm, self._inputs, self._paths
        if lm.dtype != torch.float32 and lm not in _wide:
            said = []
            try:
                for dtype in (torch.float32, lm.dtype):
                    with lm.busy(), hooked(lm, set(), embedded(lm, (start + change).to(dtype))):
                        said.append(measured_tail(lm, ids, 1).log_softmax(-1))
                _wide[lm] = float((said[0] - said[1]).mul(said[1].exp()).abs().sum()) < 0.2
            except (RuntimeError, TypeError, ValueError):  # a layer with weights in 16 bits, such as a router
                _wide[lm] = False
        return _wide.get(lm, True)

    def times_input(self) -> np.ndarray:
        """The gradient at the prompt times what its embeddings have beyond the replacement, (row, unit), float64."""
        return self._sums([1.0])[0]

    def _path(
        self, ids: torch.Tensor, removed: torch.Tensor, replacement: Replacement
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The embeddings (1, seq, d_model), float32, at the beginning of the path, and the way to its end."""
        lm = self.lm
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, : len(removed)] = removed
        found = []
        for mine in (torch.zeros_like(mask), mask):
            with lm.busy(), hooked(lm, {("embed", 0)}, replacement.edits(mine)) as read:
                measured_tail(lm, replacement.ids(ids, mine), 1)
            found.append(read["embed", 0].float())
        own, without = found
        return without, own - without

    def _logprobs(self, logits: torch.Tensor, span: Ids) -> torch.Tensor:
        """Of each token of a text (row, token) in logits (row, token, vocab)."""
        ids = torch.tensor(span, device=logits.device)[None, :, None].expand(len(logits), -1, 1)
        return logits.log_softmax(-1).gather(-1, ids)[..., 0]

    def _sums(self, places: Sequence[float]) -> np.ndarray:
        """At places of the path the gradient times its direction, (place, row, unit), float64."""
        longest = max(ids.shape[1] for ids in self._inputs)
        size = max(1, TOKENS[self.lm.device.type != "cpu"] // longest)
        chunks = [list(places[n : n + size]) for n in range(0, len(places), size)]
        done = [sums for _, sums in in_chunks(chunks, self._chunk, stopped=lambda: False)]
        self.steps += len(places)
        return np.concatenate(done)

    def _chunk(self, places: list[float]) -> np.ndarray:
        rows = []
        for (span, sign), ids, (start, change) in zip(self.spans, self._inputs, self._paths, strict=True):
            at = torch.tensor(places, device=start.device)[:, None, None]

            def measure(logits: torch.Tensor, span: Ids = span) -> torch.Tensor:
                each = self._logprobs(logits, span)
                return each if self.per_token else each.sum(-1, keepdim=True)

            x = (start + at * change).to(self.dtype)
            _, grads = of_embeddings(self.lm, ids, x, measure, count=len(span))  # (part, place, seq, d_model)
            by_position = (grads.double() * change.double()).sum(-1).cpu().numpy() * sign
            units = [by_position[..., unit.start : unit.stop].sum(-1) for unit in self.units]
            rows.append(np.stack(units, -1).swapaxes(0, 1))  # (place, part, unit)
        return np.concatenate(rows, 1) if self.per_token else np.sum(rows, 0)


class Path:
    """Integrated gradients, more exact with every step.

    Attributes:
        sums: the estimate so far, (row, unit), float64.
        gap: how far its sum is from the whole difference, as a share of it.
    """

    def __init__(self, gradients: InputGradients) -> None:
        self.gradients = gradients
        self.stretches: list[_Stretch] = []
        self._values = {0.0: gradients.ends[0], 1.0: gradients.ends[1]}

    @property
    def sums(self) -> np.ndarray:
        return np.sum([one.sums for one in self.stretches], 0)

    @property
    def gap(self) -> float:
        return gap_of(self.sums, self.gradients.difference)

    def steps(self, *, tolerance: float, most: int) -> Iterator[int]:
        """Integrate until the gap is below `tolerance`, in at most `most` steps; yields how many there are."""
        edges = np.linspace(0, 1, STRETCHES + 1).tolist()
        self.stretches = self._integrated(list(pairwise(edges)))
        yield self.gradients.steps
        while self.gap >= tolerance and self.gradients.steps + 2 * POINTS <= most:
            left = (most - self.gradients.steps) // (2 * POINTS)
            worst, rest = self._worst(min(left, max(2, len(self.stretches) // 8)))
            halves = [ends for one in worst for ends in ((one.start, one.middle), (one.middle, one.stop))]
            self.stretches = rest + self._integrated(halves)
            yield self.gradients.steps

    def _worst(self, count: int) -> tuple[list[_Stretch], list[_Stretch]]:
        """The stretches to halve, and the others."""
        # in 16 bits much of a miss is rounding, which more points in wide stretches average out
        power = 0 if self.gradients.lm.dtype == torch.float32 else 2
        order = sorted(self.stretches, key=lambda one: -abs(one.miss) * (one.stop - one.start) ** power)
        return order[:count], order[count:]

    def _integrated(self, ends: Sequence[tuple[float, float]]) -> list[_Stretch]:
        nodes, weights = np.polynomial.legendre.leggauss(POINTS)
        places = [float(a + (b - a) * (1 + node) / 2) for a, b in ends for node in nodes]
        every = self.gradients._sums(places)
        found = []
        for n, (a, b) in enumerate(ends):
            part = every[n * POINTS : (n + 1) * POINTS]  # (point, row, unit)
            sums = np.tensordot(weights / 2 * (b - a), part, 1)
            found.append(_Stretch(a, b, sums, float(sums.sum()) - (self._value(b) - self._value(a))))
        return found

    def _value(self, at: float) -> float:
        if at not in self._values:
            self._values[at] = self.gradients.values(at)
        return self._values[at]


def gap_of(sums: np.ndarray, difference: float) -> float:
    """How far shares (row, unit) are from adding up to a difference, as a share of it."""
    return abs(float(sums.sum()) - difference) / max(abs(difference), 1e-6)
