"""What a widget looks like without a kernel: in a saved notebook, on GitHub and nbviewer, in a terminal.

A widget that is displayed leaves two outputs: the live view, and a picture of it as plain HTML. The picture is hidden
by the block's own css as long as a block is alive on the page, and it is replaced when the widget has something new to
show, without touching the live view. What is drawn is in images (`picture`); around them are titles, notes and tables,
which read as well without their styles.
"""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

from labkit.widgets.export.contents import Contents
from labkit.widgets.export.export import export

VIEW = "application/vnd.jupyter.widget-view+json"
_SANS = "font:13px/1.5 system-ui,sans-serif"


class HasSnapshot:
    """How a widget shows itself: repr as text, a picture as HTML, the live view where there is a front end."""

    _picture: Any = None  # the display handle of the picture, once there is one

    def snapshot(self) -> str:
        """The widget as self-contained HTML without scripts; every text in it is escaped."""
        raise NotImplementedError

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False, **what: Any) -> Path:
        """Write the widget as one file that needs no kernel: `.html` stays alive, `.svg` and `.png` are its picture.

        A page takes at most 2 MB. It answers what was computed: a click on a head, a cell or a token, another site.
        With scripts off it shows the picture. `.svg` needs nothing, `.png` a Chromium or Chrome on this machine.

        Args:
            path: the file; its ending says what is written.
            overwrite: replace a file that is there.
            what: what to put into a page beyond the usual, by tool: `heads=[(5, 3)]` of an `AttentionView`,
                `cells=[(5, 9)]` and `strongest=48`, how many cells beside these, of a `PatchLab`.

        Raises:
            FileExistsError: there is such a file, and it is not to be replaced.
            FileNotFoundError: there is no such folder.
            ValueError: another ending, nothing to show yet, or a head or cell that is not there.
            RuntimeError: a PNG, and there is no browser to draw it.
        """
        return export(self, path, overwrite=overwrite, **what)

    def exported(self, contents: Contents) -> str | None:
        """Put what a page shows into its contents, and what follows from a click; the id of the whole.

        Blocks are alive by themselves; a tool says what its kernel would have answered.
        """
        return contents.show(self)

    def provenance(self) -> dict[str, Any]:
        """The recipe of what is shown, or what is known of it, for the end of a page."""
        return {}

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
