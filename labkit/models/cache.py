"""The cache: folders that are written once, completely or not at all.

An entry is built in a temporary folder and moved into place in one step, under a file lock, so that two processes build
it only once. A manifest written last holds every file's size; an entry that does not match it is rebuilt. Several users
can share a cache: its files follow the umask of whoever wrote them, and a complete entry is read without a lock or
write permission.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir
from tqdm.auto import tqdm

from labkit.models.errors import CacheUnusable

MANIFEST = "labkit.json"


def cache_folder() -> Path:
    """Where labkit keeps models: `LABKIT_CACHE`, or the platform's user cache folder.

    Raises:
        CacheUnusable: `LABKIT_CACHE` is in the home folder of somebody who has none here.
    """
    named = os.environ.get("LABKIT_CACHE")
    try:
        return Path(named or user_cache_dir("labkit", appauthor=False)).expanduser()
    except RuntimeError as error:
        raise CacheUnusable(f"LABKIT_CACHE is {named}, and there is no such home folder: write it in full") from error


def is_whole(entry: Path) -> bool:
    """Does the entry hold just the files, at just the sizes, that its manifest lists?

    Raises:
        CacheUnusable: it is there and this user may not read it.
    """
    try:
        files: dict[str, int] = json.loads((entry / MANIFEST).read_text())["files"]
        whole = bool(files) and all((entry / name).stat().st_size == size for name, size in files.items())
        closed = [name for name in files if not os.access(entry / name, os.R_OK)] if whole else []
    except PermissionError as error:
        raise _closed(Path(error.filename or entry)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if closed:
        raise _closed(entry / closed[0])
    return whole


def entry(name: str, build: Callable[[Path], None]) -> Path:
    """The cache entry of that name; built by `build(folder)` where it is missing or broken.

    Raises:
        CacheUnusable: it has to be built and the cache cannot be written, or it cannot be read.
    """
    place = cache_folder() / name
    if is_whole(place):
        return place
    with _writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = Path(f"{place}.lock")
        if not lock.exists():
            lock.touch()  # with the permissions of the umask
        with FileLock(lock, mode=lock.stat().st_mode & 0o777):  # some versions set one of their own
            if is_whole(place):  # another process made it meanwhile
                return place
            if place.exists():
                print(f"labkit: the cached {place.name} is incomplete; making it again", file=sys.stderr)
                shutil.rmtree(place)
            for left in place.parent.glob(f".{place.name}-*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            part = place.with_name(f".{place.name}-{uuid.uuid4().hex[:8]}")
            part.mkdir()
            try:
                build(part)
                files = {str(f.relative_to(part)): f.stat().st_size for f in sorted(part.rglob("*")) if f.is_file()}
                (part / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
                _open_up(part)
                part.rename(place)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return place


def _open_up(folder: Path) -> None:
    """Give everything in a folder the permissions of the umask: those of the manifest and its own.

    What writes weights makes files that only their owner can read.
    """
    file_mode, folder_mode = (folder / MANIFEST).stat().st_mode & 0o777, folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        path.chmod(folder_mode if path.is_dir() else file_mode)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Turn disk errors into messages that say who owns the cache and what to do."""
    other = "keep the models elsewhere: set LABKIT_CACHE to a folder of your own"
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheUnusable(_full(place)) from error
        at = Path(error.filename) if isinstance(error.filename, str) else place
        if (there := _there(place)).is_file() and _below(there, cache_folder()):
            raise CacheUnusable(f"{there} is a file, not a folder; {other}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and _below(at, cache_folder()):
            why = "is on a read-only disk" if error.errno == errno.EROFS else f"belongs to {_owner(at)}"
            raise CacheUnusable(
                f"{place.name} is not in the cache yet and cannot be put there: {at} {why}, and you cannot write "
                f"there. Ask its owner to load the model once, or {other}"
            ) from error
        raise
    except Exception as error:  # safetensors has errors of its own
        if "No space left" in str(error) or "os error 28" in str(error):
            raise CacheUnusable(_full(place)) from error
        raise


def _full(place: Path) -> str:
    free = shutil.disk_usage(_there(place)).free
    return (
        f"the disk is full: {place.name} cannot be written to {place.parent}, where {free / 1e9:.1f} GB are free. Free "
        "some space, or keep the models on another disk: set LABKIT_CACHE to a folder there"
    )


def _closed(path: Path) -> CacheUnusable:
    return CacheUnusable(
        f"{path} is in the cache, but you may not read it; it belongs to {_owner(path)}. Ask them to open the cache to "
        f"others, `chmod -R a+rX {cache_folder()}`, or set LABKIT_CACHE to a folder of your own"
    )


def _owner(path: Path) -> str:
    """Who owns a path, or the nearest folder above it that is there and can be looked at."""
    try:
        return _there(path).owner()
    except (KeyError, OSError, NotImplementedError):
        return "another user"


def _there(path: Path) -> Path:
    # not `Path.exists`, which raises where a folder may not be looked into
    return next((candidate for candidate in (path, *path.parents) if os.path.exists(candidate)), path)


def _below(path: Path, folder: Path) -> bool:
    """Is a path in a folder, or one that the folder is in?"""
    return folder in (path, *path.parents) or path in folder.parents


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
