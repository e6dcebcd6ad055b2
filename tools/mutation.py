"""Mutation score of the modules that only compute: of the small faults put into them, how many do their tests find?

    python tools/mutation.py            # all of MODULES, a few minutes
    python tools/mutation.py axes       # one of them

A fault is one change of one expression or statement, made in a forked process that imports labkit anew with it and runs
the module's own tests. (mutmut leaves decorated functions as they are, which is every metric, and counts the words of
messages; cosmic-ray starts Python, and so torch, once per fault.)
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MODULES = ("text.tokens", "text.alignment", "patching.axes", "patching.metrics", "results.bootstrap")
LEAST = 0.85  # of the faults of each module
SWAP: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.MatMult: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
Fault = tuple[int, str, Callable[[], None]]  # its line, what it is, and what makes it


def faults(node: ast.AST) -> Iterator[Fault]:
    """Every fault that can be made in a tree. Types, and the words of errors and texts, are left as they are."""

    def put(where: Any, name: str | int, new: Any, words: str) -> Fault:
        make = (lambda: where.__setitem__(name, new)) if isinstance(where, list) else lambda: setattr(where, name, new)
        return node.lineno, f"{ast.unparse(node).splitlines()[0]}: {words}", make

    match node:
        case ast.JoinedStr() | ast.Raise():
            return
        case ast.Compare():
            for n, op in enumerate(node.ops):
                yield put(node.ops, n, SWAP[type(op)](), f"{type(op).__name__} is {SWAP[type(op)].__name__}")
        case ast.BoolOp() | ast.BinOp() | ast.AugAssign() if type(node.op) in SWAP:
            new = SWAP[type(node.op)]
            yield put(node, "op", new(), f"{type(node.op).__name__} is {new.__name__}")
        case ast.Constant(value=bool() | int() | float()):
            new = not node.value if isinstance(node.value, bool) else node.value + 1
            yield put(node, "value", new, f"is {new}")
        case ast.If() | ast.While() | ast.IfExp():
            yield put(node, "test", ast.UnaryOp(ast.Not(), node.test), "is negated")
        case ast.Return(value=ast.expr()):
            yield put(node, "value", ast.Constant(None), "is None")
    for name, value in ast.iter_fields(node):
        for n, child in enumerate(value if isinstance(value, list) else [value]):
            where, key = (value, n) if isinstance(value, list) else (node, name)
            if not isinstance(child, ast.AST) or name in ("annotation", "returns"):
                continue
            if isinstance(child, ast.UnaryOp):
                yield child.lineno, f"{ast.unparse(child)}: is its operand", put(where, key, child.operand, "")[2]
            elif isinstance(child, ast.comprehension) and child.ifs:
                yield child.iter.lineno, f"{ast.unparse(child)}: takes all", child.ifs.clear
            elif isinstance(child, ast.Raise | ast.Continue | ast.Break):
                yield child.lineno, f"{ast.unparse(child).splitlines()[0]}: is left out", put(where, key, ast.Pass(), "")[2]
            yield from faults(child)


class Faulty:
    """Imports one module from a tree instead of its file."""

    def __init__(self, name: str, path: Path, tree: ast.AST) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(ast.fix_missing_locations(self.tree), str(self.path), "exec"), module.__dict__)


def survives(name: str, tree: ast.AST, make: Callable[[], None], seconds: float) -> bool:
    """Do the tests of a module pass with a fault in it? A fault that makes them endless does not survive."""
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        return status == 0
    signal.alarm(int(seconds) + 1)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    code = 1
    try:
        make()
        path = ROOT / "labkit" / f"{name.replace('.', '/')}.py"
        sys.meta_path.insert(0, Faulty(f"labkit.{name}", path, tree))
        test = ROOT / "tests" / "unit" / f"test_{name.rpartition('.')[2]}.py"
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", str(test)]))
    finally:
        os._exit(code)


def main(asked: list[str]) -> int:
    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for helper in ("conftest", "loud", "pieces"):  # and with them torch, transformers and labkit
        importlib.import_module(helper)
    for own in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", None)).startswith(f"{ROOT}/")]:
        if own != "__main__" and "site-packages" not in str(sys.modules[own].__file__):
            del sys.modules[own]  # all but these are imported once
    scores = {}
    for name in (name for name in MODULES if not asked or name.rpartition(".")[2] in asked):
        tree = ast.parse((ROOT / "labkit" / f"{name.replace('.', '/')}.py").read_text())
        start = time.monotonic()
        if not survives(name, tree, lambda: None, 600):
            sys.exit(f"{name}: its tests fail without any fault")
        seconds, found, left = 5 * (time.monotonic() - start) + 2, list(faults(tree)), 0
        for line, words, make in found:
            if survives(name, tree, make, seconds):
                left += 1
                print(f"labkit/{name.replace('.', '/')}.py:{line}: {words}", flush=True)
        scores[name] = 1 - left / len(found)
        print(f"{name}: {scores[name]:.0%} of {len(found)} faults found", flush=True)
    return int(min(scores.values()) < LEAST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
