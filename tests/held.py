"""Grids of PatchLab that wait at a cell, for tests of what can be done meanwhile; the fixture `hold` makes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from labkit.widgets.patch_lab.lab import PatchLab

Hold = Callable[[int], threading.Event]

LONG = "The weather was fine and everybody in the village was out on the green. " * 8
LONG_PAIR = (f"Mary sang. {LONG}", f"John sang. {LONG}", " Mary", " John")


def wait_for_cells(lab: PatchLab, least: int = 1) -> None:
    """Until so many cells are computed; `hold` keeps the others back."""
    while lab.grid is None or np.isfinite(lab.grid.values).sum() < least:
        time.sleep(0.002)
    assert not lab.grid.complete
