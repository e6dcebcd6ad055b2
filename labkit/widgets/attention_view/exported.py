"""What an exported AttentionView holds: every head at a glance, and as many of them large as there is room for.

Where a token looks is worked out in the page, from the matrix that is large (`js/export_looks.js`). A head that is not
in the file is faint, and says so when it is clicked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from labkit.attention_maps.patterns import AttentionPatterns
from labkit.widgets.attention_view.head_finder import MOST, HeadFinder, ranks
from labkit.widgets.attention_view.head_maps import HeadMaps, Side
from labkit.widgets.base.block import to_wire
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.blocks.token_looks import TokenLooks
from labkit.widgets.export.contents import Contents, page_choice, silent

Head = tuple[int, int]


def exported(
    into: Contents,
    view: Any,
    *,
    patterns: AttentionPatterns,
    finder: HeadFinder,
    maps: HeadMaps,
    looks: TokenLooks,
    status: StatusLine,
    weighting: str,
    sides: Callable[[Head], Sequence[Side]] | None,
    heads: Iterable[Head] | None,
) -> str | None:
    """Fill the contents; the id of the whole.

    Args:
        view: the whole.
        sides: what is large for a head; None where it is not heads that are.
        heads: those that come first; by default the chosen ones, then those that look beyond the first token.
    """
    order = page_choice("Order by", [("layer and head", ""), *_scores(patterns, finder)], finder.score)
    direction = looks.children[1].children[0]
    root = into.show(view, live=[direction, order], instead={finder.children[0]: order})
    held: list[Head] = []
    if sides is not None:
        into.link("window", maps.heatmap, maps.other, maps.difference)
        parts = {"map": maps.heatmap, "strip": looks.strip, "bars": looks.bars, "direction": direction}
        into.rule("looks", "heatmap_window", "export_looks", **parts)
        held = _large(into, finder, maps, status, weighting, sides, _first(patterns, finder, heads))
    _orders(into, order, patterns, finder, held)
    return root


def _large(
    into: Contents,
    finder: HeadFinder,
    maps: HeadMaps,
    status: StatusLine,
    weighting: str,
    sides: Callable[[Head], Sequence[Side]],
    heads: Sequence[Head],
) -> list[Head]:
    """The heads that can be seen large, as many as there is room for."""
    nothing = {"values": None, "title": ""}
    missing = {
        status: {"text": "Head %s is not in this file: export with heads=[%s] to put it in.", "kind": "error"},
        maps.heatmap: {"values": None, "title": "Head %s is not in this file"},
        maps.other: nothing, maps.difference: nothing,
    }  # fmt: skip
    large = into.switch((finder.heads, "selection"), otherwise=missing)
    large.when(None, parts={})
    scratch, held = HeadMaps(), []
    for one in (scratch.heatmap, scratch.other, scratch.difference):
        silent(one)
    for head in heads:
        scratch.show(sides(head), weighting)
        parts = {maps.heatmap: scratch.heatmap, maps.other: scratch.other, maps.difference: scratch.difference}
        if not large.when(list(head), parts=parts, optional=True):
            break
        held.append(head)
    return held


def _orders(into: Contents, order: Any, patterns: AttentionPatterns, finder: HeadFinder, held: Sequence[Head]) -> None:
    """The heads in every order that is known, and faint where they are not in the file."""
    out = (
        [
            [layer, head]
            for layer in range(patterns.n_layers)
            for head in range(patterns.n_heads)
            if (layer, head) not in set(held)
        ]
        if held
        else []
    )
    into.set(finder.heads, faint=out)
    by = into.switch((order, "value"))
    by.when("", parts={finder.heads: {"scores": None, "order": None, "faint": out, "title": "Heads", "score": ""}})
    for words, name in _scores(patterns, finder):
        grid = patterns.grid(name)
        look = {"scores": to_wire(grid, None), "order": [list(one) for one in ranks(grid)[:MOST]], "faint": out}
        by.when(name, parts={finder.heads: {**look, "title": f"Heads by {words}", "score": words}})


def _scores(patterns: AttentionPatterns, finder: HeadFinder) -> list[tuple[str, str]]:
    """The scores that are known by now."""
    names = dict.fromkeys([*patterns.known_scores, *([finder.score] if finder.score else [])])
    return [(name.replace("_", " "), name) for name in names]


def _first(patterns: AttentionPatterns, finder: HeadFinder, heads: Iterable[Head] | None) -> list[Head]:
    """All heads, in the order in which they go into the file."""
    given = [tuple(head) for head in heads or ()]
    for layer, head in given:
        if layer not in patterns.layers or not 0 <= head < patterns.n_heads:
            raise ValueError(
                f"there is no head ({layer}, {head}); layers go to {patterns.n_layers - 1}, heads to "
                f"{patterns.n_heads - 1}"
            )
    shown = [tuple(one) for one in (finder.selection, *finder.chosen) if one is not None]
    thumbnails = finder.heads.thumbnails
    size = thumbnails.shape[-1]
    elsewhere = np.tril(np.ones((size, size), bool), -1)
    elsewhere[:, 0] = False
    telling = thumbnails[..., elsewhere].astype(np.float32).mean(-1) if elsewhere.any() else thumbnails[..., 0, 0]
    rest = [head for head in ranks(np.asarray(telling, np.float32)) if head[0] in patterns.layers]
    ranked = [tuple(head) for head in finder.heads.order or ()]
    return list(dict.fromkeys([*given, *shown, *ranked, *rest]))
