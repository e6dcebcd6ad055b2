"""From the last residual stream to logits: final norm and unembedding, held against what the model itself gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from labkit.internals.cells import to_index
from labkit.internals.recording import Base, Unsupported
from labkit.models.anatomy import first_tensor
from labkit.models.weights import is_plain


@dataclass(frozen=True)
class Readout:
    """Final norm and unembedding, with the scale or soft cap that the model puts on its logits."""

    tail: tuple[Any, ...]
    unembed: Any
    scale: float
    softcap: float | None
    device: torch.device | None = None  # where the logits are wanted; None: where they come out

    def __call__(self, x: torch.Tensor, columns: Sequence[int] | None = None) -> torch.Tensor:
        """Logits (rows, vocab) or (rows, len(columns)), float32, from the last residual stream (rows, d_model)."""
        x = x[None]
        for module in self.tail:
            x = first_tensor(module(x))  # type: ignore[assignment]
        x = x[0]
        if columns is not None and is_plain(self.unembed):
            x, wanted = x.to(self.unembed.weight.device), to_index(columns, self.unembed.weight.device)
            bias = None if self.unembed.bias is None else self.unembed.bias[wanted].to(x.dtype)
            logits = F.linear(x, self.unembed.weight[wanted].to(x.dtype), bias).float()
        else:
            logits = self.unembed(x).float()
            logits = logits if columns is None else logits[:, list(columns)]
        return self.capped(logits.to(self.device or logits.device))

    def capped(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits with the scale and the soft cap put on what the unembedding gives."""
        logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def readout_of(base: Base) -> Readout:
    """The readout, held against the logits that the model itself gave; one without a scale once a model.

    Raises:
        Unsupported: norm and unembedding do not give the model's logits, with any declared scale or soft cap.
    """
    lm, anatomy = base.lm, base.lm.anatomy
    softcap = next((getattr(lm.config, n) for n in SOFTCAPS if getattr(lm.config, n, None)), None)
    plain = Readout(anatomy.tail, anatomy.unembed, 1.0, softcap, base.logits.device)
    if "readout" in lm.checked:
        return plain
    tolerance = (1e-4 if base.logits.dtype == lm.dtype else 0.05) * max(1.0, float(base.logits.abs().max()))
    try:
        with lm.busy():
            bare = replace(plain, softcap=None)(base.resid[-1][-1:])[0]
    except (RuntimeError, TypeError) as error:
        raise Unsupported(f"the final norm and unembedding of {lm.name} cannot be run alone: {error}") from error
    if bare.shape == base.logits.shape:
        # architectures name the scale of their logits in many ways; it is the number that fits
        target = base.logits if softcap is None else torch.atanh((base.logits / softcap).clamp(-0.999, 0.999)) * softcap
        fitted = float((bare @ target) / (bare @ bare).clamp(min=1e-30))
        for scale in (1.0, fitted):
            readout = replace(plain, scale=scale)
            if float((readout.capped(bare) - base.logits).abs().max()) <= tolerance:
                if scale == 1.0:
                    lm.checked.add("readout")
                return readout
    raise Unsupported(f"the final norm and unembedding of {lm.name} do not give its logits")
