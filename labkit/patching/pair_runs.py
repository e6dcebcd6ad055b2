"""The clean and the corrupt run of a pair, done once and shared by every grid over them.

Where a source model is given, the clean run is its run of the prompt.

A grid needs the residual stream of the patched run, one kind of activation of the other, and the gradient estimate of
every cell. All three are kept here: a grid over another site, or in the other direction, reuses the runs, and one
forward and one backward pass estimate all sites in `together`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from labkit.activations.metrics import Metric
from labkit.activations.site_kinds import HEAD_IN
from labkit.engine.readout import Readout, readout_of
from labkit.engine.recorded_run import RecordedRun, Unsupported, record, record_together, recorded, several_alike
from labkit.language_model import LanguageModel
from labkit.patching.estimates import estimates
from labkit.patching.gap import Measured, measured
from labkit.patching.source_model import alike

ENDS = {"denoise": ("clean", "corrupt"), "noise": ("corrupt", "clean")}
"""By direction: the run that activations are taken from, and the run that they are put into."""

Activations = dict[int, torch.Tensor]
"""One kind of site by layer, without the batch axis: (seq, ...), patterns (head, seq, seq)."""


def engine_kind(site: str) -> str:
    """What is read and written for a site: head_out is linear in the output projection's input."""
    return HEAD_IN if site == "head_out" else site


class PairRuns:
    """Two runs on prompts of the same length, of one model or of two, and what is kept of them.

    Args:
        clean, corrupt: token ids (1, seq), up to the position that the metric reads.
        together: kinds of site that are estimated in one pass, when the first is needed.
        source: the model of the clean run, where that is another one.

    Attributes:
        models: of each run.
        ids: `{"clean": (1, seq), "corrupt": (1, seq)}`.
        unsupported: why the model cannot be restarted midway; None if it can.
    """

    def __init__(
        self,
        lm: LanguageModel,
        clean: torch.Tensor,
        corrupt: torch.Tensor,
        *,
        together: Sequence[str] = (),
        source: LanguageModel | None = None,
    ) -> None:
        self.lm = lm
        self.models = {"clean": source or lm, "corrupt": lm}
        self.one_model = self.models["clean"] is lm
        self.ids = {"clean": clean.to(self.models["clean"].device), "corrupt": corrupt}
        self.together = tuple(dict.fromkeys(map(engine_kind, together)))
        self.unsupported: str | None = None
        self._bases: dict[str, RecordedRun] = {}
        self._readouts: dict[str, Readout] = {}
        self._logits: dict[str, torch.Tensor] = {}
        self._kept: dict[tuple[str, str], Activations] = {}
        self._put_in: dict[tuple[str, str], Activations] = {}
        self._effects: dict[Hashable, dict[str, Activations]] = {}
        self._noise: dict[Hashable, Measured | None] = {}

    @property
    def first(self) -> int:
        """The first position at which the runs differ; the length if they do not. Nothing before it matters."""
        if not self.one_model:
            return 0
        differ = (self.ids["clean"] != self.ids["corrupt"])[0].nonzero()
        return int(differ[0]) if len(differ) else self.ids["clean"].shape[1]

    def activations(self, name: str, kind: str) -> Activations:
        """One kind of site in the run called `clean` or `corrupt`, by layer."""
        if (name, kind) not in self._kept:
            self._run(kind)
        return self._kept[name, kind]

    def put_in(self, direction: str, kind: str) -> Activations:
        """What one run gets from the other: the source's activations, in the dtype and on the device of its own."""
        source, base = ENDS[direction]
        taken = self.activations(source, kind)
        if self.one_model:
            return taken
        if (direction, kind) not in self._put_in:
            own = self.activations(base, kind)
            self._put_in[direction, kind] = {layer: alike(x, own[layer]) for layer, x in taken.items()}
        return self._put_in[direction, kind]

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
        return self._logits[name] if self.one_model else self._logits[name].to(self.lm.device)

    def readout(self, name: str) -> Readout:
        """From the last residual stream of a run to logits. Raises `Unsupported` as `base` does."""
        if name not in self._readouts:
            self._readouts[name] = readout_of(self.base(name))
        return self._readouts[name]

    def noise(self, metric: Metric) -> Measured | None:
        """How far rounding alone moves the metric on these runs; None if they are far apart (`patching.gap`)."""
        if metric.key not in self._noise:
            self._noise[metric.key] = measured(self.models, self.ids, {n: self.logits(n) for n in self.ids}, metric)
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
            known |= estimates(self.models[base], self.ids[base], taken, metric=metric)
        return known[kind]

    def _run(self, kind: str | None) -> None:
        """Run both prompts for what is missing, with equal threads, so that equal tokens give equal numbers."""
        kinds = list(self.together) if kind is None or kind in self.together else [kind]
        kinds = [k for k in kinds if ("clean", k) not in self._kept]
        if not self.one_model:  # each has a lock of its own, and is never held while the other is waited for
            for name in self.ids:
                self._run_one(name, kinds)
            return
        with self.lm.busy():
            self._run_both(kinds)

    def _run_one(self, name: str, kinds: list[str]) -> None:
        """Run one model's prompt for what is missing."""
        lm, ids = self.models[name], self.ids[name]
        try:
            if self.unsupported is not None or name in self._bases:
                raise Unsupported(self.unsupported)
            self._bases[name], kept = record(lm, ids, sites=kinds)
            self._logits[name] = self._bases[name].logits
        except Unsupported as why:
            if name not in self._bases:
                self.unsupported = str(why)
            ((self._logits[name], kept),) = recorded(lm, ids, sites=kinds)
        self._kept |= {(name, k): layers for k, layers in kept.items()}

    def _run_both(self, kinds: list[str]) -> None:
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
