"""What the tools have in common: a model, a queue for its work, a status line, and error messages."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import traitlets as t

from labkit.engine.wavefront import Cancelled
from labkit.language_model import LanguageModel
from labkit.results.recipe import made_with
from labkit.widgets.base.job_queue import JobQueue
from labkit.widgets.base.snapshot import HasSnapshot
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.export.export import page_of

FRAME = 0.08  # seconds between two updates of what is shown while work is running


class Tool(HasSnapshot, widgets.VBox):
    """A column of blocks and controls around one model.

    `start()` requests the work and returns; `wait()` waits for it; `run()` does both; `stop()` ends it early and keeps
    what is done. None of them needs a front end.
    """

    def __init__(self, lm: LanguageModel, *, background: bool | None = None, **traits: Any) -> None:
        self.lm = lm
        self.queue = JobQueue(lm, background=background)
        self.queues = [self.queue]
        self._going: set[object] = set()  # requested but not done
        self.status = StatusLine()
        self.run_button = button("Run", lambda: self.start(), "Run (Ctrl+Enter)", button_style="primary")
        self.stop_button = button("Stop", lambda: self.stop(), "Stop and keep what is done", disabled=True)
        super().__init__(**traits)
        self.add_class("labkit-tool")

    def another_queue(self) -> JobQueue:
        """For work that does not cancel the rest; `wait` and `stop` are about it as well."""
        self.queues.append(JobQueue(self.lm, background=self.queue.background))
        return self.queues[-1]

    def start(self) -> None:
        """Start with the current settings; any running work of this tool is cancelled."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop soon, and keep what is done."""
        for queue in self.queues:
            queue.stop()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the last request.

        Raises:
            ValueError: the input could not be used; the message says why.
            TimeoutError: it is not done after `timeout` seconds.
        """
        for queue in self.queues:
            queue.wait(timeout)

    def do(self, work: Callable[[threading.Event], None], *, queue: JobQueue | None = None) -> None:
        """Run work, show its errors in plain words, and reset the buttons and the picture."""
        mine = object()

        def guarded(stop: threading.Event) -> None:
            try:
                work(stop)
            except Cancelled:
                self.status.say("Stopped.")
            except Exception as error:
                self.status.complain(in_words(error))
                raise
            finally:
                self._going.discard(mine)
                self._settle()
                if not self._going:
                    self.refresh_snapshot()

        self._going.add(mine)
        self.stop_button.disabled = False
        (queue or self.queue).ask(guarded)

    def _settle(self) -> None:
        self.stop_button.disabled = not self._going

    def code(self) -> str:
        """The Python that does the same without the widget."""
        raise NotImplementedError

    def _mime_(self) -> tuple[str, str]:
        """How marimo shows it, which draws blocks but no boxes of ipywidgets: as the page that `export` writes."""
        page = page_of(self, self.snapshot())
        frame = f'<iframe srcdoc="{escape(page)}" style="width:100%;height:640px;border:0"></iframe>'
        return "text/html", frame

    def provenance(self) -> dict[str, Any]:
        return made_with(self.lm)


def in_words(error: Exception) -> str:
    """An error as a sentence for the person at the widget."""
    text = " ".join(str(error).split())[:600]
    if not isinstance(error, ValueError | TypeError | MemoryError):
        text = f"{type(error).__name__}: {text}"
    return text[:1].upper() + text[1:]


def minus(text: str) -> str:
    """A text with minus signs before its negative numbers; hyphens inside names stay."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def row(*children: Any, wide: bool = False) -> widgets.HBox:
    """Children side by side, wrapping to the next line."""
    box = widgets.HBox(list(children))
    box.add_class("labkit-row")
    if wide:
        box.add_class("labkit-wide")
    return box


class Panel(widgets.VBox):
    """A part of a tool: children below each other, at its rhythm."""

    def __init__(self, *children: Any, **traits: Any) -> None:
        super().__init__(children, **traits)
        self.add_class("labkit-column")


def headed(words: str, *children: Any) -> Panel:
    """A column with a heading: controls that answer one question, and what they change."""
    heading = widgets.Label(words)
    heading.add_class("labkit-title")
    return Panel(heading, *children)


def button(words: str, call: Callable[[], Any], tip: str = "", **look: Any) -> widgets.Button:
    """A button that calls this."""
    look |= {"tooltip": tip} if tip else {}  # None is no tooltip to ipywidgets 7
    made = widgets.Button(description=words, **look)
    made.on_click(lambda _: call())
    return made


def labelled(kind: Any, label: str, width: str = "auto", **traits: Any) -> Any:
    """A control of ipywidgets, whose label takes as much room as its words."""
    return kind(description=label, layout={"width": width}, style={"description_width": "initial"}, **traits)


def choice(label: str, options: Mapping[str, str] | Sequence[Any], width: str = "auto") -> widgets.Dropdown:
    """A drop-down with words for values."""
    pairs = [(words, name) for name, words in options.items()] if isinstance(options, Mapping) else options
    return labelled(widgets.Dropdown, label, width, options=pairs)


def link(owner: t.HasTraits, **parts: t.HasTraits) -> None:
    """Keep these traits of a tool the same as those of its parts; of a control, its value."""
    for name, part in parts.items():
        t.link((owner, name), (part, name if part.has_trait(name) else "value"))


def shown(widget: Any, yes: bool) -> None:
    """Show or hide a part of a tool; its place and state stay."""
    display = None if yes else "none"
    if widget.layout.display != display:
        widget.layout.display = display


def special(tokens: Sequence[Any]) -> list[int]:
    """The positions of the special tokens."""
    return [i for i, token in enumerate(tokens) if token.special]
