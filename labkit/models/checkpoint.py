"""The cache: folders that are made once, whole or not at all.

An entry is built in a folder beside its place and moved there in one step, under a file lock, so that two processes
that want it at once make it once. A manifest written last holds every file's size; an entry that does not match it is
made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir
from tqdm.auto import tqdm

MANIFEST = "labkit.json"


def cache_folder() -> Path:
    """Where labkit keeps models: `LABKIT_CACHE`, or the platform's user cache folder."""
    return Path(os.environ.get("LABKIT_CACHE") or user_cache_dir("labkit", appauthor=False)).expanduser()


def is_whole(entry: Path) -> bool:
    """Does the entry hold just the files, at just the sizes, that its manifest lists?"""
    try:
        files: dict[str, int] = json.loads((entry / MANIFEST).read_text())["files"]
        return bool(files) and all((entry / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def entry(name: str, build: Callable[[Path], None]) -> Path:
    """The cache entry of that name; built by `build(folder)` where it is missing or broken."""
    place = cache_folder() / name
    if is_whole(place):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if is_whole(place):  # another process made it meanwhile
            return place
        if place.exists():
            print(f"labkit: the cached {place.name} is incomplete; making it again", file=sys.stderr)
            shutil.rmtree(place)
        part = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}-"))
        try:
            build(part)
            files = {str(f.relative_to(part)): f.stat().st_size for f in sorted(part.rglob("*")) if f.is_file()}
            (part / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
            part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return place


def sha256(path: Path, *, progress: bool) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    shown = progress and total > 200 << 20  # a smaller file takes less than a second
    bar = tqdm(total=total, desc="checking", unit="B", unit_scale=True, disable=not shown)
    with path.open("rb") as file, bar:
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
