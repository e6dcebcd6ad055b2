"""What an exported PromptLab holds: every branch of what is shown, in the colours of every measure."""

from __future__ import annotations

from typing import Any

from labkit.generation.token_table import MEASURES
from labkit.widgets.export.contents import Contents, silent
from labkit.widgets.prompt_lab.column import Column


def exported(lab: Any, contents: Contents) -> str | None:
    """The method `exported` of a PromptLab."""
    root = contents.show(lab, live=[lab.measure_choice])
    for column in lab.columns:
        contents.set(column.strip, choosable=False)
        contents.set(column.branches, actions=[])
        chosen = contents.switch((column.branches, "selection"), (lab.measure_choice, "value"))
        scratch = silent(Column(column.lm, alone=column.alone))
        if column.score is not None:
            scratch.show_score(column.score)
            _in_colours(contents, lab, column, scratch, chosen, None)
        elif column.tree is not None:
            scratch.begin(column.tree)
            for number, branch in enumerate(column.tree.branches):
                scratch.show(branch)
                _in_colours(contents, lab, column, scratch, chosen, number)
    return root


def _in_colours(contents: Contents, lab: Any, column: Column, scratch: Column, chosen: Any, number: int | None) -> None:
    scratch.strip.choosable = False
    for measure in MEASURES:
        scratch.colour_by(measure)
        parts = {column.strip: scratch.strip, column.compared: {"hidden": True}, column.numbers: scratch.numbers}
        if column.alone:
            parts[lab.status] = {"text": scratch.said()}
        chosen.when(number, measure, parts=parts, optional=True)
