"""What the widgets' JavaScript and Python have in common: traits, colours, numbers, what is cut and what is drawn.

tests/js has the JavaScript half; `make test-js` runs it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from labkit.widgets.base.block import Block, source
from labkit.widgets.base.colour_scales import SCALES, colour, ink, shade
from labkit.widgets.base.front import COMMENT
from labkit.widgets.base.picture import cut
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.blocks.branch_tree import BranchTree
from labkit.widgets.blocks.check_list import CheckList
from labkit.widgets.blocks.curve import Curve
from labkit.widgets.blocks.head_grid import HeadGrid
from labkit.widgets.blocks.heatmap import Heatmap
from labkit.widgets.blocks.pair_strip import PairStrip
from labkit.widgets.blocks.prediction import Prediction
from labkit.widgets.blocks.prompt_box import PromptBox
from labkit.widgets.blocks.token_bars import TokenBars
from labkit.widgets.blocks.token_strip import TokenStrip
from labkit.widgets.circuit_view import CircuitView, _curve
from labkit.widgets.prompt_lab.column import _share

JS = Path(__file__).parents[1] / "js"
FRONT = Path(__file__).parents[2] / "labkit" / "widgets" / "js"
CASES = json.loads((JS / "cases.json").read_text("utf-8"))
BLOCKS = [
    BranchTree, CheckList, CircuitView, Curve, HeadGrid, Heatmap, PairStrip, Prediction, PromptBox, StatusLine,
    TokenBars, TokenStrip,
]  # fmt: skip


def rows(kind: str) -> list[list[Any]]:
    return CASES[kind]["rows"]


def interfaces() -> dict[str, tuple[list[str], set[str]]]:
    """The interfaces of widgets.d.ts: what each extends, and the names in it."""
    text = (JS / "widgets.d.ts").read_text("utf-8")
    found = re.findall(r"^interface (\w+)(?: extends ([\w, ]+))? \{\n((?:  .*\n)*)\}", text, re.MULTILINE)
    return {
        name: (bases.split(", ") if bases else [], set(re.findall(r"^  (\w+)\??:", body, re.MULTILINE)))
        for name, bases, body in found
    }


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_the_types_of_a_widget_name_its_traits(block: type[Block]) -> None:
    known = interfaces()

    def names(interface: str) -> set[str]:
        bases, own = known[interface]
        return own.union(*(names(base) for base in bases))

    bare = {name for base in block.__mro__ if not issubclass(base, Block) for name in vars(base)}
    synced = {
        name for name, trait in block.class_traits(sync=True).items() if name not in bare and not name.startswith("_")
    }
    assert names(f"{block.__name__}Traits") == synced


def test_every_file_is_in_a_block_and_is_checked() -> None:
    assert {file.stem for file in FRONT.glob("*.css")} <= {file.stem for file in FRONT.glob("*.js")}
    for file in FRONT.glob("*.js"):
        assert file.read_text("utf-8").startswith("// @ts-check\n"), file.name


def test_comments_stay_at_home_and_lines_keep_their_numbers() -> None:
    text = "// @ts-check\n/** One. */\nconst a = /** @type {A} */ (b); // why\n/**\n * Two.\n */\nfunction c() {}\n"
    left = COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)
    assert left.splitlines() == ["", "", "const a = (b); // why", "", "", "", "function c() {}"]
    sent = source("token_chip", "pair_strip")
    assert "/**" not in sent
    assert sent.count("export default") == 1


def test_the_scales_are_those_that_javascript_is_tested_with() -> None:
    assert {(scale, theme): stops for scale, theme, stops in rows("scales")} == {
        (scale, theme): stops for scale, themes in SCALES.items() for theme, stops in themes.items()
    }


def test_colours_and_ink() -> None:
    for scale, theme, at, rgb, on in rows("colours"):
        assert (list(colour(scale, at / 255, theme=theme)), ink(tuple(rgb))) == (rgb, on)


def test_places_on_a_scale() -> None:
    for value, low, high, centre, at in rows("shades"):
        assert round(255 * shade(value, low, high, centre=centre)) == at


def test_shares() -> None:
    for probability, text in rows("shares"):
        assert _share(probability) == text


def test_what_is_cut() -> None:
    for text, columns, shown in rows("cuts"):
        assert cut(text, columns) == shown


def test_curves_between_parts_of_a_circuit() -> None:
    for start, end, path in rows("curves"):
        assert _curve(tuple(start), tuple(end)) == path


def test_a_lock_file_names_no_registry() -> None:
    assert "resolved" not in (JS / "package-lock.json").read_text("utf-8")
