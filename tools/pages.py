"""What mkdocs is told beyond mkdocs.yml: pages that are made of files elsewhere in the repository.

- the notebooks with their stored outputs, CHANGELOG, CONTRIBUTING, SECURITY, benchmarks/README;
- a page of reference for each room, with the public names of labkit/__init__.pyi;
- links between files of the repository lead to their pages here, those to other files to the repository, if one is
  named (`make links`); a picture NAME_light.* is shown as NAME_dark.* in the dark palette;
- beside every page NAME.html its Markdown, NAME.html.md, for readers that are programs (llmstxt.org).
"""

from __future__ import annotations

import ast
import importlib.util
import json
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>(?:\[[^\]]*\]|[^\[\]])*)\]\((?P<target>[^)\s]+)\)(?P<attributes>\{[^}]*\})?"
)
FENCE = re.compile(r"^(`{3,}).*?^\1 *$", re.MULTILINE | re.DOTALL)
MADE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Files of the repository that are pages, by their path there."""
ELSEWHERE = {"README.md": "index.md", "notebooks": "notebooks/00_start_here.md"}
"""What a link leads to, of files that are no pages themselves."""
LISTED = re.compile(r"^( *)(?:[-*]|\d+\.) ")


def pages() -> dict[str, str]:
    """Where every file of the repository that is a page is on the site."""
    books = {f"notebooks/{book.name}": f"notebooks/{book.stem}.md" for book in (ROOT / "notebooks").glob("*.ipynb")}
    results = re.findall(r'--8<-- "(benchmarks/results/(\S+)\.md)"', (ROOT / "docs" / "numbers.md").read_text("utf-8"))
    return {**MADE, **ELSEWHERE, **books} | {path: f"numbers.md#{name}" for path, name in results}


def rooms() -> dict[str, list[str]]:
    """The public names of each room, `patching` -> [`patch`, ...], as the stub has them."""
    found: dict[str, list[str]] = {}
    for node in ast.parse((ROOT / "labkit" / "__init__.pyi").read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found.setdefault(node.module.split(".")[0], []).extend(alias.name for alias in node.names)
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    def add(path: str, **what: Any) -> None:
        files.append(File.generated(config, path, **what))

    for path, page in MADE.items():
        add(page, content=(ROOT / path).read_text("utf-8"))
    for book in sorted((ROOT / "notebooks").glob("*.ipynb")):
        add(f"notebooks/{book.stem}.md", content=notebook(book))
        add(f"notebooks/{book.name}", abs_src_path=str(book))
    for room, names in rooms().items():
        add(f"reference/{room}.md", content=room_page(room, names))
    import plotly.offline

    add("assets/plotly.min.js", content=plotly.offline.get_plotlyjs())
    return files


def room_page(room: str, names: list[str]) -> str:
    """A page of reference: what the room is for, functions first, and every public name."""
    file = ROOT / "labkit" / room
    doc = ast.get_docstring(ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text()))
    ordered = sorted(names, key=lambda name: (name[0].isupper(), name.startswith("open_"), name.lower()))
    parts = [f"# {room.replace('_', ' ').capitalize()}", doc or "", *(f"::: labkit.{name}" for name in ordered)]
    return "\n\n".join(parts) + "\n"


# Links, pictures and the Markdown beside a page


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = next((path for path, made in pages().items() if made == page.file.src_uri and path not in ELSEWHERE), None)
    here = source or f"docs/{page.file.src_uri}"
    targets = pages()

    def link(match: re.Match[str]) -> str:
        image, text, target = match["image"], match["text"], match["target"]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        if path in targets:
            target = targets[path] + ("#" + anchor if anchor else "")
        elif path.startswith("docs/"):
            target = path.removeprefix("docs/") + ("#" + anchor if anchor else "")
        elif (ROOT / path).exists():
            home = repository_link(path)
            return f"[{text}]({home})" if home else (text if text.startswith("`") else f"{text} (`{path}`)")
        else:
            return match[0]
        relative = posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")
        shown = f"{image}[{text}]({relative})"
        dark = path.replace("_light.", "_dark.")
        if image and dark != path and (ROOT / dark).exists():
            other = relative.replace("_light.", "_dark.")
            return f"{image}[{text}]({relative}#only-light){image}[{text}]({other}#only-dark)"
        return shown + (match["attributes"] or "")

    text = outside_code(markdown, lambda part: spaced_lists(LINK.sub(link, part)))
    page.meta["markdown"] = markdown
    return text


def outside_code(markdown: str, change: Any) -> str:
    """The text with everything but its fenced blocks changed."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def spaced_lists(text: str) -> str:
    """An empty line before each list, which Python's Markdown needs and GitHub's does not."""
    lines: list[str] = []
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        if LISTED.match(line) and before.strip() and not before.startswith(" ") and not LISTED.match(before):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


@cache
def published() -> ModuleType:
    """tools/links.py, which knows where labkit is published."""
    spec = importlib.util.spec_from_file_location("labkit_links", ROOT / "tools" / "links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["labkit_links"] = module
    sys.path.append(str(ROOT / "tools"))  # for what it imports of its own folder
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return module


def repository_link(path: str) -> str:
    links = published().stored()
    return f"https://github.com/{links.repository}/blob/{links.ref}/{path}" if links.repository else ""


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    target = Path(config.site_dir, page.file.dest_uri + ".md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page.meta["markdown"], "utf-8")
    return output


def on_post_build(config: MkDocsConfig) -> None:
    """Source maps and languages that nobody asked for: half of the site's size."""
    for path in Path(config.site_dir).rglob("*.map"):
        path.unlink()
    shutil.rmtree(Path(config.site_dir, "assets", "javascripts", "lunr"), ignore_errors=True)


# Notebooks


def notebook(book: Path) -> str:
    """A notebook as Markdown with its stored outputs: text as code, widgets and tables as HTML, figures for plotly."""
    cells = json.loads(book.read_text("utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(
                source.replace("<details>", '<details markdown="1">').replace("<summary>", '<summary markdown="span">')
            )
            continue
        parts.append(fenced(source.removeprefix("# NBVAL_CHECK_OUTPUT\n"), ".python"))
        for output in merged(cell["outputs"]):
            parts.append(shown(output))
    head, _, rest = "\n\n".join(filter(None, parts)).partition("\n")
    links = [f'<a href="{book.name}" download>Download this notebook</a>']
    if (where := published().stored()).repository:
        path = f"notebooks/{book.name}"
        links += [f"[Open in Colab]({where.colab(path)})", f"[Open in Binder]({where.binder(path)})"]
    plots = "" if "labkit-plot" not in rest else (
        '\n<script src="../assets/plotly.min.js"></script>\n<script src="../assets/plots.js"></script>\n'
    )  # fmt: skip
    return f"{head}\n\n{' · '.join(links)}\n\n{rest}\n{plots}"


def merged(outputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Outputs, with what was printed in pieces in one."""
    text: list[str] = []
    for output in outputs:
        if output["output_type"] == "stream":
            text += output["text"]
            continue
        if text:
            yield {"data": {"text/plain": text}}
            text = []
        yield output
    if text:
        yield {"data": {"text/plain": text}}


def shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if figure := data.get("application/vnd.plotly.v1+json"):
        layout = figure["layout"]
        title = re.sub(r"<[^>]+>", " ", layout.get("title", {}).get("text", "") or "A figure")
        told = json.dumps({"data": figure["data"], "layout": layout}, ensure_ascii=True).replace("<", "\\u003c")
        size = f"height:{layout.get('height', 450)}px;max-width:{layout.get('width', 700)}px"
        return (
            f'<div class="labkit-plot" role="img" aria-label="{escape(title)}" style="{size}">'
            f'<script type="application/json">{told}</script></div>'
        )
    if "text/html" in data:
        html = "".join(data["text/html"])
        html = re.sub(r"<style scoped>.*?</style>", "", html, flags=re.DOTALL)
        return f'<div class="labkit-output" markdown="0">{html}</div>'
    text = "".join(data.get("text/plain", ""))
    return fenced(re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip("\n"), ".text .labkit-printed") if text.strip() else ""


def fenced(text: str, classes: str) -> str:
    marks = "`" * (3 + max((len(run) for run in re.findall("`{3,}", text)), default=0))
    return f"{marks} {{ {classes} }}\n{text.rstrip()}\n{marks}"
