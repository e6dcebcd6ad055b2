"""What a restart of the server finds again: accepted jobs and results, in a folder, each file whole or not there.

A file is one line of JSON and then bytes. Names of files are the ids of jobs, which are 64 hexadecimal digits, so no
client chooses a path. Before work runs, a mark of it is put down, which is taken away at its end: a mark that a new
server finds means that the last one died with that work. Such work runs once more; what killed two servers is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from labkit.results.file import written_whole
from labkit.server.jobs import Job, Refused, Work
from labkit.server.turns import Turns

_ID = re.compile(r"[0-9a-f]{64}")
_FOLDERS = ("jobs", "results", "running")


class Store:
    """The folder of one server, which holds its lock as long as it runs.

    Args:
        folder: made where it is missing, for its owner alone.
        model: what the server serves; a folder with jobs for another model is refused.

    Raises:
        ValueError: another server uses the folder, it belongs to another model, or it cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str], *, model: str) -> None:
        self.folder = Path(folder)
        self._lock = FileLock(self.folder / "lock", thread_local=False)  # another thread lets it go
        try:
            for name in _FOLDERS:
                (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)  # prompts of students
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another labkit serve uses {str(self.folder)!r}; stop it, or give this one a folder with --keep"
            ) from None
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        about = self.folder / "queue.json"
        try:
            whose = json.loads(about.read_text("utf-8"))["model"] if about.exists() else model
        except (OSError, ValueError, KeyError, TypeError):
            whose = "a model that it does not name"
        if whose != model:
            self.close()
            raise ValueError(
                f"{str(self.folder)!r} has the queue of {whose}, not of {model}; give another folder with --keep, or "
                "delete this one if nobody waits for its jobs"
            )
        try:
            with written_whole(about) as file:
                file.write(json.dumps({"kind": "labkit queue", "format": 1, "model": model}).encode())
            self.deaths: dict[str, int] = kept_deaths(self.folder)
        except OSError as error:
            self.close()
            raise _unwritable(self.folder, error) from None

    def close(self) -> None:
        self._lock.release()

    # -- jobs and results ------------------------------------------------------------------------------------------

    def accepted(self, job: Job) -> None:
        about = {"student": job.student, "number": job.number, "key": job.work.key, "work": job.work.name}
        self._write("jobs", job.id, about, job.work.body)

    def finished(self, work: Work, *, result: bytes | None, error: Refused | None, shared: bool = True) -> None:
        about = {"error": error and [error.status, error.sentence], "shared": shared}
        self._write("results", work.name, about, result or b"")

    def forgotten(self, what: Job | Work) -> None:
        if isinstance(what, Work):
            self._path("results", what.name).unlink(missing_ok=True)
        elif what.kept:
            self._path("jobs", what.id).unlink(missing_ok=True)

    def restore(self, turns: Turns) -> int:
        """Put what was accepted back into the queue, in the order it came; how many jobs there are."""
        found = sorted((one for one in self._read("jobs") if _is_job(one[1])), key=lambda one: one[1]["number"])
        works: dict[str, Work] = {}
        for id, about, body in found:
            name, key = about["work"], about["key"]
            work = works.setdefault(name, Work(name, body, key))
            job = turns.submit(about["student"], body, id=id, key=key, again=work, number=about["number"])
            if work.ended is None and (held := self._open("results", name)) is not None and _is_end(held[0]):
                said, result = held
                error = Refused(*said["error"]) if said["error"] else None
                work.shared = said["shared"]
                turns.restored(job, result=None if error else result, error=error)
        for path in (self.folder / "results").iterdir():  # of jobs that were fetched while the server went down
            if path.name not in works:
                path.unlink(missing_ok=True)
        return len(found)

    # -- what kills servers ----------------------------------------------------------------------------------------

    def begins(self, work: Work) -> None:
        """Mark work that is about to run."""
        self._path("running", work.digest).touch()

    def ends(self, work: Work) -> None:
        """It ran, or was asked to stop, and the server is still there."""
        self._path("running", work.digest).unlink(missing_ok=True)
        if self.deaths.pop(work.digest, None):
            write_deaths(self.folder, self.deaths)

    def died(self, work: Work) -> None:
        """A worker that ran it died, which is counted in `deaths`."""
        write_deaths(self.folder, self.deaths)
        self._path("running", work.digest).unlink(missing_ok=True)

    # -- files -----------------------------------------------------------------------------------------------------

    def _path(self, where: str, name: str) -> Path:
        if not _ID.fullmatch(name):
            raise ValueError(f"not the id of a job: {name[:80]!r}")
        return self.folder / where / name

    def _write(self, where: str, name: str, about: dict[str, Any], data: bytes) -> None:
        with written_whole(self._path(where, name)) as file:
            file.write(json.dumps(about).encode() + b"\n")
            file.write(data)

    def _open(self, where: str, name: str) -> tuple[dict[str, Any], bytes] | None:
        """What a file holds; None where there is none, or none that can be read."""
        with suppress(OSError, ValueError):
            line, _, data = self._path(where, name).read_bytes().partition(b"\n")
            about = json.loads(line)
            return (about, data) if isinstance(about, dict) else None
        return None

    def _read(self, where: str) -> Iterator[tuple[str, dict[str, Any], bytes]]:
        for path in (self.folder / where).iterdir():
            if path.name.endswith(".part"):
                path.unlink(missing_ok=True)
            elif (held := self._open(where, path.name)) is not None:
                yield path.name, *held


def _unwritable(folder: Path, error: OSError) -> ValueError:
    why = f"{error.strerror or error}"
    return ValueError(f"the queue cannot be kept in {str(folder)!r}: {why}; give another folder with --keep")


def _is_job(about: dict[str, Any]) -> bool:
    kinds = {"student": str, "number": int, "key": str | None, "work": str}
    return all(name in about and isinstance(about[name], kind) for name, kind in kinds.items()) and bool(
        _ID.fullmatch(about["work"])
    )


def _is_end(about: dict[str, Any]) -> bool:
    error = about.get("error", False)
    named = isinstance(error, list) and len(error) == 2 and type(error[0]) is int and 400 <= error[0] < 600
    return (error is None or named) and type(about.get("shared")) is bool


def kept_deaths(folder: Path) -> dict[str, int]:
    """How many servers each piece of work has ended, those that the marks speak of included; the marks are removed."""
    path, deaths = folder / "deaths.json", {}
    with suppress(OSError, ValueError, AttributeError, TypeError):
        deaths = {str(name): int(count) for name, count in json.loads(path.read_text("utf-8")).items()}
    marks = list((folder / "running").iterdir())
    for mark in marks:
        if _ID.fullmatch(mark.name):
            deaths[mark.name] = deaths.get(mark.name, 0) + 1
    if marks:
        write_deaths(folder, deaths)
    for mark in marks:
        mark.unlink(missing_ok=True)
    return deaths


def write_deaths(folder: Path, deaths: dict[str, int]) -> None:
    with written_whole(folder / "deaths.json") as file:
        file.write(json.dumps(deaths).encode())
