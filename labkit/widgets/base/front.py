"""The sources of the blocks as a browser gets them: `js/`, without the comments."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FRONT = Path(__file__).parents[1] / "js"
COMMENT = re.compile(r"^ *//.*|/\*\*((?!\*/)[\s\S])*\*/ ?", re.MULTILINE)


@cache
def script_of(*names: str) -> str:
    """Scripts one after the other. Comments, which have the types, stay at home; lines keep their numbers."""
    script = "\n".join((FRONT / f"{name}.js").read_text("utf-8") for name in names)
    return COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), script) + "\n"


@cache
def css_of(*names: str) -> str:
    """The css that goes with these scripts."""
    return "\n".join(file.read_text("utf-8") for name in names if (file := FRONT / f"{name}.css").exists())
