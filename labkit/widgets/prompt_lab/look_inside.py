"""From a token of PromptLab into the model: the prefix before it goes to another tool, which opens below."""

from __future__ import annotations

from functools import partial
from typing import Any

import ipywidgets as widgets
import torch

from labkit.widgets.attention_view.view import AttentionView
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.base.tool import Panel, button, in_words, row, shown
from labkit.widgets.lens_view.view import LensView
from labkit.widgets.patch_lab.lab import PatchLab
from labkit.widgets.prompt_lab.column import Column

WORDS = {"AttentionView": "Attention", "LensView": "Lens", "PatchLab": "Patching"}


class LookInside(Panel):
    """A line that offers to look inside before the selected token, and the tool that was opened.

    Attributes:
        tool: the AttentionView, LensView or PatchLab that is open, or None.
    """

    def __init__(self, status: StatusLine, *, background: bool) -> None:
        super().__init__()
        self.status, self._background = status, background
        self.tool: Any = None
        self._from: Column | None = None
        self._where = widgets.Label()
        tools = [
            button(words, partial(self._clicked, name), f"Look inside with {name}") for name, words in WORDS.items()
        ]
        self._close = button("Close", self.close_tool, "Close the tool below")
        self._line = row(self._where, *tools, self._close)
        self._arrange()

    def offer(self, column: Column) -> None:
        """A token was selected, or let go."""
        position = column.strip.selection
        if position is None and self._from is not column:
            return
        self._from = column if position is not None else None
        if position is not None:
            token = column.strip.tokens[position]
            self._where.value = f"Look inside where the model was about to say {token} ({position}):"
        self._arrange()

    def prefix(self) -> torch.Tensor:
        """The ids (1, seq) before the selected token.

        Raises:
            ValueError: no token is selected, or nothing comes before it.
        """
        column = self._from
        position = column.strip.selection if column is not None else None
        if column is None or position is None:
            raise ValueError("no token is selected; click one first")
        if position == 0:
            raise ValueError("there is nothing before the first token; choose a later one")
        ids = column.tree.ids[0].tolist() if column.tree is not None else []
        ids += column.record.ids if column.record is not None else []
        return torch.tensor([ids[:position]], dtype=torch.long)

    def look(self, name: str) -> Any:
        """Open AttentionView, LensView or PatchLab on the prefix of the selected token."""
        ids, column, background = self.prefix(), self._from, self._background
        assert column is not None
        lm = column.lm
        if name == "PatchLab":
            text = lm.tokenizer.decode(ids[0], skip_special_tokens=False)
            self.tool = PatchLab(lm, text, "", *self._answer_and_foil(column), background=background)
        else:
            self.tool = {"AttentionView": AttentionView, "LensView": LensView}[name](lm, ids, background=background)
        self._arrange()
        return self.tool

    def close_tool(self) -> None:
        """Close the opened tool."""
        self.tool = None
        self._arrange()

    def _answer_and_foil(self, column: Column) -> tuple[str, str]:
        """The token that was written, and the likeliest other one."""
        record, at = column.record, (column.strip.selection or 0) - column.offset
        if record is None or not 0 <= at < len(record):
            return "", ""
        taken = record.token(at, column.lm.tokenizer)
        others = [id for id, _, p in taken.alternatives if id != taken.id and p > 0]
        texts = [column.lm.tokens(torch.tensor([[id]]))[0].text for id in (taken.id, *others[:1])]
        return texts[0], texts[1] if len(texts) > 1 else ""

    def _clicked(self, name: str) -> None:
        try:
            self.look(name)
        except ValueError as error:
            self.status.complain(in_words(error))

    def _arrange(self) -> None:
        shown(self._line, self._from is not None or self.tool is not None)
        shown(self._close, self.tool is not None)
        self.children = [self._line, *([self.tool] if self.tool is not None else [])]
