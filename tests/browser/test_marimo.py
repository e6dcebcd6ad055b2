"""Blocks in marimo, where each is an anywidget in a shadow tree, and a tool as its exported page."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

APP = """
import marimo

app = marimo.App()


@app.cell
def _():
    import marimo as mo
    import labkit as lk

    lm = lk.load(progress=False)
    return lk, lm, mo


@app.cell
def _(lk, lm, mo):
    strip = mo.ui.anywidget(lk.TokenStrip(lm.tokens("Mary and John <b>went</b>"), title="Strip"))
    strip
    return (strip,)


@app.cell
def _(mo, strip):
    mo.md(f"chosen: {strip.value['selection']}")


@app.cell
def _(lk, lm, mo):
    prompts = "When Mary and John went to the store, {} gave a drink to"
    grid = lk.patch(
        lm, clean=prompts.format("John"), corrupt=prompts.format("Mary"), answer=" Mary", foil=" John", progress=False
    )
    heatmap = mo.ui.anywidget(lk.Heatmap(grid.normalized, title="Map"))
    heatmap
    return (heatmap,)


@app.cell
def _(heatmap, mo):
    mo.md(f"cell: {heatmap.value['selection']}")


@app.cell
def _(lk, lm):
    lk.LensView(lm, "Mary and John went to the store", background=False)


if __name__ == "__main__":
    app.run()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("marimo")
    (folder / "app.py").write_text(APP)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "marimo", "run", "app.py", "--headless", "--no-token", "--host", "127.0.0.1"]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen([*command, "--port", str(port)], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
                    break
                except OSError:
                    time.sleep(0.25)
            else:
                pytest.fail(f"marimo does not answer:\n{Path(log.name).read_text()[-2000:]}")
            page = browser.new_page(viewport={"width": 1180, "height": 1600}, color_scheme="light")
            page.problems = []  # type: ignore[attr-defined]
            page.on("pageerror", lambda error: page.problems.append(str(error)))  # type: ignore[attr-defined]
            page.goto(f"http://127.0.0.1:{port}/")
            expect(page.get_by_text("cell:")).to_be_visible(timeout=240_000)
            yield page
            page.close()
        finally:
            server.terminate()
            server.wait(20)


def test_a_strip_looks_as_it_does_elsewhere_and_its_choice_reaches_python(page: Page) -> None:
    tokens = page.locator(".labkit-strip .labkit-token")
    expect(tokens.nth(1)).to_contain_text("and")
    expect(page.locator(".labkit-strip")).to_contain_text("<b>")
    expect(page.locator(".labkit-strip b")).to_have_count(0)
    style = "el => { const s = getComputedStyle(el); return [s.fontSize, s.boxSizing] }"
    assert page.locator(".labkit").first.evaluate(style) == ["13px", "border-box"]
    tokens.nth(2).click()
    expect(page.get_by_text("chosen: 2")).to_be_visible()


def test_a_heatmap_is_drawn_and_a_cell_of_it_chosen(page: Page) -> None:
    canvas = page.locator(".labkit-heatmap canvas")
    expect(canvas.first).to_be_visible()
    canvas.last.click(position={"x": 200, "y": 60})
    expect(page.get_by_text("cell: None")).to_have_count(0)


def test_a_tool_is_there_as_an_exported_page_and_nothing_went_wrong(page: Page) -> None:
    expect(page.frame_locator("iframe").locator(".labkit-heatmap canvas").first).to_be_visible()
    assert page.problems == []  # type: ignore[attr-defined]
