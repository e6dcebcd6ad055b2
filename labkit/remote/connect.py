"""The door to a model that somebody serves."""

from __future__ import annotations

from labkit.remote.http import HttpTransport
from labkit.remote.model import RemoteModel


def connect(url: str | None = None, *, token: str | None = None) -> RemoteModel:
    """A model that `labkit serve` shares, with the names of one that is here: `run`, `generate`, `lk.patch(lm, ...)`.

    What you read and write is sent as numbers; no code is, in either direction. Metrics go by name, and what is written
    is a tensor or a steering vector. A call waits for its turn; an interrupt ends it and keeps what is done.

    Args:
        url: what the server printed when it began, such as `http://10.0.0.5:8900`; by default LABKIT_SERVER, from the
            environment.
        token: your own, from whoever runs it; by default LABKIT_TOKEN.

    Raises:
        ValueError: the url or the token is missing or wrong.
        ConnectionError: nobody answers there.
    """
    return RemoteModel(HttpTransport(url, token))
