"""What a widget sends to the browser, without a browser."""

from __future__ import annotations

from typing import Any

import pytest
from ipykernel.kernelbase import Kernel


class Wire:
    """Everything a widget sends from now on: each message, and how many bytes travel beside it."""

    def __init__(self, widget: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[tuple[dict[str, Any], int]] = []
        if getattr(widget.comm, "kernel", self) is None:
            widget.comm.kernel = Kernel()  # ipywidgets 7 sends nothing where there is no kernel
        monkeypatch.setattr(widget.comm, "send", self._note)

    def _note(self, data: Any = None, metadata: Any = None, buffers: Any = None) -> None:
        self.messages.append((data, sum(len(memoryview(b).cast("B")) for b in buffers or ())))
