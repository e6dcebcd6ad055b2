"""What is wrong with a workshop's folder on this machine, in one line.

This file is also `check.py` in that folder, where it runs before labkit is installed: it needs nothing but Python, and
any Python since 3.8 can run it to be told that it is too old.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

SUMS = "SHA256SUMS"
ABOUT = "workshop.json"
ROOM = 3 << 30  # bytes on disk for the environment
PLATFORMS = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        for block in iter(lambda: opened.read(1 << 22), b""):
            found.update(block)
    return found.hexdigest()


def wrong(folder: Path, *, environment: Path | None = None) -> str:
    """What is wrong and what to do about it, in one line; empty if nothing is.

    Args:
        folder: the workshop's.
        environment: where labkit is to be installed, for the room on its disk; None: it is installed.
    """
    here = ".".join(map(str, sys.version_info[:2]))
    if not (folder / ABOUT).is_file() or not (folder / SUMS).is_file():
        return f"{folder} is not a whole workshop folder ({ABOUT} or {SUMS} is missing): copy it again, all of it"
    try:
        sums = [line.partition("  ") for line in (folder / SUMS).read_text("utf-8").splitlines()]
    except ValueError:
        return f"{SUMS} is damaged (it is not text): copy it again"
    except OSError as error:
        return f"{SUMS} in {folder} cannot be read ({error.strerror}): copy the folder to a disk of yours"
    if ABOUT not in [name for _, _, name in sums]:  # of its lines the last
        return f"{SUMS} in {folder} is cut short: copy the folder again, all of it"
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        wheels, machines = dict(about["wheels"]), dict(about["machines"])
    except (ValueError, TypeError, KeyError, OSError):
        return f"{ABOUT} is damaged (it cannot be read): copy it again"
    system, machine = PLATFORMS.get(platform.system(), platform.system()), platform.machine().lower()
    if not wheels:
        return "the folder has all packages for no machine: ask the teacher to run `labkit workshop prepare` again"
    if system not in wheels:
        return f"the folder has packages for {_list(wheels)}, not for {system}: ask the teacher for yours"
    if machine not in machines.get(system, []):
        had = _list(machines.get(system, []))
        return f"the folder has packages for {had} processors, not for {machine}: ask the teacher for another machine"
    if environment is not None and here not in wheels[system]:
        needed = _list(wheels[system])
        return f"this is Python {here}, and the packages are for {needed}: install one of these, then set PYTHON to it"
    for expected, _, name in sums:
        file = folder / name
        if not file.is_file():
            return f"{name} is missing in {folder}: copy it again"
        try:
            if digest(file) != expected:
                return f"{name} is damaged (its checksum differs): copy it again"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror}): copy it again"
    if environment is not None:
        there = next(place for place in (environment, *environment.parents) if place.exists())
        free = shutil.disk_usage(str(there)).free
        if free < ROOM:
            return f"{free / 1e9:.1f} GB are free on the disk of {environment}, {ROOM / 1e9:.0f} are needed: make room"
        if not importlib.util.find_spec("venv") or not importlib.util.find_spec("ensurepip"):
            return "this Python has no venv: install it (Debian and Ubuntu: apt install python3-venv)"
        try:
            tempfile.TemporaryFile(dir=str(there)).close()
        except OSError:
            return f"{there} cannot be written: set LABKIT_VENV to a folder of yours"
    return ""


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


if __name__ == "__main__":
    target = Path(sys.argv[1]).expanduser().absolute() if len(sys.argv) > 1 else Path.home() / "labkit-workshop"
    found = wrong(Path(__file__).absolute().parent, environment=target)
    print(found or "ready to install")
    sys.exit(1 if found else 0)
