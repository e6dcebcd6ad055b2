"""The teacher's way in: logging in with a cookie, the page, and the forms on it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from labkit.server.desk import Desk
from labkit.server.jobs import Refused
from labkit.server.requests import body, refusal, same_origin
from labkit.server.teacher import login, page
from labkit.server.tokens import Person

SESSION = 12 * 3600  # seconds that a teacher stays logged in
COOKIE = "labkit_teacher"


class Classroom:
    """The routes of the teacher's page.

    Args:
        desk: whose queue it shows.
        who: whose token it is.
        base: the address that everything is under.
    """

    def __init__(self, desk: Desk, who: Callable[[str], Awaitable[Person | None]], *, base: str) -> None:
        self.desk, self.who, self.base = desk, who, base
        self.sessions: dict[str, float] = {}

    def _logged_in(self, request: Request) -> bool:
        now, session = asyncio.get_running_loop().time(), request.cookies.get(COOKIE, "")
        return any(secrets.compare_digest(one.encode(), session.encode()) and now < end
                   for one, end in self.sessions.items())  # fmt: skip

    async def shown(self, request: Request) -> Response:
        """The page, or the form to log in."""
        nonce = secrets.token_urlsafe(16)
        if not self._logged_in(request):
            return _page(login(base=self.base, nonce=nonce), nonce)
        model = str(self.desk.about.get("name", "the model"))
        return _page(page(self.desk.turns, model=model, base=self.base, nonce=nonce), nonce)

    async def changed(self, request: Request) -> Response:
        """The forms of the page."""
        try:
            same_origin(request)
            form = parse_qs((await body(request, 4096)).decode("utf-8", "replace"))
            return await self._done(request, lambda name: form.get(name, [""])[0])
        except Refused as refused:
            return refusal(refused)

    async def _done(self, request: Request, value: Callable[[str], str]) -> Response:
        back = RedirectResponse(f"{self.base}/teacher", status_code=303)
        action = request.path_params["action"]
        if action == "login":
            person = await self.who(value("token"))
            if person is None or not person.teacher:
                nonce = secrets.token_urlsafe(16)
                return _page(login(base=self.base, nonce=nonce, wrong=True), nonce, status=401)
            now, session = asyncio.get_running_loop().time(), secrets.token_urlsafe(32)
            self.sessions = {one: end for one, end in self.sessions.items() if now < end} | {session: now + SESSION}
            secure = request.url.scheme == "https"
            path = f"{self.base}/teacher"
            back.set_cookie(
                COOKIE, session, max_age=SESSION, httponly=True, samesite="strict", secure=secure, path=path
            )
            return back
        if not self._logged_in(request):
            return refusal(Refused(401, "log in first"))
        if action == "logout":
            self.sessions.pop(request.cookies.get(COOKIE, ""), None)
        elif action == "stop":
            for work in self.desk.turns.running():
                if work.name == value("work"):
                    for job in list(work.jobs):
                        self.desk.turns.cancel(job, why="the teacher stopped this call")
        elif action in ("pause", "resume") and value("student") in self.desk.turns.students:
            self.desk.turns.pause(value("student"), action == "pause")
        return back


def _page(html: str, nonce: str, *, status: int = 200) -> Response:
    return HTMLResponse(
        html,
        status,
        {
            "Content-Security-Policy": f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
            "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )
