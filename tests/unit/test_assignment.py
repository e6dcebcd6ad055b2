"""Notebooks as assignments of nbgrader: made by labkit, given out and graded by nbgrader itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from labkit.cli import main
from labkit.course import check
from labkit.course.assignment import exercises_of, graded
from labkit.course.checks import exercises

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAME = "00_start_here"
RIGHT = {
    "00-1": "answer = len(lm.tokens('The cat sat on the mat.'))",
    "00-2": "answer = 'embedding'",
    "00-3": "answer = 'allenai/OLMo-2-1124-13B'",
}
WRONG = {"00-1": "answer = 6", "00-2": "answer = 'attention'"}  # and 00.3 is left as it is


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_exercise_has_a_cell_to_answer_in_and_a_locked_one_that_grades(path: Path) -> None:
    notebook = json.loads(path.read_text())
    made = graded(notebook)
    nbformat.validate(nbformat.from_dict(made))
    found = list(exercises_of(notebook))
    assert {one.name for one in found} == {name for name in exercises() if name.startswith(path.name[:2])}
    about = {cell["metadata"]["nbgrader"]["grade_id"]: cell for cell in made["cells"] if "nbgrader" in cell["metadata"]}
    for name, _, solution in found:
        answer, test = (about[f"{what}-{name.replace('.', '-')}"] for what in ("answer", "check"))
        assert f"### BEGIN SOLUTION\n{solution}\n### END SOLUTION" in answer["source"]
        assert answer["metadata"]["nbgrader"]["solution"]
        assert test["source"] == f'check("{name}", answer, lm, grade=True)'
        assert test["metadata"]["nbgrader"] | {"grade_id": ""} == {
            "grade_id": "", "grade": True, "solution": False, "locked": True, "points": 1, "schema_version": 3,
            "task": False,
        }  # fmt: skip
    texts = [cell["source"] for cell in made["cells"] if cell["cell_type"] == "markdown"]
    assert not any("<summary>Solution" in "".join(text) for text in texts)
    for text in map("".join, texts):
        assert text.count("<details>") == text.count("</details>")


def test_a_check_that_grades_raises_unless_the_answer_is_right(lm4) -> None:
    check("00.1", 7, lm4, grade=True)
    with pytest.raises(AssertionError, match=r"00\.1: Not yet\. 6 is the number of words"):
        check("00.1", 6, lm4, grade=True)
    with pytest.raises(AssertionError, match=r"00\.1: not answered yet"):
        check("00.1", None, lm4, grade=True)


def test_an_assignment_is_not_overwritten_and_its_name_is_checked(tmp_path: Path, capsys) -> None:
    assert main(["course", "assignment", str(tmp_path), "99"]) == 1
    assert "no notebook begins with '99'; there are 00_start_here, 01_prompting" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["course", "assignment", str(tmp_path), "00", "02"]) == 0
    assert sorted(path.name for path in (tmp_path / "source").iterdir()) == [NAME, "02_lens"]
    (tmp_path / "nbgrader_config.py").write_text("mine")
    assert main(["course", "assignment", str(tmp_path), "02"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["course", "assignment", str(tmp_path), "03"]) == 0
    assert (tmp_path / "nbgrader_config.py").read_text() == "mine"


def nbgrader(folder: Path, *arguments: str) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "LABKIT_PROGRESS": str(folder / "teacher" / "progress.json")}
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.long
def test_nbgrader_gives_out_what_labkit_makes_and_full_or_no_points_for_it(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("nbgrader", reason="not in this environment")
    from nbgrader.api import Gradebook

    bin = Path(sys.executable).parent  # nbgrader calls alembic, and the kernel is the one there
    monkeypatch.setenv("PATH", f"{bin}{os.pathsep}{os.environ['PATH']}")
    assert main(["course", "assignment", str(tmp_path), "00"]) == 0
    nbgrader(tmp_path, "generate_assignment", NAME)
    released = tmp_path / "release" / NAME / f"{NAME}.ipynb"
    text = released.read_text()
    assert "BEGIN SOLUTION" not in text
    assert "idxmax" not in text  # of a solution
    assert len(re.findall(r'"answer = None', text)) == 3

    for student, answers in {"anna": RIGHT, "ben": WRONG}.items():
        submitted = tmp_path / "submitted" / student / NAME
        submitted.mkdir(parents=True)
        notebook = nbformat.read(released, as_version=4)
        for cell in notebook.cells:
            about = cell.metadata.get("nbgrader", {})
            task = about.get("grade_id", "").removeprefix("answer-")
            if about.get("solution") and task in answers:
                cell.source = cell.source.replace("answer = None", answers[task])
            if about.get("grade") and student == "ben":
                cell.source = "print('Right.')"  # which nbgrader puts right
        nbformat.write(notebook, submitted / f"{NAME}.ipynb")
    nbgrader(tmp_path, "autograde", NAME)
    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as book:
        scores = {one.student.id: (one.score, one.max_score) for one in book.assignment_submissions(NAME)}
    assert scores == {"anna": (3, 3), "ben": (0, 3)}
    said = (tmp_path / "autograded" / "ben" / NAME / f"{NAME}.ipynb").read_text()
    assert "6 is the number of words" in said
    assert not (tmp_path / "teacher").exists()  # the teacher's own progress
