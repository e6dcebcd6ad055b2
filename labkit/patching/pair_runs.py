"""The clean and the corrupt run of a pair, done once and shared by every grid over them.

A grid needs the residual stream of the patched run, one kind of activation of the other, and the gradient estimate of
every cell. All three are kept here: a grid over another site, or in the other direction, reuses the runs, and one
forward and one backward pass estimate all sites in `together`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from labkit.activations.site_kinds import HEAD_IN
from labkit.engine.readout import Readout, readout_of
from labkit.engine.recorded_run import RecordedRun, Unsupported, record_together, recorded, several_alike
from labkit.language_model import LanguageModel
from labkit.patching.gap import Measured, measured
from labkit.patching.gradients import estimates
from labkit.patching.metrics import Metric

ENDS = {"denoise": ("clean", "corrupt"), "noise": ("corrupt", "clean")}
"""By direction: the run that activations are taken from, and the run that they are put into."""

Activations = dict[int, torch.Tensor]
"""One kind of site by layer, without the batch axis: (seq, ...), patterns (head, seq, seq)."""


def engine_kind(site: str) -> str:
    """What is read and written for a site: head_out is linear in the output projection's input."""
    return HEAD_IN if site == "head_out" else site


class PairRuns:
    """Two runs of one model on prompts of the same length, and what is kept of them.

    Args:
        clean, corrupt: token ids (1, seq), up to the position that the metric reads.
        together: kinds of site that are estimated in one pass, when the first is needed.

    Attributes:
        ids: `{"clean": (1, seq), "corrupt": (1, seq)}`.
        unsupported: why the model cannot be restarted midway; None if it can.
    """

    def __init__(
        self, lm: LanguageModel, clean: torch.Tensor, corrupt: torch.Tensor, *, together: Sequence[str] = ()
    ) -> None:
        self.lm = lm
        self.ids = {"clean": clean, "corrupt": corrupt}
        self.together = tuple(dict.fromkeys(map(engine_kind, together)))
        self.unsupported: str | None = None
        self._bases: dict[str, RecordedRun] = {}
        self._readouts: dict[str, Readout] = {}
        self._logits: dict[str, torch.Tensor] = {}
        self._kept: dict[tuple[str, str], Activations] = {}
        self._effects: dict[Hashable, dict[str, Activations]] = {}
        self._noise: dict[Hashable, Measured | None] = {}

    @property
    def first(self) -> int:
        """The first position at which the prompts differ; the length if they do not. Nothing before it matters."""
        differ = (self.ids["clean"] != self.ids["corrupt"])[0].nonzero()
        return int(differ[0]) if len(differ) else self.ids["clean"].shape[1]

    def activations(self, name: str, kind: str) -> Activations:
        """One kind of site in the run called `clean` or `corrupt`, by layer."""
        if (name, kind) not in self._kept:
            self._run(kind)
        return self._kept[name, kind]

    def base(self, name: str) -> RecordedRun:
        """The run and all that is needed to restart it anywhere.

        Raises:
            Unsupported: the model cannot be restarted midway.
        """
        if name not in self._bases and self.unsupported is None:
            self._run(None)
        if name not in self._bases:
            raise Unsupported(self.unsupported)
        return self._bases[name]

    def logits(self, name: str) -> torch.Tensor:
        """Logits (vocab,) at the last position, float32."""
        if name not in self._logits:
            self._run(None)
        return self._logits[name]

    def readout(self, name: str) -> Readout:
        """From the last residual stream of a run to logits. Raises `Unsupported` as `base` does."""
        if name not in self._readouts:
            self._readouts[name] = readout_of(self.base(name))
        return self._readouts[name]

    def noise(self, metric: Metric) -> Measured | None:
        """How far rounding alone moves the metric on these runs; None if they are far apart (`patching.gap`)."""
        if metric.key not in self._noise:
            self._noise[metric.key] = measured(self.lm, self.ids, {n: self.logits(n) for n in self.ids}, metric)
        return self._noise[metric.key]

    def effects(self, kind: str, *, direction: str, metric: Metric) -> Activations:
        """The gradient estimate of what patching each place of a site does to the metric, by layer, float32.

        Returns:
            (position,), or (position, unit) where a site has heads, neurons or experts.
        """
        key = (direction, metric.key)
        known = self._effects.setdefault(key, {})
        if kind not in known:
            source, base = ENDS[direction]
            wanted = self.together if kind in self.together else (kind,)
            taken = {k: self.activations(source, k) for k in wanted if k not in known}
            known |= estimates(self.lm, self.ids[base], taken, metric=metric)
        return known[kind]

    def _run(self, kind: str | None) -> None:
        """Run both prompts for what is missing, with equal threads, so that equal tokens give equal numbers."""
        with self.lm.busy():
            self._run_both(kind)

    def _run_both(self, kind: str | None) -> None:
        kinds = list(self.together) if kind is None or kind in self.together else [kind]
        kinds = [k for k in kinds if ("clean", k) not in self._kept]
        # the same prompt twice is one run: two rows of a batch may differ in how they are rounded
        same = torch.equal(self.ids["clean"], self.ids["corrupt"])
        ids = self.ids["clean"] if same else torch.cat([self.ids["clean"], self.ids["corrupt"]])
        found: list[dict[str, Activations]] | None = None
        if self.unsupported is None and not self._bases:
            try:
                both = record_together(self.lm, ids, sites=kinds)
            except Unsupported as why:
                self.unsupported = str(why)
            else:
                both = both * 2 if same else both
                self._bases = {name: base for name, (base, _) in zip(self.ids, both, strict=True)}
                self._logits = {name: base.logits for name, base in self._bases.items()}
                found = [kept for _, kept in both]
        if found is None:
            passes = [ids] if several_alike(self.lm) else [row[None] for row in ids]
            said = [run for some in passes for run in recorded(self.lm, some, sites=kinds)]
            said = said * 2 if same else said
            self._logits = {name: logits for name, (logits, _) in zip(self.ids, said, strict=True)}
            found = [kept for _, kept in said]
        for name, kept in zip(self.ids, found, strict=True):
            self._kept |= {(name, k): layers for k, layers in kept.items()}
