"""The clean and the corrupt run of a pair, done once and shared by every grid over them.

Where a source model is given, the clean run is its run of the prompt.

A grid needs the residual stream of the patched run, one kind of activation of the other, and the gradient estimate of
every cell. All three are kept here: a grid over another site, or in the other direction, reuses the runs, and one
forward and one backward pass estimate all sites in `together`.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from functools import partial

import torch

from labkit.activations.hooks import Edit, Place
from labkit.activations.metrics import Metric
from labkit.activations.site_kinds import HEAD_IN
from labkit.engine.readout import Readout, readout_of
from labkit.engine.recorded_run import RecordedRun, Unsupported, record, record_together, recorded, several_alike
from labkit.language_model import LanguageModel
from labkit.patching.estimates import estimates
from labkit.patching.gap import Measured, measured
from labkit.patching.perturbations import Draw
from labkit.patching.source_model import alike

ENDS = {"denoise": ("clean", "corrupt"), "noise": ("corrupt", "clean")}
"""By direction: the run that activations are taken from, and the run that they are put into."""

Activations = dict[int, torch.Tensor]
"""One kind of site by layer, without the batch axis: (seq, ...), patterns (head, seq, seq)."""


OTHER = {"clean": "corrupt", "corrupt": "clean"}


def engine_kind(site: str) -> str:
    """What is read and written for a site: head_out is linear in the output projection's input."""
    return HEAD_IN if site == "head_out" else site


class PairRuns:
    """Two runs, of one model or of two, and what is kept of them.

    The prompts have one length and are paired by position, or `partners` says what is paired.

    Args:
        clean, corrupt: token ids (1, seq), up to the position that the metric reads.
        together: kinds of site that are estimated in one pass, when the first is needed.
        source: the model of the clean run, where that is another one.
        partners: of unequal prompts, for each position of `clean` and of `corrupt` its position in the other; None
            where it has none.
        forced: what is appended to both prompts, once for each lane (`patching.answers`).
        draws: what takes the place of the corrupt run, once for each lane (`patching.perturbations`).

    Attributes:
        lanes: these runs, or with `forced` those of the prompts with each continuation.
        reads: how many last positions the metric reads.
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
        partners: Mapping[str, Sequence[int | None]] | None = None,
        forced: Sequence[tuple[int, ...]] = (),
        draws: Sequence[Draw] = (),
        reads: int = 1,
    ) -> None:
        self.lm, self.partners, self.forced, self.reads = lm, partners, tuple(forced), reads
        self.draws = tuple(draws)
        self.draw: Draw | None = None  # of a lane
        self.models = {"clean": source or lm, "corrupt": lm}
        self.one_model = self.models["clean"] is lm
        self.ids = {"clean": clean.to(self.models["clean"].device), "corrupt": corrupt}
        self._together = tuple(dict.fromkeys(map(engine_kind, together)))
        several = itertools.product(self.draws or (None,), self.forced or ((),))
        self._lanes = [self._with(ids, draw) for draw, ids in several] if self.draws or self.forced else []
        self.unsupported: str | None = None
        self._bases: dict[str, RecordedRun] = {}
        self._readouts: dict[str, Readout] = {}
        self._logits: dict[str, torch.Tensor] = {}
        self._kept: dict[tuple[str, str], Activations] = {}
        self._put_in: dict[tuple[str, str], Activations] = {}
        self._effects: dict[Hashable, dict[str, Activations]] = {}
        self._noise: dict[Hashable, Measured | None] = {}

    def _with(self, forced: tuple[int, ...], draw: Draw | None) -> PairRuns:
        """The same two runs, of the prompts with a continuation, or with something else in the place of corrupt."""
        own = self.ids if draw is None or draw.corrupt is None else self.ids | {"corrupt": draw.corrupt}
        ids = {name: torch.cat([x, x.new_tensor([forced])], 1) if forced else x for name, x in own.items()}
        partners = self.partners and {
            name: [*own, *range(self.ids[OTHER[name]].shape[1], ids[OTHER[name]].shape[1])]
            for name, own in self.partners.items()
        }
        source = None if self.one_model else self.models["clean"]
        lane = PairRuns(
            self.lm, ids["clean"], ids["corrupt"],
            together=self.together, source=source, partners=partners, reads=len(forced) + 1,
        )  # fmt: skip
        lane.draw = draw
        return lane

    @property
    def lanes(self) -> list[PairRuns]:
        return self._lanes or [self]  # never kept: who holds itself is freed late, with all its activations

    @property
    def together(self) -> tuple[str, ...]:
        return self._together

    @together.setter
    def together(self, kinds: Sequence[str]) -> None:
        self._together = tuple(kinds)
        for lane in self._lanes:
            lane._together = self._together

    def same(self, other: PairRuns) -> bool:
        """Do both run the same models on the same prompts, paired alike, with the same continuations?"""
        return (
            all(self.models[name] is other.models[name] for name in self.ids)
            and self.forced == other.forced
            and self.partners == other.partners
            and [draw.key for draw in self.draws] == [draw.key for draw in other.draws]
            and all(torch.equal(self.ids[name], other.ids[name].to(ids.device)) for name, ids in self.ids.items())
        )

    def first(self, direction: str) -> int:
        """The first position that a patch can change; the length if there is none. Nothing before it matters."""
        if self._lanes:
            return min(lane.first(direction) for lane in self.lanes)
        if not self.one_model or (self.draw is not None and self.draw.corrupt is None):
            return 0
        a, b = self.ids["clean"][0], self.ids["corrupt"][0]
        shared = min(len(a), len(b))
        differ = (a[:shared] != b[:shared]).nonzero()
        apart = int(differ[0]) if len(differ) else shared
        base = ENDS[direction][1]
        if self.partners is None:
            return apart
        own = self.partners[base]
        changed = (p for p, other in enumerate(own) if other is not None and (other != p or p >= apart))
        return next(changed, len(own))

    def edits(self, name: str) -> Mapping[Place, Edit]:
        """What is written in the run called `clean` or `corrupt` on its way."""
        return self.draw.edits if self.draw is not None and name == "corrupt" else {}

    def activations(self, name: str, kind: str) -> Activations:
        """One kind of site in the run called `clean` or `corrupt`, by layer."""
        if (name, kind) not in self._kept:
            self._run(kind)
        return self._kept[name, kind]

    def put_in(self, direction: str, kind: str) -> Activations:
        """What one run gets from the other: the source's activations, in the dtype and on the device of its own."""
        source, base = ENDS[direction]
        if self.draw is not None and self.draw.instead is not None:
            if (direction, kind) not in self._put_in:
                self._put_in[direction, kind] = self.draw.instead(self.lm, kind, self.activations(base, kind))
            return self._put_in[direction, kind]
        taken = self.activations(source, kind)
        if self.one_model and self.partners is None:
            return taken
        if (direction, kind) not in self._put_in:
            own = self.activations(base, kind)
            place = alike if self.partners is None else partial(beside, self.partners[base])
            self._put_in[direction, kind] = {layer: place(x, own[layer]) for layer, x in taken.items()}
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
        """Logits (reads, vocab) at the positions that the metric reads, of one lane after another, float32."""
        if self._lanes:
            return torch.cat([lane.logits(name) for lane in self.lanes])
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
        if self.draws:
            return None  # of each draw another, and the mean over them is what counts
        if metric.key not in self._noise:
            lanes = [(lane.ids, lane.reads) for lane in self.lanes]
            self._noise[metric.key] = measured(self.models, lanes, {n: self.logits(n) for n in self.ids}, metric)
        return self._noise[metric.key]

    def effects(self, kind: str, *, direction: str, metric: Metric) -> Activations:
        """The gradient estimate of what patching each place of a site does to the metric, by layer, float32.

        Returns:
            (position,), or (position, unit) where a site has heads, neurons or experts.
        """
        key = (direction, metric.key)
        known = self._effects.setdefault(key, {})
        if kind not in known:
            base = ENDS[direction][1]
            wanted = self.together if kind in self.together else (kind,)
            missing = [k for k in wanted if k not in known]
            taken = {k: self.put_in(direction, k) for k in missing}
            edits = self.edits(base)
            known |= estimates(self.models[base], self.ids[base], taken, metric=metric, edits=edits)
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
            if self.ids["clean"].shape == self.ids["corrupt"].shape and not self.edits("corrupt"):
                self._run_both(kinds)
                return
            for name in self.ids:
                self._run_one(name, kinds)

    def _run_one(self, name: str, kinds: list[str]) -> None:
        """Run one model's prompt for what is missing."""
        lm, ids, edits = self.models[name], self.ids[name], self.edits(name)
        try:
            if self.unsupported is not None or name in self._bases:
                raise Unsupported(self.unsupported)
            self._bases[name], kept = record(lm, ids, sites=kinds, count=self.reads, edits=edits)
            self._logits[name] = _tail(self._bases[name])
        except Unsupported as why:
            if name not in self._bases:
                self.unsupported = str(why)
            ((self._logits[name], kept),) = recorded(lm, ids, sites=kinds, count=self.reads, edits=edits)
        self._kept |= {(name, k): layers for k, layers in kept.items()}

    def _run_both(self, kinds: list[str]) -> None:
        # the same prompt twice is one run: two rows of a batch may differ in how they are rounded
        same = torch.equal(self.ids["clean"], self.ids["corrupt"])
        ids = self.ids["clean"] if same else torch.cat([self.ids["clean"], self.ids["corrupt"]])
        found: list[dict[str, Activations]] | None = None
        if self.unsupported is None and not self._bases:
            try:
                both = record_together(self.lm, ids, sites=kinds, count=self.reads)
            except Unsupported as why:
                self.unsupported = str(why)
            else:
                both = both * 2 if same else both
                self._bases = {name: base for name, (base, _) in zip(self.ids, both, strict=True)}
                self._logits = {name: _tail(base) for name, base in self._bases.items()}
                found = [kept for _, kept in both]
        if found is None:
            passes = [ids] if several_alike(self.lm) else [row[None] for row in ids]
            said = [run for some in passes for run in recorded(self.lm, some, sites=kinds, count=self.reads)]
            said = said * 2 if same else said
            self._logits = {name: logits for name, (logits, _) in zip(self.ids, said, strict=True)}
            found = [kept for _, kept in said]
        for name, kept in zip(self.ids, found, strict=True):
            self._kept |= {(name, k): layers for k, layers in kept.items()}


def beside(partners: Sequence[int | None], taken: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The other run's activation (other seq, ...) beside one's own (seq, ...), which stays where it has no partner."""
    here = [p for p, other in enumerate(partners) if other is not None]
    placed = own.clone()
    placed[here] = taken[[partners[p] for p in here]].to(own)
    return placed


def _tail(base: RecordedRun) -> torch.Tensor:
    return base.logits[None] if base.tail is None else base.tail
