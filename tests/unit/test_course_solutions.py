"""The solution below each exercise is run, with what the notebook has made before it, and its check says Right.

Of a notebook only those statements are run that a solution needs, so this takes a part of the notebook's time.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from course_answers import RIGHT

import labkit as lk
from labkit.course import check
from labkit.course.assignment import exercises_of

pytestmark = pytest.mark.long
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FEWER = {"pairs=4": "pairs=2", "limit=100": "limit=60"}  # in what comes before


def statements(notebook: dict[str, Any], upto: int) -> list[ast.stmt]:
    """The statements of the code cells up to one."""
    sources = ["".join(cell["source"]) for cell in notebook["cells"][: upto + 1] if cell["cell_type"] == "code"]
    return [one for source in sources for one in ast.parse(re.sub(r"^%.*$", "", source, flags=re.MULTILINE)).body]


def names(tree: ast.AST) -> tuple[set[str], set[str]]:
    """What a statement reads, and what it makes or changes."""
    read, made = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            made |= {one.id for one in ast.walk(node.value) if isinstance(one, ast.Name)}
    return read, made


def needed(code: list[ast.stmt], solution: str) -> list[ast.stmt]:
    """Those statements that make the answer and what it is made of, in their order."""
    wanted, kept = {"answer"}, []
    for one in reversed([*code, *ast.parse(solution).body]):
        read, made = names(one)
        if made & wanted - {"lm"} and not isinstance(one, ast.Expr):
            kept.append(one)
            wanted |= read
            wanted -= {"answer"}  # the cell of the exercise makes it None
    return kept[::-1]


def literal(solution: str) -> Any:
    """The answer, if the solution is one that needs nothing else; None otherwise."""
    try:
        return ast.literal_eval(solution.removeprefix("answer = ").partition("  #")[0])
    except (ValueError, SyntaxError):
        return None


SOLUTIONS = [
    (path, one) for path in NOTEBOOKS for one in exercises_of(json.loads(path.read_text("utf-8")))
]  # fmt: skip


@pytest.mark.parametrize(("path", "exercise"), SOLUTIONS, ids=[one.name for _, one in SOLUTIONS])
def test_the_solution_is_right(lm4: lk.LanguageModel, capsys, path: Path, exercise) -> None:
    answer = literal(exercise.solution)
    if answer is not None and any(answer == one for one in RIGHT[exercise.name] if not callable(one)):
        return  # test_course.py runs it
    notebook = json.loads(path.read_text("utf-8"))
    room: dict[str, Any] = {"lm": lm4}
    for one in needed(statements(notebook, exercise.at), exercise.solution):
        source = ast.unparse(one)
        for many, few in FEWER.items():
            source = source.replace(many, few)
        exec(compile(source, path.name, "exec"), room)
    capsys.readouterr()
    check(exercise.name, room["answer"], lm4)
    assert capsys.readouterr().out.startswith(f"{exercise.name}: Right.")
