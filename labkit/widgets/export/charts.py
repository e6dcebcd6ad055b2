"""The figures of results as labkit's own pictures: heatmaps as blocks, and bars, lines and points as drawings.

Results draw with plotly, whose script is larger than a whole page may be, and whose pictures need a browser to be made.
What their figures are made of is little: it is drawn here with what saved notebooks are drawn with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import unescape
from typing import Any

import numpy as np

from labkit.widgets.base.colour_scales import colour
from labkit.widgets.base.picture import cut, image, xml
from labkit.widgets.blocks.heatmap import Heatmap

COLOURS = ("#0b66c3", "#c2570c", "#59636e", "#2e7d4f", "#7b4bb3", "#a83232")
_SAFE = re.compile(r"#[0-9a-fA-F]{3,8}|[a-z]{3,20}|rgba?\([\d., %]+\)")
_RED = "rgb(103,0,31)"  # where RdBu begins, the scale of effects
WIDE, HIGH, ROW = 640, 300, 18  # of a chart in pixels, and of a bar that lies


def pictures_of(figure: Any) -> list[tuple[str, Heatmap | str]]:
    """A plotly figure as (title, block or HTML of an image), one for each of its pairs of axes.

    Raises:
        ValueError: it holds something else than a heatmap, bars, lines and points.
    """
    title = plain(figure.layout.title.text)
    groups: dict[tuple[str, str], list[Any]] = {}
    for trace in figure.data:
        groups.setdefault((trace.xaxis or "x", trace.yaxis or "y"), []).append(trace)
    parts = [plain(note.text) for note in figure.layout.annotations if note.showarrow is False]
    made: list[tuple[str, Heatmap | str]] = []
    for n, ((x, y), traces) in enumerate(groups.items()):
        name = " · ".join(filter(None, (title if n == 0 else "", parts[n] if n < len(parts) else "")))
        axes: tuple[Any, ...] = tuple(figure.layout[place.replace(place[0], f"{place[0]}axis", 1)] for place in (x, y))
        if any(trace.type == "heatmap" for trace in traces):
            made.append((name, _heatmap(traces[0], axes, name)))
        elif unknown := {trace.type for trace in traces} - {"bar", "scatter", "histogram"}:
            raise ValueError(f"a figure with {', '.join(sorted(unknown))} has no picture of labkit's own")
        else:
            lines = [one.x0 for one in figure.layout.shapes if one.type == "line" and (one.xref or "x") == x
                     and one.x0 == one.x1]  # fmt: skip
            made.append((name, _Chart(traces, axes, lines).drawn(name or "Chart")))
    return made


def plain(text: str | None) -> str:
    """The words of a plotly title."""
    return unescape(re.sub(r"<br */?>", " ", text or "")).strip()


def _heatmap(trace: Any, axes: tuple[Any, ...], title: str) -> Heatmap:
    values = np.array(trace.z, np.float32)
    across, down = axes
    low, high = (float(end) if end is not None else None for end in (trace.zmin, trace.zmax))
    stops: Any = trace.colorscale or ()
    two_sided = bool(stops) and stops[0][1] == _RED and low is not None and high is not None

    def labels(given: Any, count: int) -> list[str]:
        return [unescape(str(one)) for one in (range(count) if given is None else given)]

    text = trace.text if trace.hovertext is None else trace.hovertext  # all of it, where that is more than is shown
    words = [unescape(str(one)) for row in text for one in row] if np.ndim(text) == 2 else []
    return Heatmap(
        values, row_labels=labels(trace.y, len(values)), column_labels=labels(trace.x, values.shape[1]), low=low,
        high=high, centre=(low + high) / 2 if two_sided else None,  # type: ignore[operator]

        title=title, row_axis=plain(down.title.text), column_axis=plain(across.title.text),
        unit=plain(trace.colorbar.title.text), texts=words,
        origin="top" if down.autorange == "reversed" else "bottom",
    )  # fmt: skip


class _Chart:
    """Bars, lines and points on one pair of axes."""

    def __init__(self, traces: Sequence[Any], axes: tuple[Any, ...], lines: Sequence[float]) -> None:
        self.traces, self.axes, self.lines = [_counted(trace) for trace in traces], axes, lines
        self.flat = any(one.get("orientation") == "h" for one in self.traces)
        self.kinds: list[list[str] | None] = []  # categories of each axis, or None for numbers
        self.ends: list[tuple[float, float]] = []
        for n, name in enumerate("xy"):
            values = [value for one in self.traces for value in one[name]]
            worded = axes[n].type == "category" or any(isinstance(value, str) for value in values)
            self.kinds.append(list(dict.fromkeys(map(str, values))) if worded else None)
            self.ends.append((-0.5, len(set(map(str, values))) - 0.5) if worded else self._range(n, name))
        names = self.kinds[1]
        self.left = 18 + (min(330, 7 * max(map(len, names), default=4)) if names else 44)
        self.high = max(HIGH, ROW * len(names)) if names else HIGH

    def _range(self, n: int, name: str) -> tuple[float, float]:
        values = [0.0] if any(one["type"] == "bar" for one in self.traces) and self.flat == (n == 0) else []
        for one in self.traces:
            numbers = np.array(one[name], float)
            values += [*numbers, *(numbers + one[f"more_{name}"]), *(numbers - one[f"less_{name}"])]
        values += [float(at) for at in self.lines] if n == 0 else []
        if n == (1 if self.flat else 0) and any(one["type"] == "bar" for one in self.traces):
            half = self._between(name) / 2  # a bar is as wide as the way to the next
            values = [edge for value in values for edge in (value - half, value + half)]
        known = [value for value in values if np.isfinite(value)] or [0.0, 1.0]
        pad = 0.04 * (max(known) - min(known) or 1.0)
        return min(known) - (pad if min(known) else 0), max(known) + (pad if max(known) else 0)

    def _between(self, name: str) -> float:
        """The least distance between two bars along an axis of numbers."""
        places = np.unique(np.concatenate([np.array(one[name], float) for one in self.traces if one["type"] == "bar"]))
        return float(np.diff(places).min(initial=np.inf)) if len(places) > 1 else 1.0

    def place(self, n: int, value: Any) -> float:
        """Where a value lies, in pixels."""
        kinds, (low, high) = self.kinds[n], self.ends[n]
        at = float(kinds.index(str(value))) if kinds is not None else float(value)
        share = (at - low) / ((high - low) or 1.0)
        backwards = self.axes[n].autorange == "reversed"
        if n == 0:
            return self.left + WIDE * (1 - share if backwards else share)
        return 10 + self.high * (share if backwards else 1 - share)

    def drawn(self, about: str) -> str:
        out = [f'<rect x="{self.left}" y="10" width="{WIDE}" height="{self.high}" fill="none" stroke="#d5dae0"/>']
        out += [*self._scale(0), *self._scale(1)]
        for at in self.lines:
            x = self.place(0, at)
            out.append(f'<path d="M{x:.1f} 10v{self.high}" stroke="#59636e" stroke-dasharray="3 3"/>')
        for n, trace in enumerate(self.traces):
            before = self.traces[n - 1] if n else None
            out += self._marks(trace, n, before)
        y = self.high + 62
        told = set()
        for n, trace in enumerate(self.traces):
            if trace["name"] and len(self.traces) > 1 and trace["name"] not in told:
                told.add(trace["name"])
                out.append(
                    f'<rect x="{self.left}" y="{y - 9}" width="10" height="10" fill="{self._colour(trace, n)}"/>'
                )
                out.append(f'<text x="{self.left + 16}" y="{y}">{xml(cut(plain(trace["name"]), 90))}</text>')
                y += 17
        return image("".join(out), self.left + WIDE + 20, y, f"{about}: {self._said()}")

    def _said(self) -> str:
        first = self.traces[-1]
        pairs = ", ".join(f"{_short(x)} {_short(y)}" for x, y in list(zip(first["x"], first["y"], strict=False))[:12])
        return f"{plain(self.axes[1].title.text)} by {plain(self.axes[0].title.text)}: {pairs}"

    def _scale(self, n: int) -> Iterator[str]:
        kinds, (low, high) = self.kinds[n], self.ends[n]
        step = max(1, -(-13 * len(kinds) // (self.high if n else WIDE // 5))) if kinds else 1
        marks: list[tuple[Any, str]] = [(k, k) for k in kinds[::step]] if kinds else []
        if not kinds and self.axes[n].ticktext:
            marks = [(at, plain(text)) for at, text in zip(self.axes[n].tickvals, self.axes[n].ticktext, strict=True)]
        elif not kinds:
            marks = [(value, _short(value)) for value in _round(low, high)]
        for value, text in marks:
            at = self.place(n, value)
            if n == 0:
                yield f'<text x="{at:.1f}" y="{self.high + 26}" class="q c">{xml(cut(str(text), 18))}</text>'
                yield f'<path d="M{at:.1f} {self.high + 10}v4" stroke="#d5dae0"/>'
            else:
                yield f'<text x="{self.left - 6}" y="{at + 4:.1f}" class="q e">{xml(cut(str(text), 46))}</text>'
        name = plain(self.axes[n].title.text)
        if n == 0:
            yield f'<text x="{self.left + WIDE / 2}" y="{self.high + 44}" class="q c">{xml(name)}</text>'
        elif not kinds:
            middle = 10 + self.high / 2
            yield f'<text x="11" y="{middle}" class="q c" transform="rotate(-90 11 {middle})">{xml(name)}</text>'

    def _marks(self, trace: dict[str, Any], n: int, before: dict[str, Any] | None) -> Iterator[str]:
        look = self._colour(trace, n)
        points = [(self.place(0, x), self.place(1, y)) for x, y in _known(trace)]
        if trace["type"] == "bar":
            bars = [one for one in self.traces if one["type"] == "bar"]
            number, count = bars.index(trace), len(bars)
            yield from self._bars(trace, points, look, number, count)
        if trace["fill"] == "tonexty" and before is not None:
            edge = [*points, *reversed([(self.place(0, x), self.place(1, y)) for x, y in _known(before)])]
            yield f'<polygon points="{_path(edge)}" fill="#59636e" fill-opacity=".25"/>'
        elif "lines" in trace["mode"] and trace["width"] != 0:
            dash = ' stroke-dasharray="4 3"' if trace["dash"] else ""
            yield f'<polyline points="{_path(points)}" fill="none" stroke="{look}" stroke-width="2"{dash}/>'
        if "markers" in trace["mode"]:
            for k, (x, y) in enumerate(points):
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{self._colour(trace, n, k)}"/>'
        for path in self._errors(trace):
            yield f'<path d="{path}" stroke="#1f2328"/>'

    def _bars(
        self, trace: dict[str, Any], points: Sequence[tuple[float, float]], look: str, number: int, count: int
    ) -> Iterator[str]:
        across = 1 if self.flat else 0
        low, high = self.ends[across]
        step = 1.0 if self.kinds[across] is not None else self._between("xy"[across])
        room = (self.high if self.flat else WIDE) * step / ((high - low) or 1.0)
        thick = 0.8 * room / count
        zero = self.place(1 - across, 0)
        for k, (x, y) in enumerate(points):
            shift = (number - (count - 1) / 2) * thick
            fill = self._colour(trace, number, k) if trace["shades"] is not None else look
            if self.flat:
                box = min(x, zero), y + shift - thick / 2, abs(x - zero), thick
            else:
                box = x + shift - thick / 2, min(y, zero), thick, abs(y - zero)
            a, b, wide, high = box
            yield f'<rect x="{a:.1f}" y="{b:.1f}" width="{wide:.1f}" height="{high:.1f}" fill="{fill}"/>'

    def _errors(self, trace: dict[str, Any]) -> Iterator[str]:
        """A line from end to end of each interval."""
        for k, (x, y) in enumerate(_known(trace)):
            for n, (name, value) in enumerate((("x", x), ("y", y))):
                more, less = trace[f"more_{name}"], trace[f"less_{name}"]
                if self.kinds[n] is not None or not (np.any(more) or np.any(less)) or k >= len(more):
                    continue
                low, high = self.place(n, value - less[k]), self.place(n, value + more[k])
                beside = self.place(1 - n, (x, y)[1 - n])
                yield f"M{low:.1f} {beside:.1f}H{high:.1f}" if n == 0 else f"M{beside:.1f} {low:.1f}V{high:.1f}"

    def _colour(self, trace: dict[str, Any], n: int, k: int = 0) -> str:
        shades = trace["shades"]
        if shades is not None and k < len(shades):
            if isinstance(shades[k], str):
                return shades[k] if _SAFE.fullmatch(shades[k]) else COLOURS[0]
            reach = max(1e-9, float(np.nanmax(np.abs(np.array(shades, float)))))
            return "#{:02x}{:02x}{:02x}".format(*colour("effect", 0.5 + 0.5 * float(shades[k]) / reach))
        named = trace["colour"]
        return named if isinstance(named, str) and _SAFE.fullmatch(named) else COLOURS[n % len(COLOURS)]


def _counted(trace: Any) -> dict[str, Any]:
    """A trace as what is drawn of it; a histogram as its bars."""
    x, y = (list(one) if one is not None else [] for one in (trace.x, trace.y))
    kind = trace.type
    if kind == "histogram":
        heights, edges = np.histogram(np.array(x, float), bins=20)
        x, y, kind = [_short(v) for v in (edges[:-1] + edges[1:]) / 2], heights.tolist(), "bar"
    made: dict[str, Any] = {"type": kind, "x": x or list(range(len(y))), "y": y or list(range(len(x)))}
    marker = trace.marker.color
    many = marker is not None and not isinstance(marker, str)
    line = getattr(trace, "line", None)
    made |= {
        "name": trace.name, "mode": (getattr(trace, "mode", None) or "lines") if kind == "scatter" else "",
        "orientation": getattr(trace, "orientation", None), "fill": getattr(trace, "fill", None),
        "shades": list(marker) if many else None, "colour": (line and line.color) or (None if many else marker),
        "width": line.width if line is not None else None,
        "dash": bool(line is not None and line.dash),
    }  # fmt: skip
    for name in "xy":
        error = getattr(trace, f"error_{name}", None)
        more = np.array(
            error.array if error is not None and error.array is not None else [0.0] * len(made[name]), float
        )
        less = error.arrayminus if error is not None else None
        made |= {f"more_{name}": more, f"less_{name}": more if less is None else np.array(less, float)}
    return made


def _known(trace: dict[str, Any]) -> list[tuple[Any, Any]]:
    pairs = zip(trace["x"], trace["y"], strict=False)
    return [pair for pair in pairs if all(isinstance(v, str) or (v is not None and np.isfinite(v)) for v in pair)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{float(value):.4g}".replace("-", "−")


def _round(low: float, high: float) -> list[float]:
    """Round numbers between two ends."""
    raw = (high - low) / 5 or 1.0
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * next(n for n in (1, 2, 5, 10) if n * power >= raw)
    return [float(step * n) for n in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
