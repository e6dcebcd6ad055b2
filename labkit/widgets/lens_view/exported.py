"""What an exported LensView holds: every cell of the lens with its tokens, in each shade, and the attribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labkit.language_model import LanguageModel
from labkit.lens.logit_lens import SHADES
from labkit.widgets.export.contents import Contents, look_of, silent
from labkit.widgets.lens_view.lens_panel import LensPanel


def exported(
    into: Contents, view: Any, *, lm: LanguageModel, panel: LensPanel, faces: Any, panels: Sequence[Any]
) -> str | None:
    """Fill the contents; the id of the whole.

    Args:
        view: the whole.
        panel: the face with the lens.
        faces: the control that chooses a face; `panels` are those that have something to show.
    """
    shade = panel.children[0].children[1]
    live = [shade] if panel.lens is not None else []
    several = len(panels) > 1
    root = into.show(view, live=[*live, *([faces] if several else [])])
    if several:
        names = {"lens": 0, "direct": 1}
        into.set(faces, options=[[words, value] for words, value in faces.options if value in names])
        face = into.switch((faces, "value"))
        for name, at in names.items():
            face.when(name, parts={one: {"hidden": n != at} for n, one in enumerate(panels)})
    if panel.lens is None or not into.has(panel.heatmap):
        return root
    scratch = silent(LensPanel(lm, lambda: None, lambda: None))
    scratch.shade, scratch.lens = panel.shade, panel.lens
    colour = into.switch((shade, "value"))
    for name in SHADES:
        scratch.shade = name
        colour.when(name, parts={panel.heatmap: scratch.heatmap})
    absent = {
        "columns": [],
        "title": "Not in this file",
        "note": "There was no room for every cell.",
    }
    close = into.switch((panel.heatmap, "selection"), otherwise={panel.bars: absent})
    close.when(None, parts={})
    lens = panel.lens
    into.rule("row", curve=panel.curve, map=panel.heatmap)
    for r, layer in reversed(list(enumerate(lens.layers))):
        for c, position in enumerate(lens.positions):
            scratch.selection = (layer, position)
            parts = {panel.bars: scratch.bars, panel.curve: look_of(scratch.curve) | {"selection": r}}
            if not close.when([r, c], parts=parts, optional=True):
                return root
    return root
