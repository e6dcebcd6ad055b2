"""From the last residual stream to logits: final norm and unembedding, checked against the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch

from labkit.activations.unembedding import End, softcap_of, unembedded
from labkit.engine.recorded_run import RecordedRun, Unsupported
from labkit.models.devices import columns_of
from labkit.models.flow import first_tensor
from labkit.models.handle import Model


@dataclass(frozen=True)
class Readout:
    """Final norm and unembedding, with the scale or soft cap that the model puts on its logits.

    Attributes:
        exact: whether the matmul with the unembedding is done in float32, as for metrics, or as in the model.
    """

    tail: tuple[Any, ...]
    unembed: Any
    scale: float
    softcap: float | None
    device: torch.device | None = None  # where the logits are wanted; None: where they come out
    exact: bool = True

    def __call__(self, x: torch.Tensor, columns: Sequence[int] | None = None) -> torch.Tensor:
        """Logits (rows, vocab) or (rows, len(columns)), float32, from the last residual stream (rows, d_model)."""
        x = x[None]
        for module in self.tail:
            x = first_tensor(module(x))  # type: ignore[assignment]
        if self.exact:
            logits = unembedded(self.unembed, x[0], columns)
        else:
            logits = columns_of(self.unembed(x[0]).float(), columns)
        return End(self.scale, self.softcap)(logits.to(self.device or logits.device))


_agrees: WeakSet[Model] = WeakSet()  # models whose logits it gives without a scale


def readout_of(base: RecordedRun) -> Readout:
    """The readout, checked against the model's own logits; one without a scale once per model.

    Raises:
        Unsupported: norm and unembedding do not give the model's logits under any declared scale or soft cap.
    """
    lm, anatomy = base.lm, base.lm.anatomy
    softcap = softcap_of(lm)
    plain = Readout(anatomy.tail, anatomy.unembed, 1.0, softcap, base.logits.device)
    if lm in _agrees:
        return plain
    tolerance = (1e-4 if base.logits.dtype == lm.dtype else 0.05) * max(1.0, float(base.logits.abs().max()))
    try:
        with lm.busy():
            bare = replace(plain, softcap=None)(base.resid[-1][-1:])[0]
    except (RuntimeError, TypeError) as error:
        raise Unsupported(f"the final norm and unembedding of {lm.name} cannot be run alone: {error}") from error
    if bare.shape == base.logits.shape:
        for scale in (1.0, End(softcap=softcap).fitted(bare, base.logits)):
            if float((End(scale, softcap)(bare) - base.logits).abs().max()) <= tolerance:
                if scale == 1.0:
                    _agrees.add(lm)
                return replace(plain, scale=scale)
    raise Unsupported(f"the final norm and unembedding of {lm.name} do not give its logits")
