"""A connection to the server whose requests have to arrive: uvicorn waits for the head of one as long as it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0  # for the head of a request to arrive, from the connection or from its first byte


class Connection(H11Protocol):
    """uvicorn's, closed when the head of a request is late: thousands of half-sent ones would leave no socket free."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()  # more bytes of the same head give no more time
        else:
            self._done()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _done(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
