"""Where the notebooks of the course are: in the checkout, or in a folder of the user's, copied there from the wheel.

A wheel has the notebooks inside the package, where nobody should write. On first use they are copied to
`~/labkit-notebooks`, or to the folder that LABKIT_NOTEBOOKS names. What the user changed there is never overwritten: a
note beside the copies (`.labkit.json`) says what each was when it was copied, so that a later version of labkit
replaces unchanged ones and leaves the others.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

SHIPPED = Path(__file__).parent / "notebooks"  # in a wheel
CHECKOUT = Path(__file__).parents[2] / "notebooks"  # beside the package, where labkit is developed
NOTE = ".labkit.json"


@dataclass(frozen=True)
class Course:
    """The folder with the notebooks, and what was done to make it so; `kept` are the user's own, older versions."""

    folder: Path
    copied: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def notebooks(*, shipped: Path = SHIPPED, checkout: Path = CHECKOUT) -> Course | None:
    """The notebooks, copied from the wheel where need be; None if this labkit has none.

    Raises:
        OSError: the folder cannot be written.
    """
    if not shipped.is_dir():
        return Course(checkout) if (checkout / "00_start_here.ipynb").is_file() else None
    folder = Path(os.environ.get("LABKIT_NOTEBOOKS") or Path.home() / "labkit-notebooks").expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / NOTE
    before = _read(note)
    came, copied, kept = dict(before), [], []
    for source in sorted(shipped.glob("*.ipynb")):
        new, target = source.read_bytes(), folder / source.name
        there = _digest(target.read_bytes()) if target.exists() else None
        if there is None or (there == before.get(source.name) != _digest(new)):
            write_whole(target, new)
            copied.append(source.name)
        elif there != _digest(new) and before.get(source.name) != _digest(new):
            kept.append(source.name)  # the user's, and labkit has a newer one
            continue
        came[source.name] = _digest(new)
    if came != before:
        write_whole(note, json.dumps(came, indent=1).encode())
    return Course(folder, tuple(copied), tuple(kept))


def originals() -> Path:
    """The notebooks as labkit has them, which are not to be written to.

    Raises:
        ValueError: this labkit has none.
    """
    for folder in (SHIPPED, CHECKOUT):
        if (folder / "00_start_here.ipynb").is_file():
            return folder
    raise ValueError("this installation of labkit has no notebooks")


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def _read(note: Path) -> dict[str, str]:
    try:
        found = json.loads(note.read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # without the note every file that differs counts as the user's
    return found if isinstance(found, dict) else {}


def write_whole(file: Path, content: bytes) -> None:
    """Whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content)
    part.replace(file)
