"""A model on a set of items: which choice of each does it find likeliest?

Each choice is scored as the continuation of its prompt (`labkit.generation.continuations`), so on the same items the
numbers are those of lm-evaluation-harness: `accuracy` is its `acc`, `per_byte` its `acc_bytes`, and the preference on
CrowS-Pairs its `pct_stereotype`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from labkit.audits.benchmark_result import Benchmark
from labkit.datasets.items import ItemSet, from_frame, read_table
from labkit.datasets.published import NAMES, SETS, published
from labkit.generation.continuations import ContinuationJob
from labkit.results.job import finish
from labkit.results.recipe import loaded_as, made_with

if TYPE_CHECKING:
    import pandas as pd

    from labkit.language_model import LanguageModel

SHOWN = 50  # rows of a frame that code() writes out


def benchmark(
    lm: LanguageModel,
    data: str | os.PathLike[str] | pd.DataFrame,
    *,
    limit: int | None = None,
    by: str | None = None,
    compare: LanguageModel | Benchmark | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    delimiter: str | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> Benchmark:
    """How often a model prefers the right one of several texts.

    Args:
        lm: the model.
        data: `blimp`, `crows_pairs` or `mini` (labkit's own 64 pairs, which are always there); a file (.csv, .tsv,
            .jsonl, .json, .parquet), a folder of them, or a data frame. Its columns are `good` and `bad` (sentences);
            `prompt`, `choices` (a list, or JSON of one) and `answer` (the text of a choice, or its number from 0), both
            with a `category` if there are any; or those of BLiMP or CrowS-Pairs.
        limit: the first so many items of every category (in BLiMP: of every paradigm) instead of all.
        by: the label or column by which results are grouped: `phenomenon` or `paradigm` in BLiMP, `bias_type` or
            `direction` in CrowS-Pairs; `result.to_frame(by)` groups in other ways later.
        compare: another model, such as the same in other bits, or its result, to be compared item by item.
        data_dir: the folder in which a published set is, or one above it; by default `$LABKIT_DATA`, or the cache of
            the hub. Nothing is downloaded.
        delimiter: what joins each choice to its prompt, instead of what is usual: a space after a prompt, and before
            the sentences of BLiMP, as in lm-evaluation-harness; nothing before other sentences.
        batch: how many rows to run at once; by default as many as fit.
        progress: show a progress bar.

    Returns:
        A `Benchmark`. After an interrupt, or as `benchmark` on an error, it has the items measured until then.

    Raises:
        FileNotFoundError: no such file, or no copy of the set; the message says where to get one.
        ValueError: unknown name or columns, a row that is no item, an item that does not fit into the context; before
            anything has run.
    """
    job = BenchmarkJob(
        lm, data, limit=limit, by=by, compare=compare, data_dir=data_dir, delimiter=delimiter, batch=batch
    )
    finish(job, job.data.name, unit="text", kept="benchmark", progress=progress)
    return job.benchmark


class BenchmarkJob:
    """A benchmark in steps, so that it can be watched and stopped; `benchmark` is what is done so far."""

    def __init__(
        self,
        lm: LanguageModel,
        data: str | os.PathLike[str] | pd.DataFrame,
        *,
        limit: int | None = None,
        by: str | None = None,
        compare: LanguageModel | Benchmark | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        delimiter: str | None = None,
        batch: int | None = None,
    ) -> None:
        self.data = items_of(data, by=by, data_dir=data_dir, delimiter=delimiter)
        self.data.labels_by(by)
        if limit is not None:
            self.data = self.data.limited(limit)
        folder = None if data_dir is None else str(data_dir)
        named = isinstance(data, str | os.PathLike)
        recipe: dict[str, Any] = {
            **made_with(lm), "data": str(data) if named else None, "limit": limit, "by": by, "data_dir": folder,
            "delimiter": delimiter,
        }  # fmt: skip
        if not isinstance(data, str | os.PathLike):
            recipe["frame"] = _frame_code(data)
        self.compared = compare if isinstance(compare, Benchmark) else None
        models = [lm] if compare is None or self.compared is not None else [lm, compare]
        self._recipes = [recipe | made_with(model) for model in models]  # type: ignore[arg-type]
        if compare is not None:
            load = compare.recipe["load"] if isinstance(compare, Benchmark) else compare.code()
            recipe["compare"] = self._recipes[0]["compare"] = loaded_as("other", load)
        if self.compared is not None:
            its = self.compared.data
            if not {item.key for item in self.data.items} & {item.key for item in its.items}:
                raise ValueError(
                    f"compare= is a result on {its.name}, which has no item in common with {self.data.name}; give one "
                    "on the same items, or a model"
                )
        texts = [(item.prompt, item.delimiter + choice) for item in self.data.items for choice in item.choices]
        self._jobs = [ContinuationJob(model, texts, batch=batch) for model in models]  # type: ignore[arg-type]

    def again(self) -> Self:
        """The same items, not scored."""
        new = copy(self)
        new._jobs = [job.again() for job in self._jobs]
        return new

    @property
    def total(self) -> int:
        return sum(job.total for job in self._jobs)

    @property
    def done(self) -> int:
        return sum(job.done for job in self._jobs)

    def steps(self) -> Iterator[int]:
        for job in self._jobs:
            yield from job.steps()

    @property
    def benchmark(self) -> Benchmark:
        """What is measured so far."""
        results = [self._result(job, recipe) for job, recipe in zip(self._jobs, self._recipes, strict=True)]
        return replace(results[0], other=self.compared or next(iter(results[1:]), None))

    def _result(self, job: ContinuationJob, recipe: dict[str, Any]) -> Benchmark:
        most = max(len(item.choices) for item in self.data.items)
        logprobs = np.full((len(self.data.items), most), np.nan)
        tokens = np.zeros(logprobs.shape, np.int32)
        found = iter(job.found)
        for n, item in enumerate(self.data.items):
            for choice in range(len(item.choices)):
                if (one := next(found)) is not None:
                    logprobs[n, choice], tokens[n, choice] = one.logprob, len(one.tokens)
            if not tokens[n, : len(item.choices)].all():
                logprobs[n] = np.nan  # an item counts when each of its choices is scored
        return Benchmark(self.data, f"{recipe['model']} in {recipe['bits']} bits", logprobs, tokens, recipe)


def items_of(
    data: str | os.PathLike[str] | pd.DataFrame,
    *,
    by: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    delimiter: str | None = None,
) -> ItemSet:
    """The items of what `benchmark` takes as `data`.

    Raises:
        FileNotFoundError, ValueError, TypeError: as `benchmark`.
    """
    if isinstance(data, str) and data in NAMES:
        return published(data, data_dir=data_dir, by=by, delimiter=delimiter)
    if isinstance(data, str | os.PathLike):
        path = Path(data).expanduser()
        if not path.exists():
            other = f". {SETS[str(data)].title} is for lk.audit(lm, {data!r})" if data in SETS else ""
            names = ", ".join(NAMES)
            raise FileNotFoundError(
                f"there is no file, folder or set {str(data)!r}; the sets that go by a name are {names}{other}"
            )
        return from_frame(read_table(path), name=path.name, by=by, delimiter=delimiter)
    if not hasattr(data, "columns"):
        raise TypeError(f"data is a name ({', '.join(NAMES)}), a path or a data frame; got {type(data).__name__}")
    return from_frame(data, name="the frame", by=by, delimiter=delimiter)


def _frame_code(frame: pd.DataFrame) -> str:
    """The lines that make a frame again, if it is short."""
    if len(frame) <= SHOWN:
        return f"import pandas as pd\n\nframe = pd.DataFrame({frame.to_dict('list')!r})\n"
    return f"frame = ...  # the data frame of {len(frame)} rows that was measured\n"
