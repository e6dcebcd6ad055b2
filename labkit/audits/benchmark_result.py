"""How well a model does on a set of items, and how two models differ on the same ones.

What is kept is the log-probability of every choice, so accuracy under any normalisation, by any label and against any
other result can be read off later, and single items can be looked at.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.datasets.items import Item, ItemSet
from labkit.results.bootstrap import interval_of_mean
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.text.as_code import LM, Name, as_code

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "benchmark"
WAYS = {"raw": "", "per_token": " per token", "per_byte": " per byte"}
"""How the choices of an item are compared, and what titles call it."""
ALL = "all"
SETTINGS = ("limit", "by", "data_dir", "delimiter")


@dataclass(frozen=True)
class Benchmark:
    """The choices of every item as a model predicts them.

    Attributes:
        data: the items.
        model: what to call the model.
        logprobs: of each choice after its prompt, in nats, float64 (item, choice); NaN where an item has fewer choices,
            and in items that were not reached.
        tokens: of each choice, int32 (item, choice); 0 where there is none.
        recipe: what repeats it.
        other: another model's result on the same items, where `compare` was given.
    """

    data: ItemSet
    model: str
    logprobs: np.ndarray = field(repr=False)
    tokens: np.ndarray = field(repr=False)
    recipe: dict[str, Any] = field(repr=False)
    other: Benchmark | None = field(default=None, repr=False)

    @property
    def done(self) -> np.ndarray:
        """Which items were measured, bool (item,)."""
        return np.isfinite(self.logprobs[:, :2]).all(1)

    @property
    def chance(self) -> float:
        """The share that guessing gets right, or that a model without a preference gives."""
        return float(np.mean([1 / len(item.choices) for item in self.data.items]))

    def chosen(self, way: str = "raw") -> np.ndarray:
        """The number of the choice that is likeliest in each item, int (item,), -1 where it was not measured.

        The first of equals, as in lm-evaluation-harness; 7 of the 67,000 pairs of BLiMP have the same sentence twice.

        Args:
            way: `raw`, `per_token` or `per_byte` (the bytes of the choice alone, without what joins it to its prompt).
        """
        if way not in WAYS:
            raise ValueError(f"there is no way {way!r} to compare choices; use one of {', '.join(WAYS)}")
        values = self.logprobs
        if way == "per_token":
            values = values / np.maximum(self.tokens, 1)
        if way == "per_byte":
            sizes = np.ones_like(values)
            for row, item in zip(sizes, self.data.items, strict=True):
                row[: len(item.choices)] = [len(choice.encode()) for choice in item.choices]
            values = values / sizes
        return np.where(self.done, np.where(np.isnan(values), -np.inf, values).argmax(1), -1)

    def right(self, way: str = "raw") -> np.ndarray:
        """1 where the choice that counts is the likeliest, else 0, and NaN where not measured; float64 (item,)."""
        chosen, answers = self.chosen(way), np.array([item.answer for item in self.data.items])
        right = (chosen == answers).astype(np.float64)
        if self.data.measure == "preference":  # of two that are equal none is preferred
            right[self.logprobs[:, 0] == self.logprobs[:, 1]] = 0
        return np.where(chosen < 0, np.nan, right)

    def to_frame(self, by: str | None = None) -> pd.DataFrame:
        """One row per category, and `all`.

        Columns: `items`, how many; `accuracy` (or `preference`, the share in which the choice that counts is the
        likeliest) with `low` and `high`, the ends of its 95 % bootstrap interval over items; the same `per_token` and
        `per_byte`, for log-probabilities divided by the length of the choice. Where all of a few items are right, a
        bootstrap gives a point and not how little they say.

        Args:
            by: the label to group by; by default the usual one of these items.

        Raises:
            ValueError: the items have no such label.
        """
        import pandas as pd

        right = {way: self.right(way) for way in WAYS}
        rows = {}
        for name, some in _groups(self.data, by, self.done):
            row: dict[str, Any] = {"items": len(some)}
            for way in WAYS:
                first = self.data.measure if way == "raw" else way
                names = ("low", "high") if way == "raw" else (f"{way}_low", f"{way}_high")
                row |= dict(zip((first, *names), _mean(right[way][some]), strict=True))
            rows[name] = row
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(by or self.data.by or "category")

    def items(self) -> pd.DataFrame:
        """One row per item that was measured: prompt, choices, the answer that counts and the one that is likeliest,
        `right`, how much likelier the answer is than the best other (`margin`, nats), and the labels."""
        import pandas as pd

        right, chosen, rows = self.right(), self.chosen(), []
        for n in np.flatnonzero(self.done):
            item = self.data.items[n]
            others = np.delete(self.logprobs[n, : len(item.choices)], item.answer)
            rows.append({
                "prompt": item.prompt, "choices": item.choices, "answer": item.choices[item.answer],
                "chosen": item.choices[chosen[n]], "right": bool(right[n]),
                "margin": self.logprobs[n, item.answer] - others.max(), **item.labels,
            })  # fmt: skip
        return pd.DataFrame(rows, index=pd.Index(np.flatnonzero(self.done), name="item"))

    def minus(self, other: Benchmark) -> Difference:
        """This result compared with another on the items that both have, pair by pair.

        Raises:
            ValueError: they have no items in common, or are of different measures.
        """
        return Difference.of(self, other)

    @property
    def difference(self) -> Difference | None:
        """This result minus `other`; None without one, or while they have no item in common."""
        return None if self.other is None or not (self.done & self.other.done).any() else self.minus(self.other)

    def words(self) -> str:
        """What the numbers say, and what they cannot say."""
        done = int(self.done.sum())
        if not done:
            return "Nothing has been measured yet."
        share, low, high = _mean(self.right()[self.done])
        between = "" if np.isnan(low) else f"95 % interval {100 * low:.1f} to {100 * high:.1f}; "
        if self.data.measure == "preference":
            said = (
                f"{self.model} prefers the more stereotypical sentence in {100 * share:.1f} % of the {done} pairs of "
                f"{self.data.name} ({between}50 would be none)."
            )
        else:
            said = (
                f"{self.model} is right in {100 * share:.1f} % of the {done} items of {self.data.name} "
                f"({between}guessing gets {100 * self.chance:.1f})."
            )
        parts = [said]
        if self.difference is not None:
            parts.append(self.difference.words())
        if done < len(self.data.items):
            parts.append(f"{len(self.data.items) - done} items were not reached.")
        return " ".join([*parts, self.data.caution]).strip()

    def figure(self, by: str | None = None, *, way: str = "raw") -> go.Figure:
        """Bars with intervals, one per category, of both models where two were compared; a line where chance is.

        Args:
            by: the label to group by; by default the usual one of these items.
            way: `raw`, `per_token` or `per_byte`.
        """
        column = self.data.measure if way == "raw" else way
        low, high = ("low", "high") if way == "raw" else (f"{way}_low", f"{way}_high")
        frames = {one.model: one.to_frame(by) for one in (self, self.other) if one is not None and one.done.any()}
        drawn = [
            (name, 100 * frame[column], 100 * frame[low], 100 * frame[high], frame["items"])
            for name, frame in frames.items()
        ]
        what = "prefers the more stereotypical sentence" if self.data.measure == "preference" else "is right"
        who = self.model if len(frames) == 1 else "the model"  # the legend names two
        title = f"{self.data.name}: items in which {who} {what}{WAYS[way]}"
        return _bars(drawn, title=title, unit=f"{self.data.measure}, % of items", line=100 * self.chance)

    def code(self) -> str:
        """The Python that measures it again."""
        before, settings = self.recipe["load"], {}
        if self.other is not None:
            before += self.recipe["compare"]
            settings["compare"] = Name("other")
        if "frame" in self.recipe:
            before += self.recipe["frame"]
        data = Name("frame") if self.recipe["data"] is None else self.recipe["data"]
        settings |= {name: self.recipe[name] for name in SETTINGS if self.recipe[name] is not None}
        return as_code(before, "result = lk.benchmark", LM, data, **settings)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write items and log-probabilities to one file (`.npz`), in one step: the file is whole or not there.

        The file has the texts of the items; who passes it on passes on the data set.
        """
        about, arrays = self.parts("")
        if self.other is not None:
            about["other"], more = self.other.parts("other_")
            arrays |= more
        return save_arrays(path, FILE, about, **arrays)

    def parts(self, prefix: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        data = self.data
        items = [[i.prompt, i.choices, i.answer, dict(i.labels), i.delimiter] for i in data.items]
        about = {
            "model": self.model, "recipe": self.recipe, "name": data.name, "by": data.by, "unit": data.unit,
            "measure": data.measure, "caution": data.caution,
        }  # fmt: skip
        text = np.frombuffer(json.dumps(items).encode(), np.uint8)  # as text numpy would take four times as much
        return about, {f"{prefix}{n}": a for n, a in zip(PARTS, (self.logprobs, self.tokens, text), strict=True)}

    def __repr__(self) -> str:
        done, of = int(self.done.sum()), len(self.data.items)
        if not done:
            return f"Benchmark({self.data.name}, {self.model}, nothing measured)"
        share, low, high = _mean(self.right()[self.done])
        return (
            f"Benchmark({self.data.name}, {self.model}: {self.data.measure} {share:.3f} ({low:.3f} to {high:.3f}) on "
            f"{done}{'' if done == of else f' of {of}'} items)"
        )


PARTS = ("logprobs", "tokens", "items")


@dataclass(frozen=True)
class Difference:
    """Two results on the same items, pair by pair: first minus second.

    Attributes:
        first, second: the results.
        rows: the items of each that are the other's, int (2, items).
    """

    first: Benchmark
    second: Benchmark
    rows: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, first: Benchmark, second: Benchmark) -> Difference:
        if first.data.measure != second.data.measure:
            raise ValueError(
                f"{first.data.name} measures {first.data.measure} and {second.data.name} {second.data.measure}; only "
                "results of one measure can be subtracted"
            )
        waiting: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for n in np.flatnonzero(second.done)[::-1]:
            waiting[second.data.items[n].key].append(int(n))
        both = [
            (int(n), waiting[key].pop())
            for n in np.flatnonzero(first.done)
            if waiting.get(key := first.data.items[n].key)
        ]
        if not both:
            raise ValueError(
                f"{first.model} on {first.data.name} and {second.model} on {second.data.name} have no item in common; "
                "run both on the same items"
            )
        return cls(first, second, np.array(both).T)

    def values(self, way: str = "raw") -> np.ndarray:
        """1 where only the first is right, -1 where only the second is, else 0; float64 (items,)."""
        return self.first.right(way)[self.rows[0]] - self.second.right(way)[self.rows[1]]

    def to_frame(self, by: str | None = None, *, way: str = "raw") -> pd.DataFrame:
        """One row per category, and `all`.

        Columns: `items`; `first` and `second`, the share of each; their `difference`, with `low` and `high`, the ends
        of its 95 % interval from a paired bootstrap over items; `changed`, the share of items that one gets right and
        the other does not.
        """
        import pandas as pd

        values, (mine, theirs) = self.values(way), self.rows
        first, second = self.first.right(way)[mine], self.second.right(way)[theirs]
        place = np.full(len(self.first.data.items), -1)
        place[mine] = np.arange(len(mine))
        rows = {}
        for name, some in _groups(self.first.data, by, place >= 0):
            at = place[some]
            mean, low, high = _mean(values[at])
            rows[name] = {
                "items": len(at), "first": first[at].mean(), "second": second[at].mean(), "difference": mean,
                "low": low, "high": high, "changed": float((values[at] != 0).mean()),
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(by or self.first.data.by or "category")

    def words(self) -> str:
        """The difference of all items in a sentence."""
        values = self.values()
        mean, low, high = _mean(values)
        does = "has that preference" if self.first.data.measure == "preference" else "is right"
        points = f"{abs(100 * mean):.1f} percentage points {'more' if mean >= 0 else 'less'} often"
        between = "" if np.isnan(low) else f" (95 % interval of the difference {100 * low:+.1f} to {100 * high:+.1f})"
        return (
            f"{self.first.model} {does} {points} than {self.second.model}{between}; they differ in "
            f"{100 * float((values != 0).mean()):.1f} % of {len(values)} items."
        )

    def figure(self, by: str | None = None, *, way: str = "raw") -> go.Figure:
        """Bars with intervals, one per category, around a line where there is no difference."""
        frame = self.to_frame(by, way=way)
        drawn = [("difference", 100 * frame["difference"], 100 * frame["low"], 100 * frame["high"], frame["items"])]
        title = f"{self.first.data.name}: {self.first.model} minus {self.second.model}{WAYS[way]}"
        return _bars(drawn, title=title, unit=f"difference of {self.first.data.measure}, points", line=0)

    def __repr__(self) -> str:
        return f"Difference({self.words()})"


def _groups(data: ItemSet, by: str | None, wanted: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The items of each category that are wanted, and all of them at last."""
    labels = np.array(data.labels_by(by), dtype=object)
    for name in dict.fromkeys(labels):
        if name and len(some := np.flatnonzero(wanted & (labels == name))):
            yield name, some
    yield ALL, np.flatnonzero(wanted)


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    """The mean and the ends of its interval; NaN where there are too few."""
    if not len(values):
        return (float("nan"),) * 3
    return float(values.mean()), *(interval_of_mean(values) if len(values) > 1 else (float("nan"),) * 2)


def _bars(
    drawn: list[tuple[str, pd.Series, pd.Series, pd.Series, pd.Series]], *, title: str, unit: str, line: float
) -> go.Figure:
    """Horizontal bars with intervals, the first category on top."""
    import plotly.graph_objects as go

    figure = go.Figure([
        go.Bar(
            x=mean, y=[str(name).replace("_", " ") for name in mean.index], name=name, orientation="h",
            error_x={"type": "data", "symmetric": False, "array": high - mean, "arrayminus": mean - low},
            customdata=items, hovertemplate="%{y}<br>%{x:.1f}, %{customdata} items<extra></extra>",
        )
        for name, mean, low, high, items in drawn
    ])  # fmt: skip
    figure.add_vline(x=line, line={"dash": "dot", "color": "grey"})
    rows = max(len(one[1]) for one in drawn) if drawn else 1
    return figure.update_layout(
        title={"text": "<br>".join(wrap(title, 90)), "font": {"size": 14}}, xaxis={"title": unit}, barmode="group",
        yaxis={"autorange": "reversed", "type": "category", "automargin": True}, showlegend=len(drawn) > 1,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
        width=740, height=180 + 26 * rows * max(1, len(drawn)),
    )  # fmt: skip


def open_benchmark(path: str | os.PathLike[str]) -> Benchmark:
    """Open what `Benchmark.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold a benchmark, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        other = benchmark_from(about["other"], arrays, "other_") if "other" in about else None
        return benchmark_from(about, arrays, "", other)


def benchmark_from(about: dict[str, Any], arrays: dict[str, np.ndarray], prefix: str, other: Any = None) -> Benchmark:
    logprobs, tokens, text = (arrays[f"{prefix}{name}"] for name in PARTS)
    items = tuple(
        Item(prompt, tuple(choices), answer, labels, delimiter)
        for prompt, choices, answer, labels, delimiter in json.loads(text.tobytes())
    )
    data = ItemSet(about["name"], items, about["by"], about["unit"], about["measure"], about["caution"])
    return Benchmark(data, about["model"], logprobs, tokens, about["recipe"], other)
