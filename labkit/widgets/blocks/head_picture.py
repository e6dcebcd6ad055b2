"""One head's matrix on a heatmap: pooled where the text is long, as bytes, the part that is looked at in full."""

from __future__ import annotations

import numpy as np

from labkit.widgets.blocks.heatmap import Heatmap

MOST_CELLS = 512  # rows and columns that travel at once
EXACT = 64  # tokens up to which float32 travels; longer texts as uint8
Window = tuple[int, int, int, int]


def attention_map(*, difference: bool = False) -> Heatmap:
    """A heatmap of queries and keys."""
    low, high, centre = (-1.0, 1.0, 0.0) if difference else (0.0, 1.0, None)
    made = Heatmap(
        row_axis="query (the token that looks)", column_axis="key (the token looked at)", low=low, high=high,
        centre=centre, square=True, triangular=True, zoomable=True, max_height=480,
    )  # fmt: skip
    made.layout.flex, made.layout.width = "1 1 360px", "auto"
    return made


def pooled(matrix: np.ndarray, step: int) -> np.ndarray:
    """The value farthest from zero of every step x step cells, rounded up to whole ones."""
    if step == 1:
        return matrix
    shape = [-(-size // step) for size in matrix.shape]
    room = [(0, n * step - size) for n, size in zip(shape, matrix.shape, strict=True)]
    blocks = np.pad(matrix, room).reshape(shape[0], step, shape[1], step)
    most, least = blocks.max((1, 3)), blocks.min((1, 3))
    return np.where(most >= -least, most, least)


def put(
    heatmap: Heatmap,
    matrix: np.ndarray,
    labels: tuple[list[str], list[str]],
    *,
    title: str,
    unit: str,
    high: float = 1.0,
) -> None:
    """Show a matrix (query, key) of a text of any length, with its window if there is one."""
    step = -(-max(matrix.shape) // MOST_CELLS)
    low = -high if heatmap.centre is not None else 0.0
    exact = max(matrix.shape) <= EXACT
    if not exact and low < 0:  # an even number of steps, so that zero is one of them
        high = high * 256 / 254
    with heatmap.hold_sync():
        if heatmap.row_labels != labels[0] or heatmap.column_labels != labels[1]:
            heatmap.selection = heatmap.hovered = heatmap.window = None
            heatmap.row_labels, heatmap.column_labels = labels
        heatmap.triangular = matrix.shape[0] == matrix.shape[1]
        heatmap.low, heatmap.high = low, high
        heatmap.title, heatmap.unit = title, unit
        heatmap.extent = matrix.shape if step > 1 else None
        heatmap.values = matrix if exact else as_bytes(pooled(matrix, step), low, high)
        put_window(heatmap, matrix)


def put_window(heatmap: Heatmap, matrix: np.ndarray) -> None:
    """The part that is looked at, where the whole is pooled."""
    at: Window | None = heatmap.window
    if at is None or heatmap.extent is None or at[1] > matrix.shape[0] or at[3] > matrix.shape[1]:
        heatmap.detail, heatmap.detail_at = None, None
        return
    part = matrix[at[0] : at[1], at[2] : at[3]]
    heatmap.detail = as_bytes(pooled(part, -(-max(part.shape) // MOST_CELLS)), heatmap.low, heatmap.high)
    heatmap.detail_at = at


def as_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8, 0 for low and 255 for high."""
    return np.round(np.clip((values - low) / ((high - low) or 1.0), 0, 1) * 255).astype(np.uint8)
