"""Grids that are slow on purpose."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from labkit.patching import patch as patching
from labkit.patching.patch import PatchJob

if TYPE_CHECKING:
    from held import Hold


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short pair takes many steps."""
    monkeypatch.setattr(patching, "tokens_at_once", lambda lm: 60)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch, small_chunks: None) -> Hold:
    """`hold(n)`: from now on a grid waits when n of its cells are computed, until the event is set."""

    def held(cells: int) -> threading.Event:
        go, real = threading.Event(), PatchJob._values

        def values(self: PatchJob, some: Any) -> Any:
            if np.isfinite(self.grid.values).sum() >= cells:
                assert go.wait(300)
            return real(self, some)

        monkeypatch.setattr(PatchJob, "_values", values)
        return go

    return held
