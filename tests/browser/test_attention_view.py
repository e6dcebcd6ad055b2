"""AttentionView as people use it: find a head, look closely, compare, knock it out; by mouse and by keyboard."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from driver import Lab, button, kernel_says, notebook_of, open_notebook, saved
from playwright.sync_api import Browser, Locator, Page, expect
from test_widgets_in_jupyterlab import CLEAN, CORRUPT, LOAD, choose_theme

CELLS = {
    "load": LOAD,
    "view": f"view = lk.AttentionView(lm, {CLEAN!r}, answer=' Mary', foil=' John')\nview",
    "long": (
        "long = lk.AttentionView(lm, 'The weather was fine and everybody in the village was out on the green. ' * 69,"
        " selection=(16, 0))\nlong.wait()\nlong"
    ),
}


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    with notebook_of(browser, lab, "attention.ipynb", list(CELLS.values())) as page:
        yield page


@pytest.fixture
def view(page: Page) -> Locator:
    return page.locator(".labkit-tool").nth(0)


@pytest.fixture
def long(page: Page) -> Locator:
    return page.locator(".labkit-tool").nth(1)


def large(view: Locator) -> Locator:
    return view.locator(".labkit-heatmap:visible").first


def shares(view: Locator) -> list[float]:
    """What every token is said to have, from its label."""
    labels = view.locator(".labkit-token").evaluate_all("all => all.map(one => one.ariaLabel)")
    return [float(re.search(r"attention ([\d.e-]+)", label)[1]) for label in labels]  # type: ignore[index]


def test_it_opens_with_every_head_and_a_click_shows_one_large(page: Page, view: Locator) -> None:
    expect(view.locator(".labkit-status-text")).to_have_text("14 tokens · 30 layers × 9 heads")
    stage = view.locator(".labkit-heads .labkit-stage")
    stage.scroll_into_view_if_needed()
    stage.click(position={"x": 45, "y": 8})  # the left column's topmost picture
    expect(large(view).locator(".labkit-title")).to_have_text("Layer 29, head 0")
    assert kernel_says(page, "print(view.selection)") == "(29, 0)"


def test_a_token_shows_where_it_looks_and_what_looks_at_it(view: Locator) -> None:
    token = view.locator(".labkit-token").nth(13)
    token.hover()
    title = view.locator(".labkit-strip .labkit-title")
    expect(title).to_have_text("Where ·to (13) looks")
    assert abs(sum(shares(view)) - 1) < 0.01
    token.click()  # locked
    view.locator(".labkit-token").nth(2).hover()
    expect(title).to_have_text("Where ·to (13) looks")
    table = view.locator(".labkit-token-bars table").first
    expect(table.locator("caption")).to_have_text("Where ·to (13) looks")
    expect(table.locator("tr")).to_have_count(5)
    view.get_by_label("Looks", exact=True).select_option("what looks at it")
    expect(title).to_have_text("What looks at ·to (13)")
    view.get_by_label("Looks", exact=True).select_option("where a token looks")
    token.click()


TOPS = """tool => [...tool.querySelectorAll(".labkit-stage")].map(
    stage => Math.round(stage.getBoundingClientRect().top - tool.getBoundingClientRect().top))"""


def test_what_is_below_does_not_move_with_what_is_pointed_at(page: Page, view: Locator) -> None:
    table = view.locator(".labkit-looks table")
    tops = lambda: view.evaluate(TOPS)  # noqa: E731
    before = tops()
    assert len(before) > 1
    for pointed in (view.locator(".labkit-token").nth(13), large(view).locator(".labkit-stage")):
        pointed.hover()
        expect(table).to_have_count(1)
        assert tops() == before
        page.mouse.move(5, 5)
        expect(table).to_have_count(0)
        assert tops() == before


def test_heads_are_put_in_order_and_filtered_by_a_score(page: Page, view: Locator) -> None:
    view.get_by_label("order by").select_option("previous token")
    heads = view.locator(".labkit-heads")
    expect(heads.locator(".labkit-title")).to_have_text("Heads by previous token")
    stage = heads.locator(".labkit-stage")
    expect(stage).to_have_attribute("aria-label", re.compile("120 heads in order of previous token"))
    stage.click(position={"x": 20, "y": 20})  # the first
    expect(large(view).locator(".labkit-title")).to_have_text("Layer 16, head 0")
    kernel_says(page, "view.finder.at_least = 0.5; view.wait(); print('done')")
    expect(heads.locator(".labkit-title")).to_have_text(re.compile(r"^\d of 270 heads by previous token"))
    kernel_says(page, "view.finder.at_least = 0; view.wait(); print('done')")
    view.get_by_label("order by").select_option("layer and head")
    expect(heads.locator(".labkit-title")).to_have_text("Heads")


def test_a_search_finds_heads_where_one_token_looks_at_another(view: Locator) -> None:
    view.get_by_label("Where", exact=True).select_option("13 ·to")
    view.get_by_label("looks at", exact=True).select_option("1 ·Mary")
    expect(view.locator(".labkit-heads .labkit-title")).to_have_text("Heads where ·to looks at ·Mary")
    view.locator(".labkit-heads .labkit-stage").click(position={"x": 20, "y": 20})
    expect(large(view).locator(".labkit-title")).to_have_text("Layer 24, head 4")
    view.get_by_label("looks at", exact=True).select_option("any")
    expect(view.locator(".labkit-heads .labkit-title")).to_have_text("Heads")


def test_it_is_used_with_the_keyboard_alone(page: Page, view: Locator) -> None:
    stage = view.locator(".labkit-heads .labkit-stage")
    stage.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    expect(view.locator(".labkit-heads .labkit-spoken")).to_have_text("layer 24, head 4")
    page.keyboard.press("x")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.keyboard.press("x")
    expect(large(view).locator(".labkit-title")).to_have_text("Layer 23, head 3")
    assert kernel_says(page, "print(view.selection, view.chosen)") == "(23, 3) [(24, 4), (23, 3)]"
    picture = large(view).locator(".labkit-stage")
    picture.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("+")
    assert kernel_says(page, "print(view.heatmap.window is not None)") == "True"
    picture.focus()
    page.keyboard.press("0")
    assert kernel_says(page, "print(view.heatmap.window)") == "None"
    expect(large(view).locator(".labkit-spoken")).to_contain_text("key")


def test_heads_are_knocked_out_and_the_change_is_read(page: Page, view: Locator) -> None:
    button(view, "Knock out").click()
    bars = view.locator(".labkit-token-bars").last
    expect(bars.locator(".labkit-title")).to_have_text("Next token without 24.4, 23.3")
    expect(bars.locator("caption")).to_have_text(["the whole model", "z set to zero"])
    expect(bars.locator("table").first.locator("tr").first).to_contain_text("·Mary")
    expect(bars).to_contain_text("logit difference")
    first = bars.locator("table").nth(1).locator("tr").first.inner_text()
    told = kernel_says(page, "print(view.action.found.top(1)[1][0][0])")
    assert told in first


def test_two_prompts_are_compared_side_by_side_and_as_a_difference(page: Page, view: Locator) -> None:
    view.get_by_label("Compare with").select_option("another prompt")
    expect(view.get_by_role("alert")).to_have_text("Write another prompt to compare with")
    box = view.locator("textarea").nth(1)
    box.fill(CORRUPT)
    box.press("Control+Enter")
    titles = view.locator(".labkit-heatmap .labkit-title")
    expect(titles).to_have_text(["Layer 23, head 3", "other prompt · Layer 23, head 3", "First minus second"])
    expect(view.locator(".labkit-status").first).to_have_attribute("data-kind", "info")
    view.get_by_label("Compare with").select_option("nothing")
    expect(titles).to_have_count(1)


def test_weights_say_what_they_are(page: Page, view: Locator) -> None:
    weigh = view.get_by_label("Values", exact=True)
    weigh.select_option("value-weighted attention")
    expect(large(view).locator(".labkit-title")).to_have_text("Value-weighted, layer 23, head 3")
    weigh.select_option("contribution to a logit")
    expect(large(view).locator(".labkit-title")).to_contain_text(
        "what each head adds to ' Mary' − ' John' from the last token"
    )
    weigh.select_option("attention")
    expect(large(view).locator(".labkit-title")).to_have_text("Layer 23, head 3")


def test_a_long_text_is_looked_at_through_a_window(page: Page, long: Locator) -> None:
    expect(long.locator(".labkit-status")).to_contain_text("tokens · 30 layers × 9 heads")
    stage = large(long).locator(".labkit-stage")
    stage.scroll_into_view_if_needed()
    assert kernel_says(page, "print(len(long.strip.tokens) > 1024, long.heatmap.detail is None)") == "True True"
    zoom = long.get_by_label("Zoom in")
    for _ in range(3):
        zoom.click()
    said = kernel_says(page, "print(long.heatmap.window == long.heatmap.detail_at, long.heatmap.detail.shape)")
    assert re.fullmatch(r"True \(1\d\d, 1\d\d\)", said)
    box = stage.bounding_box()
    assert box
    before = kernel_says(page, "print(long.heatmap.window)")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box
    page.mouse.move(box["x"] + 200, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 90, steps=4)
    page.mouse.up()
    after = kernel_says(page, "print(long.heatmap.window)")
    assert after != before  # dragged along
    assert kernel_says(page, "print(long.heatmap.selection)") == "None"  # and nothing selected by it
    long.get_by_label("Show the whole").click()
    assert kernel_says(page, "print(long.heatmap.window)") == "None"


def test_it_follows_a_dark_theme_and_nothing_is_cut_off(page: Page, view: Locator, long: Locator) -> None:
    choose_theme(page, "JupyterLab Dark")
    expect(large(view)).to_have_attribute("data-theme", "dark")
    expect(view.locator(".labkit-heads")).to_have_attribute("data-theme", "dark")
    for tool in (view, long):
        assert tool.evaluate("one => one.scrollWidth <= one.clientWidth + 1")
    choose_theme(page, "JupyterLab Light")
    expect(large(view)).to_have_attribute("data-theme", "light")


def test_a_saved_notebook_shows_the_picture_and_is_small(page: Page, lab: Lab, browser: Browser) -> None:
    path = saved(page, lab, "attention.ipynb")
    assert path.stat().st_size < 1_000_000
    shutil.copy(path, lab.root / "saved_attention.ipynb")
    with open_notebook(browser, lab, "saved_attention.ipynb") as reader:
        pictures = reader.locator(".labkit-snapshot")
        expect(pictures).to_have_count(2)
        expect(pictures.first).to_be_visible()
        expect(pictures.first).to_contain_text("Layer 23, head 3")


def test_no_error_was_raised_in_the_browser(page: Page) -> None:
    assert page.problems == []  # type: ignore[attr-defined]
