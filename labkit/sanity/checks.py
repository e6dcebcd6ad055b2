"""Sanity checks that a patching grid should pass before it is believed.

A grid shows that some cell moves the answer. That need not mean what it seems to: any disturbance moves a logit
difference towards zero, an engine can be wrong, an estimate can miss, and one pair is one example. Each check answers
one of these doubts with a number and a sentence, most of them for the strongest cells.

All shares are on a scale from the patched run (0) to the run that the activation comes from (1).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from labkit.activations.hooks import Edit, Place, hooked
from labkit.activations.run import run, run_to_measure
from labkit.activations.site_kinds import BY_QUERY
from labkit.activations.sites import Site, absent
from labkit.activations.unembedding import measured_end
from labkit.datasets.words import PLAIN
from labkit.elsewhere import where_the_model_is
from labkit.engine.cells import Cell, put_whole
from labkit.engine.wavefront import Cancelled
from labkit.language_model import LanguageModel
from labkit.patching.grid import PatchGrid
from labkit.patching.pair_runs import ENDS, beside
from labkit.patching.patch import PatchJob
from labkit.patching.spec import PatchSpec, asks, given
from labkit.results.bootstrap import rank_correlation
from labkit.results.job import finish
from labkit.sanity.report import Check, Controls
from labkit.sweeps.result import Sweep, layout_of

Edits = dict[Place, Edit]
UNEQUAL = "Not done: it takes prompts that are paired position by position."
NOTHING = "Nothing to explain: clean and corrupt hardly differ."


@dataclass(frozen=True, kw_only=True)
class ControlsSpec(PatchSpec):
    """The checks of a grid.

    Attributes:
        pairs: more pairs of the same kind, such as `lk.task("indirect object").pairs(lm, n=50)`: they show whether this
            pair is typical, and provide unrelated prompts.
        grid: the exact grid, if there already is one; otherwise it is computed.
        cells: how many of its strongest cells to look at.
        n: how many random positions and prompts to try with each.
        seed: of the random choices.
    """

    pairs: Sequence[Sequence[Any]] = ()
    grid: PatchGrid | None = None
    cells: int = 3
    n: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells < 1 or self.n < 1:
            raise ValueError(f"cells and n must be at least 1; got cells={self.cells}, n={self.n}")


@where_the_model_is
@asks(ControlsSpec)
def controls(lm: LanguageModel, spec: ControlsSpec) -> Controls:
    """Run the standard controls on a grid: would it look the same if there were nothing to find?

    Args:
        clean, corrupt, answer, foil, site, metric, direction and so on: as for `lk.patch`.
        pairs, grid, cells, n, seed: as `ControlsSpec` has them: more pairs of the same kind, an existing grid, how many
            cells and random choices to try, and the seed.

    Returns:
        A `Controls`; after an interrupt, with the checks made so far.

    Raises:
        ValueError: anything that `lk.patch` refuses; two equal prompts; a grid of another pair.
    """
    job = ControlsJob(lm, spec)
    finish(job, "sanity checks", unit="check", kept="result", progress=spec.progress)
    job.result.grid.warned()
    return job.result


class ControlsJob:
    """The checks one after the other, so that they can be watched and stopped.

    `for check in job.steps(): ...` does the work in the calling thread and yields each `Check` as it is made;
    `job.cancel()`, from any thread, ends it soon. `job.result` has the checks made so far.
    """

    names = (
        "whole runs", "identical prompts", "everything patched", "random positions", "random prompts",
        "ablation", "estimate", "many pairs",
    )  # fmt: skip
    total = len(names)

    def __init__(self, lm: LanguageModel, *asked: Any, **how: Any) -> None:
        spec: ControlsSpec = asked[0] if asked and isinstance(asked[0], ControlsSpec) else ControlsSpec(*asked, **how)
        grid = spec.grid
        if spec.source is not None or (grid is not None and "source" in grid.recipe):
            raise ValueError(
                "the controls are for a grid between two prompts; between two models, compare it with the grid in the "
                "other direction, and see `grid.noise`"
            )
        if spec.perturbation is not None or (grid is not None and "by" in grid.recipe):
            raise ValueError("the controls are for a grid between two prompts; a grid with by= has none")
        at = spec.at if grid is None else grid.recipe["at"]
        self.spec = PatchSpec(**given(spec, PatchSpec) | {"at": at})
        if grid is not None:
            self.spec = replace(self.spec, **_axes(grid, grid.index))
        self.lm = lm
        self._exact = PatchJob(lm, self.spec)
        if grid is not None:
            ours, theirs = self._exact.grid.recipe, grid.recipe
            for name in ("clean_ids", "corrupt_ids", "site", "direction", "metric"):
                if ours[name] != theirs[name]:
                    raise ValueError(
                        f"the grid is for something else: its {name} is {theirs[name]!r}, not {ours[name]!r}"
                    )
            if not grid.complete or theirs["method"] != "exact":
                raise ValueError("the grid has to be exact and complete; leave it out to have it computed")
            self._exact.grid = grid
        self.site = self._exact.site
        self.pairs = [tuple(pair) for pair in spec.pairs]
        self.cells, self.n = spec.cells, spec.n
        self._random = np.random.default_rng(spec.seed)
        self._stop = threading.Event()
        self._inner: PatchJob | None = None
        self.result = Controls(self._exact.grid, [], [])

    @property
    def done(self) -> int:
        return len(self.result.checks)

    def cancel(self) -> None:
        """Ask the job to end; the current check is left out."""
        self._stop.set()
        if (inner := self._inner) is not None:
            inner.cancel()

    def steps(self) -> Iterator[Check]:
        """Make the checks; yields each as it is made. Restarts if an earlier call was cancelled."""
        try:
            self._begin()
            checks: list[Check] = []
            makers = (
                self._whole_runs, self._identical, self._everything, self._random_positions, self._random_prompts,
                self._ablation, self._estimate, self._many_pairs,
            )  # fmt: skip
            for name, check in zip(self.names, makers, strict=True):
                checks.append(Check(name, None, NOTHING) if self.grid.too_close else check(name))
                self.result = Controls(self.grid, self._top, list(checks))
                yield checks[-1]
        except Cancelled:
            pass
        finally:
            self._stop.clear()

    def _begin(self) -> None:
        self.grid = self._finished(self._exact)
        source, base = ENDS[self.spec.direction]
        self._ids, self._forced = self._exact.runs.ids, self._exact.runs.forced or ((),)
        self._source, self._base = self._ids[source], self._ids[base]
        self._from, self._to = getattr(self.grid, base), getattr(self.grid, source)
        if torch.equal(self._source, self._base):
            raise ValueError("clean and corrupt are the same prompt, so the metric does not differ")
        self._metric = self._exact.pair.metric(run_to_measure(self.lm, self._ids["clean"]).logits[0, -1])
        self.grid.measured_in(self._metric.unit, self._exact.runs.noise(self._metric))
        self._top: list[dict[str, int]] = []
        if self.grid.too_close:  # each check says that there is nothing to explain
            return
        self._shares = self._share(self.grid.values)
        self._places = self._strongest()
        fixed = {} if (layer := self.grid.recipe["layer"]) is None else {"layer": layer}
        numbers = [[self.grid.index[k][n] for k, n in enumerate(place)] for place in self._places]
        self._top = [{**fixed, **dict(zip(self.grid.over, cell, strict=True))} for cell in numbers]
        flat = [int(np.ravel_multi_index(place, self._shares.shape)) for place in self._places]
        self._cells = [self._exact.cells[i] for i in flat]
        self._noise = 1e-3 if self.lm.dtype == torch.float32 else 0.06
        pool = [pair[side] for pair in self.pairs for side in (0, 1)]
        self._pool = [ids for ids in map(self.lm.encode, pool) if ids.shape == self._base.shape]

    def _job(self, *pair: Any, **other: Any) -> PatchJob:
        """A grid like ours, of another pair."""
        prompts = dict(zip(("clean", "corrupt", "answer", "foil"), (*pair, None, None), strict=False))
        return PatchJob(self.lm, replace(self.spec, **prompts, **other))

    def _strongest(self) -> list[tuple[int, ...]]:
        """The strongest cells, one per position: neighbouring layers of a residual stream are nearly equal."""
        size = np.abs(self._shares)
        places: list[tuple[int, ...]] = []
        for i in np.argsort(-size, axis=None, kind="stable"):
            place = tuple(map(int, np.unravel_index(i, size.shape)))
            if self.grid.over[-1] != "position" or place[-1] not in {other[-1] for other in places}:
                places.append(place)
            if len(places) == self.cells:
                break
        return places

    def _finished(self, job: PatchJob) -> PatchGrid:
        """A grid, computed to its end."""
        self._inner = job
        try:
            if not job.grid.complete:
                self._go_on()
                for _ in job.steps():
                    self._go_on()
        finally:
            self._inner = None
        if not job.grid.complete:
            raise Cancelled
        return job.grid

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise Cancelled

    def _share(self, values: Any) -> Any:
        return (values - self._from) / (self._to - self._from)

    def _lanes(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """A prompt (1, seq) with each continuation that is forced after it; itself where there is none."""
        return [torch.cat([ids, ids.new_tensor([forced], dtype=ids.dtype)], 1) for forced in self._forced]

    def _value(self, writes: list[Edits], *, base: torch.Tensor | None = None) -> float:
        """The metric after a whole run with something written, in each lane."""
        found = []
        lanes = zip(self._lanes(self._base if base is None else base), self._forced, writes, strict=True)
        for ids, forced, edits in lanes:
            self._go_on()
            with self.lm.busy(), hooked(self.lm, set(), edits):
                found.append(measured_end(self.lm, ids, len(forced) + 1)[0])
        return float(self._metric.of(torch.cat(found))[0])

    def _read(self, ids: torch.Tensor, cell: Cell) -> list[torch.Tensor]:
        """The activation of a cell's layer in each lane, whole: (seq, ...), of patterns (head, seq, seq)."""
        self._go_on()
        site = Site(self.site, cell.layer)
        return [run(self.lm, lane, read=[site])[site][0] for lane in self._lanes(ids)]

    def _given(self, cell: Cell) -> list[torch.Tensor]:
        """The source's activation, at the positions of the patched prompt."""
        taken, base = self._read(self._source, cell), ENDS[self.spec.direction][1]
        if self._exact.runs.partners is None:
            return taken
        lanes = zip(self._exact.runs.lanes, taken, self._read(self._base, cell), strict=True)
        return [beside(lane.partners[base], x, own) for lane, x, own in lanes if lane.partners is not None]

    def _put(self, activations: list[torch.Tensor], cell: Cell) -> list[Edits]:
        """What writes the cell's part of an activation, and no more, in each lane."""
        return [{(self.site, cell.layer): put_whole(x, self.site, cell)} for x in activations]

    def _moved(self, activations: list[torch.Tensor], cell: Cell) -> float:
        """How far the metric goes when a cell is taken from this activation."""
        return float(self._share(self._value(self._put(activations, cell))))

    def _unrelated(self) -> Iterator[torch.Tensor]:
        """Unrelated prompts of this length, (1, seq), without end."""
        length = self._base.shape[1]
        plain = self.lm.encode(" ".join([PLAIN] * (1 + length // 80)))[0]
        bos = self.lm.tokenizer.bos_token_id
        while True:
            if len(self._pool) > 1:
                yield self._pool[self._random.integers(len(self._pool))]
                continue
            start = int(self._random.integers(1, max(2, len(plain) - length)))
            ids = plain[start : start + length].clone()
            if bos is not None and int(self._base[0, 0]) == bos:
                ids[0] = bos
            yield ids[None]

    def _whole_runs(self, name: str) -> Check:
        whole = [self._moved(self._given(cell), cell) for cell in self._cells]
        off = max(abs(float(self._shares[place]) - share) for place, share in zip(self._places, whole, strict=True))
        said = f"The {len(whole)} strongest cells, each run in full, differ from the grid by at most {off:.3f}."
        return Check(name, off <= self._noise, said, {"largest difference": off})

    def _identical(self, name: str) -> Check:
        one = self._exact.pair.several is None
        words = (self._exact.answer, self._exact.foil) if one else (self.spec.answer, self.spec.foil)
        grid = self._finished(self._job(self._base, self._base, *words, at=-1, alignment=None))
        moved = float(np.abs(grid.values - grid.corrupt).max())
        back = max(abs(self._moved(self._read(self._base, cell), cell)) for cell in self._cells)
        cells = int((grid.values != grid.corrupt).sum())
        said = (
            f"With identical prompts {cells} cells have an effect; the strongest cells' own activations, written back, "
            f"move the metric by {back:.3f} of the way."
        )
        return Check(name, moved == 0 and back <= self._noise, said, {"cells": cells, "written back": back})

    def _everything(self, name: str) -> Check:
        if (why := absent(self.lm, "resid_pre")) is not None:
            return Check(name, None, f"Not done: {why}", {})
        if self._exact.runs.partners is not None:
            return Check(name, None, UNEQUAL, {})
        site = Site("resid_pre", 0)
        self._go_on()
        taken = [run(self.lm, ids, read=[site])[site] for ids in self._lanes(self._source)]
        share = float(self._share(self._value([{("resid_pre", 0): lambda _, x=x: x} for x in taken])))  # type: ignore[misc]
        said = f"Everything patched at once, before the first layer, gives {share:.3f}; it should give 1."
        return Check(name, abs(share - 1) <= self._noise, said, {"share": share})

    def _random_positions(self, name: str) -> Check:
        if self.site in BY_QUERY:
            return Check(name, None, f"Not done: {self.site} is tied to its positions.", {})
        length, found = self._base.shape[1], []
        for cell in self._cells:
            right, shares = self._given(cell), []
            for _ in range(self.n):
                if cell.position is None:
                    order = torch.from_numpy(self._random.permutation(length)).to(right[0].device)
                    other = [torch.cat([x[:length][order], x[length:]]) for x in right]
                else:  # the first token's activation is unlike all others (Sun et al. 2024): not a fair control
                    place = int(self._random.choice([p for p in range(1, length) if p != cell.position]))
                    other = [x[place, None].expand_as(x) for x in right]
                shares.append(self._moved(other, cell))
            found.append(shares)
        by_position = self._cells[0].position is not None
        return self._against(name, found, "from a random position" if by_position else "in random order")

    def _random_prompts(self, name: str) -> Check:
        prompts = self._unrelated()
        found = [[self._moved(self._read(next(prompts), cell), cell) for _ in range(self.n)] for cell in self._cells]
        return self._against(name, found, "from a random prompt")

    def _against(self, name: str, found: list[list[float]], what: str) -> Check:
        """The strongest cell's effect compared with other activations in its place."""
        real = float(self._shares[self._places[0]])
        others = np.array(found[0])
        mean, most = float(others.mean()), float(others[np.argmax(np.abs(others))])
        ok = abs(real) > abs(most) and abs(mean) <= 0.67 * abs(real)
        said = f"{real:.2f} with the right activation; {mean:.2f} on average, {most:.2f} at most, with one {what}."
        if not ok:
            said += " Others do nearly as well: the effect may come from removing what was there."
        elif mean >= 0.25 * real > 0:
            said += f" So about {mean:.2f} comes from removing what was there, the rest from what was put in."
        return Check(name, ok, said, {"right": [float(self._shares[place]) for place in self._places], "random": found})

    def _ablation(self, name: str) -> Check:
        """What the clean run loses of its answer, by three ways of ablating a cell."""
        clean, corrupt = self._ids["clean"], self._ids["corrupt"]
        if self._exact.runs.partners is not None:
            return Check(name, None, UNEQUAL, {})
        rows: dict[str, list[float]] = {"patch": [], "mean": [], "resample": []}
        prompts = self._unrelated()
        for cell in self._cells:
            others = [self._read(next(prompts), cell) for _ in range(self.n)]
            mean = [torch.stack(lane).mean(0) for lane in zip(*others, strict=True)]
            ways = {"patch": [self._read(corrupt, cell)], "mean": [mean], "resample": others}
            for way, tried in ways.items():
                values = [self._value(self._put(activation, cell), base=clean) for activation in tried]
                lost = (self.grid.clean - np.mean(values)) / (self.grid.clean - self.grid.corrupt)
                rows[way].append(float(lost))
        patch, average, other = (shares[0] for shares in rows.values())
        agree = min(average, other) >= 0.5 * patch if patch >= 0.2 else max(average, other) < 0.5
        said = (
            f"Replacing the strongest cell in the clean run costs {patch:.2f} of the answer with the corrupt "
            f"activation, {average:.2f} with the mean of others, {other:.2f} with one of them."
        )
        said += "" if agree else " They disagree on whether the cell is needed."
        return Check(name, agree, said, rows)

    def _estimate(self, name: str) -> Check:
        rough = self._finished(PatchJob(self.lm, replace(self.spec, method="attribution"), runs=self._exact.runs))
        exact, guess = self._shares.ravel(), self._share(rough.values).ravel()
        felt = ((exact != 0) | (guess != 0)) & np.isfinite(exact)
        rho = rank_correlation(exact[felt], guess[felt])
        k = min(10, len(exact))
        top = [set(np.argsort(-np.abs(values), kind="stable")[:k].tolist()) for values in (exact, guess)]
        missed = []
        for i in sorted(top[0] - top[1], key=lambda i: -abs(exact[i])):
            place = np.unravel_index(i, self.grid.values.shape)
            cell = {axis: self.grid.index[a][int(place[a])] for a, axis in enumerate(self.grid.over)}
            missed.append({**cell, "exact": float(exact[i]), "estimate": float(guess[i])})
        said = f"The gradient estimate ranks cells much as the exact grid does: rank correlation {rho:.2f}."
        if not (ok := rho >= 0.7):
            said = f"The gradient estimate is a poor guide here: rank correlation {rho:.2f}."
        said += f" It has {k - len(missed)} of the {k} strongest cells among its own {k}."
        return Check(name, ok, said, {"rho": rho, "missed": missed, "exact": exact[felt], "estimate": guess[felt]})

    def _many_pairs(self, name: str) -> Check:
        if len(self.pairs) < 2:
            said = "Not done: give pairs of the same kind, such as pairs=lk.task('indirect object').pairs(lm, n=50)."
            return Check(name, None, said, {})
        cell, here = self._top[0], layout_of(self.grid)
        only = _axes(self.grid, [[cell[axis]] for axis in self.grid.over])
        grids: list[PatchGrid | None] = []
        for pair in self.pairs:
            job = self._job(*pair, **only)
            alike = "position" not in self.grid.over or layout_of(job.grid) == here
            grids.append(self._finished(job) if alike else None)
        swept = Sweep(self.pairs, grids, {})
        if len(swept.done) - len(swept.too_close) < 2:
            return Check(name, None, "Not done: fewer than two pairs have this pair's layout and a gap to explain.", {})
        noise = self.spec.direction == "noise"
        away = lambda x: 1 - float(x.ravel()[0]) if noise else float(x.ravel()[0])  # noqa: E731
        mean, (low, high) = away(swept.normalized), sorted(map(away, swept.interval()))
        shares = [away(grid.normalized) for grid in swept.done if not grid.too_close]
        real = float(self._shares[self._places[0]])
        ok = low > 0 or high < 0
        said = f"Over {len(shares)} pairs the strongest cell has {mean:.2f} (95% interval {low:.2f} to {high:.2f})"
        said += f"; this pair has {real:.2f}." if ok else f", which may be zero; this pair has {real:.2f}."
        numbers = {"mean": mean, "low": low, "high": high, "shares": shares, "here": real}
        return Check(name, ok, said, numbers)


def _axes(grid: PatchGrid, index: Sequence[list[int]]) -> dict[str, Any]:
    """What makes `PatchJob` run over the axes of a grid, and over these numbers."""
    axes: dict[str, Any] = {f"{name}s": list(numbers) for name, numbers in zip(grid.over, index, strict=True)}
    if grid.recipe["layer"] is not None:
        axes["layers"] = [grid.recipe["layer"]]
    return {"over": grid.over, **axes}
