"""Activation patching: which activations carry the answer?

Put one activation of a source run into a base run and see how far the metric moves (Vig et al. 2020; Meng et al. 2022;
Wang et al. 2022). *Denoise* puts clean into corrupt: what is sufficient for the answer. *Noise* puts corrupt into
clean: what is necessary for it.

`PatchJob` does the work in chunks of cells, so that results can be watched, stopped and kept; `patch` runs one to
completion. The engine is `engine.wavefront`; if an architecture cannot be restarted midway, or the fast path disagrees
with full forward passes on a few cells (checked once per model and site), every cell gets a full forward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from labkit.activations.hooks import hooked
from labkit.activations.metrics import Metric
from labkit.activations.site_kinds import PATCHED
from labkit.activations.sites import checked
from labkit.activations.unembedding import measured_end
from labkit.elsewhere import is_elsewhere, steps_of, where_the_model_is
from labkit.engine.batching import chunked, give_back, in_chunks, is_out_of_memory, tokens_at_once
from labkit.engine.block_loop import Ways, ways
from labkit.engine.cells import Cell, at_cell, by_unit, layers_of, put_whole
from labkit.engine.recorded_run import Unsupported
from labkit.engine.wavefront import Cancelled, Lane, Wavefront
from labkit.language_model import LanguageModel
from labkit.models.devices import Copies
from labkit.models.handle import PerModel
from labkit.patching.answers import on_lane
from labkit.patching.axes import axes_of
from labkit.patching.grid import PatchGrid
from labkit.patching.pair_runs import ENDS, PairRuns, engine_kind
from labkit.patching.spec import PatchSpec, asks
from labkit.results.job import finish
from labkit.text.warn import warn

CHECKED: PerModel[set[str]] = PerModel(set)
"""For each model the sites whose fast path was checked against full forward passes."""


@asks(PatchSpec)
def patch(lm: LanguageModel, spec: PatchSpec) -> PatchGrid:
    """Patch a site everywhere, one cell at a time, and measure the metric after each.

    Args:
        clean, corrupt, answer, foil, metric, at, progress: as `PairSpec` has them: the two prompts, the tokens they
            call for, the metric, and where it is read.
        site, method, direction, over, layers, heads, neurons, positions, source, alignment, by, window: as `PatchSpec`
            has them: what is patched, how, over which axes, from which model, along which alignment, with what, and how
            many layers at once.

    Returns:
        A `PatchGrid`; cells without a partner are NaN, and after an interrupt those not computed. Warns if clean and
            corrupt hardly differ.

    Raises:
        ValueError: invalid input, before the model has run.
    """
    job = PatchJob(lm, spec)
    finish(job, f"patching {spec.site}", unit="cell", kept="grid", progress=spec.progress)
    grid = job.grid.warned()
    del job  # and all that it kept of the two runs
    lm.fast.tidy()
    return grid


class PatchJob:
    """Patching that can be watched and stopped.

    `for _ in job.steps(): ...` does the work in the calling thread; after each step `job.grid.values` has more cells.
    `job.cancel()`, from any thread, ends it soon; what is done is kept, and `steps()` resumes there.

    Args:
        asked: a `PatchSpec`, or the arguments of `patch`.
        runs: the two runs of the same prompts, from another job's `runs`, to reuse them.

    Attributes:
        spec: what was asked.
        grid: the `PatchGrid` so far.
        total, done: how many cells there are, and how many have their value.
        engine: `wavefront` or `whole runs`.
        runs: the two unpatched runs, and the gradient estimates.
    """

    def __init__(self, lm: LanguageModel, *asked: Any, runs: PairRuns | None = None, **how: Any) -> None:
        spec: PatchSpec = asked[0] if asked and isinstance(asked[0], PatchSpec) else PatchSpec(*asked, **how)
        self.lm, self.spec, self.method, self.direction = lm, spec, spec.method, spec.direction
        self.site = checked(lm, spec.site).kind
        if spec.source is not None:
            checked(spec.source, spec.site)
        if self.site not in PATCHED:
            raise ValueError(f"{self.site} cannot be patched as a grid; use one of {', '.join(PATCHED)}")
        self.pair = pair = spec.prepared(lm)
        self.answer, self.foil = pair.answer, pair.foil
        base = ENDS[spec.direction][1]
        self.at = pair.ids[base].shape[1] - 1
        self.runs = pair.runs()
        if runs is not None:
            if not runs.same(self.runs):
                raise ValueError("`runs` belongs to another model or to other prompts; leave it out")
            self.runs = runs
        self.base = self.runs.models[base]  # the model that is patched
        if pair.kind is not None and not pair.kind.has_gradient and spec.method == "attribution":
            raise ValueError(f"{pair.kind.label} has no gradient, so it cannot be estimated; use method='exact'")
        axes = axes_of(
            lm, self.site, spec.over, length=self.at + 1,
            layers=spec.layers, heads=spec.heads, neurons=spec.neurons, positions=spec.positions,
        )  # fmt: skip
        self.cells = axes.cells()
        self.engine = "wavefront"
        self._stop = threading.Event()
        self._metric: Metric | None = None  # set when the unpatched runs are there
        self._wavefront: Wavefront | None = None
        self._plan: list[list[int]] | None = None
        self._taken: np.ndarray | None = None
        self.grid = PatchGrid(
            np.full([len(numbers) for numbers in axes.index], np.nan, np.float32),
            axes.over,
            axes.index,
            float("nan"),
            float("nan"),
            *pair.tokens,
            pair.recipe(
                site=self.site, direction=spec.direction, method=spec.method, layer=axes.layer,
                usual_over=axes.usual, sizes=axes.sizes,
            ),
        )  # fmt: skip
        self._open = ~self.grid.unpaired.reshape(-1)  # cells that get a value
        self.total = int(self._open.sum())

    @property
    def done(self) -> int:
        return int((~np.isnan(self.grid.values)).sum())

    @property
    def one_lane(self) -> bool:
        """Is each cell one row at one layer, so that several pairs can go up the blocks together?"""
        return self.runs.lanes[0] is self.runs and self.spec.window == 1

    def go_on(self) -> None:
        """Withdraw a request to end; `steps` does so when it ends."""
        self._stop.clear()

    @property
    def cancelled(self) -> bool:
        """Has the job been asked to end, and not resumed since?"""
        return self._stop.is_set()

    def cancel(self) -> None:
        """Ask the job to end, which it does before the next block of the model."""
        self._stop.set()

    def take(self, values: np.ndarray) -> None:
        """Take over known cells, in the grid's shape, NaN where unknown; they are not computed again."""
        if values.shape != self.grid.values.shape:
            raise ValueError(f"the grid is {self.grid.values.shape}; the values are {values.shape}")
        self._taken = values

    def steps(self) -> Iterator[int]:
        """Do the work; yields how many cells are done after every chunk. Resumes where an earlier call ended."""
        try:
            yield from self._work()
        finally:
            self.go_on()

    @property
    def estimates(self) -> np.ndarray:
        """The gradient estimate of every cell, in the metric's unit and the grid's shape, float32.

        Computed when first asked for: one forward and one backward pass.

        Raises:
            ValueError: the metric has no gradient.
        """
        return self._take_over(self._estimates())

    @where_the_model_is(small=True)
    def _estimates(self) -> dict[str, Any]:
        self._prepare()
        values = np.where(self._open, self.grid.unpatched + self._estimated(), np.nan).astype(np.float32)
        return self._found() | {"values": values.reshape(self.grid.values.shape)}

    def _work(self) -> Iterator[int]:
        if is_elsewhere(self.lm):
            yield from self._work_there()
            return
        self._prepare()
        if self.method == "attribution":
            yield self.done
            missing = self.waiting()
            self.grid.values.reshape(-1)[missing] = self.estimates.reshape(-1)[missing]
            yield self.done
            return
        if not self.ready():
            return
        yield self.done
        if self._plan is None:  # once: cells that go up together always do, so that each gets the same last digit
            self._plan = self._chunks(tokens_at_once(self.base))
        flat = self.grid.values.reshape(-1)
        if self._taken is not None:
            flat[:] = np.where(np.isnan(flat), self._taken.reshape(-1), flat)
            yield self.done
        chunks = [chunk for chunk in self._plan if np.isnan(flat[chunk]).any()]
        work = lambda chunk: self._values([self.cells[i] for i in chunk])  # noqa: E731
        for chunk, values in in_chunks(chunks, work, stopped=self._stop.is_set):
            self.grid.values.reshape(-1)[chunk] = values
            yield self.done

    def _work_there(self) -> Iterator[int]:
        values = self.grid.values
        known = values if self._taken is None else np.where(np.isnan(values), self._taken, values)
        if not self._stop.is_set():
            for found in steps_of(lambda each: self._computed(known, stop=self._stop, each=each), self._stop):
                values[...] = self._take_over(found)
                yield self.done

    @where_the_model_is(streams="each")
    def _computed(
        self,
        known: np.ndarray,
        *,
        stop: threading.Event | None = None,
        each: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """All the work where the model is, until `stop`; `each` gets what there is on the way."""
        self.take(known)
        self._stop = stop or self._stop
        for _ in self._work():  # not `steps`, which takes back the request to end
            if each is not None:
                each(self._found())
        return self._found()

    def _found(self) -> dict[str, Any]:
        """What has been computed, to be taken over elsewhere."""
        grid = self.grid
        measured = {name: grid.recipe[name] for name in ("unit", "noise", "least_gap") if name in grid.recipe}
        return {"values": grid.values.copy(), "clean": grid.clean, "corrupt": grid.corrupt, "recipe": measured}

    def _take_over(self, found: Mapping[str, Any]) -> np.ndarray:
        """The values of what was `_found`; what it says of the two runs goes into the grid."""
        self.grid.clean, self.grid.corrupt = found["clean"], found["corrupt"]
        self.grid.recipe |= found["recipe"]
        values: np.ndarray = found["values"]
        return values

    def _prepare(self) -> None:
        """The metric on the two unpatched runs, and the cells that need no run."""
        if self._metric is not None:
            return
        base, kind = ENDS[self.direction][1], engine_kind(self.site)
        # activations first: the run that they are read in has the logits as well
        taken = [(lane.put_in(self.direction, kind), lane.activations(base, kind)) for lane in self.runs.lanes]
        logits = {name: self.runs.logits(name) for name in ("clean", "corrupt")}
        metric = self.pair.metric(logits["clean"][0])
        self.grid.clean, self.grid.corrupt = (float(metric.of(rows)[0]) for rows in logits.values())
        if (perturbation := self.spec.perturbation) is not None and not perturbation.compared:
            self.grid.corrupt = float("nan")  # nothing was run but the clean prompt
        self.grid.measured_in(metric.unit, self.runs.noise(metric))
        flat, first = self.grid.values.reshape(-1), self.runs.first(self.direction)
        copies, differ = Copies(), []
        for activations, own in taken:
            for layer in {layer for cell in self.cells for layer in self._layers(cell) if layer in own}:
                here = by_unit(own[layer] != activations[layer], kind).any(-1)[: self.at + 1]
                differ.append((layer, copies.of(here)))
        copies.done()
        moved: dict[int, np.ndarray] = {}
        for layer, array in differ:
            moved[layer] = moved[layer] | array if layer in moved else array
        for i, cell in enumerate(self.cells):
            # nothing before the first difference can have an effect, and neither can putting in what is there
            before = first > self.at or (cell.position is not None and cell.position < first)
            layers = [layer for layer in self._layers(cell) if layer in moved]
            if self._open[i] and (before or not any(at_cell(moved[layer], cell).any() for layer in layers)):
                flat[i] = self.grid.unpatched
        self._metric = metric

    def ready(self) -> bool:
        """Prepare exact patching; False if the job was cancelled meanwhile (it is prepared when it resumes)."""
        self._prepare()
        if self._wavefront is None and self.engine == "wavefront":
            try:
                for lane in self.runs.lanes:
                    lane.readout(ENDS[self.direction][1])
                self._wavefront = Wavefront(self.lanes(), site=engine_kind(self.site), window=self.spec.window)
            except Unsupported as why:
                self._fall_back(str(why))
        if self._wavefront is not None:
            try:
                self._check_engine()
            except Cancelled:
                return False
        return True

    def lanes(self) -> list[Lane]:
        """The runs that this job patches into, for the engine: one, or one for each continuation of the prompt.

        Raises:
            Unsupported: they cannot be restarted.
        """
        base, kind = ENDS[self.direction][1], engine_kind(self.site)
        return [
            Lane(one.base(base), one.put_in(self.direction, kind), one.first(self.direction), one.reads)
            for one in self.runs.lanes
        ]

    def waiting(self) -> list[int]:
        """The numbers of the cells that have no value yet."""
        return (np.isnan(self.grid.values.reshape(-1)) & self._open).nonzero()[0].tolist()

    def _chunks(self, budget: int) -> list[list[int]]:
        """The open cells in chunks of about `budget` tokens, those with the largest estimated effects first."""
        waiting = self.waiting()
        fast = self._wavefront
        lanes = [] if fast is None else fast.lanes
        length = {i: sum(one.base.length - one.start_of(self.cells[i]) for one in lanes) or 1 for i in waiting}
        importance = dict.fromkeys(waiting, 0.0)
        if fast is not None and sum(length.values()) > 2 * budget:  # a grid of one or two chunks is there at once
            # Rows of one start share their prefix, so a position's cells stay together and go by its largest.
            by_start: dict[int | None, float] = {}
            for i, value in zip(waiting, self._importance(waiting), strict=True):
                importance[i] = value
                start = self.cells[i].position
                by_start[start] = max(by_start.get(start, 0.0), value)
            for i in waiting:
                if self.cells[i].position is not None:
                    importance[i] = by_start[self.cells[i].position]
        waiting.sort(key=lambda i: (-importance[i], self.cells[i].position or 0, self.cells[i].layer))
        return chunked(waiting, length.__getitem__, budget=budget)

    def _importance(self, cells: list[int]) -> list[float]:
        """The estimated effect of each cell; 0 for a metric without a gradient, or without memory for it."""
        try:
            return np.abs(self._estimated()[cells]).tolist()
        except ValueError:
            return [0.0] * len(cells)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        give_back()
        return [0.0] * len(cells)

    def _estimated(self) -> np.ndarray:
        """The gradient estimate of each cell's effect, float32 (cells,)."""
        assert self._metric is not None
        kind = engine_kind(self.site)
        total = np.zeros(len(self.cells), np.float32)
        known = self.runs.logits(ENDS[self.direction][1])
        for n, lane in enumerate(self.runs.lanes):
            effects = lane.effects(kind, direction=self.direction, metric=on_lane(self._metric, n, known))
            tables = {layer: effect.numpy() for layer, effect in effects.items()}  # (position, unit)
            for i, cell in enumerate(self.cells):
                some = [tables[layer] for layer in self._layers(cell) if layer in tables]
                total[i] += sum(at_cell(table, cell).sum() for table in some)
        return total

    def _values(self, cells: list[Cell]) -> np.ndarray:
        """The metric of each patched run, float32 (len(cells),)."""
        assert self._metric is not None
        if self._wavefront is None:
            return np.array([self._whole(cell) for cell in cells], np.float32)
        rows = [replace(cell, lane=n) for cell in cells for n in range(len(self.runs.lanes))]
        return self.read(self._wavefront(rows, cancelled=self._stop.is_set))

    def read(self, x: torch.Tensor) -> np.ndarray:
        """The metric (rows,), float32, of last residual streams (rows * reads, d_model)."""
        assert self._metric is not None
        metric, readout = self._metric, self.runs.lanes[0].readout(ENDS[self.direction][1])
        reads = sum(metric.reads)
        rows = reads * max(1, (64 << 20) // (4 * self.base.n_vocab * reads))  # logits of at most 64 MB at once
        with self.base.busy():
            logits = (self._at_home(readout(part, metric.columns)) for part in x.split(rows))
            return torch.cat([metric(some) for some in logits]).cpu().numpy()

    def _at_home(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits where the clean run's are, which a metric may compare them with."""
        return logits if self.runs.one_model else logits.to(self.lm.device)

    def _whole(self, cell: Cell) -> float:
        """One cell by the naive path: a full forward pass of the base run with the source's activation written."""
        if self._stop.is_set():
            raise Cancelled
        assert self._metric is not None
        kind, base = engine_kind(self.site), ENDS[self.direction][1]
        found = []
        for lane in self.runs.lanes:
            source = lane.put_in(self.direction, kind)
            layers = [layer for layer in self._layers(cell) if layer in source]
            taken = {(kind, layer): put_whole(source[layer], kind, cell) for layer in layers}
            with self.base.busy(), hooked(self.base, set(), {**lane.edits(base), **taken}):
                found.append(measured_end(self.base, lane.ids[base], lane.reads, self._metric.columns)[0])
        return float(self._metric(self._at_home(torch.cat(found)))[0])

    def _layers(self, cell: Cell) -> range:
        """The layers that a cell patches."""
        return layers_of(cell, self.spec.window, self.base.n_layers)

    def _check_engine(self) -> None:
        """On the first grid of a site in this model, check a few cells against the naive path."""
        name = self.site if ways() == Ways() else f"{self.site}, {ways()}"
        if name in CHECKED[self.base] or not (waiting := self.waiting()):
            return
        some = [self.cells[i] for i in (waiting[0], waiting[len(waiting) // 2])]
        fast, whole = self._values(some), np.array([self._whole(cell) for cell in some])
        scale = max(1.0, abs(self.grid.clean), abs(self.grid.corrupt))
        tolerance = scale * (1e-3 if self.base.dtype == torch.float32 else 0.1)
        if not np.all(np.abs(fast - whole) <= tolerance):
            self._fall_back(f"fast patching gave {fast.tolist()} where whole runs gave {whole.tolist()}")
        else:
            CHECKED[self.base].add(name)

    def _fall_back(self, why: str) -> None:
        self.engine, self._wavefront = "whole runs", None
        warn(f"patching {self.site} with one full forward pass per cell, which is slow: {why}")
