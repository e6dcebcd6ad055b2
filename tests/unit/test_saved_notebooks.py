"""What stands in the notebooks as they are in the repository, before anybody runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
    for number, one in enumerate(data):
        if "".join(one.get("text/plain", "")).startswith(TOOLS):
            picture = "".join(data[number + 1].get("text/html", ""))
            assert "labkit-snapshot" in picture
            assert "<svg" not in picture  # which an untrusted notebook would lose


def test_there_are_widgets_in_the_notebooks() -> None:
    assert sum(path.read_text().count("labkit-snapshot") for path in NOTEBOOKS) >= 8


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_run_in_order_and_said_nothing_it_should_not(path: Path) -> None:
    notebook = json.loads(path.read_text())
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code" and cell["source"]]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {(output["output_type"], output.get("name")) for output in outputs(notebook)}
    assert kinds <= {("stream", "stdout"), ("display_data", None), ("execute_result", None)}
