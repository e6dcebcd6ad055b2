"""What every look at edges needs: a pair taken apart, checked and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labkit.engine.block_runner import same_calls
from labkit.engine.decomposition import ResidualDecomposition
from labkit.engine.readout import Readout
from labkit.engine.recorded_run import Unsupported
from labkit.patching import gap
from labkit.patching.metrics import Metric, MetricFunction, metric_of
from labkit.patching.pair_runs import PairRuns
from labkit.text.encode import single_token
from labkit.text.pair import Pair, align

if TYPE_CHECKING:
    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt


@dataclass
class Prepared:
    """Two prompts run and taken apart, and the metric on them."""

    lm: LanguageModel
    pair: Pair
    parts: dict[str, ResidualDecomposition]  # of `clean` and `corrupt`
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
            parts = {name: ResidualDecomposition(base) for name, base in bases.items()}
        if not same_calls(bases["clean"], bases["corrupt"]):
            raise Unsupported("its layers receive inputs other than the residual stream")
    except Unsupported as why:
        raise ValueError(f"{lm.name} has no edges: {why}") from None
    measure = metric_of(metric, answer=chosen, foil=against, reference=bases["clean"].logits)
    metrics = {name: float(measure.of(base.logits[None])[0]) for name, base in bases.items()}
    return Prepared(lm, pair, parts, readout, measure, metrics, chosen, against, runs.noise(measure))
