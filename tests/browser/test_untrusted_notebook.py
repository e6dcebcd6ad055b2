"""A notebook from somebody else, which JupyterLab does not trust: its HTML is cleaned, and the pictures stay."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from driver import Lab, open_notebook
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud
from playwright.sync_api import Browser, expect

import labkit as lk

LOADED = "one => one.complete && one.naturalWidth > 50 && one.naturalHeight > 15"


def shown(widget: object) -> nbformat.NotebookNode:
    """What a displayed widget leaves in a notebook."""
    data = widget._repr_mimebundle_()  # type: ignore[attr-defined]
    return nbformat.v4.new_output("display_data", {k: data[k] for k in ("text/plain", "text/html")})


@pytest.fixture(scope="module")
def notebook(lab: Lab) -> str:
    lm = loud("llama")
    circuit = lk.edge_attribution(lm, IDS, CORRUPT_IDS, ANSWER, FOIL, progress=False).circuit(20)
    prompting = lk.PromptLab(lm, "To Mary, he", max_new_tokens=6, background=False)
    prompting.run()
    words = ["When", "·Mary", "·and", "·John", "·<b>&", "·漢字⏎", "·went"]
    widgets = [
        lk.TokenStrip(words, [0.1, 0.9, 0.4, 0.2, 1.0, 0.6, 0.0], title="Strip"),
        lk.Heatmap(np.linspace(-1, 1, 42).reshape(6, 7), column_labels=words, centre=0.0, title="Map", unit="effect"),
        lk.BranchTree([{"name": "A", "text": "one"}, {"name": "B", "parent": 0, "at": 3, "text": "two"}], title="Ways"),
        lk.CircuitView(circuit),
        lk.PatchLab(lm, "To Mary, he", "To John, he", "M", "J", background=False),
        lk.AttentionView(lm, "To Mary, he", background=False),
        lk.LensView(lm, "To Mary, he", background=False),
        prompting,
    ]
    cells = [nbformat.v4.new_code_cell(repr(type(one).__name__), outputs=[shown(one)]) for one in widgets]
    made = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    nbformat.write(made, lab.root / "somebody_else.ipynb")
    assert (lab.root / "somebody_else.ipynb").stat().st_size < 500_000
    return "somebody_else.ipynb"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pictures_are_there_for_a_reader_who_has_not_trusted_them(
    notebook: str, lab: Lab, browser: Browser, theme: str
) -> None:
    with open_notebook(browser, lab, notebook, dark=theme == "dark") as page:
        frames = page.locator(".labkit-snapshot")
        expect(frames).to_have_count(8)
        for frame in frames.all():
            expect(frame).to_be_visible()
            pictures = frame.locator("img")
            assert pictures.count() >= 1
            for picture in pictures.all():
                picture.scroll_into_view_if_needed()
                expect(picture).to_be_visible()
                assert picture.evaluate(LOADED)
                assert len(picture.get_attribute("alt") or "") > 15
        assert page.locator(".jp-OutputArea-output svg").count() == 0
        if folder := os.environ.get("LABKIT_PICTURES"):
            for number, frame in enumerate(frames.all()):
                frame.screenshot(path=Path(folder) / f"untrusted_{theme}_{number}.png")
