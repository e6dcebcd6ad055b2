"""What a notebook's cells said when it was last run, so that one that was edited and not run again is noticed.

`tools/run_notebooks.py` leaves a digest of each code cell in the notebook's metadata; editors keep it when they save.
Text between the cells has none and may be edited at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

KEY = "labkit"


def digests(notebook: Mapping[str, Any]) -> list[str]:
    """One for each code cell that is not empty, in their order."""
    sources = ("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    return [sha256(source.encode()).hexdigest()[:12] for source in sources if source]


def keep(notebook: Any) -> None:
    """Note that the cells were run as they are."""
    notebook["metadata"][KEY] = {"ran": digests(notebook)}


def edited(notebook: Mapping[str, Any]) -> str | None:
    """What was changed since the notebook was run, in a sentence; None if nothing was."""
    then, now = notebook["metadata"].get(KEY, {}).get("ran"), digests(notebook)
    if then is None:
        return "it was never run with tools/run_notebooks.py"
    if then == now:
        return None
    if len(then) != len(now):
        return f"it had {len(then)} code cells when it was run and has {len(now)}"
    first = next(number for number, (a, b) in enumerate(zip(then, now, strict=True), 1) if a != b)
    return f"its code cell {first} is not the one that was run"
