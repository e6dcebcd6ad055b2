"""Imports in labkit go one way, and those inside functions have a reason. The layers themselves: `make lint`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "labkit").rglob("*.py")
}
HEAVY = {"torch", "transformers", "ipywidgets", "plotly", "pandas", "distributed"}
OPTIONAL = {
    "accelerate", "anywidget", "bitsandbytes", "codecarbon", "dask", "gguf", "google", "httpx", "huggingface_hub",
    "IPython", "jinja2", "jupyterhub", "jupyterlab", "peft", "psutil", "pynvml", "resource", "safetensors", "sklearn",
    "tokenizers", "tqdm", "uvicorn", "websockets", "xarray",
}  # fmt: skip
LIGHT = {
    "labkit.cli", "labkit.course", "labkit.course.checks", "labkit.doctor", "labkit.models.catalog",
    "labkit.server.command", "labkit.workshop.command",
}  # fmt: skip
"""What is imported before torch: the command line, which has to answer at once, what it lists, and the doctor."""


def imports(name: str) -> Iterator[tuple[str, bool]]:
    """(imported module, is it inside a function) for every import of a file, those for types included."""
    path = FILES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join([*parts, base]).rstrip(".")
                yield from ((f"{base}.{alias.name}", inside) for alias in child.names)
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(ast.parse(path.read_text()), False)


def ours(imported: str) -> str | None:
    """The file of labkit that an import reads."""
    while imported and imported not in FILES:
        imported = imported.rpartition(".")[0]
    return imported or None


def test_no_file_leads_back_to_itself() -> None:
    graph = {name: {found for one, _ in imports(name) if (found := ours(one)) not in (None, name)} for name in FILES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for one in sorted(graph[name]):
                visit(one, (*above, name))
            done.add(name)

    for name in FILES:
        visit(name, ())
    assert sum(map(len, graph.values())) > 500  # it did look


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_inside_functions_are_of_what_is_heavy_or_optional(name: str) -> None:
    for imported, inside in imports(name):
        top = imported.partition(".")[0]
        if not inside or imported.startswith("__future__"):
            continue
        if top == "labkit":
            assert name in LIGHT, f"{name} imports {imported} inside a function"
        else:
            assert top in HEAVY | OPTIONAL, f"{name} imports {imported} inside a function"


def test_no_room_hides_a_public_function() -> None:
    import labkit

    rooms = {name.split(".")[1] for name in FILES if name.count(".")}
    assert not rooms & set(labkit.__all__)


def test_modules_of_the_version_before_are_found_by_their_names() -> None:
    import importlib

    from labkit._moved import MOVED

    for old, places in MOVED.items():
        assert old not in FILES
        importlib.import_module(old)
        assert all(place in FILES for place in places)
    with pytest.warns(DeprecationWarning, match=r"labkit\.tokens\.align has moved to labkit\.text\.pair"):
        from labkit.tokens import align
    with pytest.warns(DeprecationWarning, match=r"has moved to labkit\.patching\.cell_report"):
        from labkit.analysis.inspect import transplant
    with pytest.warns(DeprecationWarning, match=r"has moved to labkit\.activations\.sites"):
        from labkit.internals.sites import HEAD_KINDS
    assert callable(align)
    assert callable(transplant)
    assert "z" in HEAD_KINDS
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from labkit.tokens import nothing  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("labkit.analysis.nowhere")
