"""Curve: one number per layer as a line, such as a token's rank on its way through the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import traitlets as t

from labkit.widgets.base.block import Array, Block, literal, module
from labkit.widgets.base.picture import image, xml


class Curve(Block):
    """A line through numbers. Arrow keys move along it, Enter or a click selects a point.

    Args:
        values: (n,), float32; NaN leaves a gap.
        labels: what each point is, such as layer numbers; `axis` says of what.
        notes: for each point what its note says; the number itself where there are none.
        low, high: the values at the bottom and at the top; low may be the larger one.
        ticks: (value, label) pairs for the upright axis.
        title, unit: what is shown, and of what the values are.

    Traits:
        selection (int | None): the point that is marked.
    """

    _esm = module("curve")

    values = Array(1)
    labels = t.List(t.Unicode()).tag(sync=True)
    notes = t.List(t.Unicode()).tag(sync=True)
    ticks: t.List = t.List().tag(sync=True)
    axis = t.Unicode().tag(sync=True)
    title = t.Unicode().tag(sync=True)
    unit = t.Unicode().tag(sync=True)
    low = t.Float(0.0).tag(sync=True)
    high = t.Float(1.0).tag(sync=True)
    height = t.Int(150).tag(sync=True)
    selection = t.Int(None, allow_none=True).tag(sync=True)

    def __init__(self, values: Any = None, *, labels: Sequence[Any] = (), **traits: Any) -> None:
        super().__init__(values=values, labels=[str(label) for label in labels], **traits)

    def picture(self) -> str:
        """The line as an image without a frame, for the snapshot of a tool."""
        if self.values is None or not len(self.values):
            return ""
        wide, high, left = 420, self.height, 58
        step = (wide - left - 12) / max(1, len(self.values) - 1)
        y_of = lambda value: 8 + (high - 34) * (1 - (value - self.low) / ((self.high - self.low) or 1.0))  # noqa: E731
        points = [(i, float(v)) for i, v in enumerate(self.values) if np.isfinite(v)]
        line = " ".join(f"{left + i * step:.1f},{y_of(value):.1f}" for i, value in points)
        out = [f'<polyline points="{line}" fill="none" stroke="#0b66c3" stroke-width="2"/>']
        out += [
            f'<text x="{left - 8}" y="{y_of(value) + 4:.0f}" class="q e">{xml(label)}</text>'
            for value, label in self.ticks
        ]
        every = max(1, len(self.labels) // 10)
        out += [
            f'<text x="{left + i * step:.0f}" y="{high - 10}" class="q c">{xml(label)}</text>'
            for i, label in enumerate(self.labels)
            if i % every == 0
        ]
        name = lambda i: self.labels[i] if i < len(self.labels) else str(i)  # noqa: E731
        about = f"{self.title or self.unit or 'Curve'}: {len(points)} points"
        if points:
            about += ", from " + " to ".join(f"{value:.3g} at {name(i)}" for i, value in (points[0], points[-1]))
        return image("".join(out), wide, high, about)

    def code(self) -> str:
        """The Python that makes the same curve."""
        names = ("labels", "title", "unit", "axis", "low", "high", "ticks")
        given = "".join(f"    {name}={getattr(self, name)!r},\n" for name in names)
        return f"from labkit.widgets.blocks.curve import Curve\n\nCurve(\n    {literal(self.values)},\n{given})\n"

    def __repr__(self) -> str:
        return f"Curve({self.title!r}, {0 if self.values is None else len(self.values)} points)"
