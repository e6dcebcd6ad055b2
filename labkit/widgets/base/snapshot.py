"""What a widget looks like without a kernel: in a saved notebook, on GitHub and nbviewer, in a terminal.

A widget that is displayed leaves two outputs: the live view, and a picture of it as plain HTML. The picture is hidden
by the block's own css as long as a block is alive on the page, and it is replaced when the widget has something new to
show, without touching the live view. What is drawn is in images (`picture`); around them are titles, notes and tables,
which read as well without their styles.
"""

from __future__ import annotations

from html import escape
from typing import Any

VIEW = "application/vnd.jupyter.widget-view+json"
_SANS = "font:13px/1.5 system-ui,sans-serif"


class HasSnapshot:
    """How a widget shows itself: repr as text, a picture as HTML, the live view where there is a front end."""

    _picture: Any = None  # the display handle of the picture, once there is one

    def snapshot(self) -> str:
        """The widget as self-contained HTML without scripts; every text in it is escaped."""
        raise NotImplementedError

    def _view(self) -> dict[str, Any]:
        return {"version_major": 2, "version_minor": 0, "model_id": self.model_id}  # type: ignore[attr-defined]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **_: Any) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": self.snapshot(), VIEW: self._view()}

    def _ipython_display_(self, **_: Any) -> None:
        from IPython.display import display

        display({"text/plain": repr(self), VIEW: self._view()}, raw=True)
        self._picture = display(self._picture_data(), raw=True, display_id=True)

    def _picture_data(self) -> dict[str, str]:
        return {"text/plain": "", "text/html": self.snapshot()}

    def refresh_snapshot(self) -> None:
        """Put the present picture into the notebook in place of the one that was left when it was displayed."""
        if self._picture is not None:
            self._picture.update(self._picture_data(), raw=True)


def card(*parts: str, title: str = "") -> str:
    """The frame around a picture; light, because a saved notebook does not know its reader's theme."""
    head = f'<div style="font-weight:600;margin-bottom:6px">{escape(title)}</div>' if title else ""
    return (
        f'<div class="labkit-snapshot" style="{_SANS};color:#1f2328;background:#fff;padding:8px 10px;max-width:1000px">'
        f"{head}{''.join(parts)}</div>"
    )


def side_by_side(*parts: str) -> str:
    """Pictures beside each other, as far as there is room."""
    return f'<div style="display:flex;flex-wrap:wrap;gap:24px;align-items:flex-start">{"".join(parts)}</div>'


def folded_code(code: str) -> str:
    """The code of a tool, folded away."""
    return (
        '<details><summary style="color:#59636e">Code</summary>'
        f'<pre style="font-size:12px;margin:4px 0">{escape(code)}</pre></details>'
    )


def note(text: str) -> str:
    """A line of quiet text."""
    return f'<div style="color:#59636e;margin:4px 0">{escape(text)}</div>'
