"""Grids that are slow on purpose, a room with a server in it, and a model at home and in the next room."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import labkit as lk
from labkit.patching import patch as patching
from labkit.patching.patch import PatchJob
from labkit.remote.model import RemoteModel

if TYPE_CHECKING:
    from held import Hold
    from next_room import NextRoom
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


@pytest.fixture(scope="module")
def home() -> lk.LanguageModel:
    from next_room import SMALL

    return lk.load(SMALL, bits=32, device="cpu", progress=False)


@pytest.fixture(scope="module")
def away(home: lk.LanguageModel) -> RemoteModel:
    """The same model behind a connection."""
    from next_room import NextRoom

    return RemoteModel(NextRoom(home))


@pytest.fixture
def next_room(away: RemoteModel) -> Iterator[NextRoom]:
    """Where `away` is, with nothing asked of it yet."""
    room: NextRoom = away.transport
    room.calls, room.reports = [], []
    room.on_report = room.reports.append
    yield room
    room.on_report = room.reports.append
