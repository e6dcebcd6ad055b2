"""One prompt with something added to the residual stream after a layer, in many variants at once.

What is added after layer L changes nothing below it, so each variant is a row that starts above L from the residual
stream of one recorded run; only the positions that are asked for are unembedded. Where an architecture cannot be
restarted midway, each variant is a whole pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch

from labkit.activations.run import run
from labkit.engine.block_runner import BlockRunner
from labkit.engine.readout import readout_of
from labkit.engine.recorded_run import Unsupported, record

if TYPE_CHECKING:
    from labkit.models.handle import Model

Measure = Callable[[torch.Tensor], torch.Tensor]
Change = tuple[int, torch.Tensor]
AT_ONCE = 256  # positions whose logits, a vocabulary each, are there together


_restarted: WeakSet[Model] = WeakSet()  # models whose layers each give on their own what they gave in the run


class SteeredRun:
    """The logits of one prompt under vectors that are added after a layer at every position.

    Args:
        lm: the model.
        ids: (1, seq).

    Attributes:
        restarts: are the layers below left out? Otherwise every variant is a whole pass.
    """

    def __init__(self, lm: Model, ids: torch.Tensor) -> None:
        self.lm, self.ids = lm, ids
        try:
            base, _ = record(lm, ids)
            self._runner, self._readout = BlockRunner(base), readout_of(base)
            if lm not in _restarted:
                with lm.busy(), lm.for_patching():
                    for layer in range(lm.n_layers):
                        self._runner.block(layer, base.resid[layer][None])
                _restarted.add(lm)
            self.restarts = True
        except Unsupported:
            self.restarts = False

    def measured(self, at: slice, measure: Measure, change: Change | None = None) -> torch.Tensor:
        """What `measure` makes of the logits of each variant.

        Args:
            at: the positions whose logits are needed.
            measure: from logits (rows, position, vocab), float32, of some of the rows at a time, to (rows, ...).
            change: a layer, counted from 0, and what is added after it, a row per variant: (rows, d_model), or (rows,
                streams, d_model) where a model has several residual streams. None for the unchanged model, one row.
        """
        if self.restarts:
            return self._restarted(at, measure, change)
        if change is None:
            return measure(run(self.lm, self.ids).logits[:, at].float())
        layer, added = change
        writes = [{f"resid_post.{layer}": partial(_added, one)} for one in added]
        return torch.cat([measure(run(self.lm, self.ids, write=write).logits[:, at].float()) for write in writes])

    def _restarted(self, at: slice, measure: Measure, change: Change | None) -> torch.Tensor:
        with self.lm.busy(), self.lm.for_patching():
            x = self._runner.resid[-1][None]
            if change is not None:
                layer, added = change
                x = self._runner.resid[layer + 1]
                x = x + added[:, None].to(x)  # (rows, seq, d_model)
                for above in range(layer + 1, self.lm.n_layers):
                    x, _ = self._runner.block(above, x)
            x = x[:, at]
            step = max(1, AT_ONCE // x.shape[1])
            return torch.cat([measure(self._logits(some)) for some in x.split(step)])

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return self._readout(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _added(one: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return x + one.to(x)
