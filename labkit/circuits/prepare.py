"""What all work on edges needs: a pair decomposed, checked and measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from labkit.activations.metrics import Metric
from labkit.circuits.graph import Wiring
from labkit.engine.block_runner import same_calls
from labkit.engine.decomposition import ResidualDecomposition, head_counts
from labkit.engine.readout import Readout
from labkit.engine.recorded_run import Unsupported
from labkit.language_model import LanguageModel
from labkit.patching import gap
from labkit.patching.pair_runs import PairRuns
from labkit.patching.spec import PairSpec, PreparedPair


@dataclass
class Prepared:
    """Two prompts run and decomposed, and the metric on them."""

    lm: LanguageModel
    asked: PreparedPair
    parts: dict[str, ResidualDecomposition]  # of `clean` and `corrupt`
    readout: Readout
    metric: Metric
    metrics: dict[str, float]
    noise: gap.Measured | None = None  # how far rounding alone moves the metric, where that was measured

    @property
    def too_close(self) -> bool:
        """Are the two runs hardly further apart than rounding alone moves them?"""
        least = None if self.noise is None else self.noise.least
        return gap.too_close(self.metrics["clean"], self.metrics["corrupt"], least)

    @property
    def wiring(self) -> Wiring:
        """The model's parts, and which of them can feed which."""
        return Wiring.of(*head_counts(self.lm), self.parts["clean"].parallel)

    @property
    def first(self) -> int:
        """The first position at which the prompts differ; before it all outputs are equal."""
        return min([*self.asked.pair.differ, self.parts["clean"].base.length - 1])

    def measure(self, x: torch.Tensor) -> torch.Tensor:
        """The metric (rows,) from the last residual stream at the last position (rows, d_model)."""
        return self.metric(self.readout(x, self.metric.columns))


def prepared(lm: LanguageModel, spec: PairSpec) -> Prepared:
    """Run both prompts of a pair and decompose the runs.

    Raises:
        ValueError: bad input, or a model that cannot be decomposed.
    """
    pair = spec.prepared(lm)
    try:
        runs = PairRuns(lm, pair.ids["clean"], pair.ids["corrupt"])
        bases = {name: runs.base(name) for name in runs.ids}
        readout = runs.readout("clean")
        with lm.busy():
            parts = {name: ResidualDecomposition(base) for name, base in bases.items()}
        if not same_calls(bases["clean"], bases["corrupt"]):
            raise Unsupported("its layers receive inputs other than the residual stream")
    except Unsupported as why:
        raise ValueError(f"{lm.name} has no edges: {why}") from None
    measure = pair.metric(bases["clean"].logits)
    metrics = {name: float(measure.of(base.logits[None])[0]) for name, base in bases.items()}
    return Prepared(lm, pair, parts, readout, measure, metrics, runs.noise(measure))
