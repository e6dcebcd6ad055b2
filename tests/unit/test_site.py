"""The site is built once, strictly, and then looked at as files: links, pictures, and that it asks no other host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from inspect import signature
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import labkit as lk

griffe = pytest.importorskip("griffe", reason="the docs extra is not installed")
pytest.importorskip("material", reason="the docs extra is not installed")

ROOT = Path(__file__).parents[2]
FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
FETCHED_LINKS = {"stylesheet", "icon", "preconnect", "preload", "prefetch", "dns-prefetch", "modulepreload", "manifest"}


@dataclass
class Seen(HTMLParser):
    """What a page has: ids, links, what a browser fetches by itself, pictures and what they show."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = {name: value or "" for name, value in attrs}
        self.ids.update(has[name] for name in ("id", "name") if name in has)
        if tag == "a" and "href" in has:
            self.links.append(has["href"])
        if tag in FETCHED and (source := has.get(FETCHED[tag])):
            self.fetched.append(source)
        if tag == "link" and set(has.get("rel", "").split()) & FETCHED_LINKS:
            self.fetched.append(has["href"])
        if tag == "link" and has.get("rel") in ("alternate", "describedby"):
            self.links.append(has["href"])
        if tag == "img":
            self.pictures.append((has["src"], has.get("alt", "")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    told = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Seen]:
    found = {}
    for path in sorted(site.rglob("*.html")):
        found[path] = Seen()
        found[path].feed(path.read_text("utf-8"))
    return found


def here(target: str) -> bool:
    return not urlsplit(target).scheme and not target.startswith("//")


def test_no_link_and_no_anchor_is_broken(site: Path, pages: dict[Path, Seen]) -> None:
    broken, checked = [], 0
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the root of a server
            continue
        for link in page.links:
            parts = urlsplit(link)
            if not here(link):
                if not re.fullmatch(r"https?://[\w.-]+\.\w+(/\S*)?|mailto:\S+@\S+", link):
                    broken.append(f"{path.name}: {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages.get(target)
            if not target.is_file() or (parts.fragment and known and unquote(parts.fragment) not in known.ids):
                broken.append(f"{path.relative_to(site)}: {link}")
            checked += 1
    assert broken == []
    assert checked > 2000


def test_nothing_is_asked_of_another_host(site: Path, pages: dict[Path, Seen]) -> None:
    for path, page in pages.items():
        for source in page.fetched:
            assert here(source) or source.startswith("data:image/"), f"{path.relative_to(site)} fetches {source[:80]}"
    for path in site.rglob("*.css"):
        for source in re.findall(r"(?:url\(|@import\s+)['\"]?([^'\")\s]+)", path.read_text("utf-8")):
            assert here(source) or source.startswith("data:"), f"{path.name} fetches {source[:80]}"
    # what the theme's scripts would fetch: a diagram language that no page uses
    assert not any('class="mermaid"' in path.read_text("utf-8") for path in pages)
    assert "unpkg" not in (site / "index.html").read_text("utf-8")


def test_every_picture_is_there_and_says_what_it_shows(site: Path, pages: dict[Path, Seen]) -> None:
    count = 0
    for path, page in pages.items():
        for source, shows in page.pictures:
            count += 1
            assert len(shows) > 10, f"{path.relative_to(site)}: {source[:80]}"
            if here(source):
                assert (path.parent / urlsplit(source).path).is_file(), source
    assert count > 40


def test_the_notebooks_are_there_with_their_figures_and_widgets(site: Path) -> None:
    for book in (ROOT / "notebooks").glob("*.ipynb"):
        page = (site / "notebooks" / f"{book.stem}.html").read_text("utf-8")
        outputs = [one for cell in json.loads(book.read_text("utf-8"))["cells"] for one in cell.get("outputs", [])]
        figures = sum("application/vnd.plotly.v1+json" in one.get("data", {}) for one in outputs)
        widgets = sum("labkit-snapshot" in str(one.get("data", {}).get("text/html", "")) for one in outputs)
        assert page.count('class="labkit-plot"') == figures
        assert page.count('class="labkit-snapshot"') >= widgets
        assert (site / "notebooks" / book.name).read_bytes() == book.read_bytes()
        assert ("assets/plotly.min.js" in page) == bool(figures)


def test_search_and_both_palettes_work_without_a_server(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text("utf-8")
    assert index.startswith("var __index = ")
    places = {one["location"] for one in json.loads(index.removeprefix("var __index = "))["docs"]}
    assert {"concepts/wavefront.html", "reference/patching.html#labkit.patch", "glossary.html"} <= places
    home = (site / "index.html").read_text("utf-8")
    assert 'data-md-color-scheme="slate"' in home
    assert 'data-md-color-scheme="default"' in home
    assert "iframe-worker.js" in home


def test_every_public_name_is_in_the_reference_once_with_what_it_is(pages: dict[Path, Seen]) -> None:
    ids = [one for path, page in pages.items() if path.parent.name == "reference" for one in page.ids]
    for name in lk.__all__:
        if name != "__version__":
            assert ids.count(f"labkit.{name}") == 1, name


def test_the_reference_shows_the_arguments_that_functions_take() -> None:
    extensions = griffe.load_extensions(str(ROOT / "tools" / "signatures.py"))
    package = griffe.load("labkit", search_paths=[str(ROOT)], extensions=extensions)
    for name in ("patch", "attribution_patch", "path_patch", "edge_attribution", "controls", "load"):
        shown, true = package[name].parameters, signature(getattr(lk, name)).parameters
        assert [(one.name, one.kind.value) for one in shown] == [
            (one.name, one.kind.description) for one in true.values()
        ], name


def test_llms_txt_lists_every_page_with_its_title(site: Path) -> None:
    """As llmstxt.org has it: a title, a summary, sections of links with a line each."""

    class Loader(yaml.SafeLoader):
        pass

    nav = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"]
    wanted = {}
    for group in nav:
        [(title, inside)] = group.items()
        for one in [{title: inside}] if isinstance(inside, str) else inside:
            wanted.update({page.removesuffix(".md"): name for name, page in one.items()})
    text = (site / "llms.txt").read_text("utf-8")
    assert re.match(r"# labkit\n\n> .+\n\n", text)
    listed = re.findall(r"^- \[([^\]]+)\]\(([^)]+)\): (.+)$", text, re.MULTILINE)
    assert len(listed) == len(re.findall(r"^- ", text, re.MULTILINE))
    assert {re.sub(r"\.html(\.md)?$", "", target): title for title, target, _ in listed} == wanted
    for _, target, _ in listed:
        assert (site / target).is_file(), target
    assert "```python" in (site / "for_coding_assistants.html.md").read_text("utf-8")
