"""Examples: over a whole collection, what makes a head, a neuron or a direction fire.

The strongest examples alone mislead: a neuron may look like one thing at its strongest and be another elsewhere
(Bolukbasi et al. 2021, "An Interpretability Illusion for BERT", arXiv:2104.07143). So there are samples from every
decile as well. Shards are mapped and read one by one, three times, here or by the workers of an executor; what is kept
of them does not grow with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm

from labkit.activations.sites import Site
from labkit.collected.collection import Collection
from labkit.collected.store import ShardFile
from labkit.features.quantiles import add, nothing, quantiles, wanted
from labkit.features.reading import Look, smallest, strongest, taken, tally, told_apart, total
from labkit.features.result import Example, Examples
from labkit.features.units import Direction, unit_of
from labkit.results.recipe import versions
from labkit.shards.executors import Workers, shards_done, workers_of
from labkit.steering.vector import SteeringVector
from labkit.text.as_code import as_call, as_python
from labkit.text.whole_numbers import whole

if TYPE_CHECKING:
    from distributed import Client

R = TypeVar("R")


def examples(
    collected: Collection,
    unit: str | Site | Direction,
    *,
    of: str | Site | None = None,
    top: int = 10,
    each: int = 3,
    context: int = 8,
    seed: int = 0,
    executor: Executor | Client | None = None,
    progress: bool = True,
) -> Examples:
    """Where a head, a neuron or a direction is strongest over a collection, with examples of each decile.

    Args:
        collected: activations of many texts, from `lk.collect` or `lk.open_collection`.
        unit: a neuron, `mlp_act.5.123`: its activation. A head, `z.3.2`: the norm of its z, or of `q`, `k`,
            `v`, `head_out`. An expert, `router.3.5`: its weight. A site of the whole stream, `attn_out.4`: its norm.
            Or a direction: a steering vector, which has a layer, or (width,) numbers with `of`; the activation's
            component along it, in units of the activation.
        of: the site that a direction is of, such as `resid_post.5` or `z.3.2`; of a steering vector by default the
            residual stream after its layer.
        top: how many texts are shown in which it is strongest, each at its strongest token. Of equals the first text
            and position come first.
        each: how many examples of every decile, drawn without replacement.
        context: how many tokens are shown on either side, as far as they were collected.
        seed: of the draw. One seed gives the same examples however the collection is cut into shards, and wherever they
            are read.
        executor: what reads the shards. None: this thread. A `concurrent.futures.Executor`, or a `distributed.Client`
            whose workers see the collection's folder.
        progress: show a progress bar.

    Returns:
        `Examples`; of a collection that is not complete, of the texts that are there.

    Raises:
        KeyError: the site was not collected.
        ValueError: an unknown or incomplete unit, one that is out of range, a direction of another width, an empty
            collection, or one whose numbers are all NaN.
        TypeError: `collected` is no collection, or the executor none.
    """
    if not isinstance(collected, Collection):
        raise TypeError(f"lk.examples takes a collection, from lk.collect or lk.open_collection; got {collected!r:.60}")
    top, each, context = whole("top", top, least=1), whole("each", each, least=0), whole("context", context, least=0)
    seed = whole("seed", seed)
    if not collected.done or not len(collected):
        raise ValueError("this collection has no rows yet, so there are no examples of anything")
    one = unit_of(collected, unit, of)
    shards = {number: collected.store.shard_file(number) for number in collected.done}
    look = Look(one, top, each, context, seed)
    with tqdm(total=3 * len(shards), desc=one.words, unit="shard", disable=not progress, leave=False) as bar:
        source = _Shards(shards, workers_of(executor), lambda: bar.update(1))
        counted = _counted(source, look)
        if not counted.rows:
            raise ValueError(f"{one.words} is NaN in every row of this collection")
        places = wanted(counted.counts)
        look = replace(look, bins=tuple(sorted({bin for _, bin, _ in places})))
        inside = {bin: nothing() for bin in look.bins}
        for part in source.each(told_apart, look):
            for bin, counts in part.items():
                add(inside[bin], counts)
        levels = quantiles(places, inside)
        edges = tuple(levels[n / 10] for n in range(1, 10))
        rows = frozenset((text, position) for _, text, position in counted.top)
        chosen, deciles = _taken(source, replace(look, edges=edges, strongest=rows))
    recipe = {
        "unit": str(unit) if isinstance(unit, str | Site) else "",
        "direction": "" if isinstance(unit, str | Site) else _direction_code(unit),
        "of": None if of is None else str(of), "top": top, "each": each, "context": context, "seed": seed,
        "collection": _opened_by(collected), "versions": versions(),
    }  # fmt: skip
    mean = counted.sum / counted.rows
    return Examples(
        one.words, one.measure, counted.rows, counted.texts, counted.zeros / counted.rows,
        counted.positive / counted.rows, mean, math.sqrt(max(0.0, counted.squares / counted.rows - mean * mean)),
        levels, tuple(chosen[row[1:]] for row in counted.top), deciles, recipe,
    )  # fmt: skip


@dataclass(frozen=True)
class _Shards:
    """The shards, and who reads them."""

    files: dict[int, ShardFile]
    workers: Workers | None
    done: Callable[[], Any]

    def each(self, work: Callable[[Look, ShardFile], R], look: Look) -> Iterator[R]:
        """What work makes of each shard, in any order."""
        if self.workers is None:
            for file in self.files.values():
                yield work(look, file)
                self.done()
            return
        for _, found in shards_done(self.workers, work, look, self.files, all_at_once=False):
            if isinstance(found, Exception):
                raise found
            yield found
            self.done()


@dataclass
class _Counted:
    """Tallies of all shards together."""

    rows: int
    texts: int
    zeros: int
    positive: int
    sum: float
    squares: float
    counts: np.ndarray
    top: list[tuple[float, int, int]]


def _counted(source: _Shards, look: Look) -> _Counted:
    all_of = _Counted(0, 0, 0, 0, 0.0, 0.0, nothing(), [])
    sums, squares = [], []  # exact, so that which shards there are and how they come makes no difference
    for part in source.each(tally, look):
        all_of.rows += part.rows
        all_of.texts += part.texts
        all_of.zeros += part.zeros
        all_of.positive += part.positive
        sums += part.sum
        squares += part.squares
        add(all_of.counts, part.counts)
        all_of.top = strongest([*all_of.top, *part.top], look.top)
    all_of.sum, all_of.squares = total(sums), total(squares)
    return all_of


def _taken(source: _Shards, look: Look) -> tuple[dict[tuple[int, int], Example], tuple[tuple[Example, ...], ...]]:
    """The examples at the strongest rows, and those of each decile, the highest value first."""
    chosen: dict[tuple[int, int], Example] = {}
    drawn: list[list[tuple[int, Example]]] = [[] for _ in range(10)]
    for part in source.each(taken, look):
        for decile, key, example in part:
            if decile < 0:
                chosen[example.text, example.position] = example
            else:
                drawn[decile].append((key, example))
        drawn = [smallest(some, look.each) for some in drawn]
    order = [sorted((one for _, one in some), key=lambda e: (-e.value, e.text, e.position)) for some in drawn]
    return chosen, tuple(map(tuple, order))


def _opened_by(collected: Collection) -> str:
    """The Python that has the collection again: of one in a folder, the line that opens it."""
    if collected.temporary is not None:
        return collected.code()
    return "import labkit as lk\n\n" + as_call("collected = lk.open_collection", str(collected.store.folder))


def _direction_code(direction: Any) -> str:
    if isinstance(direction, SteeringVector):
        made = direction.code()
        if made:
            return made + "direction = vector\n"
        values = as_python(direction.values)
        return f"direction = lk.SteeringVector.of({values}, {direction.layer})\n"
    return f"direction = {as_python(torch.as_tensor(np.asarray(direction), dtype=torch.float32))}\n"
