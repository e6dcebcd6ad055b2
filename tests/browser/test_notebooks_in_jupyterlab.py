"""The notebooks of the course, opened in JupyterLab and run from top to bottom."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from driver import Lab, errors, open_notebook, run_all
from playwright.sync_api import Browser, expect

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_top_to_bottom(lab: Lab, browser: Browser, notebook: Path) -> None:
    bare = nbformat.read(notebook, as_version=4)
    for cell in bare.cells:  # as if nobody had run it, so that one sees what is run
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(bare, lab.root / notebook.name)
    problems: list[str] = []
    with open_notebook(browser, lab, notebook.name) as page:
        page.on("pageerror", lambda error: problems.append(str(error)))
        run_all(page)
        assert errors(page) == []
        expect(page.get_by_text("Error displaying widget")).to_have_count(0)
        for tool in page.locator(".labkit-tool").all():
            expect(tool.locator(".labkit-status").first).not_to_have_attribute("data-kind", "error")
    assert problems == []
