"""LensView and SteerLab as people use them: open the lens, click a cell, move the slider, reload, by keyboard, dark."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator

import pytest
from driver import Lab, button, kernel_says, notebook_of, open_notebook, saved
from playwright.sync_api import Browser, Locator, Page, expect
from test_widgets_in_jupyterlab import CLEAN, LOAD, choose_theme

CELLS = [LOAD, f"view = lk.LensView(lm, {CLEAN!r}, answer=' Mary', foil=' John')\nview"]


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    with notebook_of(browser, lab, "lens.ipynb", CELLS) as page:
        yield page


def the_view(page: Page) -> Locator:
    return page.locator(".jp-Notebook .jp-CodeCell").nth(1).locator(".jp-Cell-outputArea .labkit-tool").first


def the_map(page: Page) -> Locator:
    return the_view(page).locator(".labkit-heatmap").filter(has_text="What each layer would predict").first


def test_the_lens_opens_with_a_word_in_every_cell(page: Page) -> None:
    view = the_view(page)
    expect(view.locator(".labkit-status").first).to_contain_text("30 layers × 14 positions in")
    expect(the_map(page).locator(".labkit-title")).to_have_text(
        "What each layer would predict next, read from resid_post"
    )
    stage = the_map(page).locator(".labkit-stage")
    stage.focus()
    page.keyboard.press("End")
    for _ in range(30):
        page.keyboard.press("ArrowUp")
    expect(the_map(page).locator(".labkit-spoken")).to_contain_text("layer 29, position 13 ·to: ·Mary,")
    expect(the_map(page).locator(".labkit-note-text")).to_have_text("·Mary")
    drawn = (
        the_map(page)
        .locator("canvas")
        .first.evaluate(
            """canvas => { const { width, height } = canvas, ink = canvas.getContext('2d');
                      return ink.getImageData(0, 0, width, height).data.some(part => part !== 0); }"""
        )
    )
    assert drawn
    wide = page.locator(".jp-Notebook").first.evaluate("one => one.scrollWidth - one.clientWidth")
    assert wide <= 0  # nothing sticks out


def test_a_clicked_cell_shows_its_ten_likeliest_tokens(page: Page) -> None:
    stage = the_map(page).locator(".labkit-stage")
    stage.scroll_into_view_if_needed()
    stage.click(position={"x": 70, "y": 14})  # the upper left corner
    bars = the_view(page).locator(".labkit-token-bars")
    expect(bars.locator(".labkit-title")).to_have_text("Layer 29, resid_post")
    expect(bars.locator("caption")).to_have_text("after 0 When")
    expect(bars.locator("tr")).to_have_count(10)
    expect(the_view(page).locator(".labkit-curve .labkit-title")).to_have_text("Rank of ·Mary after 0 When")
    assert kernel_says(page, "print(view.selection)") == "(29, 0)"


def test_one_tokens_way_is_followed_by_keyboard(page: Page) -> None:
    curve = the_view(page).locator(".labkit-curve")
    curve.locator(".labkit-stage").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(curve.locator(".labkit-spoken")).to_have_text(re.compile(r"layer 1: rank \d+ · \d+\.\d\d%"))
    page.keyboard.press("Enter")
    expect(the_view(page).locator(".labkit-token-bars .labkit-title")).to_have_text("Layer 1, resid_post")
    follow = the_view(page).get_by_label("follow")
    follow.fill(" John")
    follow.press("Enter")
    expect(curve.locator(".labkit-title")).to_have_text("Rank of ·John after 0 When")


def test_site_and_colour_are_chosen(page: Page) -> None:
    the_view(page).get_by_label("site").select_option("attn_out (attention)")
    expect(the_map(page).locator(".labkit-title")).to_have_text(
        "What each layer would predict next, read from attn_out"
    )
    the_view(page).get_by_label("colour").select_option("rank of followed token")
    expect(the_map(page).locator(".labkit-stage")).to_have_attribute("aria-label", re.compile("rank of ·John"))
    assert kernel_says(page, "print(view.site, view.shade, view.lens.site)") == "attn_out rank attn_out"


def test_direct_attribution_says_how_its_parts_add_up(page: Page) -> None:
    button(the_view(page), "Direct attribution").click()
    expect(the_view(page).locator(".labkit-status").first).to_contain_text("30 layers × 9 heads in")
    summed = the_view(page).locator(".labkit-status-text", has_text="The model's own logit difference is")
    found = re.search(r"is ([+−\d.]+); the parts add up to ([+−\d.]+)\.", summed.inner_text())
    assert found
    assert found[1] == found[2]
    heads = the_view(page).locator(".labkit-heatmap").filter(has_text="By head").locator(".labkit-stage")
    heads.focus()
    page.keyboard.press("Home")
    spoken = the_view(page).locator(".labkit-heatmap").filter(has_text="By head").locator(".labkit-spoken")
    expect(spoken).to_contain_text("head 0:")


def test_the_slider_writes_the_text_anew_beside_the_old_one(page: Page) -> None:
    view = the_view(page)
    button(view, "Steering").click()
    after = view.locator(".labkit-strip").filter(has_text="After:")
    before = view.locator(".labkit-strip").filter(has_text="Before:")
    expect(after.locator(".labkit-title")).to_have_text("After: +1.0 × the direction")
    said = view.locator(".labkit-tool .labkit-status")
    expect(said).to_contain_text("Added after layer 18 at every position")
    old, new = before.locator(".labkit-tokens").inner_text(), after.locator(".labkit-tokens").inner_text()
    assert old != new
    handle = view.locator(".widget-slider").filter(has_text="Strength").locator(".noUi-handle")
    handle.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(after.locator(".labkit-title")).to_have_text("After: +1.5 × the direction")
    expect(said).to_contain_text("Added after")
    assert before.locator(".labkit-tokens").inner_text() == old
    texts = json.loads(
        kernel_says(
            page,
            "import json; lab = view.steering; lab.wait(60)\n"
            "print(json.dumps([[t.token.display for t in side.tokens] for side in (lab.before, lab.after)]))",
        )
    )
    assert texts[0] == before.locator(".labkit-token").all_inner_texts()
    assert texts[1] == after.locator(".labkit-token").all_inner_texts()
    assert kernel_says(page, "print(round(view.steering.strength, 2))") == "1.5"


def test_the_dark_theme_is_followed(page: Page) -> None:
    view = the_view(page)
    boxes = view.locator("textarea:visible")
    expect(boxes).to_have_count(3)
    light = boxes.first.evaluate("one => getComputedStyle(one).backgroundColor")
    choose_theme(page, "JupyterLab Dark")
    expect(view.locator(".labkit-strip").first).to_have_attribute("data-theme", "dark")
    expect(view.locator(".labkit-heatmap").first).to_have_attribute("data-theme", "dark")
    assert boxes.first.evaluate("one => getComputedStyle(one).backgroundColor") != light
    choose_theme(page, "JupyterLab Light")
    expect(view.locator(".labkit-strip").first).to_have_attribute("data-theme", "light")


def test_a_page_that_is_reloaded_shows_the_same(page: Page, lab: Lab) -> None:
    button(the_view(page), "Lens").click()
    expect(the_map(page)).to_be_visible()
    saved(page, lab, "lens.ipynb")
    seen = seen_in(page)
    page.reload()
    expect(page.locator(".jp-Notebook .jp-CodeCell").first).to_be_visible()
    expect(the_map(page).locator(".labkit-title")).to_have_text(
        "What each layer would predict next, read from attn_out"
    )
    expect(the_view(page).locator(".labkit-token-bars .labkit-title")).to_have_text("Layer 1, attn_out")
    assert seen_in(page) == seen
    button(the_view(page), "Steering").click()
    expect(the_view(page).locator(".labkit-strip").filter(has_text="After: +1.5 × the direction")).to_be_visible()
    button(the_view(page), "Lens").click()
    the_view(page).get_by_label("site").select_option("resid_post (whole stream)")  # it is alive
    expect(the_map(page).locator(".labkit-title")).to_have_text(
        "What each layer would predict next, read from resid_post"
    )


def seen_in(page: Page) -> list[str]:
    """What the lens shows, in words."""
    view = the_view(page)
    return [
        view.locator("textarea").first.input_value(),
        *view.locator(".labkit-token-bars, .labkit-curve .labkit-title").all_inner_texts(),
        the_map(page).locator(".labkit-stage").get_attribute("aria-label") or "",
        view.get_by_label("follow").input_value(),
    ]


def test_a_bad_token_is_answered_in_words_and_nothing_is_lost(page: Page) -> None:
    follow = the_view(page).get_by_label("follow")
    follow.fill("antidisestablishment")
    follow.press("Enter")
    expect(the_view(page).get_by_role("alert")).to_contain_text("it must be one")
    expect(the_map(page)).to_be_visible()
    expect(the_view(page).locator(".labkit-token-bars tr")).to_have_count(10)


def test_a_saved_notebook_shows_words_and_numbers_without_a_kernel(page: Page, lab: Lab, browser: Browser) -> None:
    path = saved(page, lab, "lens.ipynb")
    assert path.stat().st_size < 1_000_000
    shutil.copy(path, lab.root / "lens_saved.ipynb")
    with open_notebook(browser, lab, "lens_saved.ipynb") as reader:
        picture = reader.locator(".labkit-snapshot")
        expect(picture).to_be_visible()
        expect(picture).to_contain_text("LensView · SmolLM2-135M-Instruct · Lens")
        expect(picture.locator("img")).to_have_count(3)
        said = picture.locator("img").evaluate_all("all => all.map(one => one.alt)")
        assert any("layer" in alt and "rank of" in alt for alt in said), said


def test_no_widget_raised_an_error_in_the_browser(page: Page) -> None:
    assert page.problems == []  # type: ignore[attr-defined]
