"""What a head writes and where it is strongest: by mouse and keyboard, in the light and the dark theme."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Lab, button, kernel_says, notebook_of
from playwright.sync_api import Browser, Locator, Page, expect
from test_widgets_in_jupyterlab import CLEAN, CORRUPT, LOAD, choose_theme

TEXTS = ["Mary gave a drink to John.", "The weather in Paris was <b>fine</b>.", "One two three four five"]
CELLS = {
    "load": f"{LOAD}\ncollected = lk.collect(lm, {TEXTS!r}, read=['z.20'], progress=False)",
    "view": f"view = lk.AttentionView(lm, {CLEAN!r}, selection=(20, 3), collection=collected)\nview",
    "lab": (
        f"lab = lk.PatchLab(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John', site='z', collection=collected)\n"
        "lab.wait()\nlab"
    ),
}


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    with notebook_of(browser, lab, "writes.ipynb", list(CELLS.values())) as page:
        yield page


def strips(tool: Locator) -> Locator:
    """Rows of tokens about a head, without the text itself."""
    return tool.locator(".labkit-strip:visible").filter(has=tool.page.locator(".labkit-title:not(:empty)"))


def test_a_button_shows_what_a_head_writes_for_the_token_that_is_locked(page: Page) -> None:
    view = page.locator(".labkit-tool").nth(0)
    token = view.locator(".labkit-token").nth(1)
    token.click()
    writes = button(view, "What it writes")
    writes.focus()
    page.keyboard.press("Enter")
    strip = strips(view).filter(has_text="writes for and against")
    expect(strip.locator(".labkit-title")).to_have_text("Head 20.3, looking at ·Mary, writes for and against")
    expect(strip.locator(".labkit-token")).to_have_count(16)
    said = kernel_says(page, "print(view.action.written.tokens[0])")
    expect(strip.locator(".labkit-token").first).to_contain_text(said)
    strip.locator(".labkit-token").first.focus()
    page.keyboard.press("ArrowRight")  # along the tokens by keyboard
    label = page.evaluate("document.activeElement.ariaLabel")
    assert "logits" in label
    expect(view.get_by_text("Strongest in 3 texts (norm)")).to_be_visible()


def test_the_inspector_shows_a_head_and_its_strongest_texts_in_both_themes(page: Page) -> None:
    lab = page.locator(".labkit-tool").nth(1)
    kernel_says(page, "lab.selection = (20, 3); lab.wait(); print(1)")
    expect(lab.get_by_text("Strongest in 3 texts (norm)")).to_be_visible()
    assert kernel_says(page, "print(sum(s.layout.display != 'none' for s in lab.inspector.unit.strips))") == "3"
    assert page.locator(".labkit-tool b:text('fine')").count() == 0  # markup in tokens stays text
    for theme, name in (("light", "JupyterLab Light"), ("dark", "JupyterLab Dark")):
        choose_theme(page, name)
        expect(strips(lab).last).to_have_attribute("data-theme", theme)
        assert lab.evaluate("one => one.scrollWidth <= one.clientWidth + 1")
        if folder := os.environ.get("LABKIT_SCREENSHOTS"):
            for n in (0, 1):
                page.locator(".labkit-tool").nth(n).screenshot(path=Path(folder) / f"writes_{n}_{theme}.png")
    choose_theme(page, "JupyterLab Light")
