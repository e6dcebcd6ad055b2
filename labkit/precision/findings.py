"""Do findings survive? The same analysis in two precisions of a model, and whether it leads to the same conclusions.

That two precisions differ says little by itself: in few bits, rounding alone changes a heatmap, and so does another
pair of prompts of the same task. Each finding is therefore made four times: in both precisions, in the smaller one
with other last digits (`rounding`), and on every pair. It carries over if the precisions agree at least as well as two
pairs of the task do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.activations.hooks import hooked
from labkit.activations.run import run_to_measure
from labkit.activations.site_kinds import PATCHED
from labkit.activations.sites import checked
from labkit.circuits.edge_attribution import edge_attribution
from labkit.elsewhere import LOAD_BOTH, needs_weights
from labkit.lens.direct_attribution import direct_logit_attribution
from labkit.patching.gap import other_digits
from labkit.patching.patch import patch
from labkit.patching.paths import path_patch
from labkit.patching.source_model import check_source
from labkit.patching.spec import PairSpec
from labkit.results.bootstrap import rank_correlation
from labkit.results.figures import heatmap
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.job import finish
from labkit.results.recipe import loaded_as, made_with
from labkit.steering.directions import steering_vector
from labkit.text.as_code import LM, Name, as_code, as_python, changed
from labkit.text.prompts import as_json, asked, from_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from labkit.language_model import LanguageModel

FILE = "findings"
Pairs = Sequence[Sequence[Any]]
USUAL = ("resid_pre", "attn_out", "mlp_out", "z", "direct attribution")
LEAST = 0.7  # agreement below which nothing carries over, whatever two pairs agree in


def _direct(lm: LanguageModel, pair: Sequence[Any]) -> np.ndarray:
    found = direct_logit_attribution(lm, pair[0], pair[2], pair[3] if len(pair) > 3 else None)
    return np.concatenate([found.heads.ravel(), found.mlp])


def _paths(lm: LanguageModel, pair: Sequence[Any]) -> np.ndarray:
    grid = path_patch(lm, *pair, progress=False)
    return (grid.values - grid.corrupt).ravel()


def _edges(lm: LanguageModel, pair: Sequence[Any]) -> np.ndarray:
    return edge_attribution(lm, *pair, progress=False).values.ravel()


def _steering(lm: LanguageModel, pair: Sequence[Any]) -> np.ndarray:
    """How far the vector from corrupt to clean, added to corrupt after each layer, moves the metric."""
    asked = PairSpec(*pair).prepared(lm)
    ids = asked.ids["corrupt"]
    metric = asked.metric(run_to_measure(lm, asked.ids["clean"]).logits[0, -1])
    plain = float(metric.of(run_to_measure(lm, ids).logits[:, -1])[0])
    moved = []
    for layer in range(lm.n_layers):
        with lm.steer(steering_vector(lm, pair[0], pair[1], layer)):
            moved.append(float(metric.of(run_to_measure(lm, ids).logits[:, -1])[0]) - plain)
    return np.array(moved, np.float32)


OTHERS: dict[str, Callable[[LanguageModel, Sequence[Any]], np.ndarray]] = {
    "direct attribution": _direct,
    "paths": _paths,
    "edges": _edges,
    "steering": _steering,
}
"""Findings besides the grids, which go by their site: a model and a pair -> one number per place, flat."""


def found(lm: LanguageModel, name: str, pair: Sequence[Any]) -> np.ndarray:
    """One finding on one pair: an effect for each place, flat, in the metric's unit."""
    if name in OTHERS:
        return OTHERS[name](lm, pair)
    grid = patch(lm, *pair, site=name, progress=False)
    return (grid.values - grid.corrupt).ravel()


@contextmanager
def rounding(lm: LanguageModel, *, seed: int = 0) -> Iterator[None]:
    """While a block runs, all that is computed with a model starts from embeddings with other last digits."""
    with lm.lock, hooked(lm, set(), {("embed", 0): other_digits(seed=seed)}):
        yield


@dataclass
class Findings:
    """Findings of one model in two precisions, and how far they agree.

    Attributes:
        names: of the findings, the rows of `to_frame`.
        pairs: the prompts.
        own, source, rounded: by name (pair, place), the effects in this model, in the source, and in this model with
            other last digits; only of the pairs that are done.
        precisions: what to call the two: this model's, the source's.
        k: how many of the strongest places are compared.
        recipe: what repeats it.
    """

    names: list[str]
    pairs: list[Sequence[Any]] = field(repr=False)
    precisions: tuple[str, str]
    k: int
    recipe: dict[str, Any] = field(repr=False)
    own: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)
    source: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)
    rounded: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row per finding, each number the mean over pairs.

        Columns: `correlation`, Spearman's, of the two precisions over all places with an effect; `overlap`, the share
        of the source's k strongest places that are among the k strongest here; `sign_changes`, the share of these that
        have the other sign; the first two again as `..._rounding`, for this model with other last digits, and
        `..._pairs`, for two pairs in the source; `verdict`: `carries over`, `differs` or `cannot be told`.
        """
        import pandas as pd

        rows = {name: self._row(name) for name in self.names if self.own.get(name)}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("finding")

    def _row(self, name: str) -> dict[str, Any]:
        both = list(zip(self.own[name], self.source[name], strict=True))
        again = list(zip(self.own[name], self.rounded[name], strict=True))
        others = [two for two in combinations(self.source[name], 2) if two[0].shape == two[1].shape]
        row: dict[str, Any] = {}
        for suffix, couples in (("", both), ("_rounding", again), ("_pairs", others)):
            row[f"correlation{suffix}"] = _mean([correlation(a, b) for a, b in couples])
            row[f"overlap{suffix}"] = _mean([overlap(a, b, self.k) for a, b in couples])
            if not suffix:
                row["sign_changes"] = _mean([sign_changes(a, b, self.k) for a, b in couples])
        return row | {"verdict": verdict(row)}

    def words(self) -> str:
        """What carries over and what does not, one sentence per finding."""
        here, there = self.precisions
        said = []
        for name, row in self.to_frame().iterrows():
            pairs = "" if np.isnan(row.overlap_pairs) else f", two pairs of the task in {100 * row.overlap_pairs:.0f} %"
            said.append(
                f"{name} {VERDICTS[row.verdict]}: of the {self.k} strongest places in {there}, "
                f"{100 * row.overlap:.0f} % are among those in {here} (rounding alone leaves "
                f"{100 * row.overlap_rounding:.0f} %{pairs}), with rank correlation {row.correlation:.2f}"
                + (f"; {100 * row.sign_changes:.0f} % of them change sign" if row.sign_changes else "")
                + "."
            )
        return "\n".join(said) or "Nothing has been compared yet."

    def figure(self) -> go.Figure:
        """A heatmap of the overlaps: one row per finding, between precisions, under rounding, and between pairs."""
        frame = self.to_frame()
        here, there = self.precisions
        columns = {"overlap": f"{here} and {there}", "overlap_rounding": "rounding", "overlap_pairs": "two pairs"}
        values = frame[list(columns)].to_numpy(np.float64)
        return heatmap(
            values, x=list(columns.values()), y=list(frame.index), axes=("compared", "finding"),
            title=f"The {self.k} strongest places: how many are the same", unit="share", colours="Blues",
            ends=(0.0, 1.0), slanted=False, hover="%{y}, %{x}<br>%{z:.2f}", size=(620, 160 + 44 * len(values)),
            text=np.round(values, 2), texttemplate="%{text}",
        )  # fmt: skip

    def code(self) -> str:
        """The Python that makes the comparison again."""
        source = loaded_as("source", self.recipe["source"]["load"])
        pairs = [tuple(map(from_json, pair)) for pair in self.recipe["pairs"]]
        how = changed({"findings": list(USUAL), "k": 10}, {"findings": self.names, "k": self.k})
        before = self.recipe["load"] + source + f"pairs = {as_python(pairs)}\n"
        return as_code(before, "findings = lk.compare_findings", LM, Name("source"), Name("pairs"), **how)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the effects to one file (`.npz`), in one step: the file is whole or not there."""
        tables = {"own": self.own, "source": self.source, "rounded": self.rounded}
        arrays = {
            f"{which} {n} {name}": values
            for which, table in tables.items()
            for name, found in table.items()
            for n, values in enumerate(found)
        }
        about = {
            "names": self.names, "precisions": self.precisions, "k": self.k, "recipe": self.recipe,
            "arrays": list(arrays),
        }  # fmt: skip
        return save_arrays(path, FILE, about, **arrays)

    def __repr__(self) -> str:
        done = min((len(found) for found in self.own.values()), default=0)
        return f"Findings({', '.join(self.names)}; {self.precisions[0]} and {self.precisions[1]}, {done} pairs)"


VERDICTS = {
    "carries over": "carries over",
    "differs": "does not carry over",
    "cannot be told": "cannot be told apart from rounding",
}


def verdict(row: dict[str, Any]) -> str:
    """What a row of numbers says.

    *Cannot be told*: rounding alone leaves fewer than `LEAST` of the strongest places, and the precisions agree no less
    than that. *Carries over*: of the strongest places at least as many are shared as two pairs of the task share (or
    `LEAST`, whichever is less), the ranks agree in the same sense, and at most a tenth of the places change sign.
    """
    least = {name: np.nanmin([LEAST, row[f"{name}_pairs"]]) for name in ("overlap", "correlation")}
    if row["overlap_rounding"] < LEAST and row["overlap"] >= row["overlap_rounding"] - 0.1:
        return "cannot be told"
    same = all(row[name] >= value for name, value in least.items())
    return "carries over" if same and row["sign_changes"] <= 0.1 else "differs"


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The rank correlation over the places that have an effect in either."""
    some = np.isfinite(a) & np.isfinite(b) & ((a != 0) | (b != 0))
    return rank_correlation(a[some], b[some])


def overlap(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """The share of the k strongest places of one that are among the k strongest of the other."""
    return len(set(strongest(a, k)) & set(strongest(b, k))) / min(k, max(1, int(np.isfinite(b).sum())))


def sign_changes(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """Of the k strongest places of the second, the share that has the other sign in the first."""
    some = strongest(b, k)
    return float((np.sign(a[some]) == -np.sign(b[some])).mean())


def strongest(values: np.ndarray, k: int) -> list[int]:
    """The numbers of the k largest magnitudes, those not computed left out."""
    order = np.argsort(-np.nan_to_num(np.abs(values), nan=-1.0), kind="stable")[:k]
    return [int(n) for n in order if np.isfinite(values[n])]


def _mean(values: list[float]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def open_findings(path: str | os.PathLike[str]) -> Findings:
    """Open what `Findings.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold findings, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        here, there = about["precisions"]
        pairs: list[Sequence[Any]] = [tuple(map(from_json, pair)) for pair in about["recipe"]["pairs"]]
        opened = Findings(about["names"], pairs, (here, there), about["k"], about["recipe"])
        for name in about["arrays"]:
            which, _, finding = name.split(" ", 2)
            getattr(opened, which).setdefault(finding, []).append(arrays[name])
    return opened


def compare_findings(
    lm: LanguageModel,
    source: LanguageModel,
    pairs: Pairs,
    *,
    findings: Sequence[str] = USUAL,
    k: int = 10,
    progress: bool = True,
) -> Findings:
    """Make the same analyses in two precisions of a model, and see which conclusions they share.

    Args:
        lm: the model, such as one in 4 bits.
        source: what it is compared with, such as the same in 16 bits.
        pairs: tuples (clean, corrupt, answer, foil) of one task and layout: `lk.task(...).pairs(lm, n=8)`.
        findings: kinds of site, for grids (`resid_pre`, `z`, ...), and any of `direct attribution`, `paths` (from every
            head to the logits), `edges` and `steering` (the vector from corrupt to clean, layer by layer).
        k: how many of the strongest places are compared.
        progress: show a progress bar.

    Returns:
        A `Findings`; after an interrupt, or as `findings` on an error, with the pairs done until then.

    Raises:
        ValueError: an unknown finding, no pairs, or two models that cannot be compared; before anything has run.
    """
    job = FindingsJob(lm, source, pairs, findings=findings, k=k)
    finish(job, "comparing findings", unit="finding", kept="findings", progress=progress)
    return job.findings


class FindingsJob:
    """The analyses one after the other, so that they can be watched and stopped."""

    def __init__(
        self, lm: LanguageModel, source: LanguageModel, pairs: Pairs, *, findings: Sequence[str], k: int
    ) -> None:
        needs_weights("lk.compare_findings rounds a model in other ways", lm, source, instead=LOAD_BOTH)
        if not pairs:
            raise ValueError(
                "findings are compared on pairs of prompts; give one or more (clean, corrupt, answer, foil)"
            )
        if k < 1:
            raise ValueError(f"k must be at least 1; got {k}")
        for name in findings:
            if name not in OTHERS and name not in PATCHED:
                raise ValueError(
                    f"{name!r} is no finding; use a kind of site ({', '.join(PATCHED)}), {', '.join(OTHERS)}"
                )
            if name not in OTHERS:
                checked(lm, name)
        for pair in pairs:
            PairSpec(*pair).prepared(lm)
            check_source(lm, source, pair[0])
        self.lm, self.source = lm, source
        names = [f"{model.bits} bits" for model in (lm, source)]
        if names[0] == names[1]:
            names = [lm.name, source.name]
        recipe = {
            **made_with(lm),
            "source": made_with(source),
            "pairs": [[as_json(part) for part in (*(asked(lm, one) for one in pair[:2]), *pair[2:])] for pair in pairs],
        }
        self.findings = Findings(list(findings), [tuple(pair) for pair in pairs], (names[0], names[1]), k, recipe)

    @property
    def total(self) -> int:
        return len(self.findings.names) * len(self.findings.pairs)

    @property
    def done(self) -> int:
        return sum(map(len, self.findings.rounded.values()))

    def steps(self) -> Iterator[str]:
        kept = self.findings
        for n, pair in enumerate(kept.pairs):
            for name in kept.names:
                if len(kept.rounded.get(name, [])) > n:
                    continue
                own, there = found(self.lm, name, pair), found(self.source, name, pair)
                with rounding(self.lm):
                    again = found(self.lm, name, pair)
                for table, values in ((kept.own, own), (kept.source, there), (kept.rounded, again)):
                    table.setdefault(name, []).append(np.asarray(values, np.float32))
                yield name
