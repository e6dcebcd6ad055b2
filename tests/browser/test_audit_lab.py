"""AuditLab as people use it: categories, pairs and heads in a real JupyterLab, mouse and keyboard, both themes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from driver import Lab, button, kernel_says, notebook_of
from playwright.sync_api import Browser, Locator, Page, expect
from test_accessibility import AXE, SERIOUS
from test_widgets_in_jupyterlab import LOAD, choose_theme

CELLS = [LOAD, 'auditing = lk.AuditLab(lm, categories=["gender and occupation", "age"], limit=60)\nauditing']


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    """One notebook; the tests go on where the one before left it."""
    with notebook_of(browser, lab, "audit.ipynb", CELLS) as page:
        page.evaluate(AXE.read_text("utf-8"))
        yield page
        assert page.problems == []  # type: ignore[attr-defined]


def tool_of(page: Page) -> Locator:
    return page.locator(".jp-Notebook .jp-CodeCell").nth(1).locator(".labkit-tool").first


def heatmap_of(tool: Locator, number: int) -> Locator:
    return tool.locator(".labkit-heatmap").nth(number)


def test_it_scores_the_pairs_and_shows_the_categories(page: Page) -> None:
    tool = tool_of(page)
    expect(tool.locator(".labkit-status").first).to_contain_text("120 pairs to score. Press Run.")
    button(tool, "Run").click()
    expect(tool.locator(".labkit-status").first).to_contain_text("120 pairs scored")
    expect(tool).to_contain_text("How often the stereotype is preferred: 50 % would be none")
    expect(tool).to_contain_text("% of 60 pairs, 95 % interval")
    expect(heatmap_of(tool, 0).locator(".labkit-title")).to_contain_text("gender and occupation: by how much")
    wide = page.locator(".jp-Notebook").first.evaluate("one => one.scrollWidth - one.clientWidth")
    assert wide <= 0  # nothing sticks out


def test_a_category_is_chosen_and_its_pairs_follow(page: Page) -> None:
    tool = tool_of(page)
    tool.locator("select").first.select_option(label="age")
    expect(heatmap_of(tool, 0).locator(".labkit-title")).to_contain_text("age: by how much")
    said = json.loads(kernel_says(page, "import json; print(json.dumps(auditing.audit.pairs[auditing.pair].category))"))
    assert said == "age"


def test_the_two_texts_of_a_pair_stand_over_each_other(page: Page) -> None:
    tool = tool_of(page)
    words = kernel_says(page, "print(auditing.pair_words.text)").strip()
    expect(tool).to_contain_text("stereotype")
    expect(tool).to_contain_text(words)


def test_the_heads_are_found_and_ablated(page: Page) -> None:
    tool = tool_of(page)
    assert kernel_says(page, "auditing.category = 'gender and occupation'; print(auditing.category)").strip()
    button(tool, "Where does it come from?").click()
    expect(tool.locator(".labkit-status").first).to_contain_text("pairs patched", timeout=240_000)
    expect(tool).to_contain_text("carry most of it")
    button(tool, "Ablate these heads").click()
    expect(tool.locator(".labkit-status").first).to_contain_text("scored without the heads found", timeout=240_000)
    expect(tool).to_contain_text("without as many random heads")


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_nothing_is_in_the_way_of_a_screen_reader(page: Page, theme: str) -> None:
    choose_theme(page, theme)
    tool = tool_of(page)
    expect(tool.locator(".labkit-heatmap").first).to_have_attribute("data-theme", theme.split()[-1].lower())
    page.locator(".jp-Notebook .jp-CodeCell").nth(1).evaluate("el => el.dataset.axe = 'audit'")
    assert page.evaluate(SERIOUS, "audit") == []
