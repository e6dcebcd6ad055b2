"""Collecting: activations of many texts, shard by shard on disk, on as many workers as there are, resumed where it
stopped.

A shard is the rows of some hundred texts. It is done here, by any `concurrent.futures.Executor`, or by the workers of a
Dask cluster, and written at once and whole. What is in memory beside the model is one batch and the shards that are
under way, however many texts there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.activations.sites import Site
from labkit.collected import positions as at
from labkit.collected.collection import Collection, Temporary
from labkit.collected.positions import Positions, chosen
from labkit.collected.reading import DTYPES, parsed, row_size, shapes_of, shard_of, sites_of
from labkit.collected.store import Store
from labkit.elsewhere import is_elsewhere
from labkit.language_model import LanguageModel
from labkit.results.job import finish
from labkit.results.recipe import versions
from labkit.shards.executors import Workers, shards_done, workers_of
from labkit.shards.workers import ModelSource, Plan, load_code, plan_for, recipe_of
from labkit.text.prompts import as_json, asked, prompts_of, several
from labkit.text.types import Prompt
from labkit.text.whole_numbers import whole

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from distributed import Client

SHARD, SHARD_BYTES = 256, 64 << 20  # texts in a shard at most, and how large its file gets unless one text is larger
ELSEWHERE, PIECE_BYTES = 32, 16 << 20  # the same where the model is not here, and its shards come over a network
OWN = ("text", "position", "token")
"""The columns of `rows` that every collection has."""


def collect(
    lm: ModelSource,
    texts: Sequence[Prompt] | pd.Series | pd.DataFrame,
    *,
    read: Sequence[str | Site],
    store: str | os.PathLike[str] | None = None,
    positions: Positions = "all",
    dtype: str | torch.dtype | None = None,
    executor: Executor | Client | None = None,
    batch: int | None = None,
    shard: int | None = None,
    progress: bool = True,
) -> Collection:
    """Collect activations of many texts on disk.

    Args:
        lm: the model; or, to load it only where the work is done, a name for `lk.load`, a dict of its arguments, or a
            function that returns a model.
        texts: prompts: texts, chats or token ids. Of a data frame the column `text`; its other columns, of texts and
            numbers, are kept and are columns of `rows`, such as labels.
        read: sites, such as `["resid_post", "z.5.3"]`. A kind without a layer is collected in all.
        store: a folder for the shards. The same call with the same folder resumes where the last one stopped. Without
            it they are in a temporary folder, deleted with the result. What steers this thread meanwhile (`lm.steer`)
            is in the activations, and the folder does not know of it: give them one of their own.
        positions: of each text: `all`, `last`, a list (from the end if negative), a slice, or a function from the
            `Token`s of a text to its positions.
        dtype: on disk: `float16`, `bfloat16` or `float32`; by default the one that the model computes in.
        executor: what does the work. None: this thread. A `concurrent.futures.Executor`: its threads, which share this
            model, or its processes, which load their own. A `distributed.Client`: the workers of a Dask cluster, each
            of which loads the model once.
        batch: how many texts run together; by default as many as fit, of about one length.
        shard: how many texts are collected and stored together; by default at most 256, and 64 MB of them. An
            existing store keeps its size.
        progress: show a progress bar.

    Returns:
        A `Collection`. After an interrupt it has the shards that are done, with a warning.

    Raises:
        ValueError: before the model has run: no texts, an empty one or one too long for the context, an unknown site or
            one without a row per position (`pattern`), a position that a text lacks, a folder that holds anything else.
            Later: an activation too large for float16. An error that ends the work has what is done in its attribute
            `collection`.
        TypeError: a text is no prompt, or the executor none.
    """
    prompts, columns = _given(texts)
    batch, shard = (
        None if value is None else whole(name, value, least=1, of=" of texts")
        for name, value in (("batch", batch), ("shard", shard))
    )
    kept_as = None if dtype is None else str(dtype).removeprefix("torch.")
    if kept_as is not None and kept_as not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {kept_as!r}")
    workers = workers_of(executor, lm)
    where, sites = at.parsed(positions), parsed(read)
    counts = _checked(lm, prompts, sites, where) if isinstance(lm, LanguageModel) else None
    settings = {"read": list(map(str, sites)), "positions": where, "stored_dtype": kept_as}
    plan = plan_for(lm, settings, call="collect", threads=None if workers is None else workers.threads)
    if isinstance(lm, LanguageModel):
        prompts = [asked(lm, prompt) for prompt in prompts]
    expression, before = at.as_code(positions)
    notes = {
        "load": load_code(lm, plan), "columns": columns, "positions": expression, "before": before,
        "versions": versions(),
    }  # fmt: skip
    temporary = Temporary() if store is None else None
    if shard is None:
        shard = ELSEWHERE if counts is None else _shard_size(lm, prompts, sites, counts, kept_as)  # type: ignore[arg-type]
    place = Store.begin(
        store if temporary is None else temporary.name,  # type: ignore[arg-type]
        recipe=recipe_of(plan), items=[as_json(one) for one in prompts], shard=shard, notes=notes,
    )  # fmt: skip
    plan = replace(plan, settings={**settings, "hash": place.hash, "batch": batch})
    with place.locked():
        if columns and place.notes["columns"] != columns:  # the same activations, with other labels
            place.notes["columns"] = columns
            place.put_manifest()
        job = CollectJob(plan, prompts, place, workers, temporary)
        finish(job, "collecting", unit="text", kept="collection", progress=progress)
    return job.collection


class CollectJob:
    """One call of `collect`: what is done, and what is open."""

    def __init__(
        self,
        plan: Plan,
        prompts: Sequence[Prompt],
        place: Store,
        workers: Workers | None,
        temporary: Temporary | None,
    ) -> None:
        self.plan, self.place, self.workers, self._temporary = plan, place, workers, temporary
        self.open = {
            number: [(n, prompts[n]) for n in texts]
            for number, texts in enumerate(place.shards)
            if not place.has(number, whole=True)
        }
        self.total = len(prompts)
        self.done = self.total - sum(map(len, self.open.values()))

    @property
    def collection(self) -> Collection:
        """What there is by now."""
        return Collection.of(self.place, self._temporary)

    def steps(self) -> Iterator[None]:
        """Do what is open; yields after each shard."""
        for number, found in self._shards():
            if isinstance(found, Exception):
                raise found
            self.place.write(number, found)
            self.done += len(self.open[number])
            yield

    def _shards(self) -> Iterator[tuple[int, bytes | Exception]]:
        if self.workers is not None:
            return shards_done(self.workers, shard_of, self.plan, self.open, all_at_once=False)
        return ((number, shard_of(self.plan, texts)) for number, texts in self.open.items())


def _given(texts: Any) -> tuple[list[Prompt], dict[str, list[Any]]]:
    """The prompts, and the other columns of a data frame.

    Raises:
        ValueError: there are none, or a column is called like one that every collection has.
    """
    columns: dict[str, list[Any]] = {}
    if hasattr(texts, "columns"):
        if "text" not in texts:
            raise ValueError(f"a data frame of texts needs a column 'text'; it has {', '.join(map(repr, texts))}")
        if double := texts.columns[texts.columns.astype(str).duplicated()].tolist():
            raise ValueError(f"the data frame has several columns called {double[0]!r}; rename all but one")
        for name in texts.columns:
            if name == "text":
                continue
            if name in OWN:
                raise ValueError(f"the column {name!r} is called like one of the collection's own; rename it")
            values = texts[name].tolist()
            if wrong := [one for one in values if not isinstance(one, str | int | float | None)]:
                raise ValueError(f"the column {name!r} has {wrong[0]!r:.60}; only texts and numbers can be kept")
            columns[str(name)] = values
        texts = texts["text"]
    texts = texts.tolist() if hasattr(texts, "iloc") or isinstance(texts, np.ndarray) else texts
    prompts = several(texts) or prompts_of(texts)
    if not prompts:
        raise ValueError("there are no texts to collect from")
    return prompts, columns


def _checked(lm: LanguageModel, prompts: Sequence[Prompt], sites: Sequence[Site], where: Any) -> list[int]:
    """How many rows each text has; everything that can be checked before the model runs is.

    Raises:
        ValueError, TypeError: a site that the model lacks, or texts that cannot be run; the message says which.
    """
    sites_of(lm, sites)
    counts, wrong = [], {}
    for number, prompt in enumerate(prompts):
        try:
            counts.append(len(chosen(where, lm.tokenizer, lm.encode(prompt)[0].tolist())))
        except (ValueError, TypeError) as error:
            wrong[number] = error
    if wrong:
        number, why = next(iter(wrong.items()))
        raise type(why if type(why) in (ValueError, TypeError) else ValueError())(
            f"{len(wrong)} of {len(prompts)} texts cannot be collected from; the first, text {number}, "
            f"{prompts[number]!r:.60}: {why}"
        )
    if not sum(counts):
        raise ValueError("positions= chooses no position of any text, so there is nothing to collect")
    return counts


def _shard_size(
    lm: LanguageModel, prompts: Sequence[Prompt], sites: Sequence[Site], counts: Sequence[int], dtype: str | None
) -> int:
    """How many texts fill a file of the usual size."""
    shapes = shapes_of(lm, sites_of(lm, sites), prompts[0])
    size = row_size(shapes, DTYPES[dtype] if dtype else lm.dtype)
    shard, most = (ELSEWHERE, PIECE_BYTES) if is_elsewhere(lm) else (SHARD, SHARD_BYTES)
    while shard > 1 and size * max(np.add.reduceat(counts, range(0, len(counts), shard))) > most:
        shard //= 2
    return shard
