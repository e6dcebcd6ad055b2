"""An exported page as HTML: sections with a picture each, which comes alive where scripts run, and what they come from.

Nothing in it is fetched: a policy in its head forbids it. The picture is what the page has of itself; the script takes
it away once the live view stands. Every text is escaped, and data are JSON in which no markup can stand.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from labkit.widgets.base.front import css_of
from labkit.widgets.export.contents import Contents
from labkit.widgets.export.facts import Facts, as_json, today


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading; may be empty.
        still: HTML without scripts, every text in it escaped.
        root: the number of the live view in the page's contents, or None.
        code: the Python that makes it; folded.
        facts: what it comes from; folded.
    """

    title: str = ""
    still: str = ""
    root: int | None = None
    code: str = ""
    facts: Facts | None = None


def written(
    title: str, sections: Sequence[Section], contents: Contents | None, roots: Sequence[str | None], facts: Facts
) -> str:
    """The page."""
    alive = contents is not None and any(root is not None for root in roots)
    script = contents.script() if contents is not None and alive else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    may_run = f"script-src 'sha256-{digest}'; " if alive else ""
    policy = (
        f"default-src 'none'; {may_run}style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    css = contents.css() if contents is not None else css_of("theme", "export")
    about = " · ".join([*(value for name, value in facts.pairs if name == "Model"), today()])
    data = ""
    if contents is not None and alive:
        data = (
            f'<script type="application/json" id="labkit-data">{contents.data(list(roots))}</script>\n'
            f"<script>{script}</script>\n"
        )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<title>{escape(title)}</title>\n<style>{css}</style>\n</head>\n<body class="labkit-page">\n'
        f"<header><div><h1>{escape(title)}</h1><p>{escape(about)}</p></div>"
        '<button type="button" id="labkit-theme" hidden>Dark</button></header>\n<main>\n'
        f"{''.join(_section(one) for one in sections)}</main>\n"
        f"<footer>{_facts(facts)}</footer>\n{data}</body>\n</html>\n"
    )


def _section(one: Section) -> str:
    head = f"<h2>{escape(one.title)}</h2>\n" if one.title else ""
    live = "" if one.root is None else f'<div class="labkit-live labkit-tool" data-root="{one.root}" hidden></div>\n'
    code = folded("Code", f"<pre>{escape(one.code)}</pre>") if one.code else ""
    end = _facts(one.facts) if one.facts is not None else ""
    return f'<section>\n{head}<div class="labkit-still">{one.still}</div>\n{live}{code}{end}</section>\n'


def _facts(facts: Facts) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.pairs)
    end = folded("Where this comes from", f"<table>{rows}</table>") if rows else ""
    if facts.recipe:
        end += folded("Recipe", f"<pre>{escape(as_json(facts.recipe))}</pre>")
    papers = "".join(f"<li>{escape(paper)}</li>" for paper in facts.papers)
    entries = "".join(f"<pre>{escape(entry)}</pre>" for entry in facts.citations)
    if papers or entries:
        end += folded("How to cite", (f"<p>The methods:</p><ul>{papers}</ul>" if papers else "") + entries)
    return end


def folded(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>\n"
