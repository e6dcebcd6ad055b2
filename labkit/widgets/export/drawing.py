"""The pictures of a snapshot below each other, as one SVG; and that as a PNG.

A snapshot is HTML with an SVG in each `<img>`, and lines of text and small tables between them (`base.snapshot`).
Nothing is drawn anew: the drawings are put into one, and the text is set between them.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from textwrap import wrap

from labkit.widgets.base.picture import drawing, xml

_SVG = "data:image/svg+xml;base64,"
_SIZE = re.compile(r'^<svg [^>]*?width="(\d+)" height="(\d+)"')
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_WIDEST = 1140  # pixels of a drawing of all parts
_BLOCKS = {"div", "tr", "p", "li", "table"}


class _Reader(HTMLParser):
    """Drawings and lines of text, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[str, str]] = []  # ("svg", drawing), or ("text", line)
        self._line: list[str] = []
        self._folded = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._folded += tag == "details"
        if tag in _BLOCKS:
            self._end()
        if tag == "img" and (address := dict(attrs).get("src") or "").startswith(_SVG):
            self._end()
            self.parts.append(("svg", base64.b64decode(address.removeprefix(_SVG)).decode()))

    def handle_endtag(self, tag: str) -> None:
        self._folded -= tag == "details"
        if tag in _BLOCKS:
            self._end()
        elif tag == "td":
            self._line.append("  ")

    def handle_data(self, data: str) -> None:
        if not self._folded:
            self._line.append(data)

    def _end(self) -> None:
        if text := "".join(self._line).strip():
            self.parts.append(("text", text))
        self._line = []


def as_svg(still: str) -> str:
    """One SVG of all that a snapshot shows; what it folds away is left out.

    Raises:
        ValueError: it shows nothing.
    """
    reader = _Reader()
    reader.feed(still)
    reader.close()
    if not any(kind == "svg" for kind, _ in reader.parts):
        raise ValueError("there is no picture yet: run it first")
    out, y, right = [], 8, 200
    for n, (kind, part) in enumerate(reader.parts):
        if kind == "text":
            look = ' class="b"' if n == 0 else ' class="q"'
            for line in wrap(part, 150):
                out.append(f'<text x="8" y="{y + 13}"{look}>{xml(line)}</text>')
                y, right = y + 18, max(right, 12 + int(6.2 * len(line)))
            continue
        size = _SIZE.match(part)
        assert size is not None  # as base.picture makes them
        wide, high = int(size[1]), int(size[2])
        out.append(part.replace("<svg ", f'<svg x="4" y="{y}" ', 1))
        y, right = y + high + 10, max(right, wide + 8)
    return drawing("".join(out), min(right, _WIDEST), y + 4)


def as_png(svg: str, *, scale: float = 2.0) -> bytes:
    """An SVG as a PNG, drawn by a browser without a window; `LABKIT_CHROMIUM` names one that is not on the path.

    Raises:
        RuntimeError: there is no browser, or it failed.
    """
    browser = os.environ.get("LABKIT_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        raise RuntimeError(
            "a PNG is drawn by Chromium or Chrome, and there is none here: install one, name it in LABKIT_CHROMIUM, or "
            "export to .svg or .html, which need nothing"
        )
    size = _SIZE.match(svg)
    assert size is not None
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "picture.svg"), Path(folder, "picture.png")
        source.write_text(svg, "utf-8")
        root = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []  # it runs in no other way then
        command = [
            browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", *root,
            f"--user-data-dir={folder}/profile", f"--force-device-scale-factor={scale}",
            f"--window-size={size[1]},{size[2]}", f"--screenshot={target}", source.as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"{browser} did not draw the picture ({error}); export to .svg instead") from None
        if not target.exists():
            said = done.stderr.decode(errors="replace").strip()[-300:]
            raise RuntimeError(f"{browser} did not draw the picture; export to .svg instead. It said: {said}")
        return target.read_bytes()
