"""`labkit workshop prepare FOLDER` and `labkit workshop check FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from labkit.models.errors import CacheUnusable, LoadError
from labkit.workshop.folder_check import wrong


def add_parser(commands: Any) -> None:
    """Add the command to those of `labkit`."""
    workshop = commands.add_parser("workshop", help="a folder from which a class installs labkit without a network")
    what = workshop.add_subparsers(dest="what", metavar="WHAT", required=True)
    made = what.add_parser("prepare", help="make the folder, or complete it")
    made.add_argument("folder", type=Path)
    made.add_argument("--platform", default="linux,macos,windows", help="linux, macos, windows (default: all)")
    made.add_argument("--python", default="3.11,3.12,3.13", help="versions of Python (default: %(default)s)")
    made.add_argument("--notebooks", default="00-04", help="numbers of notebooks, such as 00-04,06 (default)")
    made.add_argument("--index", default=None, help="one more package index, such as that of PyTorch's CPU builds")
    check = what.add_parser("check", help="say in one line what is wrong on this machine")
    check.add_argument("folder", type=Path, nargs="?", default=Path(), help="the workshop's folder (default: this one)")


def run(parsed: argparse.Namespace) -> int:
    """0: all is there, or well."""
    if parsed.what == "check":
        folder = parsed.folder.expanduser().absolute()
        if not (found := wrong(folder)):
            try:
                from labkit.workshop.check import problem

                found = problem(folder)
            except CacheUnusable as error:
                found = str(error)
            except (ImportError, OSError, RuntimeError) as error:  # of PyTorch's libraries too
                found = f"the installation is broken ({error}): delete it and run the install script again"
        print(found or "ready")
        return 1 if found else 0
    from labkit.workshop.prepare import prepare

    try:
        made = prepare(
            parsed.folder, platforms=_parts(parsed.platform), pythons=_parts(parsed.python),
            notebooks=_numbers(parsed.notebooks), index=parsed.index,
        )  # fmt: skip
    except (LoadError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for what, why in made.missing.items():
        print(f"not had: {what} ({why})", file=sys.stderr)
    size = f"{made.folder} is {made.size / 1e9:.2f} GB"
    if made.missing:
        print(
            f"{size}, without all packages for the platforms and Pythons just listed: run the same command again, or "
            "hand it out for the others, which index.html names",
            file=sys.stderr,
        )
        return 1
    print(f"{size}: hand it out whole; participants open index.html")
    return 0


def _parts(text: str) -> list[str]:
    """Of `linux,macos`, each."""
    return [part.strip() for part in text.split(",")]


def _numbers(text: str) -> list[str]:
    """The notebooks of `00-04,06`."""
    found = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise ValueError(f"--notebooks takes numbers such as 00-04,06; got {text!r}")
        if int(first) > int(last or first):
            raise ValueError(f"--notebooks takes the lower number first, {last}-{first}; got {text!r}")
        found += [f"{number:02d}" for number in range(int(first), int(last or first) + 1)]
    return found
