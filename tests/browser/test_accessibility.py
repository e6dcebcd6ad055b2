"""What each tool owes to those who need it: screen readers, colours that a person chose for everything, no motion."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from driver import Lab, kernel_says, notebook_of, output_of
from playwright.sync_api import Browser, Locator, Page, expect
from test_widgets_in_jupyterlab import CLEAN, CORRUPT, LOAD

AXE = Path(__file__).parents[1] / "js" / "node_modules" / "axe-core" / "axe.min.js"
CELLS = {
    "load": LOAD,
    "PatchLab": f"patching = lk.PatchLab(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John')\npatching.run()\npatching",
    "PromptLab": "prompting = lk.PromptLab(lm, 'One, two, three,', max_new_tokens=6)\nprompting.run()\nprompting",
    "AttentionView": f"view = lk.AttentionView(lm, {CLEAN!r}, answer=' Mary', foil=' John')\nview.wait()\nview",
    "LensView": f"lens = lk.LensView(lm, {CLEAN!r}, answer=' Mary', foil=' John')\nlens.wait()\nlens",
    "QuantLab": (
        f"full = lk.load(bits=32, progress=False)\nquants = lk.QuantLab(lm, full, {CLEAN!r}, ' Mary', ' John')\n"
        "quants.wait()\nquants.selection = (21, 13)\nquants.wait()\nquants"
    ),
    "AuditLab": "auditing = lk.AuditLab(lm, categories=['age'], limit=30)\nauditing.run()\nauditing",
    "SteerLab": "steering = lk.SteerLab(lm, max_new_tokens=6)\nsteering.run()\nsteering",
    "CircuitView": (
        f"circuit = lk.edge_attribution(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John', progress=False).circuit(40)\n"
        "view = lk.CircuitView(circuit)\nview"
    ),
    "blocks": (
        "from labkit.widgets.base.status_line import StatusLine\n"
        "from labkit.widgets.blocks.branch_tree import BranchTree\n"
        "from labkit.widgets.blocks.check_list import CheckList\n"
        "line = StatusLine(text='ready')\n"
        "strip = lk.TokenStrip(['one', '·two', '·three', '·four'], [0.1, 0.5, 0.9, 0.2], title='Strip', legend=True,\n"
        "                      folds=[{'start': 2, 'stop': 3, 'label': 'thought'}], selection=1)\n"
        "checks = CheckList(checks=[['one prompt twice', True, 'fine'], ['noise', None, 'not done']], title='Checks')\n"
        "first = {'name': 'A', 'parent': None, 'text': 'One', 'tokens': 3}\n"
        "second = {'name': 'B', 'parent': 0, 'at': 1, 'taken': '·two', 'text': 'two', 'tokens': 2}\n"
        "tree = BranchTree([first, second], title='Branches', selection=0)\n"
        "from labkit.widgets.blocks.prediction import Prediction\n"
        "asked = [Prediction('More?', 'yes', options=['yes', 'no']), Prediction('Who?', 'Mary', guess='John'),\n"
        "         Prediction('How many?', 5, between=(0, 9), unit='MB'), Prediction('How?', 5, between=(0, 9))]\n"
        "display(line, strip, checks, tree, *asked)"
    ),
}
TOOLS = [name for name in CELLS if name != "load"]

NESTED = """() => [...document.querySelectorAll('[role=option], [role=treeitem], [role=listbox], [role=img]')]
    .filter((one) => one.closest('.labkit'))
    .flatMap((one) => [...one.querySelectorAll('button, a, input, select, textarea, [role=button], [tabindex]')]
        .filter((inner) => inner.getAttribute('role') !== 'option')
        .map((inner) => one.outerHTML.slice(0, 80) + ' > ' + inner.outerHTML.slice(0, 80)))"""

SERIOUS = """async (name) => {
    const include = [`[data-axe=${name}] .labkit-tool, [data-axe=${name}] .labkit`];
    const exclude = ['.noUi-handle'];  // the handles of ipywidgets' sliders have no name, whoever makes them
    const {violations} = await axe.run({include, exclude}, {resultTypes: ['violations']});
    const why = (node) => [...node.any, ...node.all, ...node.none].map(({message}) => message).join('; ');
    return violations.filter(({impact}) => impact === 'serious' || impact === 'critical')
        .flatMap(({id, nodes}) => nodes.map((node) => `${id}: ${node.html.slice(0, 160)}: ${why(node)}`));
}"""

RECORD = """(el) => {
    const [text, spoken] = [el.querySelector('.labkit-status-text'), el.querySelector('.labkit-spoken')];
    window.heard = {seen: [], spoken: []};
    const watch = (node, act) => new MutationObserver(act).observe(node, {childList: true});
    watch(text, () => heard.seen.push(text.textContent));
    watch(spoken, () => heard.spoken.push([performance.now(), spoken.textContent]));
}"""


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    """One notebook with every tool, run from top to bottom; no test leaves anything for another."""
    with notebook_of(browser, lab, "accessibility.ipynb", list(CELLS.values())) as page:
        assert AXE.exists(), "axe-core is not there: make test-browser installs it"
        page.evaluate(AXE.read_text("utf-8"))
        yield page
        assert page.problems == []  # type: ignore[attr-defined]


def cell(page: Page, name: str) -> Locator:
    return output_of(page, list(CELLS).index(name))


@pytest.mark.parametrize("name", TOOLS)
def test_axe_finds_nothing_serious(page: Page, name: str) -> None:
    output = cell(page, name)
    expect(output.locator(".labkit:visible").first).to_be_visible()
    output.evaluate("(el, name) => el.dataset.axe = name", name)
    assert page.evaluate(SERIOUS, name) == []


def test_nothing_to_press_is_inside_an_option_or_a_picture(page: Page) -> None:
    assert page.evaluate(NESTED) == []


def test_the_parts_of_a_circuit_are_buttons_in_a_group(page: Page) -> None:
    view = cell(page, "CircuitView")
    group = view.get_by_role("group", name="The edges are in the list beside it")
    part = group.get_by_role("button", name="z.23.3: show its edges alone")
    expect(part).to_have_attribute("aria-pressed", "false")
    part.focus()
    page.keyboard.press("Enter")
    expect(part).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Enter")
    expect(part).to_have_attribute("aria-pressed", "false")


def test_a_branch_is_a_row_whose_buttons_are_in_a_cell(page: Page) -> None:
    tree = cell(page, "blocks").get_by_role("treegrid", name="Branches")
    row = tree.get_by_role("row", name="branch B, at 1 ·two, 2 tokens: two")
    expect(row).to_have_attribute("aria-level", "2")
    row.click()
    expect(row).to_have_attribute("aria-selected", "true")
    expect(row.get_by_role("gridcell").last.get_by_role("button")).to_have_count(4)
    page.keyboard.press("F2")
    box = row.get_by_role("gridcell").first.get_by_role("textbox", name="New name of branch B")
    expect(box).to_be_focused()
    box.press("Escape")
    expect(row).to_be_focused()


def test_a_fold_is_a_button_in_a_cell_of_its_own(page: Page) -> None:
    grid = cell(page, "blocks").get_by_role("grid", name="Strip")
    fold = grid.get_by_role("gridcell").get_by_role("button", name="thought")
    expect(fold).to_have_attribute("aria-expanded", "false")
    fold.click()
    expect(fold).to_have_attribute("aria-expanded", "true")
    fold.click()
    expect(fold).to_have_attribute("aria-expanded", "false")


def test_the_status_line_is_read_out_at_the_start_at_the_end_and_now_and_then(page: Page) -> None:
    line = cell(page, "blocks").locator(".labkit-status")
    line.evaluate(RECORD)
    going = "import time\nfor n in range(70):\n    line.say(f'{n} of 70', share=n / 70)\n    time.sleep(0.1)\n"
    kernel_says(page, going + "line.say('done')\nprint(1)")
    expect(line.locator(".labkit-status-text")).to_have_text("done")
    heard: dict[str, list[Any]] = page.evaluate("heard")
    times = [at for at, _ in heard["spoken"]]
    assert heard["spoken"][0][1] == "0 of 70"
    assert heard["spoken"][-1][1] == "done"
    assert all(later - earlier >= 5000 for earlier, later in pairwise(times[:-1]))
    assert len(heard["seen"]) > 2 * len(times)  # what is seen goes on changing
    kernel_says(page, "line.complain('No such file')\nprint(1)")
    expect(cell(page, "blocks").get_by_role("alert")).to_have_text("No such file")
    kernel_says(page, "line.say('ready')\nprint(1)")
    expect(cell(page, "blocks").get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_forced_colours_what_is_chosen_is_outlined_and_data_keep_their_colours(page: Page, scheme: Any) -> None:
    strip = cell(page, "blocks").locator(".labkit-strip")
    chip = strip.locator("[aria-selected='true']")
    tint = chip.evaluate("el => getComputedStyle(el).backgroundColor")
    page.emulate_media(forced_colors="active", color_scheme=scheme)
    try:
        expect(strip).to_have_attribute("data-theme", scheme)  # that of the person's colours, not of the notebook
        assert chip.evaluate("el => getComputedStyle(el).outline").endswith("solid 2px")
        assert (chip.evaluate("el => getComputedStyle(el).backgroundColor") == tint) == (scheme == "light")
        bar = cell(page, "PromptLab").locator(".labkit-track").first
        assert bar.evaluate("el => getComputedStyle(el).borderTopStyle") == "solid"
        sides = (
            cell(page, "PatchLab")
            .locator(".jupyter-button")
            .evaluate_all("els => els.filter(el => el.offsetParent).map(el => getComputedStyle(el).borderTopStyle)")
        )
        assert set(sides) == {"solid"}
        run = cell(page, "PromptLab").get_by_role("button", name="Run").first
        ink, ground, plate = run.evaluate(
            "el => (({color, backgroundColor, forcedColorAdjust}) => [color, backgroundColor, forcedColorAdjust])"
            "(getComputedStyle(el))"
        )
        assert ink != ground
        assert plate == "none"  # otherwise Chromium paints its own ground behind the letters
        page.wait_for_timeout(2500)  # drawn anew for the last time
        stage = cell(page, "PatchLab").locator(".labkit-heatmap canvas").first
        colours = stage.evaluate(
            """el => { const {data} = el.getContext('2d').getImageData(0, 0, el.width, el.height);
                const found = new Set();
                for (let i = 0; i < data.length; i += 4) if (data[i + 3]) found.add(data.slice(i, i + 3).join());
                return found.size; }"""
        )
        assert colours > 20
    finally:
        page.emulate_media(forced_colors="none", color_scheme="light")
    expect(strip).to_have_attribute("data-theme", "light")


def test_nothing_moves_where_no_motion_is_wanted(page: Page) -> None:
    moving = """() => [...document.querySelectorAll('*')].filter((el) => {
        if (!el.closest('.labkit, .labkit-tool')) return false;
        const {transitionDuration, animationName, scrollBehavior} = getComputedStyle(el);
        return !/^0s(, 0s)*$/.test(transitionDuration) || animationName !== 'none' || scrollBehavior !== 'auto';
    }).length"""
    page.emulate_media(reduced_motion="reduce")
    try:
        assert page.evaluate(moving) == 0
    finally:
        page.emulate_media(reduced_motion="no-preference")
