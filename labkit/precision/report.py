"""What does it cost to shrink a model? Two or more precisions of one model, compared on a text and on a task.

Everything is compared with one of them, the *reference*: the one with the most bits. Perplexity moves little when a
model goes to 4 bits (Dettmers et al. 2023); where the difference is, in which matrices, sites and heads, is for the
frames and figures to show.
"""

from __future__ import annotations

import gc
import inspect
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.datasets.tasks import task
from labkit.language_model import LanguageModel, load
from labkit.models.load import BITS, check_packing
from labkit.models.memory import in_words
from labkit.models.quantisation import Packing
from labkit.precision.measure import Asked, Measured
from labkit.precision.passage import PASSAGE
from labkit.results.figures import heatmap
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.job import finish
from labkit.results.recipe import loaded_as, versions
from labkit.text.as_code import Name, as_code
from labkit.text.encode import encode
from labkit.text.prompts import as_json, from_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


FILE = "quantisation report"
CONTEXT, PAIRS = 256, 8
TAKEN = set(inspect.signature(load).parameters)
Models = Mapping[str, "Mapping[str, Any] | LanguageModel"]


@dataclass
class QuantisationReport:
    """Precisions of one model, compared with the one of them that has the most bits.

    Attributes:
        reference: the label of that one.
        rows: by label what `to_frame` shows.
        weights: by label {matrix: (layer,)}: the norm of the difference to the reference's, divided by that of the
            reference's, NaN where a layer has no such matrix; estimated from 64 projections, within about 1 %.
        activations: by label {site: (layer,)}: the same of the activation at a position, the median over positions.
        heads: by label (layer, head): the share of attention that goes elsewhere (half the sum of differences), the
            mean over positions; NaN where there is no pattern.
        lens: by label (layer,): the share of positions at which the logit lens has the same likeliest token.
        notes: what has to be known to read the numbers.
        recipe: what repeats it.
    """

    reference: str
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)
    activations: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)
    heads: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    lens: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    notes: list[str] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row per precision.

        Columns: `perplexity`; `kl`, from the reference, in nats per token; `top1`, the share of tokens at which the
        likeliest one is the reference's; `task` and `task_correlation`, the share of pairs in which the answer is
        preferred and how the preferences go with the reference's; `bytes` of weights; `tokens_per_second`;
        `load_seconds`, NaN for a model that was there already; `bits` and `dtype`.
        """
        import pandas as pd

        return pd.DataFrame.from_dict(self.rows, orient="index").rename_axis("precision")

    def weight_errors(self, label: str | None = None) -> pd.DataFrame:
        """One row per matrix and one column per layer, of one precision; by default the first compared one."""
        import pandas as pd

        return pd.DataFrame.from_dict(self.weights[self._one(label)], orient="index").rename_axis("matrix")

    def activation_errors(self, label: str | None = None) -> pd.DataFrame:
        """One row per site and one column per layer, of one precision; by default the first compared one."""
        import pandas as pd

        return pd.DataFrame.from_dict(self.activations[self._one(label)], orient="index").rename_axis("site")

    def figure(self, what: str = "activations", label: str | None = None) -> go.Figure:
        """A heatmap of one precision, by default of the first compared one.

        Args:
            what: `activations` (site, layer), `weights` (matrix, layer), `heads` (layer, head) or `lens`, the share of
                positions at which the lens agrees, by layer, of all precisions.
            label: the precision.

        Raises:
            ValueError: there is no such figure, or no such precision.
        """
        if what not in FIGURES:
            raise ValueError(f"what must be one of {', '.join(FIGURES)}; got {what!r}")
        if what == "lens":
            title = f"Logit lens: same likeliest token as in {self.reference}"
            return _drawn(np.stack(list(self.lens.values())), list(self.lens), "precision", title, "share", "Blues")
        label = self._one(label)
        title = f"{what.capitalize()}: {label} compared with {self.reference}"
        if what == "heads":
            return heatmap(
                self.heads[label], x=list(range(self.heads[label].shape[1])), y=list(range(len(self.heads[label]))),
                axes=("head", "layer"), title=title, unit="attention that goes elsewhere", colours="Reds",
                ends=(0.0, float(np.nanmax(self.heads[label], initial=1e-9))), slanted=False,
                hover="layer %{y}, head %{x}<br>%{z:.3f}", size=(max(520, 160 + 34 * self.heads[label].shape[1]),
                                                                 180 + 14 * len(self.heads[label])),
            )  # fmt: skip
        errors = (self.weights if what == "weights" else self.activations)[label]
        kind = "matrix" if what == "weights" else "site"
        return _drawn(np.stack(list(errors.values())), list(errors), kind, title, "relative error", "Reds")

    def words(self) -> str:
        """What the numbers say, one sentence per precision."""
        own = self.rows.get(self.reference)
        if own is None:
            return "Nothing has been measured yet."
        said = []
        for label, row in self.rows.items():
            if label == self.reference:
                continue
            change = 100 * (row["perplexity"] / own["perplexity"] - 1)
            stream = self.activations[label].get("resid_post")
            said.append(
                f"{label} instead of {self.reference}: {in_words(row['bytes'])} instead of {in_words(own['bytes'])}, "
                f"perplexity {row['perplexity']:.2f} instead of {own['perplexity']:.2f} ({change:+.1f} %), the same "
                f"likeliest token at {100 * row['top1']:.0f} % of the places (KL {row['kl']:.3g} nats)"
                + (f"; the residual stream is {100 * stream[-1]:.0f} % off at the end" if stream is not None else "")
                + "."
            )
        return " ".join([*said, *self.notes])

    def code(self) -> str:
        """The Python that makes the report again."""
        models = ", ".join(f"{label!r}: {how}" for label, how in self.recipe["models"].items())
        before = "import labkit as lk\n\n" + "".join(self.recipe["before"]) + f"models = {{{models}}}\n"
        asked = {name: value for name, value in self.recipe["asked"].items() if value is not None}
        if "pairs" in asked:
            asked["pairs"] = [tuple(map(from_json, pair)) for pair in asked["pairs"]]
        return as_code(before, "report = lk.quantisation_report", Name("models"), **asked)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report to one file (`.npz`), in one step: the file is whole or not there."""
        arrays, names = {}, []
        for label in self.weights:
            for what, table in (("weights", self.weights[label]), ("activations", self.activations[label])):
                for name, values in table.items():
                    names.append([what, label, name])
                    arrays[f"v{len(names) - 1}"] = values
            for what, values in (("heads", self.heads[label]), ("lens", self.lens[label])):
                names.append([what, label, ""])
                arrays[f"v{len(names) - 1}"] = values
        about = {
            "reference": self.reference, "rows": self.rows, "notes": self.notes, "recipe": self.recipe, "names": names,
        }  # fmt: skip
        return save_arrays(path, FILE, about, **arrays)

    def _one(self, label: str | None) -> str:
        compared = list(self.weights)
        if label is None and compared:
            return compared[0]
        if label not in self.weights:
            raise ValueError(f"there is no precision {label!r} to compare; use one of {', '.join(compared)}")
        return label

    def __repr__(self) -> str:
        if not self.rows:
            return f"QuantisationReport(reference {self.reference}, nothing measured)"
        frame = self.to_frame()[["perplexity", "kl", "top1", "bytes", "tokens_per_second"]]
        return f"QuantisationReport(reference {self.reference})\n{frame.round(4)}"


FIGURES = ("activations", "weights", "heads", "lens")


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


def open_report(path: str | os.PathLike[str]) -> QuantisationReport:
    """Open a report that `QuantisationReport.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a saved report, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        report = QuantisationReport(about["reference"], about["rows"], notes=about["notes"], recipe=about["recipe"])
        for n, (what, label, name) in enumerate(about["names"]):
            table = getattr(report, what)
            if what in ("heads", "lens"):
                table[label] = arrays[f"v{n}"]
            else:
                table.setdefault(label, {})[name] = arrays[f"v{n}"]
    return report


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


def _drawn(values: np.ndarray, rows: Sequence[str], kind: str, title: str, unit: str, colours: str) -> go.Figure:
    """A heatmap over layers, white at 0."""
    return heatmap(
        values, x=list(range(values.shape[1])), y=rows, axes=("layer", kind), title=title, unit=unit, colours=colours,
        ends=(0.0, float(np.nanmax(values, initial=1e-9))), slanted=False,
        hover=f"{kind} %{{y}}, layer %{{x}}<br>%{{z:.3f}}",
        size=(max(560, 200 + 22 * values.shape[1]), 180 + 34 * len(rows)),
    )  # fmt: skip
