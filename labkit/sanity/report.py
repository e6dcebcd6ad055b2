"""Controls: the results of the checks, as a table, in words and as figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.patching import gap
from labkit.patching.grid import PatchGrid

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

BLUE, GREY, ORANGE = "#0b66c3", "#8a929b", "#d9730d"


@dataclass(frozen=True)
class Check:
    """One check and its result: `ok` is None where the check could not be made; `says` has the numbers in words."""

    name: str
    ok: bool | None
    says: str
    numbers: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def verdict(self) -> str:
        return {True: "passed", False: "check this", None: "not done"}[self.ok]


@dataclass(frozen=True)
class Controls:
    """The checks of a grid.

    Attributes:
        grid: the exact grid.
        cells: its strongest cells, the strongest first, as {"layer": ..., "position": ...}.
        checks: one after the other.
    """

    grid: PatchGrid
    cells: list[dict[str, int]]
    checks: list[Check]

    def __getitem__(self, name: str) -> Check:
        """The check of that name."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"there is no check {name!r}; use one of {', '.join(c.name for c in self.checks) or 'none'}")

    @property
    def verdict(self) -> str:
        """All checks in one sentence."""
        made = [check for check in self.checks if check.ok is not None]
        wrong = [check.name for check in made if not check.ok]
        if not made and self.grid.too_close:
            return f"Nothing to explain: {gap.words(self.grid.recipe, self.grid.clean, self.grid.corrupt)}."
        if not made:
            return "No checks were run."
        if not wrong:
            return f"All {len(made)} checks passed."
        return f"{len(made) - len(wrong)} of {len(made)} checks passed; check these: {', '.join(wrong)}."

    def table(self) -> pd.DataFrame:
        """One row per check: its verdict and its sentence."""
        import pandas as pd

        rows = [{"check": c.name, "verdict": c.verdict, "says": c.says} for c in self.checks]
        return pd.DataFrame(rows, columns=["check", "verdict", "says"]).set_index("check")

    def labels(self) -> list[str]:
        """The strongest cells in words."""
        where = lambda cell: ", ".join(f"{axis} {n}" for axis, n in cell.items())  # noqa: E731
        tokens = [f" {self.grid.tokens[c['position']].display}" if "position" in c else "" for c in self.cells]
        return [where(cell) + token for cell, token in zip(self.cells, tokens, strict=True)]

    def figure(self) -> go.Figure:
        """Four panels: other activations in place of the right one, three ways of ablating cells, the estimate against
        exact values, and the strongest cell in many pairs; empty for checks not made.
        """
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        titles = (
            "The right activation, and others in its place",
            "What the clean run loses without a cell",
            "Estimate and truth",
            "The strongest cell in many pairs",
        )
        figure = make_subplots(2, 2, subplot_titles=titles, horizontal_spacing=0.1, vertical_spacing=0.22)
        share = "share of the way"
        panels: tuple[tuple[Callable[[Any], list[Any]], str, str], ...] = (
            (self._draw_random, "", share),
            (self._draw_ablation, "", "share of the answer lost"),
            (self._draw_estimate, f"exact, {share}", f"estimate, {share}"),
            (self._draw_pairs, f"strongest cell, {share}", "pairs"),
        )
        for number, (draw, x, y) in enumerate(panels):
            place = {"row": 1 + number // 2, "col": 1 + number % 2}
            for trace in draw(go):
                figure.add_trace(trace, **place)
            figure.update_xaxes(title_text=x, **place)
            figure.update_yaxes(title_text=y, **place)
        short = [label.replace(", ", "<br>") for label in self.labels()]
        ticks = {"tickvals": list(range(len(short))), "ticktext": short, "tickangle": 0}
        for column in (1, 2):
            figure.update_xaxes(**ticks, range=[-0.6, len(short) - 0.4], row=1, col=column)
        shares = self._numbers("many pairs").get("shares", [])
        figure.update_xaxes(range=[min(0.0, *shares, 0.0) - 0.06, max(1.0, *shares, 1.0) + 0.06], row=2, col=2)
        figure.update_layout(
            title={"text": f"Sanity checks: {self.verdict}", "font": {"size": 14}},
            width=1000, height=760, margin={"t": 90, "r": 20, "b": 110}, barmode="group", template="plotly_white",
            legend={"orientation": "h", "y": -0.1, "x": 0},
        )  # fmt: skip
        return figure

    def _numbers(self, name: str) -> dict[str, Any]:
        return next((c.numbers for c in self.checks if c.name == name), {})

    def _draw_random(self, go: Any) -> list[Any]:
        dots = lambda name, x, y, colour, symbol, first=True: go.Scatter(  # noqa: E731
            x=x, y=y, mode="markers", name=name, legendgroup=name, showlegend=first,
            marker={"color": colour, "size": 13 if colour == BLUE else 7, "symbol": symbol, "opacity": 0.75},
        )  # fmt: skip
        traces = []
        if right := (self._numbers("random positions") or self._numbers("random prompts")).get("right"):
            traces.append(dots("right activation", [i - 0.2 for i in range(len(right))], right, BLUE, "diamond"))
        for name, colour, symbol, aside in (
            ("random positions", ORANGE, "circle", 0.0),
            ("random prompts", GREY, "triangle-up", 0.2),
        ):
            for i, shares in enumerate(self._numbers(name).get("random", [])):
                traces.append(dots(name, [i + aside] * len(shares), shares, colour, symbol, i == 0))
        return traces

    def _draw_ablation(self, go: Any) -> list[Any]:
        names = {"patch": ("corrupt activation", BLUE), "mean": ("mean", ORANGE), "resample": ("resampled", GREY)}
        return [
            go.Bar(x=list(range(len(shares))), y=shares, name=names[way][0], marker={"color": names[way][1]})
            for way, shares in self._numbers("ablation").items()
        ]

    def _draw_estimate(self, go: Any) -> list[Any]:
        if "exact" not in (found := self._numbers("estimate")):
            return []
        exact, guess = found["exact"], found["estimate"]
        ends = [float(np.min(exact, initial=0)), float(np.max(exact, initial=1))]
        line = go.Scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dot"}, showlegend=False)
        dots = go.Scatter(x=exact, y=guess, mode="markers", marker={"color": BLUE, "size": 5}, showlegend=False)
        return [line, dots]

    def _draw_pairs(self, go: Any) -> list[Any]:
        if "shares" not in (found := self._numbers("many pairs")):
            return []
        shares = found["shares"]
        low, high = min(0.0, *shares), max(1.0, *shares)
        bins = {"start": low, "end": high + 0.1, "size": 0.05 if high - low < 3 else (high - low) / 50}
        bars = go.Histogram(x=shares, xbins=bins, marker={"color": GREY}, name="pairs", showlegend=False)
        here = go.Scatter(
            x=[found["here"]], y=[0], mode="markers", name="this pair",
            marker={"color": BLUE, "size": 13, "symbol": "diamond"},
        )  # fmt: skip
        mean = go.Scatter(
            x=[found["mean"]], y=[0], mode="markers", name="mean and 95% interval",
            error_x={"array": [found["high"] - found["mean"]], "arrayminus": [found["mean"] - found["low"]]},
            marker={"color": ORANGE, "size": 9},
        )  # fmt: skip
        return [bars, here, mean]

    def __repr__(self) -> str:
        lines = [f"Controls of {self.grid.site}, {self.grid.direction}: {self.verdict}"]
        lines += [f"  {c.name:18} {c.verdict:15} {c.says}" for c in self.checks]
        return "\n".join(lines)
