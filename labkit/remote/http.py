"""How a client reaches a server: HTTP for what is asked once, a WebSocket for calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class HttpTransport:
    """A connection to `labkit serve`."""

    def __init__(self, url: str, token: str | None = None) -> None:
        raise NotImplementedError("labkit serve is not a part of this version yet")

    def describe(self) -> dict[str, Any]:
        raise NotImplementedError

    def tokenizer_files(self) -> dict[str, bytes]:
        raise NotImplementedError

    def call(
        self, body: bytes, *, report: Callable[[dict[str, Any]], None], stop: threading.Event | None = None
    ) -> bytes:
        raise NotImplementedError
