"""How far somebody has come: which exercises are right, after how many tries, and what was predicted.

`check` and `predict` note this in a file of one's own, `LABKIT_PROGRESS` or `progress.json` in the platform's folder
for user data. It holds no answers to exercises and no names. While a teacher's nbgrader grades, nothing is noted.
`labkit course report` shows the file, and for a teacher those of a class (`labkit.course.report`).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from platformdirs import user_data_dir

from labkit.course.folder import write_whole
from labkit.text.warn import warn

FILE = "progress.json"
FORMAT = 1
LARGEST = 1 << 20  # bytes of a file that is read; a hundred exercises take 20 KB
LONGEST = 200  # characters of a prediction that are kept


@dataclass(frozen=True)
class Tried:
    """One exercise: was it ever right, after how many tries (so far, if it was not), and when it was last tried."""

    right: bool = False
    tries: int = 0
    last: str = ""

    def again(self, right: bool) -> Tried:
        """After one more answer; once an exercise is right, no more are counted."""
        return self if self.right else Tried(right, self.tries + 1, _now())


@dataclass(frozen=True)
class Predicted:
    """The first prediction of something: what was said, what was true then, and whether that was right, or close."""

    said: str
    truth: str
    right: bool
    last: str = ""


class Progress(dict[str, Tried]):
    """By the exercise's name, `04.1`; and by its own, `04.late_name`, what was predicted."""

    def __init__(self, tried: Mapping[str, Tried] = {}, predicted: Mapping[str, Predicted] = {}) -> None:
        super().__init__(tried)
        self.predicted = dict(predicted)


def progress_file() -> Path:
    """Where one's own progress is kept."""
    given = os.environ.get("LABKIT_PROGRESS")
    return Path(given).expanduser() if given else Path(user_data_dir("labkit", appauthor=False)) / FILE


def note(exercise: str, *, right: bool) -> None:
    """Note an answer to an exercise."""

    def noted(progress: Progress) -> None:
        progress[exercise] = progress.get(exercise, Tried()).again(right)

    _change(noted)


def note_prediction(name: str, *, said: str, truth: str, right: bool) -> None:
    """Note what was predicted, the first time: later the answer is known."""
    new = Predicted(said[:LONGEST], truth[:LONGEST], right, _now())
    _change(lambda progress: progress.predicted.setdefault(name, new))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _change(change: Callable[[Progress], object]) -> None:
    """Change the file. One that cannot be written is warned of: a check says its verdict all the same."""
    if os.environ.get("NBGRADER_EXECUTION") == "autograde":
        return
    file = progress_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=5):
            try:
                progress = read_progress(file)
            except FileNotFoundError:
                progress = Progress()
            except ValueError as error:
                file.replace(file.with_suffix(".broken.json"))
                warn(f"{error}. It is now called {file.with_suffix('.broken.json').name}, and a new one begins")
                progress = Progress()
            change(progress)
            kept = {
                "labkit progress": FORMAT,
                "exercises": {name: asdict(tried) for name, tried in sorted(progress.items())},
                "predictions": {name: asdict(one) for name, one in sorted(progress.predicted.items())},
            }
            write_whole(file, json.dumps(kept, indent=1).encode())
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
        predicted = {
            str(name): Predicted(str(one["said"]), str(one["truth"]), bool(one["right"]), str(one["last"]))
            for name, one in found.get("predictions", {}).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a file that labkit keeps progress in") from error
    if newer:
        raise ValueError(f"{path.name} is from a newer labkit; update this one")
    return Progress(tried, predicted)
