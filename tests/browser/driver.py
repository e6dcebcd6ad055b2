"""Driving JupyterLab in Chromium as a person would: open a notebook, run it, wait for it."""

from __future__ import annotations

import json
import re
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
from playwright.sync_api import Browser, Locator, Page, expect

PATIENCE = 120_000
"""Milliseconds that a page or a kernel may take for anything, on a slow machine that does other work as well."""

expect.set_options(timeout=PATIENCE)


@dataclass
class Lab:
    """A running JupyterLab."""

    address: str
    token: str
    root: Path

    def url(self, path: str) -> str:
        return f"{self.address}/lab/tree/{path}?reset&token={self.token}"

    def write(self, path: str, cells: list[str]) -> str:
        """Write a notebook with these code cells under the server's root."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, self.root / path)
        return path


@contextmanager
def open_notebook(
    browser: Browser, lab: Lab, path: str, *, scale: float = 1, dark: bool = False, width: int = 1180
) -> Iterator[Page]:
    """A notebook in a page of its own, its kernel ready; the kernel goes when the page does."""
    set_theme(lab, dark=dark)
    context = browser.new_context(viewport={"width": width, "height": 1700}, device_scale_factor=scale)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(lab.url(path))
    loaded(page)
    try:
        yield page
    finally:
        context.close()
        end_kernels(lab)


@contextmanager
def notebook_of(browser: Browser, lab: Lab, path: str, cells: list[str]) -> Iterator[Page]:
    """A notebook with these cells, run from top to bottom; `page.problems` collects what went wrong in its scripts."""
    with open_notebook(browser, lab, lab.write(path, cells)) as page:
        page.problems = []  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: page.problems.append(str(error)))  # type: ignore[attr-defined]
        run_all(page)
        assert errors(page) == []
        yield page


def set_theme(lab: Lab, *, dark: bool) -> None:
    file = lab.root.parent / "settings" / "@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    file.write_text(json.dumps({"theme": "JupyterLab Dark" if dark else "JupyterLab Light"}))


def end_kernels(lab: Lab) -> None:
    headers = {"Authorization": f"token {lab.token}"}
    address = f"{lab.address}/api/sessions"
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        sessions = json.load(answer)
    for session in sessions:
        request = urllib.request.Request(f"{address}/{session['id']}", headers=headers, method="DELETE")
        urllib.request.urlopen(request).close()


def indicator_of(page: Page) -> Locator:
    """What says whether the kernel is busy."""
    return page.locator(".jp-NotebookPanel-toolbar .jp-Notebook-ExecutionIndicator")


def loaded(page: Page) -> None:
    """Wait until a notebook is there and its kernel ready."""
    expect(page.locator(".jp-Notebook .jp-CodeCell").first).to_be_visible()
    kernel_idle(page)


def kernel_idle(page: Page) -> None:
    expect(indicator_of(page)).to_have_attribute("data-status", "idle")


def run_all(page: Page, *, minutes: float = 10) -> None:
    """Run > Run All Cells, and wait until the last one is done and its tools are there.

    Rarely JupyterLab's widget manager hears nothing of the widgets of a kernel that started with the page (as in
    issues 2748 and 3980 of ipywidgets); people then load the page again, and so does this.
    """
    run_cells(page, minutes)
    waiting = page.get_by_text("Loading widget...", exact=True)
    try:
        expect(waiting).to_have_count(0, timeout=30_000)
    except AssertionError:
        warnings.warn("JupyterLab heard nothing of the kernel's widgets; the page was loaded again", stacklevel=2)
        page.reload()
        loaded(page)
        run_cells(page, minutes)
        expect(waiting).to_have_count(0)


def run_cells(page: Page, minutes: float) -> None:
    """Ask for all cells until they run, and wait until the last one is done."""
    prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt")

    def ask() -> None:
        prompts.first.click()  # menus act on the notebook in focus
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()

    until_it_runs(page, prompts.first, ask)
    try:
        expect(prompts.last).to_have_text(re.compile(r"^\[\d+\]:$"), timeout=90_000)
    except AssertionError:
        if idle_for(page, 30_000):  # what was asked of the later cells was dropped
            until_it_runs(page, prompts.last, ask)
    expect(prompts.last).to_have_text(re.compile(r"^\[\d+\]:$"), timeout=minutes * 60_000)
    expect(prompts.filter(has_text="[*]")).to_have_count(0, timeout=minutes * 60_000)


def idle_for(page: Page, milliseconds: float) -> bool:
    """Has the kernel nothing to do for so long? At once False where it is busy."""
    try:
        expect(indicator_of(page)).not_to_have_attribute("data-status", "idle", timeout=milliseconds)
    except AssertionError:
        return True
    return False


def until_it_runs(page: Page, prompt: Locator, ask: Callable[[], None]) -> None:
    """Ask an idle kernel for a cell until that is run, or the kernel is at it.

    Jupyter drops what it is asked while it still puts the page together, and says nothing; a cell can then wait ([*])
    for a kernel that was never told. That a kernel is busy alone says nothing either: one that starts is, too.
    """
    done, waits = (prompt.filter(has_text=re.compile(rf"^\[{what}\]:$")) for what in (r"\d+", r"\*"))
    busy = page.locator('.jp-NotebookPanel-toolbar .jp-Notebook-ExecutionIndicator[data-status="busy"]')
    for seconds in (2, 5, 15, 30, 60):
        ask()
        try:
            expect(done.or_(waits)).not_to_have_count(0, timeout=seconds * 1000)
            expect(done.or_(busy)).not_to_have_count(0, timeout=seconds * 1000)
        except AssertionError:
            continue
        return
    raise AssertionError("the cell was not run in two minutes")


def errors(page: Page) -> list[str]:
    """The error outputs in the notebook, as text."""
    return page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()


def output_of(page: Page, number: int) -> Locator:
    """What the cell of this number put out."""
    return page.locator(".jp-Notebook .jp-CodeCell").nth(number).locator(".jp-Cell-outputArea")


def button(where: Locator, name: str) -> Locator:
    return where.get_by_role("button", name=name, exact=True)


def kernel_says(page: Page, code: str) -> str:
    """Run code in a cell below and read what it prints: what the kernel knows, not what the page shows."""
    last = page.locator(".jp-Notebook .jp-CodeCell").last
    last.locator(".cm-content").click()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    fresh = page.locator(".jp-Notebook .jp-CodeCell").last
    fresh.locator(".cm-content").click()
    page.keyboard.insert_text(code)
    page.keyboard.press("Control+Enter")
    expect(fresh.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]"))
    expect(fresh.locator(".jp-OutputArea-output").first).to_be_visible()
    text = fresh.locator(".jp-OutputArea-output").first.inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("d")
    page.keyboard.press("d")
    return text.strip()


def saved(page: Page, lab: Lab, path: str) -> Path:
    """Save the notebook, and wait until it is whole on disk: JupyterLab says that it is saved a little before."""
    file = lab.root / path
    before = file.stat().st_mtime_ns
    page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").first.click()  # a box of a widget keeps its keys
    page.keyboard.press("Escape")
    page.keyboard.press("Control+s")
    expect(page.locator(".lm-TabBar-tab.jp-mod-dirty")).to_have_count(0)
    last = b""
    for _ in range(PATIENCE // 250):
        page.wait_for_timeout(250)
        now = file.read_bytes()
        if file.stat().st_mtime_ns > before and now == last and now.rstrip().endswith(b"}"):
            return file
        last = now
    raise AssertionError(f"{path} is not whole on disk")


def reload(page: Page, lab: Lab, path: str) -> None:
    """Save the notebook and load the page again; the kernel goes on."""
    saved(page, lab, path)
    page.goto(lab.url(path))
    loaded(page)
