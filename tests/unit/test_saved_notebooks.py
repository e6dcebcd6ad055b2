"""What stands in the notebooks as they are in the repository, before anybody runs them."""

from __future__ import annotations

import json
import re
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from other_bits import ABOUT, CHECKED, COMPARES, LOADS, in_bits
from ran import edited

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
VIEW = "application/vnd.jupyter.widget-view+json"
TOOLS = (
    "PromptLab(", "AttentionView(", "PatchLab(", "QuantLab(", "AuditLab(", "LensView(", "SteerLab(", "CircuitView(",
    "HeadGrid(", "Heatmap(",
)  # fmt: skip


def outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", ())]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_widget_is_saved_as_a_picture_and_not_as_a_view_of_what_no_longer_lives(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert "widgets" not in notebook["metadata"]
    data = [output.get("data", {}) for output in outputs(notebook)]
    assert not any(VIEW in one for one in data)
    for one in data:
        assert not "".join(one.get("text/plain", "")).startswith(TOOLS)  # its picture says its name
        if "labkit-snapshot" in (picture := "".join(one.get("text/html", ""))):
            assert "<svg" not in picture  # which an untrusted notebook would lose


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_holds_nothing_that_an_older_front_end_stumbles_over(path: Path) -> None:
    """ipywidgets 7 looks for the models of saved views and logs an error for each that it does not find."""
    text = path.read_text()
    assert len(text.encode()) < 400_000
    assert "application/vnd.jupyter.widget" not in text
    kinds = {kind for output in outputs(json.loads(text)) for kind in output.get("data", {})}
    assert kinds <= {"text/plain", "text/html", "application/vnd.plotly.v1+json"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_code_was_edited_after_the_notebook_was_run(path: Path) -> None:
    changed = edited(json.loads(path.read_text()))
    assert changed is None, f"{path.name}: {changed}; run it: python tools/run_notebooks.py notebooks/{path.name}"


def test_an_edit_of_code_is_noticed_and_one_of_text_is_not() -> None:
    notebook = json.loads(NOTEBOOKS[0].read_text())
    code = [n for n, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]
    changes = {
        "its code cell 3 is not the one that was run": lambda cells: cells[code[2]].update(source="1 + 1"),
        f"had {len(code)} code cells when it was run and has {len(code) - 1}": lambda cells: cells.pop(code[1]),
        "its code cell 2 is not the one that was run": lambda cells: cells.insert(code[1], cells.pop(code[2])),
    }
    for says, change in changes.items():
        other = deepcopy(notebook)
        change(other["cells"])
        assert says in str(edited(other))
    notebook["cells"][0]["source"] = "# Another title"
    assert edited(notebook) is None
    del notebook["metadata"]["labkit"]
    assert "never run" in str(edited(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_is_for_asks_before_it_tells_and_ends_with_what_was_learned(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    opening = "".join(cells[0]["source"])
    for part in ("**You will be able to**", "**Time:**", "**You need:**"):
        assert part in opening
    assert "**Predict:**" in text or re.search(r"^predict\(", text, re.MULTILINE)
    assert text.count("\n## In short\n") == 1
    assert text.index("\n## In short\n") < re.search("## To read|\\*\\*To read:", text).start()  # type: ignore[union-attr]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_hints_open_one_by_one_and_the_solution_last(path: Path) -> None:
    """Each is inside the one before it, which every renderer of Markdown can fold without a kernel."""
    cells = json.loads(path.read_text())["cells"]
    asked = [re.search(r"^check\(\"(\d\d\.\d)\"", "".join(cell["source"]), re.MULTILINE) for cell in cells]
    for number, found in enumerate(asked):
        if found is None:
            continue
        folded = "".join(cells[number + 1]["source"]).partition("</details>")[0]
        titles = re.findall(r"^<details><summary>(.*)</summary>$", folded, re.MULTILINE)
        assert len(titles) >= 3, found[1]
        assert titles == [*(f"Hint {n}" for n in range(1, len(titles))), "Solution"], found[1]
        closed = "".join(cells[number + 1]["source"])[len(folded) :]
        assert closed.startswith("</details>\n" * (len(titles) - 1) + "</details>"), found[1]


def test_there_are_widgets_in_the_notebooks() -> None:
    assert sum(path.read_text().count("labkit-snapshot") for path in NOTEBOOKS) >= 8


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_run_in_order_and_said_nothing_it_should_not(path: Path) -> None:
    notebook = json.loads(path.read_text())
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code" and cell["source"]]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {(output["output_type"], output.get("name")) for output in outputs(notebook)}
    assert kinds <= {("stream", "stdout"), ("display_data", None), ("execute_result", None)}


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.name != COMPARES], ids=lambda path: path.stem)
def test_what_a_notebook_claims_can_be_checked_in_other_bits(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    before = [cell.source.count(CHECKED) for cell in notebook.cells if ABOUT not in cell.metadata.get("tags", ())]
    assert in_bits(notebook, 32) > 0
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "lk.load(bits=32, progress=False)" in code
    assert LOADS not in code
    assert code.count(CHECKED) == sum(before) > 0
