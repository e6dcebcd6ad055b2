"""Sweeps: the same patching over hundreds of pairs, on as many workers as there are, resumed where it stopped.

The pairs are split into shards. A shard is done here, by any `concurrent.futures.Executor`, or by the workers of a Dask
cluster, and its grids go to the store at once (`store`). A kernel or worker that dies loses only its current shards:
the same call resumes with the rest. A pair that fails is reported and the others continue.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from labkit.elsewhere import names_only
from labkit.language_model import LanguageModel
from labkit.patching.grid import PatchGrid
from labkit.patching.patch import PatchJob
from labkit.patching.spec import PAIR, PatchSpec, spelled
from labkit.results.job import finish
from labkit.results.recipe import versions
from labkit.shards.executors import Workers, shards_done, workers_of
from labkit.shards.store import in_shards
from labkit.shards.workers import ModelSource, Plan, load_code, plan_for, recipe_of
from labkit.sweeps.result import Sweep
from labkit.sweeps.store import Results, Store
from labkit.sweeps.workers import each, whole_shard
from labkit.text.prompts import as_json, asked, from_json
from labkit.text.warn import warn

if TYPE_CHECKING:
    from distributed import Client

Pairs = Sequence[Sequence[Any]]
"""Tuples (clean, corrupt, answer, foil), as `lk.task(...).pairs` makes them; without a foil or both where the metric
needs none."""


USUAL = {one.name: one.default for one in fields(PatchSpec) if one.name not in (*PAIR, "source", "by", "progress")}
"""What all pairs of a sweep share, with its defaults."""
LATER = ("alignment", "window")
"""Settings that older stores do not know: at their defaults they are not part of what identifies a sweep."""


@spelled(PatchSpec, but=(*PAIR, "source", "by"))
def sweep(
    lm: ModelSource,
    pairs: Pairs,
    *,
    executor: Executor | Client | None = None,
    store: str | os.PathLike[str] | None = None,
    shard: int | None = None,
    progress: bool = True,
    **how: Any,
) -> Sweep:
    """Patch the same site in many pairs, and average.

    Args:
        lm: the model; or, to load it only where the work is done, a name for `lk.load`, a dict of its arguments, or a
            function that returns a model.
        pairs: tuples `(clean, corrupt, answer, foil)`, such as `lk.task("indirect object").pairs(lm, n=200)`.
        how: `site`, `metric`, `direction`, `method`, `over`, `layers`, `heads`, `neurons`, `positions`, `at`,
            `alignment`, `window`, as for `lk.patch`.
        executor: what does the work. None: this thread. A `concurrent.futures.Executor`: its threads, which share this
            model, or its processes, which load their own. A `distributed.Client`: the workers of a Dask cluster, each
            of which loads the model once; on a machine with several GPUs, each takes one.
        store: a folder for what is done. The same call with the same folder resumes where the last one stopped.
        shard: how many pairs are computed and stored together; by default such that there are about 50 shards. An
            existing store keeps its size.
        progress: show a progress bar.

    Returns:
        A `Sweep`: every pair's grid, means, standard errors and bootstrap intervals. After an interrupt, or if pairs
            failed, it has what was computed, with a warning.

    Raises:
        ValueError: invalid input, before the model has run; a store that holds another sweep. An error that ends the
            sweep has the results so far in its attribute `sweep`.
    """
    settings: dict[str, Any] = {**USUAL, **how}
    names_only(lm, metric=settings["metric"])
    workers = workers_of(executor, lm)
    for name in ("layers", "heads", "neurons", "positions"):
        settings[name] = None if settings[name] is None else list(map(int, settings[name]))
    settings["over"] = None if settings["over"] is None else tuple(settings["over"])
    _check(lm, pairs, settings, shard)
    kept = [
        (*(asked(lm, prompt) if isinstance(lm, LanguageModel) else prompt for prompt in pair[:2]), *pair[2:])
        for pair in pairs
    ]
    plan = plan_for(lm, settings, call="sweep", threads=None if workers is None else workers.threads)
    size = shard or max(1, -(-len(kept) // 50))
    positions = settings["positions"]
    from_end = positions if positions and all(p < 0 for p in positions) else None  # the same in prompts of any length
    notes = {"load": load_code(lm, plan), "from_end": from_end, "versions": versions()}
    place = _Memory(kept, size)
    if store is not None:
        stored = [[as_json(part) for part in pair] for pair in kept]
        recipe = {k: v for k, v in recipe_of(plan).items() if k not in LATER or settings[k] != USUAL[k]}
        place = Store.begin(  # type: ignore[assignment]
            store, recipe=recipe, items=stored, shard=size, notes=notes
        )
    with place.locked():
        return _Work(plan, kept, place, notes).run(workers, progress=progress)


def open_sweep(folder: str | os.PathLike[str]) -> Sweep:
    """What a store holds so far; no model is needed, and a sweep that is still writing to it is not disturbed.

    Raises:
        FileNotFoundError: there is no sweep in that folder.
        ValueError: it cannot be read.
    """
    place = Store.open(folder)
    pairs = [tuple(from_json(part) for part in pair) for pair in place.pairs]
    results = {i: result for number in range(len(place.shards)) for i, result in place.read(number).items()}
    return _swept(pairs, results, place.notes)


class _Memory:
    """In the place of a store where none was asked for: nothing is kept beyond the call."""

    def __init__(self, pairs: Sequence[Any], size: int) -> None:
        self.shards = in_shards(len(pairs), size)

    def locked(self) -> Any:
        return nullcontext()

    def read(self, number: int) -> Results:
        return {}

    def write(self, number: int, results: Results) -> None:
        pass


class _Work:
    """One call of `sweep`: what is done, what is open, and the bar."""

    def __init__(self, plan: Plan, pairs: list[tuple[Any, ...]], place: Any, notes: dict[str, Any]) -> None:
        self.plan, self.pairs, self.place, self.notes = plan, pairs, place, notes
        self.total = len(pairs)
        self.results: Results = {}
        self.open: dict[int, list[tuple[int, tuple[Any, ...]]]] = {}  # of each shard, the pairs that have no grid
        for number, members in enumerate(place.shards):
            self.results |= place.read(number)
            if todo := [(i, pairs[i]) for i in members if not isinstance(self.results.get(i), PatchGrid)]:
                self.open[number] = todo
                for i, _ in todo:
                    self.results.pop(i, None)  # one that failed before is tried again

    def run(self, workers: Workers | None, *, progress: bool) -> Sweep:
        self.workers = workers
        finish(self, f"sweeping {self.plan.settings['site']}", unit="pair", kept="sweep", progress=progress)
        return self._told(self.sweep)

    @property
    def sweep(self) -> Sweep:
        """What there is by now."""
        return _swept(self.pairs, self.results, self.notes)

    @property
    def done(self) -> int:
        return len(self.results)

    def steps(self) -> Iterator[None]:
        """Do what is open; yields when there is more."""
        return self._here() if self.workers is None else self._there(self.workers)

    def _told(self, swept: Sweep) -> Sweep:
        """Report which pairs failed or show nothing; if all failed, raise the reason."""
        if swept.too_close:
            numbers = ", ".join(map(str, swept.too_close[:12])) + ", …" * (len(swept.too_close) > 12)
            warn(
                f"in {len(swept.too_close)} of {len(swept.done)} pairs clean and corrupt hardly differ in the metric: "
                f"there is nothing to explain in {numbers}. They are left out of the normalised mean"
            )
        if not swept.failures:
            return swept
        first = next(iter(swept.failures))
        said = (
            f"{len(swept.failures)} of {len(self.pairs)} pairs failed; the first, pair {first}: {swept.failures[first]}"
        )
        if not swept.done:
            error = RuntimeError(said)
            error.sweep = swept  # type: ignore[attr-defined]
            raise error
        warn(f"{said}. The others are in the sweep; `failures` has the reasons")
        return swept

    def _here(self) -> Iterator[None]:
        """In this thread, pair by pair: even within a shard nothing is lost to an interrupt."""
        for number, todo in self.open.items():
            for i, result in each(self.plan, todo):
                self.results[i] = result
                yield
            self._keep(number)

    def _there(self, workers: Workers) -> Iterator[None]:
        """By an executor, shard by shard. One that killed its workers is given up; any other error ends the sweep."""
        for number, found in shards_done(workers, whole_shard, self.plan, self.open):
            self.results |= {i: str(found) for i, _ in self.open[number]} if isinstance(found, Exception) else found
            self._keep(number)
            yield

    def _keep(self, number: int) -> None:
        self.place.write(number, {i: self.results[i] for i in self.place.shards[number]})


def _swept(pairs: list[tuple[Any, ...]], results: Results, notes: dict[str, Any]) -> Sweep:
    found = [results.get(i) for i in range(len(pairs))]
    grids = [result if isinstance(result, PatchGrid) else None for result in found]
    failures = {i: result for i, result in enumerate(found) if isinstance(result, str)}
    from_end = notes["from_end"]
    return Sweep(pairs, grids, failures, None if from_end is None else tuple(from_end), notes["load"])


def _check(lm: ModelSource, pairs: Sequence[Any], settings: dict[str, Any], size: int | None) -> None:
    """Refuse invalid input. If the model is here, every pair is checked now; otherwise each in its turn."""
    if not pairs:
        raise ValueError("there are no pairs to sweep over")
    if size is not None and size < 1:
        raise ValueError(f"shard={size!r}: a shard needs at least one pair")
    wrong = {}
    for number, pair in enumerate(pairs):
        if isinstance(pair, str):
            wrong[number] = f"pairs must be a list of tuples (clean, corrupt, answer, foil); got {pair!r:.80}"
        elif not 2 <= len(pair) <= 4:
            wrong[number] = f"a pair is (clean, corrupt, answer, foil); got {len(pair)} parts"
        elif isinstance(lm, LanguageModel):
            try:
                PatchJob(lm, *pair, **settings)
            except (ValueError, TypeError) as error:
                wrong[number] = str(error)
    if not wrong:
        return
    number, why = next(iter(wrong.items()))
    if len(wrong) == len(pairs):
        raise ValueError(why)
    raise ValueError(f"{len(wrong)} of {len(pairs)} pairs cannot be patched; the first, pair {number}: {why}")
