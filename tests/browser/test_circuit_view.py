"""The circuit view in a real JupyterLab: hover and click edges and parts, walk the list by keyboard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from driver import Lab, kernel_says, notebook_of
from playwright.sync_api import Browser, Page, expect
from test_widgets_in_jupyterlab import CLEAN, CORRUPT, LOAD

SMALL = f"circuit = lk.edge_attribution(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John', progress=False).circuit(80)"
CELLS = [LOAD, f"{SMALL}\nview = lk.CircuitView(circuit)\nview"]

MIDDLE = """path => {
    const at = path.getPointAtLength(path.getTotalLength() / 2);
    const box = path.ownerSVGElement.getBoundingClientRect();
    return [box.left + at.x, box.top + at.y];
}"""


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    with notebook_of(browser, lab, "circuit.ipynb", CELLS) as page:
        yield page
        assert page.problems == []  # type: ignore[attr-defined]


def test_the_circuit_is_drawn_with_every_edge_in_the_list_and_nothing_runs_over(page: Page) -> None:
    view = page.locator(".labkit-circuit")
    expect(view.locator(".labkit-circuit-option").first).to_be_visible()
    edges = int(kernel_says(page, "print(circuit.n_edges)"))
    assert view.locator(".labkit-circuit-option").count() == edges
    assert view.locator(".labkit-circuit-edge").count() >= edges  # one to shared keys leads to several heads
    labels = view.locator(".labkit-circuit-node text").all_text_contents()
    assert {"embed", "logits", "23.3", "MLP 0"} <= set(labels)
    assert view.evaluate("el => el.scrollWidth <= el.clientWidth + 1")


def test_the_pointer_finds_an_edge_and_the_kernel_knows_it(page: Page) -> None:
    view = page.locator(".labkit-circuit")
    first = view.locator(".labkit-circuit-option").first
    first.hover()
    expect(view.locator(".labkit-circuit-on")).not_to_have_count(0)
    point = view.locator(".labkit-circuit-touch").last.evaluate(MIDDLE)
    page.mouse.move(*point)
    note = view.locator(".labkit-note")
    expect(note).to_be_visible()
    expect(note).to_contain_text("→")
    expect(note).to_contain_text("estimated cost of cutting it, logits")
    page.mouse.move(5, 5)
    expect(note).to_be_hidden()


def test_the_list_is_walked_by_keyboard(page: Page) -> None:
    view = page.locator(".labkit-circuit")
    view.locator(".labkit-circuit-list").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(view.locator(".labkit-circuit-option").nth(2)).to_have_attribute("aria-selected", "true")
    expect(view.locator(".labkit-spoken")).to_contain_text("→")
    assert kernel_says(page, "print(view.selection)") == "2"


def test_a_part_shows_its_edges_alone_until_all_are_asked_for(page: Page) -> None:
    view = page.locator(".labkit-circuit")
    every = view.locator(".labkit-circuit-option").count()
    view.locator(".labkit-circuit-node", has_text="23.3").click()
    expect(view.locator(".labkit-circuit-heading")).to_contain_text("edges of z.23.3")
    assert 0 < view.locator(".labkit-circuit-option").count() < every
    assert view.locator(".labkit-circuit-quiet").count() > 0
    assert kernel_says(page, "print(view.node)") == "z.23.3"
    view.get_by_role("button", name="Show all").click()
    expect(view.locator(".labkit-circuit-option")).to_have_count(every)
    kernel_says(page, "view.node = 'mlp_out.0'; print(1)")
    expect(view.locator(".labkit-circuit-heading")).to_contain_text("edges of mlp_out.0")
    kernel_says(page, "view.node = None; print(1)")
    expect(view.locator(".labkit-circuit-option")).to_have_count(every)


def test_a_click_is_not_lost_when_the_theme_changes_while_the_button_is_down(page: Page) -> None:
    view = page.locator(".labkit-circuit")
    node = view.locator(".labkit-circuit-node", has_text="23.3")
    node.hover()
    page.mouse.down()
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    expect(view).to_have_attribute("data-theme", "dark")
    page.mouse.up()
    expect(view.locator(".labkit-circuit-heading")).to_contain_text("edges of z.23.3")
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")
