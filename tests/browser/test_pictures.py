"""Pictures of the tools for the documentation: LABKIT_PICTURES=docs/images pytest tests/browser/test_pictures.py"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from driver import Lab, errors, open_notebook, run_all
from playwright.sync_api import Browser, Locator, Page, expect
from test_circuit_view import MIDDLE
from test_patch_lab import go_to, status_of
from test_widgets_in_jupyterlab import CLEAN, CORRUPT, LOAD

FOLDER = os.environ.get("LABKIT_PICTURES")


def in_both_themes(test: Callable[..., None]) -> Callable[..., None]:
    """A test that draws: once in each theme, where pictures are asked for."""
    skipped = pytest.mark.skipif(not FOLDER, reason="set LABKIT_PICTURES to the folder the pictures go to")
    return skipped(pytest.mark.parametrize("theme", ["light", "dark"])(test))


@contextmanager
def drawn(
    lab: Lab, browser: Browser, name: str, cells: Sequence[str], *, dark: bool, scale: float = 2
) -> Iterator[Page]:
    """A notebook that was run, without an error."""
    path = lab.write(f"{name}.ipynb", list(cells))
    with open_notebook(browser, lab, path, scale=scale, dark=dark, width=1400) as page:
        run_all(page)
        assert errors(page) == []
        yield page


CELLS = [
    LOAD,
    f"lk.AttentionView(lm, {CLEAN!r}, against={CORRUPT!r}, selection=(23, 3), answer=' Mary', foil=' John')",
    f"lk.PatchLab(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John')",
    f"circuit = lk.edge_attribution(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John', progress=False).circuit(80)\n"
    "lk.CircuitView(circuit)",
]


@in_both_themes
def test_pictures_of_the_tools(lab: Lab, browser: Browser, theme: str) -> None:
    with drawn(lab, browser, f"pictures_{theme}", CELLS, dark=theme == "dark") as page:
        tools = page.locator(".labkit-tool")

        view = to_top(tools.nth(0))
        view.get_by_role("button", name="Knock out").click()
        expect(view.locator(".labkit-token-bars").last).to_contain_text("logit difference")
        view.locator(".labkit-token").nth(13).click()
        expect(view.locator(".labkit-strip .labkit-title")).to_contain_text("looks")
        page.mouse.move(5, 5)
        picture(page, 0, f"attention_view_{theme}", small=True)

        patching = to_top(tools.nth(1))
        expect(status_of(patching)).to_contain_text("cells in")
        go_to(page, patching, layer=21, column=13)
        page.keyboard.press("Enter")
        expect(patching.locator("caption")).to_have_count(2)
        page.mouse.move(5, 5)
        patching.locator(".labkit-heatmap .labkit-stage").first.blur()
        picture(page, 1, f"patch_lab_{theme}", small=True)
        circuit = page.locator(".labkit-circuit")
        circuit.evaluate("el => { el.style.scrollMarginTop = '24px'; el.scrollIntoView({ block: 'start' }); }")
        touch = circuit.locator(".labkit-circuit-touch").last  # the strongest
        point = touch.evaluate(MIDDLE)
        page.mouse.move(*point)
        expect(circuit.locator(".labkit-note")).to_be_visible()
        picture(page, 0, f"circuit_view_{theme}", of=".labkit-circuit", small=True)


def to_top(tool: Locator) -> Locator:
    tool.evaluate("""tool => {
        tool.style.scrollMarginTop = '24px';
        tool.scrollIntoView({ block: 'start' });
        for (const other of document.querySelectorAll('.labkit-tool')) {
            other.style.visibility = other === tool ? '' : 'hidden';
        }
    }""")
    return tool


def picture(page: Page, number: int, name: str, *, of: str = ".labkit-tool", small: bool = False) -> None:
    assert FOLDER
    file = Path(FOLDER) / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    tool = page.locator(of).nth(number)
    page.wait_for_timeout(300)
    box = tool.bounding_box()
    assert box
    page.evaluate("document.querySelectorAll('.jp-InputArea').forEach(area => (area.style.visibility = 'hidden'))")
    frame = {"x": box["x"] - 8, "y": box["y"] - 8, "width": box["width"] + 16, "height": box["height"] + 16}
    note = page.locator(".labkit-note:visible").first
    if note.count() and (end := note.bounding_box()):
        frame["height"] = max(frame["height"], end["y"] + end["height"] + 8 - frame["y"])
    page.screenshot(path=file, clip=frame, scale="css" if small else "device")  # type: ignore[arg-type]
    assert file.stat().st_size < 300_000


LENSES = [LOAD, f"lk.LensView(lm, {CLEAN!r}, answer=' Mary', foil=' John')", "lk.SteerLab(lm, strength=1.5)"]


@in_both_themes
def test_pictures_of_lens_and_steering(lab: Lab, browser: Browser, theme: str) -> None:
    with drawn(lab, browser, f"lenses_{theme}", LENSES, dark=theme == "dark", scale=1.25) as page:
        tools = page.locator(".labkit-tool")

        view = to_top(tools.nth(0))
        expect(view.locator(".labkit-status").first).to_contain_text("positions in")
        view.locator(".labkit-heatmap .labkit-stage").first.hover(position={"x": 560, "y": 110})
        expect(view.locator(".labkit-note:visible")).to_have_count(1)
        picture(page, 0, f"lens_view_{theme}")

        view.get_by_role("button", name="Direct attribution").click()
        expect(view.locator(".labkit-status").first).to_contain_text("heads in")
        page.mouse.move(5, 5)
        picture(page, 0, f"lens_view_direct_{theme}")

        steering = to_top(tools.nth(1))
        steering.get_by_role("button", name="Run").click()
        expect(steering.locator(".labkit-status")).to_contain_text("Added after")
        page.mouse.move(5, 5)
        picture(page, 1, f"steer_lab_{theme}")


QUANTS = [
    f"{LOAD}\nfull = lk.load(bits=32, progress=False)",
    f"lk.QuantLab(lm, full, {CLEAN!r}, ' Mary', ' John', corrupt={CORRUPT!r})",
]


@in_both_themes
def test_pictures_of_quant_lab(lab: Lab, browser: Browser, theme: str) -> None:
    with drawn(lab, browser, f"quants_{theme}", QUANTS, dark=theme == "dark", scale=1.25) as page:
        tool = to_top(page.locator(".labkit-tool").first)
        expect(status_of(tool)).to_contain_text("cells in")
        go_to(page, tool, layer=20, column=13)
        page.keyboard.press("Enter")
        expect(tool.locator("caption")).to_have_count(4)
        page.mouse.move(5, 5)
        tool.locator(".labkit-heatmap .labkit-stage").first.blur()
        picture(page, 0, f"quant_lab_{theme}", small=True)

        tool.get_by_role("button", name="Difference of two prompts").click()
        expect(status_of(tool)).to_contain_text("Two grids in")
        page.mouse.move(5, 5)
        picture(page, 0, f"quant_lab_difference_{theme}", small=True)


@in_both_themes
def test_pictures_of_audit_lab(lab: Lab, browser: Browser, theme: str) -> None:
    cells = [LOAD, "auditing = lk.AuditLab(lm)\nauditing.run()\nauditing.where()\nauditing.wait()\nauditing"]
    with drawn(lab, browser, f"audit_{theme}", cells, dark=theme == "dark", scale=1.25) as page:
        page.set_viewport_size({"width": 1400, "height": 1900})  # all of it
        tool = to_top(page.locator(".labkit-tool").first)
        expect(tool).to_contain_text("carry most of it")
        page.mouse.move(5, 5)
        picture(page, 0, f"audit_lab_{theme}", small=True)
