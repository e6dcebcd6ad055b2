"""Did an installation change what was there? Two outputs of `pip freeze`, before and after; exits with 1 if it did."""

from __future__ import annotations

import sys
from pathlib import Path


def changed(before: str, after: str) -> list[str]:
    """The lines of `before` that are no longer in `after`: packages replaced or removed."""
    return sorted(set(before.splitlines()) - set(after.splitlines()))


if __name__ == "__main__":
    lost = changed(*(Path(name).read_text("utf-8") for name in sys.argv[1:3]))
    if lost:
        sys.exit(f"installing labkit changed what was there: {', '.join(lost)}")
