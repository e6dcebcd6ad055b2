"""How a client reaches a server: HTTP for what is asked, a WebSocket for how it goes on.

Every call has a name of the client's making, so a call that is sent again, because the answer was lost or the server
began anew, is the same call. Where a proxy lets no WebSocket through, the same news come by long polling.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from labkit._version import __version__, install_command
from labkit.engine.wavefront import Cancelled
from labkit.text.warn import first_time, warn

Report = Callable[[dict[str, Any]], None]
PATIENCE = 300.0  # seconds that a server may be away in the middle of a call
AT_ONCE = 0.5  # seconds that the first answer is waited for; most small reads are done by then
POLL = 20.0  # seconds of a long poll
TICK = 0.2  # seconds until an interrupt is seen
DEAF = 3  # WebSockets in a row that do not come about until there are no more attempts
ANEW = 3  # times that one call is sent anew


class HttpTransport:
    """A connection to `labkit serve`.

    Args:
        url: of the server; by default LABKIT_SERVER.
        token: by default LABKIT_TOKEN, or, with a url from LABKIT_SERVER, the token that JupyterHub gives a notebook.

    Raises:
        ValueError: there is no url or no token, or they are wrong.
        ConnectionError: nobody answers there.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        try:
            import httpx
        except ImportError:
            raise ImportError(f"lk.connect needs httpx: {install_command('serve')}") from None
        given = token or os.environ.get("LABKIT_TOKEN")
        if not url:
            url = os.environ.get("LABKIT_SERVER")
            given = given or os.environ.get("JUPYTERHUB_API_TOKEN")
        if not url:
            raise ValueError('where is the server? lk.connect("http://...", token="..."), or set LABKIT_SERVER')
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError(f"{url!r} is no address of a server; it looks like http://10.0.0.5:8900")
        if not given:
            raise ValueError('which token? lk.connect(url, token="..."), or set LABKIT_TOKEN; your teacher has yours')
        if not given.isascii() or not given.isprintable() or " " in given:
            raise ValueError("a token is one word of plain letters, digits and signs; copy it again")
        self.url = url.rstrip("/")
        self._token = given
        self._headers = {"Authorization": f"Bearer {given}", "User-Agent": f"labkit/{__version__}"}
        self._lost: tuple[type[Exception], ...] = (httpx.TransportError,)
        limits = httpx.Limits(max_connections=16, keepalive_expiry=20)
        self._client = httpx.Client(headers=self._headers, timeout=httpx.Timeout(60, connect=10), limits=limits)
        self._deaf = 0  # WebSockets in a row that did not come about

    def __repr__(self) -> str:
        return f"HttpTransport({self.url!r})"

    # -- what is served ------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What the server has."""
        try:
            answer = self._client.get(f"{self.url}/v1/model")
        except self._lost as error:
            raise ConnectionError(
                f"no labkit server answers at {self.url} ({error}). Is it running, and is this its address? It printed "
                "one when it began; `labkit serve --host 0.0.0.0` listens to other machines"
            ) from None
        self._check(answer)
        try:
            found: dict[str, Any] = answer.json()
            self._files = list(found["tokenizer"])
            about: dict[str, Any] = found["model"]
        except (ValueError, KeyError, TypeError):
            raise ConnectionError(f"{self.url} answers, but is no labkit server") from None
        if found["labkit"].split(".")[:2] != __version__.split(".")[:2]:
            message = (
                f"the server has labkit {found['labkit']} and this is {__version__}; some calls may be unknown there"
            )
            first_time(self, message)
        return about

    def tokenizer_files(self) -> dict[str, bytes]:
        """The files of its tokenizer, by name."""
        found = {}
        for name in self._files:
            answer = self._client.get(f"{self.url}/v1/tokenizer/{quote(name, safe='')}")
            self._check(answer)
            found[name] = answer.content
        return found

    # -- calls ---------------------------------------------------------------------------------------------------------

    def call(self, body: bytes, *, report: Report, stop: threading.Event | None = None) -> bytes:
        """Ask, and wait for the answer; see `labkit.remote.model.Transport`.

        Raises:
            Cancelled: it was ended before there was anything to keep.
            ConnectionError: the server is gone, and does not come back.
            RuntimeError: it refuses the call; the message says why, and when to try again.
        """
        going = _Going(self, body, report, stop or threading.Event())
        while True:
            try:
                return going.on()
            except KeyboardInterrupt:
                if going.stop.is_set():  # the second: do not even wait for what is done
                    going.cancel()
                    raise
                going.stop.set()

    def _check(self, answer: Any, *, doing: str = "") -> None:
        """Raise what an answer says is wrong.

        Raises:
            ValueError: the token is not known, or the call is wrong or too large.
            Cancelled: the call is gone.
            ConnectionError: it is no labkit server that answers.
            RuntimeError: anything else.
        """
        if answer.status_code < 400:
            return
        try:
            told: Mapping[str, Any] = answer.json()
            said, after = str(told["error"]), told.get("after")
        except (ValueError, KeyError, TypeError):
            raise ConnectionError(
                f"{self.url} answered {answer.status_code}, and not as a labkit server does; is a proxy in between?"
            ) from None
        if answer.status_code in (401, 403):
            raise ValueError(f"{self.url}: {said}")
        if answer.status_code == 410:
            raise Cancelled(said)
        later = f" (try again in {after:.0f} s)" if after and "Try again" not in said else ""
        raise (ValueError if answer.status_code in (400, 413) else RuntimeError)(f"{said}{later}")


class _Going:
    """One call on its way."""

    def __init__(self, transport: HttpTransport, body: bytes, report: Report, stop: threading.Event) -> None:
        self.to, self.body, self.report, self.stop = transport, body, report, stop
        self.once = secrets.token_hex(16)
        self.id: str | None = None
        self.after = 0  # reports so far
        self.anew = 0  # times that it was sent anew
        self.twice = False  # did it run twice, so that what it streams would come twice?
        self.told_stop = False
        self.lost_at: float | None = None
        self.pause = 0.2

    def on(self) -> bytes:
        """Whatever has to be done next, until there is an answer."""
        while True:
            try:
                answer = self._sent() if self.id is None else self._waited()
            except self.to._lost as error:
                self._lost(error)
                continue
            self.lost_at, self.pause = None, 0.2
            if answer is None:
                continue
            if answer.status_code == 202:
                self._news(answer.json())
            elif answer.status_code == 404 and self.id is not None and self.anew < ANEW:
                self._begin_anew()  # the server began anew, with another folder
            elif answer.status_code == 429 and self.id is None and not self.stop.is_set():
                self._full(answer)
            elif answer.status_code in (502, 503, 504) and "retry-after" not in answer.headers:
                self._lost(ConnectionError(f"status {answer.status_code}"))  # a proxy whose server is away
            else:
                self.to._check(answer)
                if note := answer.headers.get("labkit-note"):
                    warn(note)
                result: bytes = answer.content
                return result

    def _sent(self) -> Any:
        if self.stop.is_set():
            raise Cancelled("it was stopped before it was sent")
        headers = {"Idempotency-Key": self.once, "Content-Type": "application/octet-stream"}
        return self.to._client.post(
            f"{self.to.url}/v1/calls", params={"wait": AT_ONCE}, content=self.body, headers=headers
        )

    def _news(self, told: Mapping[str, Any]) -> None:
        self.twice |= int(told["after"]) < self.after
        self.id, self.after = str(told["id"]), int(told["after"])
        for said in told["said"]:
            self.twice |= "again" in said
            if not (self.twice and "partial" in said):
                self.report(said)

    def _begin_anew(self) -> None:
        """Send it again, as another call: the old name may stand for one that was ended."""
        self.once, self.id, self.after = secrets.token_hex(16), None, 0
        self.anew, self.twice = self.anew + 1, True

    def _waited(self) -> Any:
        """The next answer about a job that was accepted; None where there is only news, which were passed on."""
        if self.stop.is_set() and not self.told_stop:
            self.to._client.post(f"{self.to.url}/v1/jobs/{self.id}/stop")
            self.told_stop = True
        if self.to._deaf < DEAF and not self.told_stop:
            if not self._listened():
                return None
            return self._asked(0.0)
        return self._asked(TICK * 5 if not self.told_stop else POLL)

    def _asked(self, wait: float) -> Any:
        return self.to._client.get(f"{self.to.url}/v1/jobs/{self.id}", params={"wait": wait, "after": self.after})

    def _listened(self) -> bool:
        """Listen until the job ends; False when it is to be stopped, or there is no listening here."""
        try:
            from websockets.exceptions import ConnectionClosed, WebSocketException
            from websockets.sync.client import connect
        except ImportError:
            self.to._deaf = DEAF
            return False
        address = f"ws{self.to.url.removeprefix('http')}/v1/jobs/{self.id}/events?after={self.after}"
        headers = {"Authorization": self.to._headers["Authorization"]}
        try:
            socket = connect(address, additional_headers=headers, open_timeout=10, max_size=None, compression=None)
        except (WebSocketException, OSError, EOFError):
            self.to._deaf += 1  # perhaps a proxy, perhaps the server is away or the job is gone; the next request says
            return True
        with socket:
            heard = False
            while not self.stop.is_set():
                try:
                    told = json.loads(socket.recv(timeout=TICK))
                except TimeoutError:
                    continue
                except ConnectionClosed:
                    self.to._deaf += not heard
                    return True
                self.to._deaf, heard = 0, True
                self._news(told)
                if told["state"] not in ("waiting", "running"):
                    return True
        return False

    def _full(self, answer: Any) -> None:
        """The student has as many calls there as they may: wait as it says, if that is soon."""
        after = float(answer.headers.get("retry-after", 60))
        if after > 10:
            self.to._check(answer)
        self.stop.wait(after)

    def _lost(self, error: Exception) -> None:
        now = time.monotonic()
        self.lost_at = self.lost_at or now
        if now - self.lost_at > PATIENCE or (self.stop.is_set() and now - self.lost_at > 5):
            raise ConnectionError(
                f"{self.to.url} has not answered for {now - self.lost_at:.0f} s ({error}). The call may still be done "
                "there; ask again when the server is back"
            ) from None
        time.sleep(self.pause)
        self.pause = min(5.0, self.pause * 1.6)

    def cancel(self) -> None:
        if self.id is not None:
            try:
                self.to._client.delete(f"{self.to.url}/v1/jobs/{self.id}", timeout=2)
            except self.to._lost:
                return
