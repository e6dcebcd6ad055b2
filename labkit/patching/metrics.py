"""Metrics: from the logits at the position that is read, (rows, vocab), to one number a row.

`logit_diff` is the usual choice for activation patching: it is linear in the logits and not bounded, as a probability
is (Heimersheim and Nanda 2024, "How to use and interpret activation patching").
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch

MetricFunction = Callable[[torch.Tensor], torch.Tensor]
NAMES = ("logit_diff", "logprob", "kl", "rank")


@dataclass(frozen=True)
class Metric:
    """A metric with its name, its unit, and the vocabulary columns it needs (None: all of them)."""

    name: str
    unit: str
    function: MetricFunction
    columns: tuple[int, ...] | None = None
    key: Hashable = None  # the same for metrics that give the same numbers

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """(rows, vocab or len(columns)) float32 -> (rows,) float32.

        Raises:
            ValueError: a metric of the user's own does not give one number a row.
        """
        values = self.function(logits)
        if not isinstance(values, torch.Tensor) or values.shape != logits.shape[:1]:
            got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(f"metric {self.name} must give one number per row, shape ({len(logits)},); it gave {got}")
        return values.float()

    def of(self, logits: torch.Tensor) -> torch.Tensor:
        """The same from all columns, (rows, vocab) -> (rows,)."""
        return self(logits if self.columns is None else logits[:, list(self.columns)])


def metric_of(
    metric: str | MetricFunction | None, *, answer: int | None, foil: int | None, reference: torch.Tensor
) -> Metric:
    """The metric for a name, a callable, or None.

    Args:
        metric: one of `NAMES`, a callable (rows, vocab) -> (rows,), or None for `logit_diff` of answer and foil, or
            `logprob` where there is no foil.
        answer: id of the answer token.
        foil: id of the foil token.
        reference: logits (vocab,) that `kl` compares with: those of the clean run.

    Raises:
        ValueError: an unknown name, or a name that needs an answer or a foil that was not given.
    """
    if callable(metric):
        return Metric(getattr(metric, "__name__", "metric"), "", metric, key=metric)
    name = metric or ("logit_diff" if foil is not None else "logprob")
    if name not in NAMES:
        raise ValueError(f"there is no metric {name!r}; use one of {', '.join(NAMES)}, or a function of the logits")
    return replace(_named(name, answer, foil, reference), key=(name, answer, foil))


def _named(name: str, answer: int | None, foil: int | None, reference: torch.Tensor) -> Metric:
    if name == "kl":
        target = reference.log_softmax(-1)
        return Metric("kl", "nats", lambda logits: (target.exp() * (target - logits.log_softmax(-1))).sum(-1))
    if answer is None:
        raise ValueError(f"the metric {name} needs an answer: one token, such as answer=' Mary'")
    if name == "logit_diff":
        if foil is None:
            raise ValueError("logit_diff needs a foil beside the answer, such as foil=' John'; or use metric='logprob'")
        return Metric("logit_diff", "logits", lambda logits: logits[:, 0] - logits[:, 1], (answer, foil))
    if name == "logprob":
        return Metric("logprob", "nats", lambda logits: logits.log_softmax(-1)[:, answer])
    return Metric("rank", "ranks", lambda logits: (logits > logits[:, answer, None]).sum(-1).float() + 1)
