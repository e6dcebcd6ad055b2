"""Grids that are slow on purpose, and a room with a server in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from labkit.patching import patch as patching
from labkit.patching.patch import PatchJob

if TYPE_CHECKING:
    from held import Hold
    from shared_room import Room, Small


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


@pytest.fixture
def worker() -> Small:
    from shared_room import Small

    return Small()


@pytest.fixture
def room(tmp_path: Path, worker: Small) -> Iterator[Room]:
    """A server with one small worker and narrow limits."""
    from shared_room import Room

    with Room(tmp_path, worker, jobs=3, body=1000, result=2000) as room:
        yield room
