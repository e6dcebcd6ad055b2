"""Letting the model write from a cell: PatchLab and LensView in a real JupyterLab."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from driver import Lab, kernel_says, notebook_of
from playwright.sync_api import Browser, Locator, Page, expect
from test_patch_lab import go_to, status_of
from test_widgets_in_jupyterlab import CLEAN, CORRUPT, LOAD

CELLS = [
    LOAD,
    f"patching = lk.PatchLab(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John')\npatching",
    f"view = lk.LensView(lm, {CLEAN!r})\nview",
]


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    with notebook_of(browser, lab, "writing.ipynb", CELLS) as page:
        yield page


def tool_of(page: Page, cell: int) -> Locator:
    return page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".jp-Cell-outputArea .labkit-tool").first


def strip_of(tool: Locator, title: str) -> Locator:
    return tool.locator(".labkit-strip").filter(has=tool.page.get_by_text(title, exact=True))


def test_both_texts_are_written_for_the_selected_cell_by_keyboard(page: Page) -> None:
    tool = tool_of(page, 1)
    expect(status_of(tool)).to_contain_text("420 cells in")
    go_to(page, tool, layer=29, column=13)
    page.keyboard.press("Enter")
    ask = tool.get_by_role("button", name="Continue under this patch")
    expect(ask).to_be_enabled()
    ask.focus()
    page.keyboard.press("Enter")
    expect(strip_of(tool, "Before: corrupt prompt").locator(".labkit-token")).to_have_count(20)
    expect(strip_of(tool, "Before: corrupt prompt").locator(".labkit-token").first).to_have_text("·John")
    after = strip_of(tool, "After the patch").locator(".labkit-token")
    expect(after).to_have_count(20)
    expect(after.first).to_have_text("·Mary")
    assert kernel_says(page, "print(patching.written.cell)") == "{'layer': 29, 'position': 13}"


def test_the_activation_of_a_patched_cell_is_said_in_words(page: Page) -> None:
    tool = tool_of(page, 1)
    tool.get_by_role("button", name="Patchscope").click()
    for title in ("With the activation", "Without it", "A random vector instead"):
        expect(strip_of(tool, title).locator(".labkit-token").first).to_be_visible()
    expect(strip_of(tool, "After the patch")).to_have_count(0)
    tool.get_by_label("Site").select_option("z")
    expect(status_of(tool)).to_contain_text("270 cells")
    go_to(page, tool, layer=20, column=5)
    page.keyboard.press("Enter")
    ask = tool.get_by_role("button", name="Patchscope")
    expect(ask).to_be_disabled()
    assert "reads the residual stream, not z" in (ask.get_attribute("title") or "")


def test_the_activation_of_a_cell_of_the_lens_is_said_in_words(page: Page) -> None:
    view = tool_of(page, 2)
    expect(view.locator(".labkit-status").first).to_contain_text("positions in")
    stage = view.locator(".labkit-heatmap .labkit-stage").first
    stage.scroll_into_view_if_needed()
    stage.click(position={"x": 70, "y": 14})
    expect(view.locator(".labkit-token-bars .labkit-title")).to_have_text("Layer 29, resid_post")
    view.get_by_role("button", name="Patchscope").click()
    expect(strip_of(view, "With the activation").locator(".labkit-token").first).to_be_visible()
    assert "site='resid_post.29@0'" in kernel_says(page, "print(view.code())")
