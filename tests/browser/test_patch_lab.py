"""PatchLab as people use it: a real JupyterLab, the real model, mouse and keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from driver import Lab, button, kernel_says, notebook_of
from playwright.sync_api import Browser, Locator, Page, expect
from test_widgets_in_jupyterlab import CLEAN, CORRUPT

STORY = "The weather was fine and everybody in the village was out on the green. " * 3
CELLS = {
    "load": "import labkit as lk\nlm = lk.load(progress=False)",
    "patch": f"patching = lk.PatchLab(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John')\npatching",
    "long": (
        f"story = {STORY!r}\nlong = lk.PatchLab(lm)\n"
        "long.pair.use(f'Mary sang. {story}', f'John sang. {story}', ' Mary', ' John')\nlong"
    ),
}


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    """One notebook with two labs, run from top to bottom; the tests go on where the one before left it."""
    with notebook_of(browser, lab, "patch_lab.ipynb", list(CELLS.values())) as page:
        yield page


def tool_of(page: Page, name: str) -> Locator:
    return page.locator(".jp-Notebook .jp-CodeCell").nth(list(CELLS).index(name)).locator(".labkit-tool").first


def grid_of(tool: Locator) -> Locator:
    """The grid; the inspector's small heatmap comes after it."""
    return tool.locator(".labkit-heatmap").first


def status_of(tool: Locator) -> Locator:
    """How the grid is coming on; the pair's own line comes before it."""
    return tool.locator(".labkit-status").nth(1)


def go_to(page: Page, tool: Locator, *, layer: int, column: int) -> None:
    """Move the keyboard's cell there, by what is read out."""
    stage = grid_of(tool).locator(".labkit-stage")
    stage.scroll_into_view_if_needed()
    stage.focus()
    for _ in range(30):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    for _ in range(layer):
        page.keyboard.press("ArrowUp")
    for _ in range(column):
        page.keyboard.press("ArrowRight")
    expect(grid_of(tool).locator(".labkit-spoken")).to_contain_text(re.compile(rf"layer {layer}, \w+ {column}\b"))


def point_of(page: Page, tool: Locator, *, layer: int, column: int) -> tuple[float, float]:
    """The middle of a cell on the page: found with the pointer, by what is read out of the cells that it passes."""
    grid = grid_of(tool)
    box = standing(page, grid.locator(".labkit-stage"))

    def cell_at(x: float, y: float) -> tuple[int, int] | None:
        page.mouse.move(box["x"] + x, box["y"] + y)
        if not grid.locator(".labkit-note").is_visible():
            return None  # beside the grid
        found = re.match(r"layer (\d+), \w+ (\d+)\b", grid.locator(".labkit-spoken").inner_text())
        return (int(found[1]), int(found[2])) if found else None

    y = middle(range(4, int(box["height"]), 5), lambda y: (cell_at(80, y) or (None,))[0] == layer)
    x = middle(range(40, int(box["width"]), 10), lambda x: cell_at(x, y) == (layer, column))
    assert cell_at(x, y) == (layer, column)
    return box["x"] + x, box["y"] + y


def middle(points: range, holds: Callable[[float], bool]) -> float:
    """The middle of the first stretch of points for which something holds."""
    first = next(point for point in points if holds(point))
    end = next((point for point in points if point > first and not holds(point)), points.stop)
    return (first + end - points.step) / 2


def standing(page: Page, where: Locator) -> dict[str, float]:
    """Where something is in the window, once the page has come to rest."""
    where.scroll_into_view_if_needed()
    before = None
    while (box := where.bounding_box()) != before or box is None:
        before = box
        page.wait_for_timeout(150)
    return dict(box)  # type: ignore[arg-type]


def test_a_pair_is_aligned_as_it_is_typed_and_what_does_not_fit_is_mended(page: Page) -> None:
    tool = tool_of(page, "patch")
    expect(status_of(tool)).to_contain_text("420 cells")
    expect(tool.locator(".labkit-pair-column")).to_have_count(14)
    expect(tool.locator(".labkit-pair-column.labkit-is-differs")).to_have_count(1)
    expect(tool.locator(".labkit-pair-column").nth(9)).to_have_attribute(
        "aria-label", "9: clean ·John, corrupt ·Mary, differs"
    )
    box = tool.locator("textarea").nth(1)
    box.click()
    box.fill("")
    box.press_sequentially(CORRUPT.replace("Mary gave", "Maryanne gave"), delay=2)
    expect(tool.locator(".labkit-status").first).to_contain_text("Clean has 14 tokens, corrupt 15: at position 9")
    expect(tool.locator(".labkit-is-gap")).to_have_count(1)
    paired = tool.get_by_label("Paired")
    expect(paired).to_have_value("0-8 = 0-8, 10-13 = 11-14")
    button(tool, "Run").click()
    expect(status_of(tool)).to_contain_text("390 cells")  # 30 layers, and 13 of 15 positions have a partner
    paired.fill("0-8 = 0-8, 9 = 10, 10-13 = 11-14")
    paired.press("Enter")
    expect(status_of(tool)).to_contain_text("420 cells")
    expect(tool.locator(".labkit-pair-column").nth(10)).to_have_attribute(
        "aria-label", "9/10: clean ·John, corrupt anne, differs"
    )
    box.click()
    box.press("End")
    box.press_sequentially(" a")
    expect(paired).to_have_value("0-8 = 0-8, 10-13 = 11-14")  # other tokens are paired anew
    box.press("Backspace")
    box.press("Backspace")
    button(tool, "Replace ' Maryanne' with ' Mary'").click()
    expect(tool.locator(".labkit-status").first).to_contain_text("14 tokens each, no BOS in front; they differ at")
    expect(box).to_have_value(CORRUPT)
    assert kernel_says(page, "print(patching.corrupt)") == CORRUPT


def test_answer_and_foil_are_picked_from_what_the_model_would_write(page: Page) -> None:
    tool = tool_of(page, "patch")
    offers = tool.locator(".labkit-picks").first.get_by_role("gridcell")
    expect(offers.first).to_have_text("·Mary")
    offers.nth(1).click()
    expect(tool.get_by_label("answer")).to_have_value(" the")
    offers.first.click()
    expect(tool.get_by_label("answer")).to_have_value(" Mary")


def test_a_task_fills_the_pair(page: Page) -> None:
    tool = tool_of(page, "patch")
    tool.get_by_label("start from").select_option("indirect object")
    expect(tool.locator("textarea").first).not_to_have_value(CLEAN)
    first = tool.locator("textarea").first.input_value()
    button(tool, "Another pair").click()
    expect(tool.locator("textarea").first).not_to_have_value(first)
    expect(tool.locator(".labkit-status").first).to_contain_text("tokens each")
    for box, text in zip(tool.locator("textarea").all(), (CLEAN, CORRUPT), strict=True):
        box.fill(text)
    for name, word in (("answer", " Mary"), ("foil", " John")):
        tool.get_by_label(name).fill(word)
        tool.get_by_label(name).press("Enter")
    expect(tool.get_by_label("start from")).to_have_value("a pair of your own")
    button(tool, "Run").click()
    expect(status_of(tool)).to_contain_text("420 cells computed before")


def test_a_clicked_cell_shows_before_and_after_and_its_cone(page: Page) -> None:
    tool = tool_of(page, "patch")
    page.mouse.click(*point_of(page, tool, layer=0, column=9))
    bars = tool.locator(".labkit-token-bars")
    expect(bars.locator("caption")).to_have_text(["before: corrupt prompt", "after the patch"])
    expect(bars.locator("table").nth(0).locator("tr").first).to_contain_text("·John")
    expect(bars.locator("table").nth(1).locator("tr").first).to_contain_text("·Mary")
    expect(bars.locator(".labkit-title")).to_have_text("Layer 0, position 9 ·Mary")
    expect(tool.locator(".labkit-heatmap").nth(1).locator(".labkit-title")).to_contain_text("after the patch")
    tool.get_by_role("button", name="before").click()
    expect(tool.locator(".labkit-heatmap").nth(1).locator(".labkit-title")).to_contain_text("before the patch")
    said = kernel_says(page, "print(patching.selection, patching.grid.complete, patching.heatmap.cone[1:, 9:].min())")
    assert said == "(0, 9) True 1"


def test_a_patch_is_dragged_from_one_cell_to_another(page: Page) -> None:
    tool = tool_of(page, "patch")
    start, end = point_of(page, tool, layer=10, column=9), point_of(page, tool, layer=14, column=9)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()
    title = tool.locator(".labkit-token-bars .labkit-title")
    expect(title).to_have_text("Layer 10, position 9 ·Mary → layer 14, position 9 ·Mary")
    expect(tool.locator("caption")).to_have_count(2)
    assert kernel_says(page, "print(patching.arrow, patching.selection)") == "((10, 9), (14, 9)) (0, 9)"
    page.mouse.click(*point_of(page, tool, layer=14, column=9))
    expect(title).to_have_text("Layer 14, position 9 ·Mary")
    assert kernel_says(page, "print(patching.arrow, patching.selection)") == "None (14, 9)"


def test_several_cells_are_chosen_with_mouse_and_keyboard_and_escape_lets_go(page: Page) -> None:
    tool = tool_of(page, "patch")
    grid_of(tool).locator(".labkit-stage").focus()
    page.keyboard.press("Escape")
    page.keyboard.down("Shift")
    page.mouse.click(*point_of(page, tool, layer=21, column=13))
    page.keyboard.up("Shift")
    go_to(page, tool, layer=21, column=9)
    page.keyboard.press("Shift+Enter")
    expect(tool.locator(".labkit-token-bars")).to_contain_text("sum of single patches")
    assert kernel_says(page, "print(patching.chosen, patching.arrow)") == "[(21, 13), (21, 9)] None"
    grid_of(tool).locator(".labkit-stage").focus()
    page.keyboard.press("Escape")
    expect(tool.get_by_text("Click a cell")).to_be_visible()
    go_to(page, tool, layer=3, column=9)
    page.keyboard.press("m")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(tool.locator(".labkit-token-bars .labkit-title")).to_contain_text("→ layer 4, position 9")
    page.keyboard.press("Escape")


def test_another_site_runs_anew_and_the_first_is_still_known(page: Page) -> None:
    tool = tool_of(page, "patch")
    tool.get_by_label("site").select_option("z")
    expect(status_of(tool)).to_contain_text("270 cells in")
    expect(grid_of(tool).locator(".labkit-title")).to_have_text("z: clean into corrupt")
    assert kernel_says(page, "print(patching.grid)").startswith("PatchGrid(z, denoise, 30 layers x 9 heads")
    tool.get_by_label("over").select_option("heads × positions")
    tool.get_by_label("Layer", exact=True).fill("23")
    tool.get_by_label("Layer", exact=True).press("Enter")
    expect(grid_of(tool).locator(".labkit-title")).to_have_text("z in layer 23: clean into corrupt")
    tool.get_by_label("site").select_option("resid_pre")
    expect(status_of(tool)).to_contain_text("420 cells computed before")


def test_the_checks_are_listed(page: Page) -> None:
    tool = tool_of(page, "patch")
    button(tool, "Sanity checks").click()
    expect(tool.locator(".labkit-check")).to_have_count(8)
    expect(tool.locator(".labkit-check[data-ok='true'] dt").nth(1)).to_contain_text("identical prompts")
    expect(tool.locator(".labkit-checks .labkit-title")).to_contain_text("checks passed")


def test_the_estimate_turns_exact_and_can_be_paused_resumed_and_cancelled(page: Page) -> None:
    tool = tool_of(page, "long")
    legend = grid_of(tool).locator(".labkit-heatmap-legend")
    button(tool, "Run").click()
    expect(legend).to_be_visible()
    expect(status_of(tool)).to_contain_text("cells exact")
    stage = grid_of(tool).locator(".labkit-stage")
    expect(stage).to_have_attribute("aria-label", re.compile(r"\d+ of \d+ cells are estimates, dotted"))
    expect(status_of(tool)).to_contain_text("left")
    button(tool, "Pause").click()
    expect(status_of(tool)).to_contain_text("Paused at")
    paused = estimated(stage)
    assert paused > 0
    button(tool, "Resume").click()
    expect(status_of(tool)).to_contain_text("cells exact")
    button(tool, "Cancel").click()
    expect(status_of(tool)).to_contain_text("Stopped at")
    assert 0 < estimated(stage) <= paused
    button(tool, "Run").click()
    expect(status_of(tool)).to_contain_text("cells in")
    expect(legend).to_be_hidden()
    assert estimated(stage) == 0


def estimated(stage: Locator) -> int:
    """How many cells are said to be estimates."""
    found = re.search(r"(\d+) of \d+ cells are estimates", stage.get_attribute("aria-label") or "")
    return int(found[1]) if found else 0


def test_a_saved_lab_is_opened_as_it_was(page: Page) -> None:
    tool = tool_of(page, "patch")
    last = page.locator(".jp-Notebook .jp-CodeCell").last
    last.locator(".cm-content").click()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    fresh = page.locator(".jp-Notebook .jp-CodeCell").last
    fresh.locator(".cm-content").click()
    page.keyboard.insert_text("lk.PatchLab.open(lm, patching.save('lab.npz'))")
    page.keyboard.press("Control+Enter")
    again = fresh.locator(".labkit-tool").first
    expect(status_of(again)).to_contain_text("420 cells computed before")
    expect(again.locator("textarea").first).to_have_value(CLEAN)
    label = grid_of(tool).locator(".labkit-stage").get_attribute("aria-label")
    assert label
    expect(grid_of(again).locator(".labkit-stage")).to_have_attribute("aria-label", label)


def test_no_widget_raised_an_error_in_the_browser(page: Page) -> None:
    assert page.problems == []  # type: ignore[attr-defined]
