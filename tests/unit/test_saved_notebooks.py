"""What stands in the notebooks as they are in the repository, before anybody runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"


def outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", ())]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_widget_is_saved_with_its_state_and_a_picture(path: Path) -> None:
    notebook = json.loads(path.read_text())
    state = notebook["metadata"].get("widgets", {}).get(STATE, {"state": {}})["state"]
    views = [output["data"] for output in outputs(notebook) if VIEW in output.get("data", {})]
    for data in views:
        assert data[VIEW]["model_id"] in state  # the views that a front end shows before the first run
        assert "text/html" in data
        assert "<svg" not in "".join(data["text/html"])  # which an untrusted notebook would lose


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_run_in_order_and_said_nothing_it_should_not(path: Path) -> None:
    notebook = json.loads(path.read_text())
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code" and cell["source"]]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {(output["output_type"], output.get("name")) for output in outputs(notebook)}
    assert kinds <= {("stream", "stdout"), ("display_data", None), ("execute_result", None)}
