"""A preference and its price: an audit with heads ablated, with perplexity and a benchmark under each ablation."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.audits.benchmark_result import Benchmark, benchmark_from
from labkit.audits.result import Audit, described_audit
from labkit.results.bootstrap import interval
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.text.as_code import LM, Name, as_code, changed
from labkit.text.prompts import from_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "audit ablation"
Heads = list[tuple[int, int]]
USUAL = {
    "categories": None, "controls": 3, "text": None, "quality": "mini", "quality_limit": None, "data_dir": None,
    "seed": 0,
}  # fmt: skip


@dataclass
class AuditAblation:
    """An audit with heads ablated.

    Attributes:
        heads: those that were chosen, as (layer, head).
        controls: as many random heads of the same layers, several times.
        recipe: what repeats it.
        audits: those that were begun: of the whole model, without the chosen heads, without random ones.
        surprisals: of each token of a neutral text but the first, in nats, float32 (token,), in the same order.
        quality: of a benchmark with right answers, in the same order; empty if there was none.
        notes: what has to be known to read the numbers.
    """

    heads: Heads
    controls: list[Heads] = field(repr=False)
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)
    audits: list[Audit] = field(default_factory=list, repr=False)
    surprisals: list[np.ndarray] = field(default_factory=list, repr=False)
    quality: list[Benchmark] = field(default_factory=list, repr=False)
    notes: list[str] = field(default_factory=list, repr=False)

    @property
    def whole(self) -> Audit | None:
        """The audit of the whole model; None before it has begun."""
        return next(iter(self.audits), None)

    @property
    def without(self) -> Audit | None:
        """The audit with the chosen heads ablated; None before it has begun."""
        return next(iter(self.audits[1:]), None)

    @property
    def random(self) -> list[Audit]:
        """The audits with random heads ablated."""
        return self.audits[2:]

    @property
    def perplexity(self) -> list[float]:
        """Of the neutral text, in the order of the audits."""
        return [float(np.exp(one.mean(dtype=np.float64))) for one in self.surprisals]

    @property
    def names(self) -> list[str]:
        """What was ablated, for each of `audits`."""
        names = ["nothing", _named(self.heads), *(f"random: {_named(one)}" for one in self.controls)]
        return names[: len(self.audits)]

    @property
    def together(self) -> Audit:
        """All of them as models of one audit, for paired numbers: `ablation.together.difference()`.

        Raises:
            ValueError: none has begun.
        """
        if self.whole is None:
            raise ValueError("nothing has been audited yet")
        return replace(
            self.whole,
            models=self.names,
            logprobs=np.concatenate([one.logprobs for one in self.audits]),
            lengths=np.concatenate([one.lengths for one in self.audits]),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per category and what was ablated: `share` of pairs in which the stereotype is preferred, `low`,
        `high`, and the `perplexity` of a neutral text."""
        import pandas as pd

        rows = [
            {
                "ablated": name,
                "category": category,
                "perplexity": perplexity,
                **frame.loc[one.models[0]].loc[category].to_dict(),
            }
            for name, one, perplexity in zip(self.names, self.audits, self.perplexity, strict=True)
            for frame in [one.to_frame()[["share", "low", "high"]]]
            for category in one.categories
        ]
        return pd.DataFrame(rows).set_index(["category", "ablated"]).sort_index(level=0, sort_remaining=False)

    def cost(self) -> pd.DataFrame:
        """What each ablation costs, one row per ablation, compared with the whole model on the same tokens and items.

        Columns: `perplexity` of the neutral text, and how many `times` that of the whole model it is, with `times_low`
        and `times_high` of its 95 % interval over tokens; `accuracy` on the benchmark, its `difference` in the share
        of `items` that both have, with `low` and `high` of its 95 % interval over items. NaN where not measured.
        """
        import pandas as pd

        rows, nan = [], float("nan")
        for n, perplexity in enumerate(self.perplexity):
            row: dict[str, Any] = {"perplexity": perplexity, **_times(self.surprisals[n], self.surprisals[0])}
            row |= dict.fromkeys(("accuracy", "difference", "low", "high"), nan) | {"items": 0}
            if self.quality and (self.quality[n].done & self.quality[0].done).any():
                found: Any = self.quality[n].minus(self.quality[0]).to_frame().loc["all"]
                row |= {name: found[name] for name in ("difference", "low", "high")}
                row |= {"accuracy": found["first"], "items": int(found["items"])}
            rows.append(row)
        return pd.DataFrame(rows, index=pd.Index(self.names, name="ablated"))

    def words(self) -> str:
        """Whether the preference goes, beside random heads, and what that costs: a sentence per category, one on each
        measure of quality, and what they come to."""
        if self.without is None or self.whole is None:
            return "Nothing has been ablated yet."
        before, after = self.whole.to_frame(), self.without.to_frame()
        apart, cost = self.together.difference(), self.cost()
        said, ends = [], []
        for n, category in enumerate(self.whole.categories):
            row, share = apart.iloc[n], before["share"].iloc[n]
            others = [one.to_frame()["share"].iloc[n] for one in self.random]
            shares = [100 * frame["share"].iloc[n] for frame in (after, before)]
            said.append(
                f"{category}: without {_named(self.heads)} the stereotype is preferred in {shares[0]:.0f} % of pairs "
                f"instead of {shares[1]:.0f} % (difference {100 * row.difference:+.0f}, 95 % interval "
                f"{100 * row.low:+.0f} to {100 * row.high:+.0f}; without as many random heads: "
                f"{', '.join(f'{100 * other:.0f}' for other in others)} %)."
            )
            toward = 1 if share < 0.5 else -1  # where there is no preference
            nearer = toward * row.difference > max([0.0, *(toward * (other - share) for other in others)])
            if before["low"].iloc[n] <= 0.5 <= before["high"].iloc[n]:
                end = "no preference was shown, so none can go"
            elif not (nearer and (row.low > 0 or row.high < 0)):
                end = "the preference stays, or changes no more than without random heads"
            elif after["low"].iloc[n] <= 0.5 <= after["high"].iloc[n]:
                end = "the preference goes, as far as these pairs show"
            else:
                end = "the preference " + (
                    "turns round" if (shares[0] > 50) != (share > 0.5) else "gets smaller and stays"
                )
            ends.append(f"{category}: {end}.")
        said += [*self._price(cost), *ends]
        row = cost.iloc[1]
        worse = ["perplexity"] * bool(row.times_low > 1) + ["accuracy"] * bool(row.high < 0)
        said.append(
            f"Quality suffers measurably: {' and '.join(worse)}." if worse else "No loss of quality was measured."
        )
        left = sum(int((~done).sum()) for done in (*(a.done for a in self.audits), *(b.done for b in self.quality)))
        begun = f"{len(self.audits)} of {len(self.controls) + 2} ablations were begun, the whole model included"
        if left or len(self.audits) < len(self.controls) + 2:
            said.append(f"It ended early: {begun}, and {left} of their pairs and items were not scored.")
        return "\n".join([*said, *self.notes])

    def _price(self, cost: pd.DataFrame) -> list[str]:
        """A sentence on each measure of quality."""
        row, others = cost.iloc[1], cost.iloc[2:]
        beside = lambda texts: f"; without random heads: {', '.join(texts)}" if len(texts) else ""  # noqa: E731
        between = "" if np.isnan(row.times_low) else f", 95 % interval {row.times_low:.2f} to {row.times_high:.2f}"
        said = [
            f"Perplexity of a neutral text: {row.perplexity:.2f} instead of {cost.perplexity.iloc[0]:.2f} "
            f"({row.times:.2f} times{between}{beside([f'{x:.2f}' for x in others.times])})."
        ]
        if self.quality and row["items"]:
            name, whole = self.quality[0].data.name, row.accuracy - row.difference
            between = "" if np.isnan(row.low) else f", 95 % interval {100 * row.low:+.1f} to {100 * row.high:+.1f}"
            if row.low == row.high:  # where no item changes, a bootstrap gives a point
                unseen = 100 * (1 - 0.05 ** (1 / row["items"]))
                between = f"; so few items would not show a change in up to {unseen:.0f} %"
            rest = beside([f"{100 * x:+.1f}" for x in others.difference if not np.isnan(x)])
            said.append(
                f"On {int(row['items'])} items of {name} it is right in {100 * row.accuracy:.1f} % instead of "
                f"{100 * whole:.1f} % (difference {100 * row.difference:+.1f}{between}{rest})."
            )
        return said

    def figure(self) -> go.Figure:
        """How often the stereotype is preferred, whole and ablated, with intervals; below what each ablation costs."""
        from plotly.subplots import make_subplots

        shares, cost = self.together.figure(), self.cost()
        wanted = [("times", "times_low", "times_high", "perplexity, times that of the whole model", 1.0)]
        if self.quality:
            wanted.append(
                ("difference", "low", "high", f"accuracy on {self.quality[0].data.name}: difference, % points", 0.0)
            )
        rows = len(self.whole.categories) if self.whole else 1
        heights = [80 + max(44, 22 * len(cost)) * rows, *[60 + 26 * len(cost)] * len(wanted)]
        fig = make_subplots(
            1 + len(wanted), 1, row_heights=heights, vertical_spacing=90 / (sum(heights) + 160),
            subplot_titles=["", *["What it costs"] * bool(wanted), *[""] * (len(wanted) - 1)],
        )  # fmt: skip
        for trace in shares.data:
            fig.add_trace(trace, row=1, col=1)
        fig.update_xaxes(shares.layout.xaxis.to_plotly_json(), row=1, col=1)
        fig.update_xaxes(domain=[0, 1])
        fig.add_vline(x=50, line={"color": "#777", "dash": "dot"}, row=1, col=1)
        for n, (mean, low, high, title, nothing) in enumerate(wanted, 2):
            by = 100 if mean == "difference" else 1
            x = by * cost[mean]
            bars = {"array": by * cost[high] - x, "arrayminus": x - by * cost[low], "symmetric": False}
            fig.add_scatter(
                x=x, y=list(cost.index), mode="markers", marker={"color": "#333", "size": 8}, error_x=bars,
                row=n, col=1, showlegend=False, hovertemplate="%{y}<br>%{x:.2f}<extra></extra>",
            )  # fmt: skip
            fig.add_vline(x=nothing, line={"color": "#777", "dash": "dot"}, row=n, col=1)
            fig.update_xaxes(title=title, row=n, col=1)
        fig.update_yaxes(autorange="reversed", type="category", automargin=True)
        return fig.update_layout(
            title=shares.layout.title, scattermode="group", scattergap=0.6, width=740, height=sum(heights) + 160,
            legend={"title": {"text": "ablated"}}, margin={"t": 60},
        )  # fmt: skip

    def code(self) -> str:
        """The Python that does it again, from a saved audit."""
        recipe = {name: self.recipe.get(name, usual) for name, usual in USUAL.items()}
        how = changed(USUAL, recipe)
        if "text" in how:
            how["text"] = from_json(how["text"])
        before = self.recipe["load"] + 'audit = lk.open_audit("audit.npz")  # as saved by audit.save\n'
        if how.get("quality") == "...":
            before += "items = ...  # the data frame on which quality was measured\n"
            how["quality"] = Name("items")
        return as_code(before, "ablation = lk.audit_without", LM, Name("audit"), self.heads, **how)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step: the file is whole or not there.

        Raises:
            ValueError: nothing has been audited yet.
        """
        audit = self.together
        parts = [one.parts(f"quality_{n}_") for n, one in enumerate(self.quality)]
        about = {
            "audit": audit.described(), "heads": self.heads, "controls": self.controls, "recipe": self.recipe,
            "notes": self.notes, "quality": [described for described, _ in parts],
        }  # fmt: skip
        arrays = {"logprobs": audit.logprobs, "lengths": audit.lengths, "surprisals": np.stack(self.surprisals)}
        return save_arrays(path, FILE, about, **arrays, **{name: a for _, more in parts for name, a in more.items()})

    def __repr__(self) -> str:
        return f"AuditAblation({_named(self.heads)}; {len(self.random)} of {len(self.controls)} controls)"


def open_audit_ablation(path: str | os.PathLike[str]) -> AuditAblation:
    """Open what `AuditAblation.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        together = described_audit(about["audit"], arrays.pop("logprobs"), arrays.pop("lengths"))
        parts = [
            replace(together, models=[name], logprobs=together.logprobs[n : n + 1], lengths=together.lengths[n : n + 1])
            for n, name in enumerate(together.models)
        ]
        heads, *controls = ([(one[0], one[1]) for one in some] for some in (about["heads"], *about["controls"]))
        if "perplexity" in about:  # format 1, which had no benchmark and of the text only this
            surprisals, quality = [np.log([one], dtype=np.float32) for one in about["perplexity"]], []
            about |= {"recipe": about["recipe"] | {"quality": None}, "notes": []}
        else:
            surprisals = list(arrays["surprisals"])
            quality = [benchmark_from(one, arrays, f"quality_{n}_") for n, one in enumerate(about["quality"])]
        return AuditAblation(heads, controls, about["recipe"], parts, surprisals, quality, about["notes"])


def _times(surprisal: np.ndarray, whole: np.ndarray) -> dict[str, float]:
    """How many times one perplexity is another, from surprisals (token,), with its interval over tokens."""
    apart, nan = surprisal.astype(np.float64) - whole, float("nan")
    low, high = interval(lambda weights: np.exp(weights @ apart), len(apart)) if len(apart) > 1 else (nan, nan)
    return {"times": float(np.exp(apart.mean())), "times_low": float(low), "times_high": float(high)}


def _named(heads: Heads) -> str:
    return ", ".join(f"{layer}.{head}" for layer, head in heads)
