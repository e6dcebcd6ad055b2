"""Static pictures: what a saved notebook shows of every widget, also to a reader who has not trusted it."""

from __future__ import annotations

import copy
import importlib
import pkgutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from drawn import pictures
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud

import labkit as lk
import labkit.widgets
from labkit.widgets.base.snapshot import HasSnapshot
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.blocks.check_list import CheckList
from labkit.widgets.blocks.curve import Curve
from labkit.widgets.blocks.given_prompt import GivenPrompt
from labkit.widgets.blocks.pair_strip import PairStrip
from labkit.widgets.blocks.prediction import Prediction
from labkit.widgets.blocks.prompt_box import PromptBox
from labkit.widgets.blocks.token_bars import TokenBars

EVIL = "<script>&\"'\x00\x1b\ud800</text></svg>漢字 é"
KEPT = {"div", "span", "img", "table", "tr", "td", "th", "tbody", "details", "summary", "pre", "b", "br"}
"""Tags that JupyterLab keeps in what is not trusted, and that read without their styles."""
WORDS = {"CheckList", "GivenPrompt", "Prediction", "PromptBox", "StatusLine"}
"""Nothing is drawn in these: they leave text."""


def shown_classes() -> dict[str, type]:
    """Every widget class of labkit that people may see."""
    for module in pkgutil.iter_modules(labkit.widgets.__path__, "labkit.widgets."):
        importlib.import_module(module.name)
    found, waiting = {}, [HasSnapshot]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("labkit.") and kind.__name__ not in ("HasSnapshot", "Block", "Tool", "GridTool"):
            found[kind.__name__] = kind
    return found


def made(lm: lk.LanguageModel, text: str) -> dict[str, Callable[[], Any]]:
    """Each widget with something in it, and a text in it that is no HTML."""
    prompt, other = "To Mary, he", "To John, he"
    edges = lambda: lk.edge_attribution(lm, IDS, CORRUPT_IDS, ANSWER, FOIL, progress=False).circuit(20)  # noqa: E731
    return {
        "Heatmap": lambda: lk.Heatmap(np.eye(3), row_labels=[text] * 3, title=text, row_axis=text, texts=[text] * 9),
        "HeadGrid": lambda: lk.HeadGrid(np.full((2, 3, 8, 8), 90, np.uint8), title=text),
        "TokenStrip": lambda: lk.TokenStrip([text, "·b⏎", "c"], [0.1, 0.9, float("nan")], title=text),
        "BranchTree": lambda: lk.BranchTree([{"name": "main", "text": text}, {"name": "b", "parent": 0, "at": 3}]),
        "CircuitView": lambda: lk.CircuitView(edges()),
        "PairStrip": lambda: PairStrip([[text, "b"], [None, "c"]], marks={"differs": [0]}, labels=["clean", "corrupt"]),
        "TokenBars": lambda: TokenBars({text: [(text, 0.7), ("b", 0.1)], "b": []}, title=text),
        "Curve": lambda: Curve(np.array([1.0, np.nan, 2.0]), labels=[text, "1", "2"], title=text),
        "CheckList": lambda: CheckList([[text, True, text]], title=text),
        "Prediction": lambda: Prediction(text, text, options=[text]),
        "StatusLine": lambda: StatusLine(text=text),
        "PromptBox": lambda: PromptBox(value=text, label=text),
        "GivenPrompt": lambda: GivenPrompt(lm, text, label=text),
        "AuditLab": lambda: lk.AuditLab(
            lm, [lk.MinimalPair(text, ("<b>M", "M"), ("<b>J", "M"), text, word="<b>")], background=False
        ),
        "AttentionView": lambda: lk.AttentionView(lm, prompt, background=False),
        "LensView": lambda: lk.LensView(lm, prompt, background=False),
        "PatchLab": lambda: lk.PatchLab(lm, prompt, other, "M", "J", background=False),
        "PromptLab": lambda: lk.PromptLab(lm, prompt, max_new_tokens=4, background=False),
        "QuantLab": lambda: lk.QuantLab(lm, copy.deepcopy(lm), prompt, "M", "J", background=False),
        "SteerLab": lambda: lk.SteerLab(lm, prompt, ["I", "a"], ["u", "b"], layer=1, background=False),
    }  # fmt: skip


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)


@pytest.fixture(scope="module")
def lm() -> lk.LanguageModel:
    return loud("llama")


@pytest.mark.parametrize("name", sorted(shown_classes()))
def test_every_widget_leaves_pictures_that_an_untrusted_notebook_shows(name: str, lm: lk.LanguageModel) -> None:
    widget = made(lm, EVIL)[name]()
    if hasattr(widget, "run"):
        widget.run()
    html = widget.snapshot()
    assert Tags(html).tags <= KEPT
    assert len(html) < 200_000
    drawn = pictures(html)
    assert bool(drawn) == (name not in WORDS)
    for alt, svg in drawn:
        assert len(alt) > 15
        root = ElementTree.fromstring(svg)  # XML that is not well formed shows nothing at all
        assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
        assert root.find("{http://www.w3.org/2000/svg}rect").get("fill") == "#fff"  # any theme's page behind it
        assert not [e for e in root.iter() if e.tag.endswith(("script", "foreignObject"))]
    bundle = widget._repr_mimebundle_()
    assert bundle["text/html"] == html


def test_nothing_public_shows_itself_as_html_but_the_widgets() -> None:
    ours = {name: getattr(lk, name) for name in lk.__all__ if isinstance(getattr(lk, name), type)}
    ways = ("_repr_html_", "_repr_svg_", "_repr_mimebundle_")
    shown = {*shown_classes(), "Scan", "Card"}  # test_scan and test_card look at theirs, with hostile names in them
    assert {name for name, kind in ours.items() if any(hasattr(kind, way) for way in ways)} <= shown


def test_the_alternative_text_says_what_is_in_the_picture(lm: lk.LanguageModel) -> None:
    widgets = made(lm, "Mary")
    names = ("Heatmap", "TokenStrip", "TokenBars", "Curve")
    alt = {name: pictures(widgets[name]().snapshot())[0][0] for name in names}
    assert "3 by 3" in alt["Heatmap"]
    assert "strongest 1 at Mary and 0" in alt["Heatmap"]
    assert "Mary" in alt["TokenStrip"]
    assert "3 tokens" in alt["TokenStrip"]
    assert "Mary 70.0%, b 10.0%" in alt["TokenBars"]
    assert "from 1 at Mary to 2 at 2" in alt["Curve"]
    circuit = widgets["CircuitView"]()
    edge = circuit.circuit.edges.iloc[0]
    assert f"strongest: {edge.sender} to {edge.receiver}" in pictures(circuit.snapshot())[0][0]


def test_a_text_of_any_script_stays_within_its_picture() -> None:
    tokens = ["漢字漢字", "é", "·" + "long" * 200, "x⏎", "🙂", *["·word"] * 300]
    (_, svg), *_ = pictures(lk.TokenStrip(tokens).snapshot())
    root = ElementTree.fromstring(svg)
    wide, high = float(root.get("width")), float(root.get("height"))
    for box in root.findall("{http://www.w3.org/2000/svg}rect")[1:]:
        assert float(box.get("x")) + float(box.get("width")) <= wide
        assert float(box.get("y")) + float(box.get("height")) <= high


def test_the_largest_pictures_keep_a_notebook_small() -> None:
    rough = np.random.default_rng(0).normal(size=(2000, 2000))
    sizes = {
        "heatmap": len(lk.Heatmap(rough, centre=0.0).snapshot()),
        "strip": len(lk.TokenStrip(["·token"] * 5000, np.zeros(5000)).snapshot()),
        "heads": len(lk.HeadGrid(np.random.default_rng(0).integers(0, 255, (32, 32, 24, 24), np.uint8)).snapshot()),
    }
    assert max(sizes.values()) < 500_000, sizes
