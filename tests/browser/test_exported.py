"""Exported pages, opened from a file as an attachment is: alive with scripts, a picture without, and no request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from test_accessibility import AXE
from test_widgets_in_jupyterlab import CLEAN, CORRUPT

import labkit as lk

HOSTILE = (
    "</script><script>window.hacked = 1</script><!-- <img src=x onerror='window.hacked = 1'> &lt;b&gt; \u2028 $& %s"
)


@pytest.fixture(scope="module")
def folder(lm4: lk.LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of each tool, written once."""
    folder = tmp_path_factory.mktemp("pages")
    view = lk.AttentionView(lm4, CLEAN, selection=(16, 0), background=False)
    view.export(folder / "attention.html")
    lab = lk.PatchLab(lm4, CLEAN, CORRUPT, " Mary", " John", background=False)
    lab.site = "attn_out"
    lab.site = "resid_pre"
    lab.export(folder / "patching.html", cells=[(20, 9)], strongest=2)
    lens = lk.LensView(lm4, CLEAN, answer=" Mary", foil=" John", background=False)
    lens.face = "direct"
    lens.face = "lens"
    lens.export(folder / "lens.html")
    prompting = lk.PromptLab(lm4, "One, two, three,", max_new_tokens=4, background=False)
    prompting.run()
    prompting.branch(1, " and")
    prompting.export(folder / "prompting.html")
    lk.AttentionView(lm4, HOSTILE, background=False).export(folder / "hostile.html")
    strip = lk.TokenStrip([HOSTILE, "·b"], [0.2, 0.9], title=HOSTILE, alternatives=[[(HOSTILE, 0.5)], None])
    strip.export(folder / "strip.html")
    lk.report([HOSTILE, lens, strip, np_grid(lm4)], folder / "report.html", title=HOSTILE)
    return folder


def np_grid(lm: lk.LanguageModel) -> Any:
    return lk.patch(lm, CLEAN, CORRUPT, " Mary", " John", site="mlp_out", progress=False)


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Iterator[Any]:
    """`opened(name)`: a page from its file. Whatever went wrong in it, or was asked of the network, fails the test."""
    contexts, wrong = [], []

    def open_page(name: str, **how: Any) -> Page:
        context = browser.new_context(viewport={"width": 1100, "height": 900}, **how)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on(
            "request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(("data:", "file:")) else None
        )
        page.goto((folder / f"{name}.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def picture(stage: Locator) -> str:
    """What a canvas shows."""
    return str(stage.locator("canvas").first.evaluate("el => el.toDataURL()"))


def chooser(page: Page, label: str) -> Locator:
    """The drop-down of this label."""
    return page.locator("label.labkit-control", has_text=label).locator("select")


def test_a_click_on_a_head_shows_it_large_and_a_token_where_it_looks(opened: Any) -> None:
    page = opened("attention")
    expect(page.locator(".labkit-still")).to_be_hidden()
    large = page.locator(".labkit-heatmap:visible").first
    expect(large.locator(".labkit-title")).to_have_text("Layer 16, head 0")
    before = picture(large.locator(".labkit-stage"))
    page.locator(".labkit-heads .labkit-stage").click(position={"x": 45, "y": 8})
    expect(large.locator(".labkit-title")).to_have_text("Layer 29, head 0")
    page.wait_for_function(
        "before => document.querySelector('.labkit-heatmap canvas').toDataURL() !== before", arg=before
    )
    token = page.locator(".labkit-token").nth(13)
    token.hover()
    expect(page.get_by_text("Where ·to (13) looks").first).to_be_visible()
    shares = page.locator(".labkit-token").evaluate_all("all => all.map(one => one.ariaLabel)")
    assert sum(float(re.search(r"attention ([\d.e-]+)", one)[1]) for one in shares) == pytest.approx(1, abs=0.01)  # type: ignore[index]
    chooser(page, "Looks").select_option("what looks at it")
    expect(page.get_by_text("What looks at ·to (13)").first).to_be_visible()
    chooser(page, "Order by").select_option("induction")
    expect(page.get_by_text("Heads by induction")).to_be_visible()


def test_a_note_comes_with_the_pointer_and_the_keyboard(opened: Any) -> None:
    page = opened("attention")
    stage = page.locator(".labkit-heatmap:visible .labkit-stage").first
    stage.hover(position={"x": 120, "y": 60})
    expect(page.locator(".labkit-note:visible")).to_contain_text("attention")
    page.mouse.move(5, 5)
    expect(page.locator(".labkit-note:visible")).to_have_count(0)
    stage.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".labkit-note:visible")).to_contain_text("query")
    page.get_by_role("button", name="Zoom in").first.click()
    expect(page.get_by_role("button", name="Show the whole").first).to_be_enabled()


def test_another_grid_and_the_tokens_of_a_cell(opened: Any) -> None:
    page = opened("patching")
    grid = page.locator(".labkit-heatmap:visible").first
    expect(grid.locator(".labkit-title")).to_have_text("resid_pre: clean into corrupt")
    before = picture(grid.locator(".labkit-stage"))
    stage = grid.locator(".labkit-stage")
    stage.focus()
    bars = page.locator(".labkit-live")
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    for _ in range(9):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(bars.get_by_text("Layer 20, position 9 ·Mary", exact=True)).to_be_visible()
    expect(bars.get_by_text("after the patch", exact=True)).to_be_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(bars.get_by_text("export with cells=[(layer, position)]")).to_be_visible()
    chooser(page, "Grid").select_option("attn_out: clean into corrupt")
    expect(grid.locator(".labkit-title")).to_have_text("attn_out: clean into corrupt")
    expect(bars.get_by_text("export with cells=[(layer, position)]")).to_be_hidden()
    page.wait_for_function(
        "before => document.querySelector('.labkit-heatmap canvas').toDataURL() !== before", arg=before
    )
    chooser(page, "Grid").select_option("resid_pre: clean into corrupt")
    expect(grid.locator(".labkit-title")).to_have_text("resid_pre: clean into corrupt")


def test_every_cell_of_a_lens_has_its_tokens(opened: Any) -> None:
    page = opened("lens")
    page.locator(".labkit-heatmap:visible .labkit-stage").first.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator(".labkit-live").get_by_text(re.compile(r"^Layer \d+, resid_post$"))).to_be_visible()
    chooser(page, "Colour").select_option("entropy")
    expect(page.locator(".labkit-heatmap:visible .labkit-stage").first).to_have_attribute(
        "aria-label", re.compile("nats")
    )
    page.get_by_role("button", name="Direct attribution").click()
    expect(page.locator(".labkit-live").get_by_text("By head")).to_be_visible()


def test_branches_of_a_text_and_its_colours(opened: Any) -> None:
    page = opened("prompting")
    rows = page.get_by_role("row", name=re.compile("^branch"))
    expect(rows.get_by_role("button")).to_have_count(0)  # they would need a kernel
    tokens = page.locator(".labkit-live .labkit-strip:visible .labkit-token")
    written = "".join(tokens.all_inner_texts())
    rows.first.click()
    expect(rows.first).to_have_attribute("aria-selected", "true")
    assert "".join(tokens.all_inner_texts()) != written
    chooser(page, "Colour by").select_option("rank")
    expect(page.locator(".labkit-live .labkit-strip:visible").get_by_text("rank").first).to_be_visible()
    tokens.nth(7).hover()
    expect(page.locator(".labkit-note:visible")).to_contain_text("%")


@pytest.mark.parametrize("name", ["attention", "patching", "lens", "prompting", "report"])
def test_without_scripts_there_is_the_picture(opened: Any, name: str) -> None:
    page = opened(name, java_script_enabled=False)
    image = page.locator(".labkit-still img").first
    expect(image).to_be_visible()
    box = image.bounding_box()
    assert box is not None
    assert box["width"] > 50

    expect(page.locator(".labkit-live:visible")).to_have_count(0)


@pytest.mark.parametrize("name", ["hostile", "strip", "report"])
@pytest.mark.parametrize("scripts", [True, False])
def test_hostile_text_is_text(opened: Any, name: str, scripts: bool) -> None:
    page = opened(name, java_script_enabled=scripts)
    expect(page.locator("img:not([src^='data:'])")).to_have_count(0)
    expect(page.locator("script")).to_have_count(2)
    if scripts:
        expect(page.locator(".labkit-live .labkit-strip").first).to_contain_text("script")
        page.locator(".labkit-live .labkit-token").first.hover()
        assert page.evaluate("window.hacked") is None


def test_the_policy_lets_nothing_be_fetched_and_no_other_script_run(browser: Browser, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "strip.html").as_uri())
    expect(page.locator(".labkit-live .labkit-token").first).to_be_visible()
    assert page.evaluate("fetch('data:text/plain,a').then(() => 'yes', () => 'no')") == "no"
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert page.evaluate("window.ran") is None
    page.close()


def test_dark_follows_the_system_and_the_button(opened: Any) -> None:
    page = opened("lens", color_scheme="dark")
    block = page.locator(".labkit-live .labkit-heatmap").first
    expect(block).to_have_attribute("data-theme", "dark")
    page.get_by_role("button", name="Light colours").click()
    expect(block).to_have_attribute("data-theme", "light")
    assert page.locator("body").evaluate("el => getComputedStyle(el).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize("name", ["attention", "patching", "lens", "prompting", "report"])
def test_axe_finds_nothing_serious(browser: Browser, folder: Path, name: str) -> None:
    context = browser.new_context(viewport={"width": 1100, "height": 900}, bypass_csp=True)
    page = context.new_page()
    page.goto((folder / f"{name}.html").as_uri())
    expect(page.locator(".labkit-live .labkit").first).to_be_visible()
    page.evaluate(AXE.read_text("utf-8"))
    # the columns of a pair say more than they show, as they do in the notebook
    found = page.evaluate(
        "axe.run(document, {resultTypes: ['violations'], rules: {'label-content-name-mismatch': {enabled: false}}})"
        ".then(({violations}) => violations.filter(({impact}) => ['serious', 'critical'].includes(impact))"
        ".flatMap(({id, nodes}) => nodes.map((node) => `${id}: ${node.html}`)))"
    )
    context.close()
    assert found == []
