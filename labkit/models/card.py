"""The openness card: what a model's licence allows, what of it is open, where it runs, and what labkit measured on it.

A card is one page of short sections, each a list of lines or a table; text, Markdown and HTML are three ways to write
the same sections. Every statement carries the number of its source; the last section lists addresses and the dates on
which they were read. What is not known is said so. It is no legal advice: the licence itself decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import fill
from typing import Any

from labkit.models.catalog import BITS, OpenModel, Source, known
from labkit.models.openness import CLASSES, COMPONENTS, STATES, Openness, Sentence, openness, source, terms

DEFAULT = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model that `lk.load()` loads."""
GATE = {
    True: "conditions have to be accepted first",
    False: "nothing has to be accepted first",
    None: "not known whether conditions have to be accepted first",
}
USE = {"yes": "yes", "with conditions": "yes, with conditions", "no": "no"}
PART = {"yes": "open", "part": "partly open", "no": "not open"}
NOT_KNOWN = "Not known."
SOURCES = "Sources"


@dataclass(frozen=True)
class Line:
    """A statement; `label` comes before it, the section of the licence that says so and its source behind it."""

    says: str
    source: Source | None = None
    label: str = ""
    section: str = ""


@dataclass(frozen=True)
class Section:
    """Lines, then a table whose first row is its head, then text that is kept as it is (BibTeX)."""

    title: str
    lines: tuple[Line, ...] = ()
    table: tuple[tuple[str | Source, ...], ...] = ()
    verbatim: str = ""


@dataclass(frozen=True)
class Card:
    """One page about a model. Printing it gives text; in a notebook it is drawn.

    Attributes:
        model: its entry in the catalog.
        openness: what is known of how open it is.
        terms: of its licence, and of one that it inherits, in plain words.
        measured: one line per result that was handed to `lk.card`.
    """

    model: OpenModel
    openness: Openness
    terms: tuple[Sentence, ...]
    measured: tuple[str, ...] = ()

    def sections(self) -> tuple[Section, ...]:
        """What is on the page, in its order; the sources come last, in a section that is not among these."""
        model, told = self.model, self.openness
        return (
            Section("In short", tuple(self._short())),
            *self._licences(),
            Section("What is open", tuple(self._class()), self._components()),
            Section("What others found", (
                _or_not_known("Open Source AI Definition", told.osi),
                _or_not_known("European Open Source AI Index (osai-index.eu)", told.index),
                _or_not_known("Training data", told.data),
            )),
            Section("Size and where it runs", tuple(self._runs()), self._sizes()),
            Section("Measured with labkit", tuple(Line(text) for text in self.measured) or (Line("Nothing yet."),)),
            Section("How to cite", (Line(model.paper, label="Paper or page"),), verbatim=told.cite or _entry(model)),
        )  # fmt: skip

    def sources(self) -> tuple[Source, ...]:
        """What the page cites, in the order of its numbers: the first is [1]."""
        cited: list[Any] = []
        for section in self.sections():
            cited += [line.source for line in section.lines]
            cited += [cell for row in section.table for cell in row]
        return tuple(dict.fromkeys(one for one in cited if isinstance(one, Source)))

    def to_markdown(self) -> str:
        """The page as Markdown, for a README or an issue."""
        out = [f"# {_marked(self.model.id)}", f"_{self._foot()}_"]
        number = self._number()
        cell_as_markdown = lambda cell: _link(cell, number) if isinstance(cell, Source) else _marked(cell)  # noqa: E731
        for section in self.sections():
            out.append(f"## {section.title}")
            out.append("\n".join(f"- {_line_as_markdown(line, number)}" for line in section.lines))
            if section.table:
                head, *rows = ["| " + " | ".join(map(cell_as_markdown, row)) + " |" for row in section.table]
                out.append("\n".join([head, "| " + " | ".join(["---"] * len(section.table[0])) + " |", *rows]))
            if section.verbatim:
                out.append(f"```bibtex\n{section.verbatim}\n```")
        out += [f"## {SOURCES}", "\n".join(f"{n}. <{one.url}>, {one}" for one, n in number.items())]
        return "\n\n".join(out) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write the page to a file that ends in .html or .md.

        Raises:
            ValueError: another ending; nothing is written.
        """
        path = Path(path)
        if path.suffix.lower() in (".html", ".htm"):
            text = PAGE.format(title=escape(self.model.id), body=self._repr_html_())
        elif path.suffix.lower() == ".md":
            text = self.to_markdown()
        else:
            raise ValueError(f"a card is saved as .html or .md, not {path.suffix or 'without an ending'}: {path}")
        path.write_text(text, encoding="utf-8")
        return path

    def __repr__(self) -> str:
        out = [self.model.id, "=" * len(self.model.id), fill(self._foot(), 100)]
        number = self._number()
        for section in self.sections():
            out += ["", section.title, "-" * len(section.title)]
            out += [_line_as_text(line, number) for line in section.lines]
            out += _table_as_text(section.table, number)
            if section.verbatim:
                out += ["", section.verbatim]
        out += ["", SOURCES, "-" * len(SOURCES), *(f"[{n}] {one.url}, {one}" for one, n in number.items())]
        return "\n".join(out)

    def _repr_html_(self) -> str:
        out = [f"<style>{STYLE}</style>", f"<h1>{escape(self.model.id)}</h1>", f"<p>{escape(self._foot())}</p>"]
        number = self._number()
        cell_as_html = lambda cell: _anchor(cell, number) if isinstance(cell, Source) else escape(cell)  # noqa: E731
        for section in self.sections():
            items = "".join(f"<li>{_line_as_html(line, number)}</li>" for line in section.lines)
            out.append(f"<section><h2>{escape(section.title)}</h2><ul>{items}</ul>")
            if section.table:
                head, *rows = section.table
                cells = "".join(f'<th scope="col">{cell_as_html(cell)}</th>' for cell in head)
                out.append(f"<table><thead><tr>{cells}</tr></thead><tbody>")
                out += ["<tr>" + "".join(f"<td>{cell_as_html(cell)}</td>" for cell in row) + "</tr>" for row in rows]
                out.append("</tbody></table>")
            if section.verbatim:
                out.append(f"<pre>{escape(section.verbatim)}</pre>")
            out.append("</section>")
        items = "".join(
            f'<li><a href="{escape(one.url)}">{escape(one.url)}</a>, <span>{one}</span></li>' for one in number
        )
        out.append(f'<section class="labkit-sources"><h2>{SOURCES}</h2><ol>{items}</ol></section>')
        return f'<article class="labkit-card">{"".join(out)}</article>'

    def _number(self) -> dict[Source, int]:
        return {one: n for n, one in enumerate(self.sources(), 1)}

    def _foot(self) -> str:
        dates = sorted({one.read for one in self.sources()})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        return f"Openness card by labkit. Sources dated {when}. No legal advice: the licence itself decides."

    def _short(self) -> Iterable[Line]:
        model, read = self.model, self.model.sources
        yield Line(f"{model.licence}.", read["licence"], "Licence")
        yield Line(model.licence_url, label="Text of the licence")
        if model.also:
            yield Line(f"{model.also}, of the model that it was made from.", read["licence"], "Inherited licence")
        yield Line(f"{GATE[model.gated]}.", read.get("gated"), "On the hub")
        allows = f"The licence allows: {model.allows}."
        yield Line(f"{USE[model.commercial]}. {allows}", read["allows"], "Commercial use")
        if model.also:
            yield Line(f"{model.also_allows}.", read["also_allows"], "The inherited licence allows")
        parts = ", ".join(f"{name} {PART[getattr(model, name)]}" for name in ("code", "data", "recipe"))
        yield Line(f"weights open, {parts} (of the family {model.family}).", read["openness"], "Open")
        yield Line(f"{self.openness.mof}.", label="Model Openness Framework")

    def _licences(self) -> Iterable[Section]:
        """The terms of its licence with what the makers add, then those of the inherited one."""
        model, title = self.model, "Licence terms in plain words"
        inherited = terms(model.also) if model.also else ()
        own = [_term(one) for one in self.terms if one not in inherited]
        own = own or [Line("The terms of this licence are not known.", model.sources["licence"])]
        yield Section(f"{title}: {model.licence}" if model.also else title, tuple(own))
        if model.also:
            yield Section(f"{title}: {model.also}, inherited", tuple(_term(one) for one in inherited))

    def _class(self) -> Iterable[Line]:
        mof = self.openness.mof
        about = f"known for {self.openness.group}" if self.openness.group else "nothing is known for this model"
        yield Line(
            f"{mof}, computed from the components below ({about}).",
            source("mof-rule"),
            "Class in the Model Openness Framework",
        )
        if mof.lacking:
            coming = CLASSES[(mof.reached or 4) - 1]
            yield Line(f"{', '.join(mof.lacking)}.", label=f"Not known to be open, and asked for by {coming}")

    def _components(self) -> tuple[tuple[str | Source, ...], ...]:
        asked = {None: "optional", 3: "III", 2: "II", 1: "I"}
        rows = [
            (one.name, asked[COMPONENTS[one.name]], STATES[one.state], one.licence or "", one.source or "")
            for one in self.openness.components
        ]
        return (("component", "class", "state", "licence", "source"), *rows)

    def _runs(self) -> Iterable[Line]:
        model, read = self.model, self.model.sources
        count = f"{model.parameters:.3g} billion" + (", of the text part alone" if model.text_part else "")
        yield Line(f"{count}, computed from the configuration.", read["config"], "Parameters")
        yield Line(f"{model.published:g} billion.", read["published"], "Parameters, as published")
        yield Line(f"{model.context:,} tokens.", read["context"], "Context")
        yield Line(f"{model.gpu}, in 4 bits with working memory.", label="Smallest common GPU")

    def _sizes(self) -> tuple[tuple[str, ...], ...]:
        return (("bits", "weights (GB)"), *((str(bits), f"{self.model.bytes[bits] / 1e9:,.2f}") for bits in BITS))


def card(name: str | None = None, *, measured: Iterable[Any] = ()) -> Card:
    """The openness card of a model: licence terms in plain words, what is open, sizes, and how to cite it.

    Args:
        name: a hub id of the catalog, with or without the maker's part; the default model's without one.
        measured: results of labkit on this model (a report, an audit, a scan), listed by the first line of their repr.

    Returns:
        a page: print it, look at it in a notebook, or `save` it as .html or .md.

    Raises:
        ValueError: the model is not in the catalog; with the names that look like it.
        TypeError: something in `measured` does not say on which model it was measured.

    The classes are those of the Model Openness Framework (White et al. 2024, arXiv:2403.13784).
    """
    model = known(DEFAULT if name is None else name)
    told = openness(model.id)
    plain = (*terms(model.licence), *(terms(model.also) if model.also else ()), *told.terms)
    results = [measured] if hasattr(measured, "recipe") else measured
    return Card(model, told, plain, tuple(_summary(result, model) for result in results))


def _summary(result: Any, model: OpenModel) -> str:
    """A result in one line, with the name of its model where that is another."""
    recipe = getattr(result, "recipe", None)
    about = recipe if isinstance(recipe, dict) else {}
    name = about.get("model") or getattr(result, "model", None) or getattr(result, "name", None)
    if not about and not isinstance(name, str):
        raise TypeError(
            f"measured= takes results of labkit, which say on which model they were measured; {type(result).__name__} "
            "has neither .recipe nor .model"
        )
    first = next((line.strip() for line in repr(result).splitlines() if line.strip()), type(result).__name__)
    other = isinstance(name, str) and name.split("/")[-1].lower() != model.id.split("/")[1].lower()
    return first + (f" (measured on {name})" if other else "")


def _term(told: Sentence) -> Line:
    return Line(told.says, told.source, section=told.section)


def _or_not_known(label: str, told: Sentence | None) -> Line:
    return Line(f"{told.says}.", told.source, label) if told else Line(NOT_KNOWN, label=label)


def _entry(model: OpenModel) -> str:
    """BibTeX where the makers' own is not known: it names the model and the page that describes it."""
    maker, name = model.id.split("/")
    return (
        f"@misc{{{name.lower()},\n  title = {{{name}}},\n  author = {{{{{maker}}}}},\n"
        f"  howpublished = {{\\url{{{model.paper}}}}}\n}}"
    )


# -- three ways to write a line, a cell and a table --------------------------------------------------------------------


def _line_as_text(line: Line, number: dict[Source, int]) -> str:
    says = f"{line.label}: {line.says}" if line.label else line.says
    where = f" ({line.section})" if line.section else ""
    cited = f" [{number[line.source]}]" if line.source else ""
    return fill(says + where + cited, 100, initial_indent="- ", subsequent_indent="  ")


def _marked(text: str) -> str:
    """Text for Markdown: no tags, no table borders, on one line."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _line_as_markdown(line: Line, number: dict[Source, int]) -> str:
    says = f"**{_marked(line.label)}**: {_marked(line.says)}" if line.label else _marked(line.says)
    where = f" ({_marked(line.section)})" if line.section else ""
    return says + where + (f" {_link(line.source, number)}" if line.source else "")


def _link(source: Source, number: dict[Source, int]) -> str:
    return f"[\\[{number[source]}\\]]({source.url})"


def _line_as_html(line: Line, number: dict[Source, int]) -> str:
    label = f"<b>{escape(line.label)}</b>: " if line.label else ""
    where = f" <small>({escape(line.section)})</small>" if line.section else ""
    return label + escape(line.says) + where + (f"&nbsp;{_anchor(line.source, number)}" if line.source else "")


def _anchor(source: Source, number: dict[Source, int]) -> str:
    return f'<a href="{escape(source.url)}" title="{escape(source.url)}">[{number[source]}]</a>'


def _table_as_text(table: tuple[tuple[str | Source, ...], ...], number: dict[Source, int]) -> list[str]:
    rows = [[f"[{number[cell]}]" if isinstance(cell, Source) else cell for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


STYLE = (
    ".labkit-card{max-width:52rem;font-size:0.875rem;line-height:1.4;color:inherit}"
    ".labkit-card h1{font-size:1.375rem;margin:0}.labkit-card h2{font-size:1rem;margin:1rem 0 0.25rem}"
    ".labkit-card ul{margin:0;padding-left:1.2rem}.labkit-card table{border-collapse:collapse;margin:0.5rem 0}"
    ".labkit-card th,.labkit-card td{text-align:left;padding:0.125rem 0.75rem 0.125rem 0;"
    "border-bottom:1px solid rgba(128,128,128,0.4);background:none;color:inherit}"
    ".labkit-card a{color:inherit}.labkit-card pre{white-space:pre-wrap;background:none;color:inherit}"
    ".labkit-sources{overflow-wrap:anywhere}.labkit-sources ol{margin:0;padding-left:2rem}"
    ".labkit-sources span{white-space:nowrap}"
    "@media print{.labkit-card{font-size:7pt;line-height:1.25;max-width:none;columns:2;column-gap:2rem}"
    ".labkit-card h1,.labkit-card>p{column-span:all;margin:0 0 0.25rem}.labkit-card h1{font-size:1.75em}"
    ".labkit-card h2{font-size:1.2em;margin:0.375rem 0 0;break-after:avoid}"
    ".labkit-card ul,.labkit-sources ol{padding-left:1rem}.labkit-card pre{margin:0.25rem 0}"
    ".labkit-card th,.labkit-card td{padding:0 0.25rem 0 0;vertical-align:top}"
    ".labkit-card li,.labkit-card tr{break-inside:avoid}}"
)
"""Colours are those around the card, so that it follows light and dark; in print it is one page in two columns."""
PAGE = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    "<style>:root{{color-scheme:light dark}}body{{font-family:system-ui,sans-serif;margin:2rem}}"
    "@page{{margin:1cm}}@media print{{body{{margin:0}}}}</style></head>"
    "<body>{body}</body></html>\n"
)
