"""A widget as one file: a page that stays alive, or its picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from labkit.results.file import written_whole
from labkit.widgets.export.contents import LIMIT, Contents
from labkit.widgets.export.drawing import as_png, as_svg
from labkit.widgets.export.facts import PAPERS, facts_of
from labkit.widgets.export.page import Section, written

ENDINGS = (".html", ".svg", ".png")
AROUND = 40_000  # bytes of a page that are neither its picture nor its contents


def export(widget: Any, path: str | os.PathLike[str], *, overwrite: bool = False, **what: Any) -> Path:
    """Write a widget as a page or a picture. Raises what `labkit.widgets.base.snapshot.HasSnapshot.export` says."""
    path = place_for(path, overwrite=overwrite)
    still = widget.snapshot()
    if path.suffix.lower() != ".html":
        return picture_file(still, path)
    return page_file(page_of(widget, still, **what), path)


def picture_file(still: str, path: Path) -> Path:
    """Write the picture of a snapshot, as an SVG or a PNG."""
    svg = as_svg(still)
    return _file(svg.encode() if path.suffix.lower() == ".svg" else as_png(svg), path)


def page_file(page: str, path: Path) -> Path:
    """Write a page."""
    return _file(page.encode(), path)


def _file(data: bytes, path: Path) -> Path:
    with written_whole(path) as file:
        file.write(data)
    return path


def page_of(widget: Any, still: str, **what: Any) -> str:
    """The page of one widget, given its picture."""
    code, facts = widget.code(), facts_of(widget.provenance(), papers=papers_of(widget))
    contents = Contents(room_beside(still, code, str(facts)))
    root = widget.exported(contents, **what)
    section = Section(still=still, root=None if root is None else 0, code=code)
    return written(title_of(widget), [section], contents, [root], facts)


def room_beside(*texts: str) -> int:
    """The bytes that are left of a page for its contents."""
    return LIMIT - AROUND - sum(len(text.encode()) * 5 // 4 for text in texts)


def title_of(widget: Any) -> str:
    """What a page is called: the tool and its model, or the title of a block."""
    name = type(widget).__name__
    if hasattr(widget, "lm"):
        return f"{name} · {widget.lm.name}"
    return str(getattr(widget, "title", "") or name)


def papers_of(made: Any) -> tuple[str, ...]:
    """The papers of the method that a result or a tool comes from."""
    return next((PAPERS[one.__name__] for one in type(made).__mro__ if one.__name__ in PAPERS), ())


def place_for(path: str | os.PathLike[str], *, overwrite: bool, endings: tuple[str, ...] = ENDINGS) -> Path:
    """The path to write to.

    Raises:
        ValueError: it has another ending.
        FileNotFoundError: its folder is not there.
        FileExistsError: it is there, and is not to be replaced.
    """
    path = Path(path)
    if path.suffix.lower() not in endings:
        raise ValueError(f"{str(path)!r}: a file ends in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r}; make it first")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} is there already; overwrite=True replaces it")
    return path
