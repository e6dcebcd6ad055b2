"""What the parts of a PromptLab see of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from labkit.generation.sampling import Sampling
from labkit.generation.tree import Branch
from labkit.language_model import LanguageModel
from labkit.text.types import Prompt
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.prompt_lab.column import Column
from labkit.widgets.prompt_lab.session_file import Run


class Lab(Protocol):
    """A PromptLab: its settings, models and results, and how to request more."""

    lm: LanguageModel
    lms: list[LanguageModel]
    columns: list[Column]
    runs: list[Run]
    now: Run | None
    status: StatusLine
    colours: Any
    mode: Any
    prompt: Any
    seed: Any
    max_new_tokens: Any

    def sampling(self) -> Sampling: ...
    def asked(self, column: int = 0, messages: Sequence[dict[str, Any]] | None = None) -> Prompt: ...
    def turns_to_answer(self) -> list[dict[str, Any]]: ...
    def do(self, work: Callable[[threading.Event], None]) -> None: ...
    def write(self, column: Column, write: Callable[..., Branch]) -> None: ...
    def answered(self) -> None: ...
    def show_run(self, number: int) -> None: ...
    def refresh_snapshot(self) -> None: ...
    def has_trait(self, name: str) -> bool: ...
