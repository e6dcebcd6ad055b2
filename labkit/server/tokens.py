"""Who may ask: the students of a file of tokens, or the users of a JupyterHub."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import shlex
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from labkit.server.jobs import Refused

_NAME = re.compile(r"[^\s#\x00-\x1f\x7f]{1,64}")
_TOKEN = re.compile(r"[!-~]{16,200}")
ROLES = ("student", "teacher")


@dataclass(frozen=True)
class Person:
    name: str
    teacher: bool = False


class Door(Protocol):
    """Says whose token it is; Refused when it cannot. May wait, so it is asked in a thread where `waits` is true."""

    waits: bool

    def who(self, token: str) -> Person | None: ...


class TokenFile:
    """A line for each student, `name token`, or `name token teacher`; `#` begins a comment. Read again when it changes.

    Raises:
        ValueError: it cannot be read, or a line is not such a line; the message says which and never shows a token.
    """

    waits = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._stamp: tuple[int, ...] = ()
        self._people: list[tuple[bytes, Person]] = []
        self._read()
        if os.name == "posix" and self.path.stat().st_mode & 0o077:
            print(
                f"labkit serve: others on this machine can read the tokens: chmod 600 {shlex.quote(str(path))}",
                file=sys.stderr,
            )

    def who(self, token: str) -> Person | None:
        try:
            self._read()
        except ValueError as error:  # half an edit; those of before stay valid
            print(f"labkit serve: {error}; the tokens of before stay valid", file=sys.stderr)
        asked, found = _digest(token), None
        for digest, person in self._people:  # all of them, so that the time says nothing
            if hmac.compare_digest(digest, asked):
                found = person
        return found

    @property
    def people(self) -> list[Person]:
        return [person for _, person in self._people]

    def _read(self) -> None:
        stamp: tuple[int, ...] = (0,)  # there is none
        try:
            with suppress(OSError):
                about = self.path.stat()
                stamp = (about.st_mtime_ns, about.st_size, about.st_ino)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            lines = self.path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise ValueError(f"the tokens in {str(self.path)!r} cannot be read: {why}") from None
        people: list[tuple[bytes, Person]] = []
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split() if not line.lstrip().startswith("#") else []
            if not words:
                continue
            name, token, role = [*words, "student"][:3] if len(words) in (2, 3) else ("", "", "")
            if not (_NAME.fullmatch(name) and _TOKEN.fullmatch(token) and role in ROLES):
                raise ValueError(
                    f"line {number} of {str(self.path)!r} is not `name token` or `name token teacher`, with a token of "
                    "16 characters or more and no spaces"
                )
            if any(name == person.name or _digest(token) == digest for digest, person in people):
                raise ValueError(f"line {number} of {str(self.path)!r} has a name or a token that was there before")
            people.append((_digest(token), Person(name, role == "teacher")))
        self._people = people


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def make_tokens(path: str | os.PathLike[str], students: int) -> Path:
    """A new file of tokens that its owner alone can read: `student-01` and so on, and `teacher`.

    Raises:
        FileExistsError: there is one; its tokens may be in use.
        ValueError: fewer than one student.
    """
    if students < 1:
        raise ValueError(f"a class has at least one student, not {students}")
    width = max(2, len(str(students)))
    names = [f"student-{n:0{width}d}" for n in range(1, students + 1)]
    lines = [
        "# name token [teacher]. Change names as you like, give each student their own line's token, delete lines to",
        "# lock someone out; labkit serve reads the file again when it changes.",
        f"teacher {secrets.token_urlsafe(24)} teacher",
        *(f"{name} {secrets.token_urlsafe(24)}" for name in names),
    ]
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return Path(path)


class Hub:
    """The users of the JupyterHub that this is a service of; its admins are teachers.

    A user's token has to have the scope `access:services!service=NAME`.

    Raises:
        ValueError: this process was not started by a hub.
    """

    waits = True

    def __init__(self) -> None:
        from jupyterhub.services.auth import HubAuth

        if not os.environ.get("JUPYTERHUB_API_TOKEN"):
            raise ValueError(
                "--hub needs the environment that JupyterHub gives its services (JUPYTERHUB_API_TOKEN and others); add "
                "labkit serve to c.JupyterHub.services"
            )
        self.auth: Any = HubAuth(cache_max_age=60)
        self._known: dict[bytes, tuple[float, Person]] = {}  # who came lately need not wait for the hub

    def who(self, token: str) -> Person | None:
        digest, now = _digest(token), time.monotonic()
        until, person = self._known.get(digest, (0.0, None))
        if now < until:
            return person
        self._known = {one: held for one, held in self._known.items() if now < held[0]}
        try:
            user = self.auth.user_for_token(token)
        except Exception as error:  # clients are patient while it begins anew
            print(f"labkit serve: the hub does not answer: {error}", file=sys.stderr)
            raise Refused(503, "the JupyterHub of this server does not answer; try again in a minute") from None
        if not user or not self.auth.check_scopes(self.auth.access_scopes, user):
            return None
        self._known[digest] = now + 60, (person := Person(str(user["name"]), bool(user.get("admin"))))
        return person


class Doors:
    """Several doors: whoever one of them knows may come in."""

    def __init__(self, *doors: Door) -> None:
        self.doors = doors
        self.waits = any(door.waits for door in doors)

    def who(self, token: str) -> Person | None:
        return next((person for door in self.doors if (person := door.who(token)) is not None), None)
