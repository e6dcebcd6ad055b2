"""What a class has done: its progress files, read for a teacher, whoever wrote them."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from labkit.course.progress import FILE, Predicted, Progress, read_progress

FEW = 5  # different answers to a prediction that are listed
WIDE = 60  # characters of one


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
        """A row for each one and exercise that was tried: person, exercise, right, tries, last.

        Predictions come after a person's exercises, with what was said and what was true in two more columns.
        """
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["person", "exercise", "right", "tries", "last", "said", "truth"])
        for person, progress in self.people.items():
            for name, tried in sorted(progress.items()):
                rows.writerow([*map(_cell, (person, name)), int(tried.right), tried.tries, _cell(tried.last), "", ""])
            for name, one in sorted(progress.predicted.items()):
                said = map(_cell, (one.last, one.said, one.truth))
                rows.writerow([*map(_cell, (person, name)), int(one.right), 1, *said])
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
        if predicted := self._predicted():
            lines += ["", "Predicted before the reveal:", *(f"  {line}" for line in predicted)]
        lines += [""] * bool(self.unread) + [f"Not read: {person}: {why}" for person, why in self.unread.items()]
        return "\n".join(lines)

    def _predicted(self) -> list[str]:
        """A line for each prediction: how many said what, and what is true."""
        by_name: dict[str, list[Predicted]] = {}
        for progress in self.people.values():
            for name, one in progress.predicted.items():
                by_name.setdefault(name, []).append(one)
        return [f"{_plain(name)}  {_said(some)}" for name, some in sorted(by_name.items())]

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


def _said(some: Sequence[Predicted]) -> str:
    """What several people predicted of one thing."""
    counts = Counter(one.said for one in some)
    numbers = [number for one in some if (number := _number(one.said)) is not None]
    if len(numbers) == len(some) and len(counts) > 1:
        said = f"{median(numbers):g} in the middle, from {min(numbers):g} to {max(numbers):g}"
    else:
        shares = [f"{_plain(said)[:WIDE]} {n / len(some):.0%}" for said, n in counts.most_common(FEW)]
        said = ", ".join(shares) + (f", and {len(counts) - FEW} others" if len(counts) > FEW else "")
    truth = Counter(one.truth for one in some).most_common(1)[0][0]
    right = sum(one.right for one in some)
    return f"{said}; it is {_plain(truth)[:WIDE]} ({right} of {len(some)} right)"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cell(text: str) -> str:
    """A cell of a table; a spreadsheet would compute what begins with one of these."""
    return f"'{_plain(text)}" if text[:1] in "=+-@" and text else _plain(text)


def _plain(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    return "".join(c if c.isprintable() else "?" for c in text)
