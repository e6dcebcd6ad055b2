"""Notebooks of the course as assignments of nbgrader: `labkit course assignment FOLDER 00 04`.

In a notebook an exercise is one cell, with `answer = None` and a check, followed by hints and the solution. nbgrader
wants the answer in a cell of its own, in which it replaces the solution by a stub, and the check in another that
students cannot change. It gives a point for each check that raises no error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from labkit.course.folder import originals, write_whole

CHECK = re.compile(r'^check\("(?P<name>\d\d\.\d+)", answer, lm\)$', re.MULTILINE)
ANSWER = re.compile(r"^answer = None(?:  # (?P<kind>.*))?$", re.MULTILINE)
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n(?P<text>.*?)\n*</details>\n?", re.DOTALL)
CONFIG = """\
c = get_config()  # noqa: F821

c.CourseDirectory.course_id = "labkit"
c.ClearSolutions.code_stub = {"python": "answer = None"}
c.ExecutePreprocessor.timeout = 1800  # seconds for one cell
"""

Cell = dict[str, Any]


class Exercise(NamedTuple):
    """Where an exercise is in a notebook.

    Attributes:
        name: "04.1".
        at: the number of its cell.
        solution: the Python that ends with the answer.
    """

    name: str
    at: int
    solution: str


def exercises_of(notebook: Cell) -> Iterator[Exercise]:
    """The exercises of a notebook, in their order.

    Raises:
        ValueError: a solution is not where it should be, in the text after the exercise's cell.
    """
    cells = notebook["cells"]
    for at, cell in enumerate(cells):
        if cell["cell_type"] == "code" and (found := CHECK.search(_source(cell))):
            below = SOLUTION.search(_source(cells[at + 1])) if at + 1 < len(cells) else None
            if below is None:
                raise ValueError(f"no solution of exercise {found['name']} follows its cell")
            yield Exercise(found["name"], at, _code_in(below["text"]))


def _code_in(text: str) -> str:
    """The Python in a solution: what assigns the answer, in a line or in a block."""
    inline = re.search(r"`(answer = [^`]+)`", text)
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "answer = " in block]
    if not inline and not blocks:
        raise ValueError(f"no answer is assigned in the solution: {text:.60}")
    return str(blocks[0] if blocks else inline[1]).strip()  # type: ignore[index]


def graded(notebook: Cell) -> Cell:
    """A notebook as the source of an assignment."""
    made = deepcopy(notebook)
    made["metadata"].pop("labkit", None)
    for name, at, solution in reversed(list(exercises_of(notebook))):
        cell, text = made["cells"][at : at + 2]
        source = _source(cell)
        found = ANSWER.search(source)
        if found is None:
            raise ValueError(f"the cell of exercise {name} has no line `answer = None`")
        kind = f"# {found['kind']}\n" if found["kind"] else ""
        region = f"{kind}### BEGIN SOLUTION\n{solution}\n### END SOLUTION"
        before = source[: found.start()] + region + source[found.end() :]
        task = name.replace(".", "-")
        answer = _cell(f"{cell['id']}-answer", CHECK.sub("", before).strip(), f"answer-{task}", solution=True)
        test = _cell(f"{cell['id']}-check", f'check("{name}", answer, lm, grade=True)', f"check-{task}", points=1)
        made["cells"][at : at + 1] = [answer, test]
        text["source"] = SOLUTION.sub("", _source(text))
    return made


def _cell(id: str, source: str, name: str, *, solution: bool = False, points: int = 0) -> Cell:
    about: dict[str, Any] = {"grade_id": name, "grade": bool(points), "solution": solution, "locked": not solution}
    about |= {"schema_version": 3, "task": False} | ({"points": points} if points else {})
    return {
        "cell_type": "code", "id": id, "metadata": {"nbgrader": about}, "source": source, "outputs": [],
        "execution_count": None,
    }  # fmt: skip


def _source(cell: Cell) -> str:
    return "".join(cell["source"])


def make_assignments(folder: Path, names: Sequence[str] = ()) -> list[str]:
    """Write notebooks as assignments into nbgrader's folder of a course, with a configuration where it has none.

    Args:
        folder: the course's; assignments go into `source/`.
        names: how the names of the notebooks begin, such as "04"; all of them if there are none.

    Returns:
        The names of the assignments.

    Raises:
        ValueError: there is no such notebook, or an assignment is there already.
        OSError: the folder cannot be written.
    """
    there = sorted(originals().glob("*.ipynb"))
    unknown = [name for name in names if not any(path.name.startswith(name) for path in there)]
    if unknown:
        raise ValueError(f"no notebook begins with {unknown[0]!r}; there are {', '.join(path.stem for path in there)}")
    wanted = [path for path in there if not names or path.name.startswith(tuple(names))]
    targets = [folder / "source" / path.stem / path.name for path in wanted]
    for target in targets:
        if target.exists():
            raise ValueError(f"{target} is there already; delete it to make it anew")
    for path, target in zip(wanted, targets, strict=True):
        made = graded(json.loads(path.read_text("utf-8")))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, (json.dumps(made, indent=1, ensure_ascii=False) + "\n").encode())
    config = folder / "nbgrader_config.py"
    if not config.exists():
        write_whole(config, CONFIG.encode())
    return [path.stem for path in wanted]
