"""HTTP and WebSocket around a desk.

    GET    /v1/model                what is served
    GET    /v1/tokenizer/FILE       a file of its tokenizer
    POST   /v1/calls?wait=S         a call, and its result when that is there within S seconds; else 202 and an id
    POST   /v1/jobs                 a call, which is kept over a restart; 202 and an id
    GET    /v1/jobs/ID?wait=S&after=N   its result; 202 while there is none, with the reports after the Nth
    POST   /v1/jobs/ID/stop         end it soon; what is done by then is its result
    DELETE /v1/jobs/ID              cancel it
    WS     /v1/jobs/ID/events?after=N   the same reports as they come
    GET    /teacher, /healthz

A token comes in the header `Authorization: Bearer TOKEN`. `Idempotency-Key`, chosen by the client, makes sending a call
twice the same as sending it once. Errors are JSON: `{"error": sentence, "after": seconds until a retry, or null}`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from labkit._version import __version__
from labkit.server.classroom import Classroom
from labkit.server.desk import Desk
from labkit.server.jobs import Job, Refused
from labkit.server.requests import body, number, plain, refusal, same_origin
from labkit.server.tokens import Door, Person

OPEN = 32  # requests that a student may have open at a time
LONGEST_WAIT = 30.0  # seconds that an answer is waited for in one request
BATCH = 0.05  # seconds between two messages of a WebSocket
QUEUED = 0.5  # of a call that waits, which every turn of anybody has news for

Answer = Callable[[Request, Person], Awaitable[Response]]


class _Bell:
    """Wakes whoever waits for news of a job, from any thread."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    def ring(self, jobs: list[Job]) -> None:
        ids = [job.id for job in jobs if job.id in self._waiting]
        if ids and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._wake, ids)

    def _wake(self, ids: list[str]) -> None:
        for id in ids:
            for event in self._waiting.get(id, ()):
                event.set()

    @contextmanager
    def of(self, job: Job) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._waiting[job.id].add(event)
        try:
            yield event
        finally:
            self._waiting[job.id].discard(event)
            if not self._waiting[job.id]:
                del self._waiting[job.id]


class App:
    """What the routes share: the desk, the door, and who has what open."""

    def __init__(self, desk: Desk, door: Door, *, base: str = "") -> None:
        self.desk, self.door, self.base = desk, door, base.rstrip("/")
        self.open: dict[str, int] = defaultdict(int)
        self.bell: _Bell | None = None

    # -- who -------------------------------------------------------------------------------------------------------

    async def person(self, connection: HTTPConnection) -> Person:
        """Whose token a request has.

        Raises:
            Refused: it has none, or one that nobody has.
        """
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() not in ("bearer", "token") or not token:
            raise Refused(401, "this server asks for a token; pass it as lk.connect(url, token=...)")
        person = await self.who(token.strip())
        if person is None:
            raise Refused(401, "this token is not known here; ask your teacher for yours")
        return person

    async def who(self, token: str) -> Person | None:
        """Whose token it is."""
        if self.door.waits:
            return await asyncio.to_thread(self.door.who, token)
        return self.door.who(token)

    @contextmanager
    def one_more(self, person: Person) -> Iterator[None]:
        if self.open[person.name] >= OPEN:
            raise Refused(429, f"you have {OPEN} requests open, which is the limit; close some", after=1)
        self.open[person.name] += 1
        try:
            yield
        finally:
            self.open[person.name] -= 1
            if not self.open[person.name]:
                del self.open[person.name]

    def route(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        """A route for whoever has a token; what is refused becomes JSON."""

        async def answered(request: Request) -> Response:
            try:
                person = await self.person(request)
                with self.one_more(person):
                    return await answer(request, person)
            except Refused as refused:
                return refusal(refused)

        return answered

    # -- the model -------------------------------------------------------------------------------------------------

    async def model(self, request: Request, person: Person) -> Response:
        limits = self.desk.turns.limits
        return JSONResponse(
            {
                "labkit": __version__,
                "you": person.name,
                "model": self.desk.about,
                "tokenizer": sorted(self.desk.files),
                "limits": {"body": limits.body, "result": limits.result, "seconds": limits.seconds},
            }
        )

    async def tokenizer(self, request: Request, person: Person) -> Response:
        file = self.desk.files.get(request.path_params["file"])
        if file is None:
            raise Refused(404, "this tokenizer has no such file")
        return Response(file, media_type="application/octet-stream")

    # -- calls and jobs --------------------------------------------------------------------------------------------

    async def call(self, request: Request, person: Person) -> Response:
        wait = number(request, "wait", 1.0)  # what is refused is not in the queue
        job = await self._submitted(request, person, keep=False)
        await self._ended(job, wait)
        if job.state in ("waiting", "running"):
            self.desk.keep(job)
        return self._state(job)

    async def submit(self, request: Request, person: Person) -> Response:
        job = await self._submitted(request, person, keep=True)
        return JSONResponse(self._news(job, 0), status_code=202)

    async def job(self, request: Request, person: Person) -> Response:
        job = self._find(request, person)
        after = int(number(request, "after", 0))
        if job.state == "waiting" or job.work.count <= after:
            await self._ended(job, number(request, "wait", 0.0), after=after)
        return self._state(job, after)

    async def stop(self, request: Request, person: Person) -> Response:
        self.desk.turns.stop(self._find(request, person))
        return Response(status_code=204)

    async def cancel(self, request: Request, person: Person) -> Response:
        self.desk.turns.cancel(self._find(request, person))
        return Response(status_code=204)

    def _find(self, connection: HTTPConnection, person: Person) -> Job:
        id = connection.path_params["id"]
        job = self.desk.turns.find(person.name, id)
        if job is None:
            if (why := self.desk.turns.why_gone(person.name, id)) is not None:
                raise Refused(410, why)
            raise Refused(404, "there is no such job")
        return job

    async def _submitted(self, request: Request, person: Person, *, keep: bool) -> Job:
        once = request.headers.get("idempotency-key") or secrets.token_hex(16)
        if len(once) > 100:
            raise Refused(400, "an Idempotency-Key has at most 100 characters")
        sent = await body(request, self.desk.turns.limits.body)
        submit = self.desk.submit
        if len(sent) > 1 << 16:  # reading it takes longer than others should wait
            return await asyncio.to_thread(submit, person.name, sent, once=once, keep=keep)
        return submit(person.name, sent, once=once, keep=keep)

    async def _ended(self, job: Job, seconds: float, *, after: int | None = None) -> None:
        """Wait until a job has ended, at most so long; with `after` also for a report after that one."""
        assert self.bell is not None
        end = self.bell.loop.time() + min(seconds, LONGEST_WAIT)
        new = lambda: after is not None and job.work.count > after  # noqa: E731
        with self.bell.of(job) as news:
            while job.state in ("waiting", "running") and not new() and (left := end - self.bell.loop.time()) > 0:
                try:
                    await asyncio.wait_for(news.wait(), left)
                except TimeoutError:
                    return
                news.clear()

    def _state(self, job: Job, after: int = 0) -> Response:
        if job.cancelled:
            why = self.desk.turns.why_gone(job.student, job.id)
            return refusal(Refused(410, why or "the call was cancelled"))
        if job.work.ended is None:
            return JSONResponse(self._news(job, after), status_code=202)
        self.desk.turns.fetched(job)
        if job.work.error is not None:
            return refusal(job.work.error)
        note = {"Labkit-Note": job.work.note} if job.work.note else {}
        return Response(job.work.result, headers=note, media_type="application/octet-stream")

    def _news(self, job: Job, after: int) -> dict[str, Any]:
        """What is new about a job since its report number `after`."""
        said = [plain(one) for one in job.work.since(after)]
        if job.state == "waiting":
            said.append({"waiting": self.desk.turns.ahead(job)})
        return {"id": job.id, "state": job.state, "after": job.work.count, "said": said}

    # -- events ----------------------------------------------------------------------------------------------------

    async def events(self, socket: WebSocket) -> None:
        try:
            same_origin(socket)
            person = await self.person(socket)
            job, after = self._find(socket, person), int(number(socket, "after", 0))
            with self.one_more(person):
                await socket.accept()
                with suppress(WebSocketDisconnect):
                    await self._tell(socket, job, after)
        except Refused as refused:
            await socket.send_denial_response(refusal(refused))

    async def _tell(self, socket: WebSocket, job: Job, after: int) -> None:
        assert self.bell is not None
        last, due = None, 0.0
        gone = asyncio.ensure_future(socket.receive())  # clients say nothing: they leave, or it is garbage
        job.watched += 1
        try:
            with self.bell.of(job) as news:
                while not gone.done():
                    news.clear()
                    left = due - self.bell.loop.time() if job.state == "waiting" else 0.0
                    if left <= 0:
                        told = self._news(job, after)
                        if told["said"] != last or told["state"] not in ("waiting", "running"):
                            await socket.send_text(json.dumps(told))
                        after, last = told["after"], told["said"] if job.state == "waiting" else []
                        if told["state"] not in ("waiting", "running"):
                            await socket.close()
                            return
                        due = self.bell.loop.time() + QUEUED
                    waiting = asyncio.ensure_future(news.wait())
                    await asyncio.wait(
                        [waiting, gone], timeout=left if left > 0 else None, return_when=asyncio.FIRST_COMPLETED
                    )
                    waiting.cancel()
                    if job.state == "running":
                        await asyncio.sleep(BATCH)
            if gone.result()["type"] == "websocket.receive":
                await socket.close(1008)
        finally:
            job.watched -= 1
            job.seen = self.desk.turns.clock()
            gone.cancel()

    async def health(self, request: Request) -> Response:
        return JSONResponse({"labkit": __version__, "ready": True})

    @asynccontextmanager
    async def alive(self, app: Starlette) -> AsyncIterator[None]:
        self.bell = _Bell()
        self.desk.listener = self.bell.ring
        self.desk.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.desk.close)


def build(desk: Desk, door: Door, *, base: str = "") -> Starlette:
    """The application. With `base`, the prefix of a JupyterHub's service, everything is under it."""
    app = App(desk, door, base=base)
    classroom = Classroom(desk, app.who, base=app.base)
    routes: list[BaseRoute] = [
        Route("/v1/model", app.route(app.model)),
        Route("/v1/tokenizer/{file}", app.route(app.tokenizer)),
        Route("/v1/calls", app.route(app.call), methods=["POST"]),
        Route("/v1/jobs", app.route(app.submit), methods=["POST"]),
        Route("/v1/jobs/{id}", app.route(app.job)),
        Route("/v1/jobs/{id}", app.route(app.cancel), methods=["DELETE"]),
        Route("/v1/jobs/{id}/stop", app.route(app.stop), methods=["POST"]),
        WebSocketRoute("/v1/jobs/{id}/events", app.events),
        Route("/teacher", classroom.shown),
        Route("/teacher/{action}", classroom.changed, methods=["POST"]),
        Route("/healthz", app.health),
    ]
    if app.base:
        routes = [Mount(app.base, routes=routes)]
    return Starlette(routes=routes, lifespan=app.alive)
