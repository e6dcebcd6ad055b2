"""How far somebody has come: which exercises are right, and after how many tries.

`check` notes every answer in a file of one's own, `LABKIT_PROGRESS` or `progress.json` in the platform's folder for
user data. It holds no answers and no names. `labkit course report` shows it, and for a teacher those of a class.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from filelock import FileLock
from platformdirs import user_data_dir

from labkit.course.folder import write_whole
from labkit.text.warn import warn

FILE = "progress.json"
FORMAT = 1
LARGEST = 1 << 20  # bytes of a file that is read; a hundred exercises take 20 KB


@dataclass(frozen=True)
class Tried:
    """One exercise: was it ever right, after how many tries (so far, if it was not), and when it was last tried."""

    right: bool = False
    tries: int = 0
    last: str = ""

    def again(self, right: bool) -> Tried:
        """After one more answer; once an exercise is right, no more are counted."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return self if self.right else Tried(right, self.tries + 1, now)


Progress = dict[str, Tried]
"""By the exercise's name, `04.1`."""


def progress_file() -> Path:
    """Where one's own progress is kept."""
    given = os.environ.get("LABKIT_PROGRESS")
    return Path(given).expanduser() if given else Path(user_data_dir("labkit", appauthor=False)) / FILE


def note(exercise: str, *, right: bool) -> None:
    """Note an answer. A file that cannot be written is warned of: a check says its verdict all the same."""
    file = progress_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=5):
            try:
                before = read_progress(file)
            except FileNotFoundError:
                before = {}
            except ValueError as error:
                file.replace(file.with_suffix(".broken.json"))
                warn(f"{error}. It is now called {file.with_suffix('.broken.json').name}, and a new one begins")
                before = {}
            after = before | {exercise: before.get(exercise, Tried()).again(right)}
            kept = {name: asdict(tried) for name, tried in sorted(after.items())}
            write_whole(file, json.dumps({"labkit progress": FORMAT, "exercises": kept}, indent=1).encode())
    except (OSError, TimeoutError) as error:
        warn(f"your progress could not be kept in {file}: {error}. LABKIT_PROGRESS names another file")


def read_progress(file: str | os.PathLike[str]) -> Progress:
    """The progress in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of labkit's, or of a newer labkit's.
    """
    path = Path(file)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
        raise ValueError(f"{path.name} is no file of labkit's progress, or too large for one")
    try:
        found = json.loads(path.read_text("utf-8"))
        newer = found["labkit progress"] > FORMAT
        tried = {
            str(name): Tried(bool(one["right"]), int(one["tries"]), str(one["last"]))
            for name, one in found["exercises"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a file that labkit keeps progress in") from error
    if newer:
        raise ValueError(f"{path.name} is from a newer labkit; update this one")
    return tried


def files_in(places: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files of a class: those given, and in folders every `progress.json`, at any depth; links are not followed."""
    found: list[Path] = []
    for place in map(Path, places):
        inside = [Path(folder) / FILE for folder, _, names in os.walk(place) if FILE in names]
        found += sorted(file for file in inside if not file.is_symlink()) if place.is_dir() else [place]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class ClassReport:
    """A class: each one's progress, and where it could not be read, why.

    Attributes:
        exercises: all that there are, in their order.
        people: by what tells their files apart.
        unread: the same for files that could not be read, with the reason.
    """

    exercises: tuple[str, ...]
    people: Mapping[str, Progress]
    unread: Mapping[str, str]

    @property
    def notebooks(self) -> dict[str, list[str]]:
        """The exercises of each notebook by its number."""
        found: dict[str, list[str]] = {}
        for name in self.exercises:
            found.setdefault(name.partition(".")[0], []).append(name)
        return found

    def right(self, person: str, notebook: str) -> int:
        """How many exercises of a notebook somebody has right."""
        progress = self.people[person]
        return sum(name in progress and progress[name].right for name in self.notebooks[notebook])

    def to_csv(self) -> str:
        """A row for each one and exercise that was tried: person, exercise, right, tries, last."""
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["person", "exercise", "right", "tries", "last"])
        for person, progress in self.people.items():
            for name, tried in sorted(progress.items()):
                # a spreadsheet would compute what begins so
                cells = [f"'{cell}" if cell[:1] in "=+-@" else cell for cell in (person, _plain(name))]
                rows.writerow([*cells, int(tried.right), tried.tries, _plain(tried.last)])
        return out.getvalue()

    def __str__(self) -> str:
        wide = max([len("right"), *map(len, self.people)])
        lines = [f"{'right':<{wide}}  " + "  ".join(f"{notebook:>4}" for notebook in self.notebooks) + "   all"]
        for person in self.people:
            counts = {notebook: self.right(person, notebook) for notebook in self.notebooks}
            cells = [f"{count}/{len(self.notebooks[notebook])}" for notebook, count in counts.items()]
            cells.append(str(sum(counts.values())))
            lines.append(f"{person:<{wide}}  " + "  ".join(f"{cell:>4}" for cell in cells))
        if len(self.people) > 1 and (hard := self._hardest()):
            lines += ["", "Hardest (of those who tried it: how many have it right; median number of tries):"]
            lines += [f"  {name}  {right} of {tried}  {tries:g}" for name, right, tried, tries in hard]
        lines += [""] * bool(self.unread) + [f"Not read: {person}: {why}" for person, why in self.unread.items()]
        return "\n".join(lines)

    def _hardest(self, most: int = 5) -> list[tuple[str, int, int, float]]:
        """The exercises with the smallest share of right answers, then the most tries."""
        found = []
        for name in self.exercises:
            some = [progress[name] for progress in self.people.values() if name in progress]
            if some:
                found.append((name, sum(t.right for t in some), len(some), float(median(t.tries for t in some))))
        return sorted(found, key=lambda one: (one[1] / one[2], -one[3], one[0]))[:most]


def class_report(files: Sequence[Path], exercises: Iterable[str]) -> ClassReport:
    """What the files of a class say; those that cannot be read are listed with the reason."""
    people: dict[str, Progress] = {}
    unread: dict[str, str] = {}
    for person, file in zip(_told_apart(files), files, strict=True):
        try:
            people[person] = read_progress(file)
        except (OSError, ValueError) as error:
            unread[person] = _plain(str(error))
    return ClassReport(tuple(sorted(exercises)), people, unread)


def _told_apart(files: Sequence[Path]) -> list[str]:
    """Each path without what all share at its beginning and end: `anna` of `/home/anna/progress.json`."""
    parts: list[tuple[str, ...]] = [file.absolute().parts for file in files]
    if len(parts) < 2:
        return [_plain(file.stem) for file in files]
    shortest = min(map(len, parts))
    first = next((n for n in range(shortest) if len({one[n] for one in parts}) > 1), shortest - 1)
    last = next((n for n in range(shortest - first) if len({one[len(one) - 1 - n] for one in parts}) > 1), 0)
    return [_plain("/".join(one[first : len(one) - last])) for one in parts]


def _plain(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    return "".join(c if c.isprintable() else "?" for c in text)
