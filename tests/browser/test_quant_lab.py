"""QuantLab as people use it: two precisions in a real JupyterLab, mouse and keyboard, both themes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from driver import Lab, button, kernel_says, notebook_of
from playwright.sync_api import Browser, Locator, Page, expect
from test_accessibility import AXE, SERIOUS
from test_patch_lab import go_to, grid_of, point_of, status_of
from test_widgets_in_jupyterlab import LOAD, choose_theme

PROMPT = "After Anna and Tom came back from the garden, Tom handed the keys to"
OTHER = "After Anna and Tom came back from the garden, Anna handed the keys to"
CELLS = [
    f"{LOAD}\nfull = lk.load(bits=32, progress=False)",
    f"quants = lk.QuantLab(lm, full, {PROMPT!r}, ' Anna', ' Tom')\nquants",
]


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    """One notebook; the tests go on where the one before left it."""
    with notebook_of(browser, lab, "quants.ipynb", CELLS) as page:
        page.evaluate(AXE.read_text("utf-8"))
        yield page
        assert page.problems == []  # type: ignore[attr-defined]


def tool_of(page: Page) -> Locator:
    return page.locator(".jp-Notebook .jp-CodeCell").nth(1).locator(".labkit-tool").first


def bars_of(tool: Locator, number: int) -> Locator:
    return tool.locator(".labkit-token-bars").nth(number)


def test_it_draws_the_prompt_the_predictions_and_the_grid_between_the_models(page: Page) -> None:
    tool = tool_of(page)
    expect(status_of(tool)).to_contain_text("cells in")
    expect(status_of(tool)).to_contain_text("logit difference: 32-bit")
    expect(tool.locator(".labkit-status").first).to_contain_text("The likeliest next token is the same at")
    strip = tool.locator(".labkit-strip").first
    expect(strip.locator(".labkit-title")).to_have_text("KL divergence of the next token in 4-bit from 32-bit")
    assert strip.locator(".labkit-token").count() == int(kernel_says(page, "print(len(quants.next_tokens.tokens))"))
    expect(bars_of(tool, 0).locator("caption")).to_have_text(["4-bit", "32-bit"])
    expect(grid_of(tool).locator(".labkit-title")).to_have_text("resid_pre: 32-bit into 4-bit")
    wide = page.locator(".jp-Notebook").first.evaluate("one => one.scrollWidth - one.clientWidth")
    assert wide <= 0  # nothing sticks out


def test_a_token_is_chosen_by_keyboard_and_both_models_predictions_follow(page: Page) -> None:
    tool = tool_of(page)
    strip = tool.locator(".labkit-strip").first
    strip.locator(".labkit-token").last.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(bars_of(tool, 0).locator(".labkit-title")).to_have_text("What comes after 1 ·Anna")
    said = json.loads(
        kernel_says(page, "import json; print(json.dumps([rows[0][0] for _, rows in quants.predictions.bars.columns]))")
    )
    tables = bars_of(tool, 0).locator("table")
    for number, word in enumerate(said):
        expect(tables.nth(number).locator("tr").first).to_contain_text(word)


def test_a_cell_is_clicked_and_another_one_chosen_by_keyboard(page: Page) -> None:
    tool = tool_of(page)
    page.mouse.click(*point_of(page, tool, layer=12, column=5))
    expect(bars_of(tool, 1).locator(".labkit-title")).to_contain_text("Layer 12, position 5")
    expect(bars_of(tool, 1).locator("caption")).to_have_text(["before: 4-bit", "after the patch"])
    expect(bars_of(tool, 1)).to_contain_text("on the scale from 4-bit (0) to 32-bit (1)")
    assert kernel_says(page, "print(quants.selection)") == "(12, 5)"
    go_to(page, tool, layer=20, column=3)
    page.keyboard.press("Enter")
    expect(bars_of(tool, 1).locator(".labkit-title")).to_contain_text("Layer 20, position 3")
    assert kernel_says(page, "print(quants.selection)") == "(20, 3)"


def test_a_metric_that_an_answer_of_several_tokens_lacks_is_refused_in_words(page: Page) -> None:
    tool = tool_of(page)
    answer = tool.get_by_label("Answer")
    answer.fill(" Annabella Tom")
    answer.press("Tab")
    tool.get_by_label("Metric").select_option(label="rank")
    button(tool, "Run").click()
    expect(status_of(tool).get_by_role("alert")).to_contain_text("reads the logits of one position")
    tool.get_by_label("Metric").select_option(label="automatic")
    expect(status_of(tool)).to_contain_text("log probability difference")
    answer.fill(" Anna")
    answer.press("Tab")
    button(tool, "Run").click()
    expect(status_of(tool)).to_contain_text("cells computed before")


def test_the_difference_is_that_of_a_pair_in_both_models(page: Page) -> None:
    tool = tool_of(page)
    button(tool, "Difference of two prompts").click()
    expect(status_of(tool)).to_contain_text("Write a corrupt prompt")
    box = tool.locator("textarea:visible").nth(1)
    box.fill(OTHER)
    box.press("Control+Enter")
    expect(status_of(tool)).to_contain_text("Two grids in")
    shown = tool.locator(".labkit-heatmap:visible")
    title = shown.locator(".labkit-title")  # one in the end; for a moment two grids may be there
    expect(title).to_have_text(["resid_pre: clean into corrupt, 4-bit minus 32-bit"])
    expect(tool.locator(".labkit-status").last).to_contain_text("strongest cells in 32-bit")
    shown.locator(".labkit-stage").focus()
    page.keyboard.press("Home")
    expect(shown.locator(".labkit-spoken")).to_contain_text("4-bit 0.00, 32-bit 0.00")
    button(tool, "32-bit").click()
    expect(title).to_have_text(["resid_pre: clean into corrupt"])


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
@pytest.mark.parametrize("view", ["Difference of two prompts", "Where it is lost"])
def test_axe_finds_nothing_serious_in_either_theme(page: Page, theme: str, view: str) -> None:
    choose_theme(page, theme)
    tool = tool_of(page)
    expect(tool.locator(".labkit-strip").first).to_have_attribute("data-theme", theme.split()[-1].lower())
    button(tool, view).click()
    expect(tool.locator(".labkit-heatmap:visible").first).to_be_visible()
    page.locator(".jp-Notebook .jp-CodeCell").nth(1).evaluate("el => el.dataset.axe = 'quants'")
    assert page.evaluate(SERIOUS, "quants") == []
