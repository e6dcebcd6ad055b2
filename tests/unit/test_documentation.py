"""Every code block of README, CONTRIBUTING and the site is run: a page's Python from top to bottom, in one namespace.

A block that a text block follows at once prints that text. A block after `<!-- not run: why -->` is compiled, and the
names of labkit and the arguments in it are checked. Shell blocks name targets of make and commands
of labkit that exist.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import inspect
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import labkit as lk
from labkit.activations.metrics import METRICS
from labkit.cli import main
from labkit.models.sources import kinds as model_sources

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^(?P<indent> *)```(?P<kind>\w*)\n(?P<code>.*?)^ *```$"
    r"(?:\n\n```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
SHELL = {"", "sh", "bash", "shell", "console"}


@dataclass(frozen=True)
class CodeBlock:
    """One block of a page, where it is, and what it should print."""

    page: Path
    line: int
    kind: str
    code: str
    why: str | None  # why it is not run
    printed: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[CodeBlock]:
    text = page.read_text("utf-8")
    return [
        CodeBlock(
            page, text[: match.start("code")].count("\n") + 1, match["kind"],
            inspect.cleandoc(match["code"]) if match["indent"] else match["code"], match["why"], match["printed"],
        )
        for match in BLOCK.finditer(text)
    ]  # fmt: skip


ALL = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in ALL if block.kind == "python"]


@pytest.fixture(scope="module")
def load() -> Callable[..., lk.LanguageModel]:
    """`lk.load`, which reads each model once for all pages: what a page does leaves it as it was."""
    read = functools.cache(lk.load)
    return lambda *name, keep=(), **how: read(*name, keep=tuple(keep), **how)


@pytest.fixture
def as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable) -> Iterator[None]:
    """In an empty folder; metrics and sources that a page registers are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lk, "load", load)
    monkeypatch.setenv("LABKIT_NOTEBOOKS", str(tmp_path))
    metrics, sources = dict(METRICS), list(model_sources.SOURCES)
    yield
    METRICS.clear()
    METRICS.update(metrics)
    model_sources.SOURCES[:] = sources


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_on_a_page_runs_and_prints_what_it_says(page: Path, as_before: None) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in (block for block in PYTHON if block.page == page and not block.why):
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec", dont_inherit=True), names)
        except Exception as error:
            raise AssertionError(f"{block.place}: {type(error).__name__}: {error}") from error
        if block.printed is not None:
            assert printed.getvalue().strip() == block.printed.strip(), block.place


def attribute(node: ast.expr) -> Any:
    """What `lk.a.b` is; AttributeError if it is nothing."""
    if isinstance(node, ast.Name):
        return lk if node.id == "lk" else None
    if isinstance(node, ast.Attribute) and (of := attribute(node.value)) is not None:
        return getattr(of, node.attr)
    return None


@pytest.mark.parametrize("block", [block for block in PYTHON if block.why], ids=lambda block: block.place)
def test_what_cannot_be_run_here_names_what_labkit_has(block: CodeBlock) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Attribute):
            attribute(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("labkit"):
            exec(ast.unparse(node), {})
        if isinstance(node, ast.Call) and callable(function := attribute(node.func)):
            inspect.signature(function).bind_partial(**{word.arg: None for word in node.keywords if word.arg})


def test_few_blocks_are_not_run() -> None:
    told = [block for block in PYTHON if block.why]
    assert len(told) <= 0.2 * len(PYTHON), [f"{block.place}: {block.why}" for block in told]
    assert len(PYTHON) > 40


def subcommands(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    seen: list[argparse.ArgumentParser] = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", lambda self, *_: seen.append(self) or exit())
    with pytest.raises(SystemExit):
        main([])
    [commands] = [one for one in seen[0]._actions if isinstance(one, argparse._SubParsersAction)]
    return set(commands.choices)


def test_the_commands_in_shell_blocks_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = subcommands(monkeypatch)
    seen = 0
    for block in ALL:
        if block.kind not in SHELL:
            continue
        for line in block.code.splitlines():
            words = re.sub(r"^(\$ |\w+=\S+ )+", "", line.strip()).split()
            if words[:1] == ["make"]:
                assert words[1] in targets, f"{block.place}: {line}"
            elif words[:1] == ["labkit"]:
                assert words[1] in commands, f"{block.place}: {line}"
            elif words[:1] in (["python"], ["python3"]) and words[1].endswith(".py"):
                assert (ROOT / words[1]).exists(), f"{block.place}: {line}"
            else:
                continue
            seen += 1
    assert seen > 20


def test_commands_in_the_text_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = subcommands(monkeypatch)
    for page in PAGES:
        for command in re.findall(r"`labkit ([a-z]+)", page.read_text("utf-8")):
            assert command in commands, f"{page.relative_to(ROOT)} names labkit {command}"


def test_names_of_labkit_in_the_text_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`lk\.(\w+)", page.read_text("utf-8")):
            assert hasattr(lk, name), f"{page.relative_to(ROOT)} names lk.{name}"
