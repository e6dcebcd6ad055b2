"""What blocks draw with is sent once, and is there for every block: JupyterLab with two tools, and what can happen."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from driver import Lab, errors, kernel_idle, kernel_says, notebook_of, open_notebook, output_of, reload, run_all, saved
from playwright.sync_api import Browser, Locator, Page, expect
from test_widgets_in_jupyterlab import CLEAN, CORRUPT, LOAD

LAB = f"lk.PatchLab(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John')"
CELLS = [LOAD, f"first = {LAB}\nsecond = {LAB}\nfirst.wait(); second.wait()", "second", "first"]
FORGET = """
from ipywidgets.widgets.widget import _instances
from labkit.widgets.base.block import _held
for one in _held.values():
    _instances.pop(one.model_id)
print("forgotten")
"""
MANAGER = "@jupyter-widgets/jupyterlab-manager/plugin.jupyterlab-settings"


@pytest.fixture
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    with notebook_of(browser, lab, "shared.ipynb", CELLS) as page:
        yield page


def drawn(output: Locator) -> None:
    """All of the tool's blocks are there."""
    expect(output.locator(".labkit-heatmap canvas").first).to_be_visible()
    expect(output.locator(".labkit-pair-columns").first).to_contain_text("Mary")
    expect(output.locator(".labkit-strip .labkit-token").first).to_be_attached()
    expect(output.locator(".labkit-status").nth(1)).to_contain_text("420 cells")
    expect(output.get_by_text("Waiting for the kernel")).to_have_count(0)


def test_the_second_is_drawn_before_the_first_after_a_reload_and_alone(page: Page, lab: Lab) -> None:
    drawn(output_of(page, 2))
    drawn(output_of(page, 3))
    said = kernel_says(page, "first.close(); print(all(one.comm is None for one in [first]))")
    assert said == "True"
    reload(page, lab, "shared.ipynb")
    drawn(output_of(page, 2))
    assert page.problems == []  # type: ignore[attr-defined]


def test_a_block_that_does_not_find_it_asks_the_kernel(page: Page, lab: Lab) -> None:
    assert kernel_says(page, FORGET) == "forgotten"
    reload(page, lab, "shared.ipynb")
    drawn(output_of(page, 2))
    drawn(output_of(page, 3))
    assert page.problems == []  # type: ignore[attr-defined]
    kernel_says(page, "import ipywidgets; ipywidgets.Widget.close_all(); print('all')")
    run_all(page)
    assert errors(page) == []
    drawn(output_of(page, 2))


def test_a_kernel_that_starts_again_sends_it_again(page: Page) -> None:
    page.locator(".lm-MenuBar-itemLabel", has_text="Kernel").first.click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Restart Kernel and Clear Outputs of All Cells…$")).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    expect(output_of(page, 2).locator(".labkit-tool")).to_have_count(0)
    kernel_idle(page)
    run_all(page)
    drawn(output_of(page, 2))


def test_a_notebook_saved_with_its_widgets_is_drawn_by_another_kernel(lab: Lab, browser: Browser) -> None:
    settings = lab.root.parent / "settings" / MANAGER
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"saveState": True}))
    try:
        with notebook_of(browser, lab, "stateful.ipynb", CELLS) as page:
            drawn(output_of(page, 2))
            kept = json.loads(saved(page, lab, "stateful.ipynb").read_text())
            assert "widgets" in kept["metadata"]
        with open_notebook(browser, lab, "stateful.ipynb") as page:
            drawn(output_of(page, 2))
            drawn(output_of(page, 3))
    finally:
        settings.unlink()
