"""Several results on one page, and a result as one file: `lk.report` and `lk.export`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from labkit.widgets.base.snapshot import HasSnapshot, card, note
from labkit.widgets.export.charts import pictures_of
from labkit.widgets.export.contents import LIMIT, Contents
from labkit.widgets.export.export import AROUND, page_file, papers_of, picture_file, place_for, title_of
from labkit.widgets.export.facts import CITE_LABKIT, Facts, entry_of, facts_of
from labkit.widgets.export.page import Section, written

ROWS = 30  # of a table that stands for a picture


def report(
    results: Sequence[Any], path: str | os.PathLike[str], *, title: str = "Results", overwrite: bool = False
) -> Path:
    """Write several results to one HTML page: text, pictures that stay alive, recipe, code and citation.

    Args:
        results: in their order: tools and blocks, which stay alive as in `tool.export`, results with `figure()`, and
            texts. A text is paragraphs, which empty lines part; lines that begin with `#` are headings, and nothing
            else in it is markup.
        path: the file, ending in `.html`; about 2 MB for each tool at most.
        title: of the page.
        overwrite: replace a file that is there.

    Raises:
        TypeError: something is neither a text, nor a widget, nor a result; nothing is written.
        ValueError: there are no results, or the file ends in something else.
        FileExistsError, FileNotFoundError: as for `tool.export`.
    """
    if isinstance(results, str) or not isinstance(results, Sequence):
        results = [results]
    if not results:
        raise ValueError("there is nothing to report: give at least one result, widget or text")
    for one in results:
        if not isinstance(one, str | HasSnapshot) and not hasattr(one, "figure"):
            raise TypeError(f"a report takes texts, widgets, and results with figure(); got {type(one).__name__}")
    path = place_for(path, overwrite=overwrite, endings=(".html",))
    contents = Contents(0)
    roots: list[str | None] = []
    sections: list[Section] = []
    for one in results:
        contents.room = contents.size + LIMIT - AROUND
        section, root = _section(one, contents, len(roots))
        sections.append(section)
        roots += [] if section.root is None else [root]
    return page_file(written(title, sections, contents, roots, _together(sections)), path)


def export(result: Any, path: str | os.PathLike[str], *, overwrite: bool = False, **what: Any) -> Path:
    """Write one result, or a widget, to one file: `.html` a page that is alive, `.svg` or `.png` its picture.

    Args:
        result: anything with `figure()`; of a widget this is its own `export`.
        path: the file; its ending says what is written.
        overwrite: replace a file that is there.
        what: as `export` of a tool takes it.

    Raises:
        TypeError: it has no picture.
        ValueError: another ending; or a picture, where it has none of its own.
        FileExistsError, FileNotFoundError, RuntimeError: as for `tool.export`.
    """
    if isinstance(result, HasSnapshot):
        return result.export(path, overwrite=overwrite, **what)
    if not hasattr(result, "figure"):
        raise TypeError(f"{type(result).__name__} has no figure() to export")
    path = place_for(path, overwrite=overwrite)
    contents = Contents(LIMIT - AROUND)
    section, root = _section(result, contents, 0)
    if path.suffix.lower() != ".html":
        if "<img " not in section.still:
            raise ValueError(
                f"{type(result).__name__} has no picture of its own: export to .html, or export "
                "one of labkit's views of it"
            )
        return picture_file(section.still, path)
    facts = section.facts or Facts()
    alone = Section(still=section.still, root=section.root, code=section.code)
    roots = [] if section.root is None else [root]
    return page_file(written(section.title, [alone], contents, roots, facts), path)


def _section(one: Any, contents: Contents, number: int) -> tuple[Section, str | None]:
    """A part of the page, and the id of what is alive in it."""
    if isinstance(one, str):
        return Section(still=_paragraphs(one)), None
    recipe = one.provenance() if isinstance(one, HasSnapshot) else getattr(one, "recipe", {})
    facts = facts_of(recipe if isinstance(recipe, Mapping) else {}, papers=papers_of(one))
    code = one.code() if hasattr(one, "code") else ""
    if isinstance(one, HasSnapshot):
        root = one.exported(contents)
        return Section(title_of(one), one.snapshot(), None if root is None else number, code, facts), root
    still, blocks = _drawn(one)
    root = contents.show(widgets.VBox(blocks)) if blocks else None
    name = type(one).__name__ + (f" · {recipe['model']}" if isinstance(recipe, Mapping) and "model" in recipe else "")
    return Section(name, still, None if root is None else number, code, facts), root


def _drawn(result: Any) -> tuple[str, list[Any]]:
    """The figure of a result as a picture, and as blocks where they can be alive; else its first rows."""
    try:
        pictures = pictures_of(_figure(result))
    except ValueError:
        return card(note(repr(result).partition("\n")[0]), _table(result)), []
    parts = []
    for title, drawn in pictures:
        parts.append(note(title) + (drawn if isinstance(drawn, str) else drawn.picture()))
    blocks = [drawn for _, drawn in pictures if not isinstance(drawn, str)]
    still = card(note(repr(result).partition("\n")[0]), *(f"<div>{part}</div>" for part in parts))
    return still, blocks if len(blocks) == len(pictures) else []


def _figure(result: Any) -> Any:
    """The figure of a result.

    Raises:
        ValueError: it needs to be told which.
    """
    needed = [one.name for one in inspect.signature(result.figure).parameters.values() if one.default is one.empty]
    if needed:
        raise ValueError(f"figure() of {type(result).__name__} has to be told {', '.join(needed)}")
    return result.figure()


def _table(result: Any) -> str:
    if not hasattr(result, "to_frame"):
        return ""
    frame = result.to_frame()
    more = note(f"… and {len(frame) - ROWS} more rows") if len(frame) > ROWS else ""
    return str(frame.head(ROWS).to_html(index=False, border=0, escape=True)) + more


def _paragraphs(text: str) -> str:
    """A text as headings and paragraphs; whatever else looks like markup in it is shown as it is."""
    out = []
    for block in filter(None, (part.strip() for part in text.replace("\r\n", "\n").split("\n\n"))):
        marks = len(block) - len(block.lstrip("#"))
        if 1 <= marks <= 4 and block[marks : marks + 1] == " " and "\n" not in block:
            level = min(4, marks + 1)
            out.append(f"<h{level}>{escape(block[marks:].strip())}</h{level}>")
        else:
            out.append(f"<p>{escape(block)}</p>")
    return "".join(out)


def _together(sections: Sequence[Section]) -> Facts:
    """What to cite of all of them, and the models."""
    facts = [one.facts for one in sections if one.facts is not None]
    pairs = dict.fromkeys(pair for one in facts for pair in one.pairs if pair[0] != "Revision")
    papers = dict.fromkeys(paper for one in facts for paper in one.papers)
    names = dict.fromkeys(str(one.recipe["model"]) for one in facts if one.recipe.get("model"))
    entries = [entry for name in names for entry in entry_of(name)]
    return Facts(tuple(pairs), {}, (CITE_LABKIT, *entries), tuple(papers))
