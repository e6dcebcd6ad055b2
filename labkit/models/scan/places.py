"""Where a checkpoint's files are: in a folder, in the hub's cache, on the hub, or one GGUF file.

Every place gives the same thing, a list of `File`s that can be read in parts, so that the modules that look into files
need not know where these are. On the hub a part is a range request: of a file of weights the header comes over the
network and nothing else.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from labkit.models.cache import cache_folder
from labkit.models.errors import LoadError, ModelNotFound
from labkit.models.hub_errors import explained
from labkit.models.scan.rules import Finding, found, inert
from labkit.models.sources import pinned

AT_ONCE = 64 << 20
"""Bytes that one read may ask for. Headers and indexes are far smaller, also those of the largest models."""
MOST_FILES = 20_000
WEIGHTS = (".safetensors", ".gguf")
_SKIPPED = {".git"}  # git's own; nothing there is opened by its name
_BLOCK = 64 << 10


class TooMuch(Exception):
    """A file asks for more to be read at once than any honest one does."""


class Bounded:
    """An open file of which no single read takes more than `most` bytes, whatever its content asks for."""

    def __init__(self, file: Any, most: int = AT_ONCE) -> None:
        self._file, self._most = file, most

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self._most:
            raise TooMuch(f"it asks for {size:,} bytes at once")
        every = size is None or size < 0
        data: bytes = self._file.read(self._most + 1 if every else size)
        if every and len(data) > self._most:
            raise TooMuch(f"it asks for more than {self._most:,} bytes at once")
        return data

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self._file.readline(self._most + 1 if size < 0 else size)
        if len(line) > self._most:
            raise TooMuch(f"it has a line of more than {self._most:,} bytes")
        return line

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Bounded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class File:
    """A file of a checkpoint.

    Attributes:
        name: its path inside the checkpoint, with `/`.
        size: bytes.
        opened: gives it open for reading.
    """

    name: str
    size: int
    opened: Callable[[], BinaryIO] = field(repr=False, compare=False)

    @property
    def base(self) -> str:
        """The last part of its name, in small letters."""
        return self.name.rpartition("/")[2].lower()

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.base)[1]

    def open(self, most: int = AT_ONCE) -> Bounded:
        """It, open, with at most so many bytes to one read."""
        return Bounded(self.opened(), most)

    def head(self, size: int) -> bytes:
        """The first bytes."""
        with self.open() as opened:
            return opened.read(min(size, self.size))


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is, and its files.

    Attributes:
        label: what to call it.
        kind: `folder`, `file`, `hub cache` or `hub`.
        files: those that can be read.
        findings: what the listing alone shows, such as links that leave the folder.
        revision: of the hub.
    """

    label: str
    kind: str
    files: tuple[File, ...]
    findings: tuple[Finding, ...] = ()
    revision: str | None = None


def place_of(name: str | os.PathLike[str], *, revision: str | None = None) -> Place:
    """Where the checkpoint of that name is; nothing is downloaded but lists and, later, headers.

    Raises:
        LoadError: it is not there; the message says what to do.
    """
    label, path = str(name), Path(name).expanduser()
    if label == pinned.NAME:
        path = _default()
    if path.is_file():
        return _one_file(label, path)
    if path.is_dir():
        return _folder(label, path, "folder")
    if path.is_absolute() or label.startswith((".", "~")) or label.count("/") > 1 or path.suffix == ".gguf":
        raise ModelNotFound(f"there is no folder or file '{inert(label)}'")
    with explained(label):
        return _of_the_hub(label, revision)


def _default() -> Path:
    """The default model in labkit's cache."""
    made = cache_folder() / pinned.checkpoint(4)
    kept = cache_folder() / pinned.GGUF / f"{pinned.NAME}.gguf"
    if there := [path for path in (made, kept) if path.exists()]:
        return there[0]
    raise ModelNotFound(f"{pinned.NAME} is not on this machine yet. Run `labkit pull`, or scan another model")


# -- on this machine -------------------------------------------------------------------------------------------------


def _one_file(label: str, path: Path) -> Place:
    """A file alone; of a split GGUF all parts that are beside it."""
    paths = [path]
    if split := re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name, re.IGNORECASE):
        every = re.compile(rf"{re.escape(split[1])}-\d{{5}}-of-{split[2]}\.gguf", re.IGNORECASE)
        paths = sorted(one for one in path.parent.iterdir() if every.fullmatch(one.name) and one.is_file())
    files = tuple(File(one.name, one.stat().st_size, _opener(one)) for one in paths)
    return Place(label, "file", files)


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def _folder(label: str, path: Path, kind: str, *, revision: str | None = None) -> Place:
    """A folder with all below it. Links are not followed, except those of the hub's cache to its own blobs."""
    root = path.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    inside = (root, blobs) if blobs else (root,)
    files: list[File] = []
    findings: list[Finding] = []
    for one in _below(root):
        name = one.relative_to(root).as_posix()
        findings += _hiding(name)
        if one.is_symlink():
            to, real = os.readlink(one), Path(os.path.realpath(one))
            if not any(real.is_relative_to(folder) for folder in inside):
                rule = "link-to-weights" if one.suffix in WEIGHTS and real.is_file() else "link-leaves"
                findings.append(found(rule, name, f"a link out of the folder, to {inert(to)}"))
                if rule == "link-leaves":
                    continue
            elif not real.exists():
                findings.append(found("link-broken", name, f"a link to {inert(to)}, which is not there"))
                continue
            elif real.is_dir():
                continue  # looked at where it is
        try:
            status = one.stat()
        except OSError as error:
            findings.append(found("not-looked-at", name, f"it cannot be looked at: {inert(error.strerror)}"))
            continue
        if not stat.S_ISREG(status.st_mode):
            findings.append(found("special-file", name, "not an ordinary file"))
        elif len(files) < MOST_FILES:
            files.append(File(name, status.st_size, _opener(one)))
        else:
            findings.append(
                found("not-looked-at", name, f"more than {MOST_FILES:,} files; this and later ones were left")
            )
            break
    return Place(label, kind, tuple(files), tuple(findings), revision)


def _below(root: Path) -> Iterator[Path]:
    """Every file and every link below a folder, in order."""
    for folder, inner, names in os.walk(root):
        linked = [name for name in inner if Path(folder, name).is_symlink()]
        inner[:] = sorted(name for name in inner if name not in _SKIPPED and name not in linked)
        for name in sorted([*names, *linked]):
            yield Path(folder, name)


def _hiding(name: str) -> list[Finding]:
    return [] if name.isprintable() else [found("name-hides", name, f"the name '{inert(name)}'")]


# -- on the hub ------------------------------------------------------------------------------------------------------


def _of_the_hub(name: str, revision: str | None) -> Place:
    """A model of the hub: as it is in the hub's cache on this machine, if its weights are there, else over the
    network."""
    from huggingface_hub import HfApi, hf_hub_url, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import build_hf_headers

    try:
        kept: Path | None = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        kept = None
    except HFValidationError:
        raise ModelNotFound(
            f"'{inert(name)}' is no folder or file here, and cannot be a model's name on the hub"
        ) from None
    cached = _folder(name, kept, "hub cache", revision=kept.name) if kept else None
    if cached and any(file.name.endswith((*WEIGHTS, ".bin", ".pt", ".pth")) for file in cached.files):
        return cached
    try:
        with explained(name):
            info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except LoadError:
        if cached and cached.files:
            return cached
        raise
    headers = build_hf_headers()
    files, findings = [], []
    for sibling in info.siblings or []:
        if leaves(sibling.rfilename):
            findings.append(found("path-leaves", sibling.rfilename, "the name of a file in the list of the hub"))
            continue
        findings += _hiding(sibling.rfilename)
        url, size = hf_hub_url(name, sibling.rfilename, revision=info.sha), int(sibling.size or 0)
        files.append(File(sibling.rfilename, size, _ranges(url, size, headers)))
    if not files:
        raise LoadError(f"{name} has no files on the hub")
    return Place(name, "hub", tuple(files), tuple(findings), info.sha)


def leaves(name: str) -> bool:
    """Does a path that a checkpoint names lead out of its folder?"""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] in ("", "~") or ":" in parts[0] or "\0" in name


def _ranges(url: str, size: int, headers: dict[str, str]) -> Callable[[], BinaryIO]:
    return lambda: io.BufferedReader(_Ranges(url, size, headers), _BLOCK)


class _Ranges(io.RawIOBase):
    """A file on a web server, read by range requests."""

    def __init__(self, url: str, size: int, headers: dict[str, str]) -> None:
        self._url, self._size, self._headers, self._at = url, size, headers, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        from huggingface_hub.utils import get_session

        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        asked = {**self._headers, "Range": f"bytes={self._at}-{end - 1}"}
        with get_session().stream("GET", self._url, headers=asked, follow_redirects=True) as answer:
            if answer.status_code not in (200, 206) or (answer.status_code == 200 and self._at > 0):
                raise OSError(f"the hub answers {answer.status_code} when asked for a part of it")
            data = b""
            for piece in answer.iter_bytes():  # a server without ranges sends all: stop when there is enough
                data += piece
                if len(data) >= end - self._at:
                    break
        data = data[: end - self._at]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
