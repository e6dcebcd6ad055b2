"""Make the folder of a workshop. A second run completes what is missing and leaves alone what is right."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit._version import __version__
from labkit.course.checks import CLEAN, CORRUPT
from labkit.course.folder import CHECKOUT, SHIPPED, write_whole
from labkit.language_model import load
from labkit.models.cache import MANIFEST, is_whole
from labkit.models.sources import default_model as packaged
from labkit.patching.patch import patch
from labkit.workshop import folder_check
from labkit.workshop.page import INSTALL_PS1, INSTALL_SH, page
from labkit.workshop.wheels import PLATFORMS, fetch, needed, own_wheel, unmet

SIZE = 600 << 20  # bytes of wheels per platform and Python, at most
REST = 800 << 20  # the model, in 4 bits and in 32, notebooks and grids


@dataclass(frozen=True)
class Prepared:
    """A workshop's folder, its size in bytes, and why what could not be had is not in it."""

    folder: Path
    size: int
    missing: dict[str, str]


def prepare(
    folder: str | os.PathLike[str],
    *,
    platforms: Sequence[str] = tuple(PLATFORMS),
    pythons: Sequence[str] = ("3.11", "3.12", "3.13"),
    notebooks: Sequence[str] = ("00", "01", "02", "03", "04"),
    index: str | None = None,
) -> Prepared:
    """Make, or complete, a folder from which a machine without a network installs labkit and runs notebooks.

    Args:
        folder: where; it is made if it is not there.
        platforms: `linux` (x86-64), `macos` (arm64), `windows` (x86-64).
        pythons: versions of Python, such as `3.12`.
        notebooks: the numbers of those that go into it.
        index: one more package index, such as that of PyTorch's CPU builds; on Linux the usual one has the CUDA build.

    Raises:
        ValueError: an unknown platform, Python or notebook, or too little room on the disk; before any work.
        LoadError: the default model cannot be had.
        ConnectionError: packages are missing, and pip does not reach the package index.
    """
    place = Path(folder).expanduser().absolute()
    chosen = _check(place, platforms, pythons, notebooks)
    (place / "wheels").mkdir(parents=True, exist_ok=True)
    lacking: dict[str, str] = {}
    got: dict[str, list[str]] = {name: [] for name in platforms}
    if why := own_wheel(place / "wheels"):
        lacking["labkit"] = why
    for name in platforms:
        for python in pythons:
            print(f"labkit: packages for {name}, Python {python}", file=sys.stderr)
            kind = PLATFORMS[name]
            first = {"torch": needed(kind, python)["torch"]}  # what its build needs counts, not that of the one here
            fetch(place / "wheels", first, kind, python, index=index)
            wanted = needed(kind, python, folder=place / "wheels")
            failed = fetch(place / "wheels", wanted, kind, python, index=index)
            failed = unmet(place / "wheels", kind, python) | failed
            if "cuda-toolkit" in failed:  # PyTorch for CUDA: gigabytes, of no use to most
                failed["cuda-toolkit"] += (
                    "; take PyTorch's CPU build: delete wheels/torch-*, and name its index with --index"
                )
            lacking |= {f"{package} for {name}, Python {python}": why for package, why in failed.items()}
            got[name] += [] if failed else [python]
    _model_and_grids(place)
    for source in chosen:
        _put(place / "notebooks" / source.name, source.read_bytes())
    wheels = {name: found for name, found in got.items() if found}
    machines = {name: _spellings(name) for name in wheels}
    about = {"labkit": __version__, "wheels": wheels, "machines": machines}
    _put(place / folder_check.ABOUT, json.dumps(about, indent=1).encode())
    _put(place / "check.py", Path(folder_check.__file__).read_bytes())
    _put(place / "install.sh", INSTALL_SH.encode())
    (place / "install.sh").chmod(0o755)
    _put(place / "install.ps1", INSTALL_PS1.replace("\n", "\r\n").encode())
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    text = page(wheels, notebooks=[source.name for source in chosen], size=f"{size / 1e9:.1f} GB")
    _put(place / "index.html", text.encode())
    _write_sums(place)
    return Prepared(place, size, lacking)


def _check(place: Path, platforms: Sequence[str], pythons: Sequence[str], notebooks: Sequence[str]) -> list[Path]:
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise ValueError(f"there are packages for {', '.join(PLATFORMS)}; got {', '.join(unknown)}")
    for python in pythons:
        numbers = python.split(".")
        if len(numbers) != 2 or not all(n.isdigit() for n in numbers) or (int(numbers[0]), int(numbers[1])) < (3, 11):
            raise ValueError(f"labkit needs Python 3.11 or newer, written such as 3.12; got {python!r}")
    shipped = SHIPPED if SHIPPED.is_dir() else CHECKOUT
    files = {number: next(shipped.glob(f"{number}_*.ipynb"), None) for number in notebooks}
    if unknown := [number for number, file in files.items() if file is None]:
        raise ValueError(f"there is no notebook {', '.join(unknown)}; write 00 to 11")
    there = next(above for above in (place, *place.parents) if above.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file, not a folder")
    had = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) if place.is_dir() else 0
    room, free = max(0, SIZE * len(platforms) * len(pythons) + REST - had), shutil.disk_usage(there).free
    if free < room:
        raise ValueError(
            f"{place} takes up to {room / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free: choose another disk, or "
            "fewer platforms or versions of Python"
        )
    return [file for file in files.values() if file is not None]


def _spellings(name: str) -> list[str]:
    """What Python's `platform.machine()` calls the processors of a platform, in small letters."""
    return [*PLATFORMS[name].machines, *(["x86_64"] if name == "windows" else [])]


def _model_and_grids(place: Path) -> None:
    """The default model in 4 bits, and in 32 for other precisions, as a cache has them; and grids of notebook 04.

    Made on each machine, the second would take 1 GB of memory beside the first, and a folder that can be written to.
    """
    for bits in (4, 32):
        target = place / "cache" / packaged.checkpoint(bits)
        if is_whole(target):
            continue
        source = packaged.default_checkpoint(bits=bits, progress=True)
        for file in sorted(source.iterdir(), key=lambda file: file.name == MANIFEST):  # it is whole by the last
            _put(target / file.name, file.read_bytes())
    sites = [site for site in ("resid_pre", "z") if not (place / "grids" / f"{site}.npz").is_file()]
    if sites:
        (place / "grids").mkdir(exist_ok=True)
        lm = load(progress=False)
        for site in sites:
            patch(lm, CLEAN, CORRUPT, " Mary", " John", site=site, progress=False).save(place / "grids" / f"{site}.npz")


def _put(file: Path, content: bytes) -> None:
    """Write a file, whole or not at all, unless it is right already."""
    if file.is_file() and file.read_bytes() == content:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, content)


def _write_sums(place: Path) -> None:
    files = sorted(f for f in place.rglob("*") if f.is_file() and f.name != folder_check.SUMS)
    lines = [f"{folder_check.digest(file)}  {file.relative_to(place).as_posix()}\n" for file in files]
    _put(place / folder_check.SUMS, "".join(lines).encode())
