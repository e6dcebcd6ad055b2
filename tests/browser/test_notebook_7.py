"""PromptLab in Notebook 7, as people use it in JupyterLab."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from conftest import serve
from driver import PATIENCE, Lab, button, end_kernels, kernel_idle, saved, until_it_runs
from playwright.sync_api import Browser, Page, expect

CLEAN = "When Mary and John went to the store, John gave a drink to"
CELL = "import labkit as lk\nlm = lk.load(progress=False)\nprompting = lk.PromptLab(lm, max_new_tokens=12)\nprompting"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Page]:
    """The notebook in Notebook 7, its one cell run."""
    with serve(tmp_path_factory.mktemp("notebook7"), "notebook") as server:
        path = server.write("prompt.ipynb", [CELL])
        context = browser.new_context(viewport={"width": 1180, "height": 1400})
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.problems = []  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: page.problems.append(error.stack or str(error)))  # type: ignore[attr-defined]
        page.goto(address(server, path))
        cell = page.locator(".jp-Notebook .jp-CodeCell").first
        expect(cell).to_be_visible()
        kernel_idle(page)

        def ask() -> None:
            cell.locator(".cm-content").click()
            page.keyboard.press("Shift+Enter")

        until_it_runs(page, cell.locator(".jp-InputPrompt"), ask)
        expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"^\[\d+\]:$"))
        page.server = server  # type: ignore[attr-defined]
        try:
            yield page
        finally:
            context.close()
            end_kernels(server)


def address(server: Lab, path: str) -> str:
    return f"{server.address}/notebooks/{path}?token={server.token}"


def test_it_streams_branches_and_is_there_after_a_reload(page: Page) -> None:
    lab = page.locator(".labkit-tool").first
    lab.locator(".labkit-prompt:visible textarea").fill(CLEAN)
    lab.locator(".labkit-prompt:visible textarea").press("Control+Enter")
    strip = lab.locator(".labkit-strip:visible").first
    written = strip.locator(".labkit-token:not(.labkit-is-prompt)")
    expect(written.first).to_have_text("·Mary")
    expect(lab.locator(".labkit-status").first).to_contain_text("tokens/s ·")
    written.first.hover()
    expect(lab.locator(".labkit-note:visible tr")).to_have_count(10)
    written.first.click()
    lab.locator(".labkit-menu:visible").get_by_role("option").filter(has_text="·John").click()
    expect(written.first).to_have_text("·John")
    expect(lab.locator(".labkit-branch")).to_have_count(2)
    expect(lab.locator(".labkit-status").first).to_contain_text("tokens/s ·")
    saved(page, page.server, "prompt.ipynb")  # type: ignore[attr-defined]
    page.goto(address(page.server, "prompt.ipynb"))  # type: ignore[attr-defined]
    lab = page.locator(".labkit-tool").first
    expect(lab.locator(".labkit-branch")).to_have_count(2)
    expect(lab.locator(".labkit-strip:visible .labkit-token:not(.labkit-is-prompt)").first).to_have_text("·John")


def test_stop_stops(page: Page) -> None:
    lab = page.locator(".labkit-tool").first
    box = lab.get_by_label("max tokens")
    box.fill("900")
    box.press("Enter")
    lab.locator(".labkit-prompt:visible textarea").fill("A list of all numbers: 1, 2, 3, 4, 5,")
    button(lab, "Run").click()
    expect(lab.locator(".labkit-token:not(.labkit-is-prompt)").nth(5)).to_be_visible()
    button(lab, "Stop").click()
    expect(lab.locator(".labkit-status").first).to_contain_text("· stopped")


def test_the_theme_of_the_page_is_followed_and_nothing_went_wrong(page: Page) -> None:
    expect(page.locator(".labkit-strip").first).to_have_attribute("data-theme", "light")
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    expect(page.locator(".labkit-strip").first).to_have_attribute("data-theme", "dark")
    ours = [stack for stack in page.problems if "blob:" in stack or "widget" in stack]  # type: ignore[attr-defined]
    assert ours == []  # Notebook 7 has an error of its own when a setting is JupyterLab's
