"""From a token of PromptLab into the model: the prefix before it goes to another tool, which opens below."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import torch

from labkit.widgets.attention_view.view import AttentionView
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.base.tool import in_words, row, shown
from labkit.widgets.lens_view.view import LensView
from labkit.widgets.patch_lab.lab import PatchLab
from labkit.widgets.prompt_lab.column import Column

WORDS = {"AttentionView": "Attention", "LensView": "Lens", "PatchLab": "Patching"}


class LookInside(widgets.VBox):
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
        self._buttons = []
        for name, words in WORDS.items():
            button = widgets.Button(description=words, tooltip=f"Look inside with {name}")
            button.on_click(lambda _, name=name: self._clicked(name))
            self._buttons.append(button)
        self._close = widgets.Button(description="Close", tooltip="Close the tool below")
        self._close.on_click(lambda _: self.close_tool())
        self._line = row(self._where, *self._buttons, self._close)
        self.add_class("labkit-column")
        self._arrange()

    def offer(self, column: Column) -> None:
        """A token was selected, or let go."""
        position = column.strip.selection
        if position is None and self._from is not column:
            return
        self._from = column if position is not None else None
        if position is not None:
            self._where.value = (
                f"Look inside where the model was about to say {column.strip.tokens[position]} ({position}):"
            )
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
        if column.tree is not None and column.branch is not None:
            ids = [*column.tree.ids[0].tolist(), *column.branch.record.ids]
        elif column.score is not None:
            ids = column.score.record.ids
        else:
            ids = [token.id for token in column.tree.tokens] if column.tree is not None else []
        return torch.tensor([ids[:position]], dtype=torch.long)

    def look(self, name: str) -> Any:
        """Open AttentionView, LensView or PatchLab on the prefix of the selected token."""
        ids = self.prefix()
        column = self._from
        assert column is not None
        assert column.strip.selection is not None
        lm = column.lm
        background = self._background
        text = lm.tokenizer.decode(ids[0], skip_special_tokens=False)
        if name == "PatchLab":
            answer, foil = self._answer_and_foil(column, column.strip.selection)
            tool: Any = PatchLab(lm, text, "", answer, foil, background=background)
        else:
            tool = {"AttentionView": AttentionView, "LensView": LensView}[name](lm, ids, background=background)
        self.tool = tool
        self._arrange()
        return tool

    def close_tool(self) -> None:
        """Close the opened tool."""
        self.tool = None
        self._arrange()

    def _answer_and_foil(self, column: Column, position: int) -> tuple[str, str]:
        """The token that was written, and the likeliest other one."""
        record, at = column.record, position - column.offset
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
