"""Colours of PromptLab by what was read, and the reasons for a written token, in JupyterLab with a real model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from driver import Lab, button, kernel_says, notebook_of, output_of
from playwright.sync_api import Browser, Locator, Page, expect

CELLS = [
    "import labkit as lk\nlm = lk.load(progress=False)",
    "lab = lk.PromptLab(lm, 'The capital of Japan is the city of', max_new_tokens=8)\nlab.run()\n"
    "lab.colour_by('names', lk.steering_vector(lm, [' Tokyo'], [' dog'], 12).values,\n"
    "              site='resid_post.12')\n"
    "lab.colour_by('head', site='pattern.20.3')\nlab",
]


@pytest.fixture(scope="module")
def tool(lab: Lab, browser: Browser) -> Iterator[Locator]:
    """One notebook; all tests look at it in the order below."""
    with notebook_of(browser, lab, "prompt_lab_colours.ipynb", CELLS) as page:
        yield output_of(page, 1)


def status(tool: Locator) -> Locator:
    return tool.locator(".labkit-status").first


def page_of(tool: Locator) -> Page:
    return tool.page


def test_tokens_are_coloured_by_what_was_registered_and_back(tool: Locator) -> None:
    menu = tool.get_by_label("or by")
    menu.select_option(label="names")
    expect(status(tool)).to_contain_text("Coloured by names.")
    assert kernel_says(page_of(tool), "print(lab.strip.centre, lab.strip.scale)") == "0.0 effect"
    menu.select_option(label="head")
    expect(status(tool)).to_contain_text("Coloured by head.")
    menu.select_option(label="the measure")
    assert kernel_says(page_of(tool), "print(lab.strip.scale)") == "surprise"


def test_a_written_token_says_where_it_looked_and_why(tool: Locator) -> None:
    written = tool.locator(".labkit-strip:visible").first.locator(".labkit-token:not(.labkit-is-prompt)")
    written.first.click()
    page_of(tool).keyboard.press("Escape")  # the menu to branch from it
    button(tool, "Where it looked").click()
    expect(status(tool)).to_contain_text("Coloured by attention from token 8.")
    button(tool, "Why this token?").click()
    expect(status(tool)).to_contain_text("Coloured by why token 8.")
    assert kernel_says(page_of(tool), "print(int(lab.strip.values[1:8].argmax()) + 1)") == "3"  # Japan
