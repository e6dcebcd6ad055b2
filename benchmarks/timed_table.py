"""A table that is written after every row, and says of what it left out why."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One measurement; `kept` says whether what was asked held, None where nothing was asked; `quote` is a sentence
    for readers of the head of the table.
    """

    model: str
    what: str
    labkit: str = ""
    beside: str = ""
    ratio: str = ""
    asked: str = ""
    kept: bool | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    quote: str = ""


class Table:
    """Rows, with the time there is for them.

    Args:
        place: where they are written, without its suffix: `.md` and `.json` are made.
        about: machine and versions.
        seconds: how long all of it may take, from now.
    """

    def __init__(self, place: Path, about: dict[str, str], *, title: str, seconds: float) -> None:
        self.place, self.about, self.title = place, about, title
        self.begun, self.end = time.monotonic(), time.monotonic() + seconds
        self.rows: list[Row] = []

    def left(self) -> float:
        return self.end - time.monotonic()

    def measure(self, model: str, what: str, need: float, work: Callable[[], Row | None]) -> bool:
        """Do one measurement and write its row; where time or a failure prevents it, write that. True if measured."""
        if self.left() < need:
            self.add(Row(model, what, "not measured: out of time"))
            return False
        begin = time.monotonic()
        try:
            row = work()
        except Exception as error:  # a row that fails must not cost those after it
            said = (str(error).strip().splitlines() or [""])[0]
            self.add(Row(model, what, f"failed: {type(error).__name__}: {said:.160}", kept=False))
            return False
        if row is not None:
            row.model, row.what = model, row.what or what
            row.numbers["took"] = round(time.monotonic() - begin, 3)
            self.add(row)
        return True

    def add(self, row: Row) -> None:
        self.rows.append(row)
        mark = "" if row.kept is None else "  (asked and kept)" if row.kept else "  (NOT KEPT)"
        print(f"{row.model}: {row.what}: {row.labkit} {row.beside} {row.ratio}{mark}", flush=True)
        self.write()

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.kept is False]

    def markdown(self) -> str:
        head = f"{date.today()}: " + ", ".join(f"{name} {value}" for name, value in self.about.items())
        lines = ["| model | what | labkit | beside it | ratio | asked | kept |", "|---|---|---|---|---|---|---|"]
        for row in self.rows:
            kept = {None: "", True: "yes", False: "no"}[row.kept]
            cells = (row.model, row.what, row.labkit, row.beside, row.ratio, row.asked, kept)
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        quoted = [f"- {row.model}: {row.quote}" for row in self.rows if row.quote]
        block = ["What one would quote:", "", *quoted, ""] if quoted else []
        return "\n".join([self.title, "", head, "", *block, *lines, ""])

    def write(self) -> None:
        self.place.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "title": self.title,
            "date": str(date.today()),
            "machine": self.about,
            "seconds": round(time.monotonic() - self.begun, 1),
            "rows": [asdict(row) for row in self.rows],
        }
        for suffix, text in ((".md", self.markdown()), (".json", json.dumps(record, indent=1) + "\n")):
            self.place.with_suffix(suffix).write_text(text)
