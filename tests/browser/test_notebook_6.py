"""Every widget in Notebook 6.5 with ipywidgets 7.7, the front end nearest to Colab's: `make test-colab` has them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import serve
from driver import button, end_kernels
from playwright.sync_api import Browser, Locator, Page, expect

pytestmark = pytest.mark.skipif(
    not version("notebook").startswith("6."), reason="Notebook 6 is not in this environment; make test-colab has it"
)

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
CELLS = {
    "load": (
        "import ipywidgets\nassert ipywidgets.__version__.startswith('7.7'), ipywidgets.__version__\n"
        "import numpy as np\nimport labkit as lk\nlm = lk.load(progress=False)"
    ),
    "prompt": "prompting = lk.PromptLab(lm, max_new_tokens=12)\nprompting",
    "patch": f"patching = lk.PatchLab(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John')\npatching",
    "attention": f"attention = lk.AttentionView(lm, {CLEAN!r})\nattention",
    "lens": f"lens = lk.LensView(lm, {CLEAN!r}, answer=' Mary', foil=' John')\nlens",
    "steer": "steering = lk.SteerLab(lm)\nsteering",
    "quant": (
        "full = lk.load(bits=32, progress=False)\n"
        f"comparing = lk.QuantLab(lm, full, {CLEAN!r}, ' Mary', ' John')\ncomparing"
    ),
    "audit": 'auditing = lk.AuditLab(lm, categories=["age"], limit=20)\nauditing',
    "circuit": (
        f"edges = lk.edge_attribution(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John', steps=1, progress=False)\n"
        "lk.CircuitView(edges.circuit(40))"
    ),
    "blocks": (
        "strip = lk.TokenStrip(['one', '·two', '·three'], [0.1, 0.5, 0.9], title='Strip')\n"
        "map = lk.Heatmap(np.arange(6.).reshape(2, 3), title='Map')\n"
        "heads = lk.HeadGrid(np.full((3, 2, 4, 4), 99, np.uint8), title='All heads')\n"
        "tree = lk.BranchTree([{'name': 'A', 'parent': None, 'at': 0, 'taken': '', 'instead': '', 'text': 'what',"
        " 'tokens': 4, 'bits': 1.2, 'finish': 'length'}])\n"
        "display(strip, map, heads, tree)"
    ),
    "predict": (
        "from labkit.course import predict\n"
        "predict('00.bytes', 'More or less?', truth=lambda: 'more', options=['more', 'less'])"
    ),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Page]:
    """One notebook with every widget, run from top to bottom; `page.problems` has the errors of its scripts."""
    with serve(tmp_path_factory.mktemp("notebook6"), "notebook") as server:
        path = server.write("widgets.ipynb", list(CELLS.values()))
        context = browser.new_context(viewport={"width": 1180, "height": 1600})
        page = context.new_page()
        page.problems, page.server = [], server  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: page.problems.append(error.stack or str(error)))  # type: ignore[attr-defined]
        page.goto(f"{server.address}/notebooks/{path}?token={server.token}")
        page.wait_for_function("window.Jupyter?.notebook?.kernel?.is_connected()", timeout=60_000)
        prompts = page.locator(".code_cell .input_prompt")
        page.evaluate("Jupyter.notebook.execute_cells([0])")
        expect(prompts.first).to_contain_text("1", timeout=120_000)
        page.wait_for_timeout(
            2000
        )  # ipywidgets 7 draws a page again, and loses its views, when it has found no older ones
        page.evaluate(f"Jupyter.notebook.execute_cells({list(range(1, len(CELLS)))})")
        expect(prompts.last).to_contain_text(str(len(CELLS)), timeout=240_000)
        try:
            yield page
        finally:
            context.close()
            end_kernels(server)


def cell(page: Page, name: str) -> Locator:
    """The output of one of the cells."""
    return page.locator(".code_cell").nth(list(CELLS).index(name)).locator(".output_wrapper")


def status(where: Locator) -> Locator:
    return where.locator(".labkit-status").first


def test_every_cell_ran_and_no_widget_failed_to_open(page: Page) -> None:
    assert page.locator(".output_error").all_inner_texts() == []
    expect(page.get_by_text("Error displaying widget")).to_have_count(0)
    expect(page.locator(".code_cell .input_prompt").last).to_contain_text(str(len(CELLS)))


@pytest.mark.parametrize("tool", ["prompt", "patch", "attention", "lens", "steer", "quant"])
def test_a_tool_opens_alive_and_without_an_error(page: Page, tool: str) -> None:
    lab = cell(page, tool).locator(".labkit-tool").first
    lab.scroll_into_view_if_needed()
    expect(lab).to_be_visible()
    expect(button(lab, "Run").first).to_be_visible()
    expect(status(lab)).not_to_have_attribute("data-kind", "error")
    expect(lab.locator("canvas, textarea:visible").first).to_be_visible()


def test_every_block_is_drawn(page: Page) -> None:
    blocks = cell(page, "blocks")
    expect(blocks.locator(".labkit-token")).to_have_text(["one", "·two", "·three"])
    for name in ("heatmap", "heads"):
        expect(blocks.locator(f".labkit-{name} canvas").first).to_be_visible()
    expect(blocks.locator(".labkit-branch")).to_have_count(1)
    expect(cell(page, "circuit").locator(".labkit-circuit-option")).not_to_have_count(0)


def test_a_prediction_waits_for_a_guess(page: Page) -> None:
    asked = cell(page, "predict").locator(".labkit-prediction")
    expect(asked.get_by_role("status")).to_be_empty()
    asked.get_by_role("radio", name="less").check()
    asked.get_by_role("button").click()
    expect(asked.get_by_role("status")).to_have_text("Your guess: less. The answer: more.")


def test_a_typed_prompt_streams_and_branches(page: Page) -> None:
    lab = cell(page, "prompt")
    box = lab.locator(".labkit-prompt:visible textarea")
    box.fill(CLEAN)
    box.press("Control+Enter")
    written = lab.locator(".labkit-strip:visible").first.locator(".labkit-token:not(.labkit-is-prompt)")
    expect(written.first).to_have_text("·Mary")
    expect(status(lab)).to_contain_text("tokens/s ·")
    expect(written).to_have_count(12)
    written.first.click()
    lab.locator(".labkit-menu:visible").get_by_role("option").filter(has_text="·John").click()
    expect(written.first).to_have_text("·John")
    expect(lab.locator(".labkit-branch")).to_have_count(2)


def test_a_grid_is_complete_and_its_cells_are_told_to_the_kernel(page: Page) -> None:
    lab = cell(page, "patch")
    expect(lab.locator(".labkit-status").nth(1)).to_contain_text("420 cells", timeout=60_000)
    stage = lab.locator(".labkit-heatmap .labkit-stage").first
    stage.focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(lab.locator(".labkit-heatmap .labkit-spoken").first).to_contain_text("position 13")


def test_a_grid_between_two_precisions_is_complete(page: Page) -> None:
    done = cell(page, "quant").locator(".labkit-status").filter(has_text="420 cells")
    expect(done).to_have_count(1, timeout=120_000)


def test_the_lens_and_attention_have_a_picture(page: Page) -> None:
    expect(status(cell(page, "lens"))).to_contain_text("30 layers × 14 positions in", timeout=60_000)
    expect(cell(page, "attention").locator(".labkit-heads canvas").first).to_be_visible()


def test_a_stored_notebook_opens_without_an_error_and_with_its_pictures(page: Page) -> None:
    """Views of widgets that no longer live would each log one."""
    server = page.server  # type: ignore[attr-defined]
    stored = NOTEBOOKS / "03_attention.ipynb"
    shutil.copy(stored, server.root)
    other = page.context.new_page()
    said: list[str] = []
    other.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    other.on("pageerror", lambda error: said.append(str(error)))
    other.goto(f"{server.address}/notebooks/{stored.name}?token={server.token}")
    other.wait_for_function("window.Jupyter?.notebook?.kernel?.is_connected()", timeout=60_000)
    expect(other.locator(".labkit-snapshot").first).to_be_visible()
    other.wait_for_timeout(2000)  # in which ipywidgets 7 looks for the models of saved views
    assert [text for text in said if "widget" in text.lower() or "model" in text.lower()] == []
    other.close()


def test_no_widget_raised_an_error_in_the_browser(page: Page) -> None:
    ours = [stack for stack in page.problems if "blob:" in stack or "widget" in stack]  # type: ignore[attr-defined]
    assert ours == []
