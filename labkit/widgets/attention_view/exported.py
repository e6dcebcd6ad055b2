"""What an exported AttentionView holds: every head at a glance, and as many of them large as there is room for.

Where a token looks is worked out in the page, from the matrix that is large (`js/export_looks.js`). A head that is not
in the file is faint, and says so when it is clicked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from labkit.attention_maps.patterns import AttentionPatterns
from labkit.widgets.attention_view.head_finder import MOST, HeadFinder, ranks
from labkit.widgets.attention_view.head_maps import HeadMaps
from labkit.widgets.base.block import to_wire
from labkit.widgets.blocks.head_grid import HeadGrid
from labkit.widgets.export.contents import Contents, page_choice, silent

Head = tuple[int, int]


def exported(view: Any, contents: Contents, *, heads: Iterable[Head] = ()) -> str | None:
    """The method `exported` of an AttentionView. `heads` go into the file first, then what is shown and chosen, then
    those that look beyond the first token."""
    patterns, finder, maps, looks = view.patterns, view.finder, view.maps, view.looks
    if patterns is None:
        return contents.show(view)
    first = _first(patterns, finder, heads)
    order = page_choice("Order by", [("layer and head", ""), *_scores(patterns)], finder.score)
    direction = looks.direction_choice
    nothing_done = view.action.found is None and view.action.written is None
    left_out = {view.interventions: None} if nothing_done else {}
    root = contents.show(view, live=[direction, order], instead={finder.children[0]: order, **left_out})
    held: list[Head] = []
    if view.weighting != "logit":
        contents.link("window", maps.heatmap, maps.other, maps.difference)
        parts = {"map": maps.heatmap, "strip": looks.strip, "bars": looks.bars, "direction": direction}
        contents.rule("looks", "heatmap_window", "export_looks", **parts)
        held = _large(contents, view, first)
        if len(held) < len(first):
            line = f"{view.status.text} · {len(held)} heads of {len(first)} are in this file; the others are faint"
            contents.set(view.status, text=line)
    _orders(contents, order, patterns, finder.heads, sorted({*first} - {*held}) if held else [])
    return root


def _large(contents: Contents, view: Any, heads: Sequence[Head]) -> list[Head]:
    """The heads that can be seen large, as many as there is room for."""
    maps, scratch, held = view.maps, HeadMaps(), []
    for one in (scratch.heatmap, scratch.other, scratch.difference):
        silent(one)
    nothing = {"values": None, "title": ""}
    absent = {"values": None, "title": "Head %s is not in this file: export with heads=[%s] to put it in"}
    missing = {maps.heatmap: absent, maps.other: nothing, maps.difference: nothing}
    large = contents.switch((view.heads, "selection"), otherwise=missing)
    large.when(None, parts={})
    for head in heads:
        scratch.show(view.sides_of(head), view.weighting)
        parts = {maps.heatmap: scratch.heatmap, maps.other: scratch.other, maps.difference: scratch.difference}
        if not large.when(list(head), parts=parts, optional=True):
            break
        held.append(head)
    return held


def _orders(
    contents: Contents, order: Any, patterns: AttentionPatterns, heads: HeadGrid, faint: Sequence[Head]
) -> None:
    """The heads in every order that is known; faint are those that are not in the file."""
    out = [list(head) for head in faint]
    contents.set(heads, faint=out)
    by = contents.switch((order, "value"))
    by.when("", parts={heads: {"scores": None, "order": None, "faint": out, "title": "Heads", "score": ""}})
    for words, name in _scores(patterns):
        grid = patterns.grid(name)
        look = {"scores": to_wire(grid, None), "order": [list(one) for one in ranks(grid)[:MOST]], "faint": out}
        by.when(name, parts={heads: {**look, "title": f"Heads by {words}", "score": words}})


def _scores(patterns: AttentionPatterns) -> list[tuple[str, str]]:
    """The scores that are known by now."""
    return [(name.replace("_", " "), name) for name in patterns.known_scores]


def _first(patterns: AttentionPatterns, finder: HeadFinder, heads: Iterable[Head]) -> list[Head]:
    """All heads, in the order in which they go into the file."""
    given = [tuple(head) for head in heads]
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
