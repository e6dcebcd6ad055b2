"""Mutation score of the modules that only compute: of the small faults put into them, how many do their tests find?

    python tools/mutation.py            # all of MODULES, some minutes
    python tools/mutation.py axes       # one of them

A fault is one change of one expression or statement, in a forked process that imports labkit anew and runs the tests.
(mutmut leaves decorated functions alone, which is every metric; cosmic-ray starts Python, and so torch, per fault.)
"""

from __future__ import annotations

import ast
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MODULES = ("text.tokens", "text.alignment", "patching.axes", "activations.metrics", "results.bootstrap")
LEAST = 0.85  # of the faults of each module
SWAP: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.MatMult: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


def faults(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    """What can be made wrong in a tree, and what makes it so. Types and the words of texts are left as they are."""

    def put(where: Any, name: str | int, new: Any, words: str, at: Any = node) -> tuple[str, Callable[[], None]]:
        make = (lambda: where.__setitem__(name, new)) if isinstance(where, list) else lambda: setattr(where, name, new)
        return f"{at.lineno}: `{ast.unparse(at).splitlines()[0]}` {words}", make

    match node:
        case ast.JoinedStr() | ast.Raise():
            return
        case ast.Compare():
            for n, op in enumerate(map(type, node.ops)):
                yield put(node.ops, n, SWAP[op](), f"with {SWAP[op].__name__} for {op.__name__}")
        case ast.BoolOp() | ast.BinOp() | ast.AugAssign() if (op := type(node.op)) in SWAP:
            yield put(node, "op", SWAP[op](), f"with {SWAP[op].__name__} for {op.__name__}")
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
                yield put(where, key, child.operand, "is its operand", child)
            elif isinstance(child, ast.comprehension) and child.ifs:
                yield put(child, "ifs", [], "takes all")
            elif isinstance(child, ast.Raise | ast.Continue | ast.Break):
                yield put(where, key, ast.Pass(), "is left out", child)
            yield from faults(child)


def survives(path: Path, tree: ast.AST, make: Callable[[], None], seconds: float) -> bool:
    """Do the tests of a module pass with a fault in it? One that makes them endless does not survive."""
    if child := os.fork():
        return os.waitpid(child, 0)[1] == 0
    code = 1
    try:
        signal.alarm(int(seconds))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        make()
        room, _, name = ".".join(path.relative_to(ROOT).with_suffix("").parts).rpartition(".")
        parent, module = importlib.import_module(room), ModuleType(f"{room}.{name}")
        module.__file__, module.__package__ = str(path), room
        sys.modules[f"{room}.{name}"] = module
        exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), module.__dict__)
        setattr(parent, name, module)
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"tests/unit/test_{path.name}"]))
    finally:
        os._exit(code)


def main(asked: list[str]) -> int:
    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for helper in ("conftest", "loud", "pieces"):  # and with them torch and transformers, once
        importlib.import_module(helper)
    ours = str(ROOT / "labkit"), str(ROOT / "tests")
    for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(ours)]:
        del sys.modules[name]
    scores = []
    for module in (name for name in MODULES if not asked or name.split(".")[1] in asked):
        path = ROOT / "labkit" / f"{module.replace('.', '/')}.py"
        tree, start = ast.parse(path.read_text("utf-8")), time.monotonic()
        if not survives(path, tree, lambda: None, 600):
            sys.exit(f"{module}: its tests fail without any fault")
        limit, found, left = 5 * (time.monotonic() - start) + 5, list(faults(tree)), 0
        for words, make in found:
            if survives(path, tree, make, limit):
                left += 1
                print(f"labkit/{module.replace('.', '/')}.py:{words}", flush=True)
        scores.append(1 - left / len(found))
        print(f"{module}: {scores[-1]:.0%} of {len(found)} faults found", flush=True)
    return int(min(scores) < LEAST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
