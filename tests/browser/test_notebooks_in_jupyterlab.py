"""The notebooks of the course in JupyterLab.

Those that people begin with are run from top to bottom. The others, whose cells take longest and which nbval runs as
well, are opened as they are saved; LABKIT_EVERY_NOTEBOOK=1 runs them here, too.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from driver import Lab, errors, open_notebook, run_all
from playwright.sync_api import Browser, expect

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
OPENED = [path for path in NOTEBOOKS if path.name[:2] > "04"]
RUN = NOTEBOOKS if os.environ.get("LABKIT_EVERY_NOTEBOOK") == "1" else [p for p in NOTEBOOKS if p not in OPENED]


@pytest.mark.parametrize("notebook", RUN, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("notebook", OPENED, ids=lambda path: path.stem)
def test_the_saved_notebook_opens_with_its_pictures(lab: Lab, browser: Browser, notebook: Path) -> None:
    shutil.copy(notebook, lab.root / notebook.name)
    outputs = [output for cell in nbformat.read(notebook, as_version=4).cells for output in cell.get("outputs", [])]
    problems: list[str] = []
    with open_notebook(browser, lab, notebook.name) as page:
        page.on("pageerror", lambda error: problems.append(str(error)))
        expect(page.locator(".jp-OutputArea-output").last).to_be_attached()
        for picture in page.locator(".labkit-snapshot img").all():
            assert picture.evaluate("one => one.complete && one.naturalWidth > 20"), picture.get_attribute("alt")
        drawn = sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)
        expect(page.locator(".js-plotly-plot .main-svg:first-child")).to_have_count(drawn)
        assert errors(page) == []
    assert problems == []
