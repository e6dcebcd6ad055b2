"""What does it cost to shrink a model? Two or more precisions of one model, compared on a text and on a task.

Everything is compared with one of them, the *reference*: the one with the most bits. Perplexity moves little when a
model goes to 4 bits (Dettmers et al. 2023); where the difference is, in which matrices, sites and heads, is for the
frames and figures to show.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.models.memory import in_words
from labkit.results.figures import heatmap
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.text.as_code import Name, as_code
from labkit.text.prompts import from_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


FILE = "quantisation report"


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


def _drawn(values: np.ndarray, rows: Sequence[str], kind: str, title: str, unit: str, colours: str) -> go.Figure:
    """A heatmap over layers, white at 0."""
    return heatmap(
        values, x=list(range(values.shape[1])), y=rows, axes=("layer", kind), title=title, unit=unit, colours=colours,
        ends=(0.0, float(np.nanmax(values, initial=1e-9))), slanted=False,
        hover=f"{kind} %{{y}}, layer %{{x}}<br>%{{z:.3f}}",
        size=(max(560, min(740, 200 + 22 * values.shape[1])), 180 + 34 * len(rows)),
    )  # fmt: skip
