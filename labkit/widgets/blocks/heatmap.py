"""Heatmap: cells of numbers with readable labels, zero in the middle where it means no effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import traitlets as t

from labkit.widgets.base.block import Array, Block, cell, literal, module, texts, to_wire
from labkit.widgets.base.picture import columns_of, cut, image, painted, png, xml
from labkit.widgets.blocks.heatmap_picture import bar, dotted, strongest, words

_MOST_TEXTS = 800  # words in the cells of a picture
_LONGEST = 24, 16  # columns of type of a label in a picture, of a row and of a column


def _values_to_wire(values: np.ndarray | None, widget: Any) -> dict[str, Any] | None:
    """A square of which only the lower triangle can be anything but zero travels as that triangle."""
    if values is None or not widget.triangular or values.shape[0] != values.shape[1]:
        return to_wire(values, widget)
    triangle = values[np.tril_indices(len(values))]
    return {**(to_wire(triangle, widget) or {}), "shape": list(values.shape), "triangle": True}


class Heatmap(Block):
    """A grid of numbers as colours, on a canvas. Arrow keys move, Enter or a click selects a cell.

    Args:
        values: (rows, columns), float32, or uint8 with 0 for `low` and 255 for `high`. NaN: not computed yet.
        row_labels, column_labels: texts or tokens.
        row_axis, column_axis, title, unit: what the axes and the numbers are.
        low, high: the values at the ends of the colour scale; from the values where not given.
        centre: the value in the middle of a scale with two sides, such as 0.0; None for one that only grows.
        scale: `effect` with a centre, `amount` without, unless given.
        origin: `top` or `bottom`: where row 0 is.
        square: cells as high as they are wide.
        column_marks: columns whose label stands out.
        texts: a word for each cell, row by row, written into it; cut where it does not fit, whole in the note.
        notes: for each cell what its note says instead of the number.
        ticks: (value, label) pairs for the colour bar, where numbers alone would not do.
        estimated: (rows, columns), uint8, 1 where a value is an estimate: those cells are dotted, and announced.
        cone: (rows, columns), uint8, 0 outside the causal cone of a cell, where thin lines lie over the colours.
        gestures: cells can be chosen together (Shift or Ctrl and a click, Shift+Enter), and one dragged onto another
            (or M on the one, Enter on the other).

    A large grid is best given pooled, with its true size as `extent` and labels for all of it; an observer of `window`
    sets the numbers of a part as `detail`.

    Args, of a large grid:
        zoomable: with buttons, Ctrl + wheel, drag and the keys + - 0 to look at a part.
        extent: (rows, columns) of the grid that `values` is pooled from.
        triangular: nothing right of the diagonal: causal attention. Only the triangle travels.

    Traits:
        selection, hovered: (row, column) or None.
        chosen: the cells chosen together, in order.
        arrow: the last drag, ((row, column), (row, column)), from where to where; or None.
        window: (row, row stop, column, column stop) in view; None for all.
        detail, detail_at: the numbers of a part, and its window.
    """

    _esm = module(
        "cell_grid",
        "heatmap_texts",
        "heatmap_window",
        "heatmap_estimates",
        "heatmap_cone",
        "heatmap_gestures",
        "heatmap",
    )

    values = Array(2).tag(to_json=_values_to_wire)
    extent = cell().tag(sync=True)
    window = cell(4).tag(sync=True)
    detail = Array(2)
    detail_at = cell(4).tag(sync=True)
    triangular = t.Bool(False).tag(sync=True)
    zoomable = t.Bool(False).tag(sync=True)
    row_labels = t.List(t.Unicode()).tag(sync=True)
    column_labels = t.List(t.Unicode()).tag(sync=True)
    column_marks = t.List(t.Int()).tag(sync=True)
    row_axis = t.Unicode().tag(sync=True)
    column_axis = t.Unicode().tag(sync=True)
    title = t.Unicode().tag(sync=True)
    unit = t.Unicode().tag(sync=True)
    description = t.Unicode(help="what a screen reader says of the whole").tag(sync=True)
    low = t.Float(0.0).tag(sync=True)
    high = t.Float(1.0).tag(sync=True)
    centre = t.Float(None, allow_none=True).tag(sync=True)
    origin = t.Enum(["top", "bottom"], "top").tag(sync=True)
    square = t.Bool(False).tag(sync=True)
    max_height = t.Int(520).tag(sync=True)
    texts = t.List(t.Unicode()).tag(sync=True)
    notes = t.List(t.Unicode()).tag(sync=True)
    ticks: t.List = t.List().tag(sync=True)
    selection = cell().tag(sync=True)
    hovered = cell().tag(sync=True)
    estimated = Array(2)
    cone = Array(2)
    gestures = t.Bool(False).tag(sync=True)
    chosen = t.List(t.Tuple(t.Int(), t.Int())).tag(sync=True)
    arrow = t.Tuple(t.Tuple(t.Int(), t.Int()), t.Tuple(t.Int(), t.Int()), default_value=None, allow_none=True).tag(
        sync=True
    )

    def __init__(
        self,
        values: Any = None,
        *,
        row_labels: Sequence[Any] = (),
        column_labels: Sequence[Any] = (),
        low: float | None = None,
        high: float | None = None,
        centre: float | None = None,
        scale: str | None = None,
        **traits: Any,
    ) -> None:
        least, most = _range(values, centre)
        super().__init__(
            values=values,
            row_labels=texts(row_labels),
            column_labels=texts(column_labels),
            low=least if low is None else low,
            high=most if high is None else high,
            centre=centre,
            scale=scale or ("amount" if centre is None else "effect"),
            **traits,
        )

    @t.observe("values", "title", "unit", "row_axis", "column_axis", "estimated", "gestures")
    def _describe(self, _change: Any) -> None:
        if self.values is None:
            self.description = f"{self.title or 'heatmap'}, empty"
            return
        rows, columns = self.values.shape
        numbers = self.numbers()
        known = numbers[np.isfinite(numbers)]
        said = f"from {known.min():.3g} to {known.max():.3g} {self.unit}".rstrip() if known.size else "not computed yet"
        if guessed := 0 if self.estimated is None else int(self.estimated.astype(bool).sum()):
            said += f"; {guessed} of {rows * columns} cells are estimates, dotted"
        self.description = (
            f"{self.title or 'heatmap'}: {rows} rows ({self.row_axis or 'rows'}) by {columns} columns "
            f"({self.column_axis or 'columns'}), values {said}. Arrow keys move, Enter selects."
        )
        if self.gestures:
            self.description += " Shift+Enter chooses several; M marks a cell, and Enter on another patches it there."

    def numbers(self) -> np.ndarray:
        """The values as float32 (rows, columns), also where they are held as uint8."""
        if self.values is None:
            return np.zeros((0, 0), np.float32)
        if self.values.dtype == np.uint8:
            return (self.low + self.values / 255 * (self.high - self.low)).astype(np.float32)
        return np.asarray(self.values, np.float32)

    def picture(self) -> str:
        """The heatmap as an image without a frame, for the snapshot of a tool; estimated cells are dotted."""
        if self.values is None or not self.values.size:
            return ""
        values, texts = self.numbers(), self.texts
        rows, columns = values.shape
        look: dict[str, Any] = {name: getattr(self, name) for name in ("scale", "low", "high", "centre")}
        upwards = self.origin == "bottom"
        worded = len(texts) == rows * columns <= _MOST_TEXTS
        width = min(max(columns * (18 if self.square else 58 if worded else 34), 160), 820 if worded else 640)
        height = width * rows / columns if self.square else min(max(rows * 13, 110), 420)
        if worded:
            height = min(max(rows * 15, 110), 900)
        every = max(1, int(np.ceil(13 * rows / height))), max(1, int(np.ceil(13 * columns / width)))
        down = {row: cut(_label(self.row_labels, row), _LONGEST[0]) for row in range(0, rows, every[0])}
        across = {n: cut(_label(self.column_labels, n), _LONGEST[1]) for n in range(0, columns, every[1])}
        left = 40 + 7 * max(2, *map(columns_of, down.values()))
        bottom = 34 + 6 * max(2, *map(columns_of, across.values()))
        picture = painted(strongest(values, self.centre or 0.0), **look)
        out = [
            f'<image x="{left}" y="8" width="{width:.0f}" height="{height:.0f}" preserveAspectRatio="none" '
            f'class="x" href="{png(picture[::-1] if upwards else picture)}"/>'
        ]
        about = self._about()
        if self.estimated is not None and self.estimated.shape == values.shape and self.estimated.any():
            out.append(dotted(self.estimated, left, width / columns, height / rows, upwards=upwards))
            about += "; dotted cells are estimates"
        if worded:
            out += words(texts, painted(values, **look), left, width / columns, height / rows, upwards=upwards)
        for row, label in down.items():
            y = 8 + ((rows - 1 - row if upwards else row) + 0.5) * height / rows + 4
            out.append(f'<text x="{left - 6}" y="{y:.1f}" class="s e">{xml(label)}</text>')
        for column, label in across.items():
            x = left + (column + 0.5) * width / columns + 3
            turn = f'transform="rotate(-55 {x:.1f} {height + 20:.0f})"'
            out.append(f'<text x="{x:.1f}" y="{height + 20:.0f}" class="s e" {turn}>{xml(label)}</text>')
        total, middle = height + bottom + 14, 8 + height / 2
        out.append(f'<text x="{left + width / 2:.0f}" y="{total - 4:.0f}" class="q c">{xml(self.column_axis)}</text>')
        turn = f'transform="rotate(-90 12 {middle:.0f})"'
        out.append(f'<text x="12" y="{middle:.0f}" class="q c" {turn}>{xml(self.row_axis)}</text>')
        out.append(bar(left + width + 18, min(height, 160), 8 + min(height, 160) / 2, look, self.unit, self.ticks))
        return image("".join(out), left + width + 110, total, about)

    def _about(self) -> str:
        """The heatmap in a sentence: its title, its scale, and the strongest cell."""
        values = self.numbers()
        rows, columns = values.shape
        down, across = (name or what for name, what in ((self.row_axis, "rows"), (self.column_axis, "columns")))
        words = f"{self.title or 'Heatmap'}: {rows} by {columns}, {down} by {across}"
        words += f"; {self.unit or 'values'} from {self.low:.3g} to {self.high:.3g}"
        known = np.isfinite(values)
        if not known.any():
            return words
        far = np.where(known, np.abs(values - (self.centre or 0.0)), -1.0)
        row, column = (int(n) for n in np.unravel_index(int(far.argmax()), values.shape))
        where = f"{_label(self.row_labels, row)} and {_label(self.column_labels, column)}"
        return f"{words}; strongest {values[row, column]:.3g} at {where}"

    def code(self) -> str:
        """The Python that makes the same heatmap."""
        names = ["row_labels", "column_labels", "row_axis", "column_axis", "title", "unit", "low", "high", "centre"]
        names += ["scale", "origin", "square", *(name for name in ("texts", "notes", "ticks") if getattr(self, name))]
        given = "".join(f"    {name}={getattr(self, name)!r},\n" for name in names)
        values = literal(self.values).split("  #")
        about = f"  #{values[1]}" if len(values) > 1 else ""
        numpy = "import numpy as np\n\n" if "np." in values[0] else ""
        return f"{numpy}import labkit as lk\n\nlk.Heatmap(\n    {values[0]},{about}\n{given})\n"

    def __repr__(self) -> str:
        shape = "empty" if self.values is None else f"{self.values.shape[0]} x {self.values.shape[1]}"
        return f"Heatmap({self.title + ': ' if self.title else ''}{shape})"


def _range(values: Any, centre: float | None) -> tuple[float, float]:
    array = np.zeros(0) if values is None else np.asarray(values)
    if array.dtype == np.uint8:
        return 0.0, 1.0
    known = array[np.isfinite(array)]
    if not known.size:
        return (0.0, 1.0) if centre is None else (centre - 1.0, centre + 1.0)
    low, high = float(known.min()), float(known.max())
    return (min(0.0, low) if centre is None else low, high)


def _label(labels: Sequence[str], n: int) -> str:
    return labels[n] if n < len(labels) else str(n)
