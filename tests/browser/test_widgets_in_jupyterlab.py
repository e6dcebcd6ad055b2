"""The widgets as people use them: a real notebook in a real JupyterLab, a real model, mouse and keyboard."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from driver import Lab, kernel_says, notebook_of, open_notebook, output_of, saved
from playwright.sync_api import Browser, Locator, Page, expect

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
EVIL = "<script>window.harmed=1</script><img src=x onerror='window.harmed=1'>"
LOAD = "import labkit as lk\nlm = lk.load(progress=False)"

CELLS = {
    "load": LOAD,
    "patch": f"patching = lk.PatchLab(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John')\npatching",
    "evil": (
        f"evil = {EVIL!r}\n"
        "b = lk.AttentionView(lm, evil)\nb.wait()\n"
        "c = lk.PatchLab(lm, evil, evil, ' a', ' b')\nc.wait()\n"
        "display(b, c)\n"
        "from IPython.display import HTML\n"
        "for w in (b, c): display(HTML(w.snapshot().replace('labkit-snapshot', 'saved-picture')))"
    ),
    "predict": (
        "import plotly.graph_objects as go\nimport plotly.io\nplotly.io.renderers.default = 'plotly_mimetype'\n"
        "from labkit.course import predict\n"
        "display(predict('00.bytes', f'More or less? {evil}', truth=lambda: 'more', options=['more', 'less']),\n"
        "        predict('04.layer', 'Which layer?', truth=lambda: 21, between=(0, 29),\n"
        "                show=lambda: go.Figure(go.Bar(y=[3]), layout={'title': 'Layers'})))"
    ),
    "blocks": (
        "import numpy as np\n"
        "strip = lk.TokenStrip(['one', '·two', '·three'], [0.1, 0.5, 0.9], title='Strip')\n"
        "map = lk.Heatmap(np.arange(6.).reshape(2, 3), title='Map')\n"
        "heads = lk.HeadGrid(np.full((3, 2, 4, 4), 99, np.uint8), title='All heads')\n"
        "display(strip, map, heads)"
    ),
}


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    """One notebook with every widget, run from top to bottom; all tests look at it, each at its own cell."""
    with notebook_of(browser, lab, "widgets.ipynb", list(CELLS.values())) as page:
        yield page


def cell(page: Page, name: str) -> Locator:
    """The output of one of the cells."""
    return output_of(page, list(CELLS).index(name))


def test_a_prediction_shows_the_truth_when_it_is_made_by_keyboard_alone(page: Page) -> None:
    output = cell(page, "predict")
    choice, number = output.locator(".labkit-prediction").all()
    expect(choice.locator("legend")).to_contain_text("<script>")
    for one in (choice, number):
        expect(one.locator(".labkit-prediction-result")).to_be_empty()
    expect(choice.get_by_role("button")).to_be_disabled()
    choice.get_by_role("radio", name="more").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(choice.get_by_role("status")).to_have_text("Your guess: less. The answer: more.")
    expect(choice.locator(".labkit-prediction-mark")).to_have_text(["✓ the answer", "your guess"])
    expect(choice.get_by_role("radio", name="more")).to_be_disabled()

    expect(output.locator(".js-plotly-plot")).to_have_count(0)
    exact = number.get_by_role("spinbutton", name="Your guess")
    exact.fill("12")
    expect(number.get_by_role("slider")).to_have_value(re.compile("^1[12]"))
    exact.press("Enter")
    expect(number.get_by_role("status")).to_contain_text("Your guess: 12. The answer: 21.")
    you, truth = (number.locator(f"[data-of={name}]").bounding_box() for name in ("guess", "truth"))
    assert you["x"] < truth["x"]  # type: ignore[index]
    expect(output.locator(".js-plotly-plot")).to_have_count(1)


def test_markup_in_a_prompt_is_text_in_every_widget_and_picture(page: Page) -> None:
    output = cell(page, "evil")
    for tool in range(2):
        strips = output.locator(".labkit-tool").nth(tool).locator(".labkit-tokens, .labkit-pair-columns")
        shown = strips.first.inner_text()
        assert "script" in shown
        assert "<" in shown
    expect(output.locator(".saved-picture")).to_have_count(2)
    for picture in output.locator(".saved-picture").all():
        assert "onerror" in " ".join(img.get_attribute("alt") or "" for img in picture.locator("img").all())
    assert output.locator("script, img[onerror]").count() == 0
    assert page.evaluate("window.harmed") is None


def test_blocks_are_used_with_the_keyboard_alone(page: Page) -> None:
    output = cell(page, "blocks")
    first = output.get_by_role("gridcell").first
    first.focus()
    page.keyboard.press("ArrowRight")
    expect(output.get_by_role("gridcell").nth(1)).to_be_focused()
    expect(output.get_by_role("gridcell").nth(1)).to_have_attribute("aria-label", "1: ·two, value 0.500")
    page.keyboard.press("Enter")
    expect(output.get_by_role("gridcell").nth(1)).to_have_attribute("aria-selected", "true")
    assert output.locator("[role=gridcell][tabindex='0']").count() == 1
    stage = output.locator(".labkit-heatmap .labkit-stage")
    stage.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(output.locator(".labkit-heatmap .labkit-spoken")).to_have_text("row 1, column 1: 4.000")
    page.keyboard.press("Enter")
    heads = output.locator(".labkit-heads .labkit-stage")
    heads.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    count = page.locator(".jp-Notebook .jp-CodeCell").count()
    assert kernel_says(page, "print(strip.selection, map.selection, heads.selection)") == "1 (1, 1) (1, 0)"
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == count  # no notebook shortcut fired


def test_the_theme_is_followed_while_the_widget_is_open(page: Page) -> None:
    strip = cell(page, "blocks").locator(".labkit-strip")
    expect(strip).to_have_attribute("data-theme", "light")
    chip = strip.locator(".labkit-token").first
    light = chip.evaluate("one => one.style.background")
    choose_theme(page, "JupyterLab Dark")
    expect(strip).to_have_attribute("data-theme", "dark")
    expect(cell(page, "patch").locator(".labkit-heatmap").first).to_have_attribute("data-theme", "dark")
    assert chip.evaluate("one => one.style.background") != light
    choose_theme(page, "JupyterLab Light")
    expect(strip).to_have_attribute("data-theme", "light")


def choose_theme(page: Page, name: str) -> None:
    page.locator(".lm-MenuBar-itemLabel", has_text="Settings").first.click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Theme$")).hover()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{name}$")).click()


def test_a_saved_notebook_shows_the_pictures_without_a_kernel(page: Page, lab: Lab, browser: Browser) -> None:
    path = saved(page, lab, "widgets.ipynb")
    assert path.stat().st_size < 1_000_000
    shutil.copy(path, lab.root / "saved.ipynb")
    with open_notebook(browser, lab, "saved.ipynb") as reader:
        pictures = reader.locator(".labkit-snapshot")
        expect(pictures.first).to_be_visible()
        assert all(picture.is_visible() for picture in pictures.all())
        expect(pictures.filter(has_text="PatchLab").first.locator("img").first).to_be_visible()
    assert cell(page, "patch").locator(".labkit-snapshot").is_hidden()  # where the widget lives, there is only one


def test_no_widget_raised_an_error_in_the_browser(page: Page) -> None:
    assert page.problems == []  # type: ignore[attr-defined]
