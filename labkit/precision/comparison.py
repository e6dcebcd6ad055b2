"""A report on precisions is made: each model is loaded and measured in turn, and compared with the reference."""

from __future__ import annotations

import gc
import inspect
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from labkit.datasets.tasks import task
from labkit.elsewhere import LOAD_BOTH, needs_weights
from labkit.language_model import LanguageModel, load
from labkit.models.load import BITS, check_packing
from labkit.models.quantisation import Packing
from labkit.precision.measure import Asked, Measured
from labkit.precision.passage import PASSAGE
from labkit.precision.report import QuantisationReport
from labkit.results.job import finish
from labkit.results.recipe import loaded_as, versions
from labkit.text.as_code import Name
from labkit.text.encode import encode
from labkit.text.prompts import as_json

CONTEXT, PAIRS = 256, 8
TAKEN = set(inspect.signature(load).parameters)
Models = Mapping[str, "Mapping[str, Any] | LanguageModel"]


def quantisation_report(
    models: Models,
    *,
    text: str | None = None,
    pairs: Sequence[Sequence[Any]] | None = None,
    name: str | os.PathLike[str] | None = None,
    context: int | None = None,
    progress: bool = True,
) -> QuantisationReport:
    """Compare two or more precisions of one model, on a text and on a task.

    The models are loaded and measured one after the other, so they need not fit into memory together.

    Args:
        models: by label what `lk.load` takes, such as `{"NF4": {"bits": 4}, "fp32": {"bits": 32}}`, or models that are
            loaded already.
        text: what they read; by default a built-in passage of some 500 tokens. Longer ones give steadier numbers.
        pairs: tuples (clean, corrupt, answer, foil) on which the preference for the answer is compared; by default
            eight of `lk.task("indirect object")`, `[]` for none.
        name: what to load, where an entry of `models` does not say; nothing for the default model.
        context: the text is read in windows of so many tokens; by default 256, or the whole of a shorter text.
        progress: show a progress bar.

    Returns:
        A `QuantisationReport`. After an interrupt, or as `report` on an error, it has the models measured until then.

    Raises:
        ValueError: fewer than two models, something that `lk.load` does not take, a text shorter than the context; or,
            as soon as it is loaded, a model of other sizes or with another tokenizer.
        LoadError: a model cannot be loaded.
    """
    job = ReportJob(models, text=text, pairs=pairs, name=name, context=context, progress=progress)
    finish(job, "comparing precisions", unit="model", kept="report", progress=progress)
    return job.report


class ReportJob:
    """A report that can be watched: `steps()` yields the label of each model as it is measured."""

    def __init__(
        self,
        models: Models,
        *,
        text: str | None,
        pairs: Sequence[Sequence[Any]] | None,
        name: str | os.PathLike[str] | None,
        context: int | None,
        progress: bool,
    ) -> None:
        if len(models) < 2:
            raise ValueError(
                "a report compares two precisions or more: models={'NF4': {'bits': 4}, 'fp32': {'bits': 32}}"
            )
        loaded = [how for how in models.values() if isinstance(how, LanguageModel)]
        needs_weights("lk.quantisation_report compares every matrix", *loaded, instead=LOAD_BOTH)
        if context is not None and context < 2:
            raise ValueError(f"context must be at least 2 tokens; got {context}")
        self.text, self.pairs, self.context, self.progress = text or PASSAGE, pairs, context, progress
        self.models: dict[str, dict[str, Any] | LanguageModel] = {
            label: how if isinstance(how, LanguageModel) else _settings(label, {"name": name, **how})
            for label, how in models.items()
        }
        bits = {
            label: how.bits if isinstance(how, LanguageModel) else how["bits"] for label, how in self.models.items()
        }
        self.report = QuantisationReport(max(bits, key=lambda label: bits[label]))
        self.order = [self.report.reference, *(label for label in self.models if label != self.report.reference)]
        self._reference: Measured | None = None
        kept = None if pairs is None else [[as_json(part) for part in pair] for pair in pairs]
        asked = {"name": None if name is None else str(name), "text": text, "pairs": kept, "context": context}
        self.report.recipe = {"models": {}, "before": [], "asked": asked, "versions": versions()}
        for n, (label, how) in enumerate(self.models.items()):
            told: Any = how
            if isinstance(how, LanguageModel):
                told = Name(f"model_{n}")
                self.report.recipe["before"].append(loaded_as(told, how.code()))
            else:
                told = {key: value for key, value in models[label].items() if key != "progress"}  # type: ignore[union-attr]
            self.report.recipe["models"][label] = repr(told)

    @property
    def total(self) -> int:
        return len(self.models)

    @property
    def done(self) -> int:
        return len(self.report.rows)

    def steps(self) -> Iterator[str]:
        for label in self.order[self.done :]:
            how, begun = self.models[label], time.perf_counter()
            lm = how if isinstance(how, LanguageModel) else load(**how, progress=self.progress)
            seconds = float("nan") if lm is how else time.perf_counter() - begun
            self._measure(label, lm, seconds)
            del lm
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            yield label

    def _measure(self, label: str, lm: LanguageModel, seconds: float) -> None:
        if self.pairs is None:
            self.pairs = _usual_pairs(lm)
        if self._reference is not None:
            assert self.context is not None
            self._reference.check(lm, Asked(self.text, self.context, self.pairs))
        length = encode(lm, self.text, most=None).shape[1]
        most = min(lm.context or length, length)
        if self.context is None:
            self.context = min(CONTEXT, most)
        if self.context > most:
            raise ValueError(
                f"the text has {length} tokens and {lm.name} reads at most {lm.context}; context={self.context} is "
                "more. Give a longer text or a smaller context"
            )
        found = Measured(lm, Asked(self.text, self.context, self.pairs), self._reference)
        own = self._reference or found
        self.report.rows[label] = {
            "perplexity": found.perplexity,
            "kl": 0.0 if found.kl is None else float(found.kl.mean()),
            "top1": float((found.likeliest == own.likeliest).mean()),
            "task": float((found.differences > 0).mean()) if len(self.pairs) else float("nan"),
            "task_correlation": _correlation(found.differences, own.differences),
            "bytes": found.bytes,
            "tokens_per_second": found.tokens_per_second,
            "load_seconds": seconds,
            "bits": lm.bits,
            "dtype": str(lm.dtype).removeprefix("torch."),
        }
        if self._reference is None:
            self._reference = found
            if lm.bits < 16:
                self.report.notes.append(
                    f"{label}, with which the others are compared, is itself in {lm.bits} bits: what these lose is not "
                    "in the report."
                )
            if lm.stored_as:
                self.report.notes.append(
                    f"The weights come from a checkpoint in {lm.stored_as}: {label} is that, dequantised, so the "
                    "report shows what is lost on top of it."
                )
            return
        self._compare(label, found, own, lm.n_layers)

    def _compare(self, label: str, found: Measured, own: Measured, n_layers: int) -> None:
        weights = {place: _off(found.weights[place], own.weights[place]) for place in own.weights}
        self.report.weights[label] = _by_layer(weights, n_layers)
        sites = [place for place in own.activations if place[0] != "pattern"]
        off = {place: _typically_off(found.activations[place], own.activations[place]) for place in sites}
        self.report.activations[label] = _by_layer(off, n_layers)
        patterns = {n: x for (kind, n), x in own.activations.items() if kind == "pattern"}
        heads = np.full((n_layers, max((len(x) for x in patterns.values()), default=0)), np.nan, np.float32)
        for layer, pattern in patterns.items():
            moved = (found.activations["pattern", layer] - pattern).abs().sum(-1).mean(-1) / 2
            heads[layer, : len(moved)] = moved.numpy()
        self.report.heads[label] = heads
        same = None if found.lens is None or own.lens is None else (found.lens == own.lens).mean(1)
        self.report.lens[label] = np.full(n_layers, np.nan, np.float32) if same is None else same.astype(np.float32)


def _settings(label: str, how: Mapping[str, Any]) -> dict[str, Any]:
    """What `lk.load` is given for one precision, checked.

    Raises:
        ValueError: it does not take this.
    """
    settings = {key: value for key, value in how.items() if key != "progress"}
    if unknown := set(settings) - TAKEN:
        raise ValueError(f"{label}: lk.load has no argument {', '.join(sorted(unknown))}")
    settings["bits"] = settings.get("bits") or 4
    if settings["bits"] not in BITS:
        raise ValueError(f"{label}: bits must be 4, 8, 16 or 32; got {settings['bits']!r}")
    keep = settings.get("keep", ())
    packing = Packing(
        settings.get("quant_type", "nf4"),
        settings.get("double_quant", True),
        (keep,) if isinstance(keep, str) else tuple(keep),
    )
    check_packing(packing, settings["bits"])
    return settings


def _usual_pairs(lm: LanguageModel) -> list[Any]:
    """Pairs of a task for this model's tokenizer, where it allows any."""
    try:
        return list(task("indirect object").pairs(lm, n=PAIRS))
    except ValueError:
        return []


def _off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm()) if bool(b.any()) else float("nan")


def _typically_off(a: torch.Tensor, b: torch.Tensor) -> float:
    """The relative difference of activations (token, ...) at a position, the median over positions.

    A few positions have activations hundreds of times as large as the others, and would be all that a mean shows.
    """
    a, b = a.flatten(1), b.flatten(1)
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).nanmedian())


def _by_layer(found: Mapping[tuple[str, int], float], n_layers: int) -> dict[str, np.ndarray]:
    tables: dict[str, np.ndarray] = {}
    for (name, layer), value in found.items():
        tables.setdefault(name, np.full(n_layers, np.nan, np.float32))[layer] = value
    return tables


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() and b.std() else float("nan")
