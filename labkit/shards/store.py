"""Where work in shards keeps what it has done: a folder with a manifest and one file per shard.

The manifest says what is computed, and its hash is in every shard, so results of two calls cannot mix. A shard is
written to a temporary file, synced and moved into place in one step. One that is damaged all the same (by its checksum
or contents) counts as missing. While a call runs it holds the folder's lock, which the system releases however the
process ends.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from filelock import FileLock, Timeout

from labkit.results.file import KINDS, MANIFESTS, open_about, reading, written_whole


class Store:
    """The folder of one call; a class for each kind of result says what its shards hold.

    Attributes:
        kind: of file, as in `labkit.results.file.KINDS`.
        worked_on: what the items are called, in the manifest and in words: `pairs`, `texts`.
        ending: of the names of shards.
        folder: where it is.
        recipe: what is computed, as JSON has it: model, site, axes and so on.
        items: what it is computed on, as JSON has it.
        shard: how many items a file holds.
        notes: what else the manifest says, such as versions; not part of the hash.
    """

    kind: ClassVar[str]
    worked_on: ClassVar[str]
    ending: ClassVar[str]

    def __init__(self, folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.recipe: dict[str, Any] = manifest["recipe"]
        self.items: list[Any] = manifest[self.worked_on]
        self.shard: int = manifest["shard"]
        self.notes: dict[str, Any] = manifest["notes"]
        self.hash = hashlib.sha256(json.dumps([self.recipe, self.items], sort_keys=True).encode()).hexdigest()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """The store in a folder.

        Raises:
            FileNotFoundError: there is none in that folder.
            ValueError: it is of another kind, its manifest cannot be read, or it was saved by a newer labkit.
        """
        path, words, manifest = Path(folder), KINDS[cls.kind].words, KINDS[cls.kind].manifest
        if not path.exists() or (path.is_dir() and not any((path / name).is_file() for name in MANIFESTS)):
            raise FileNotFoundError(f"there is no {cls.kind} in {str(folder)!r}: it has no file {manifest}")
        about = open_about(folder, cls.kind)
        if not path.is_dir():
            raise ValueError(f"{str(folder)!r} is the manifest of {words}; give the folder that it is in")
        with reading(folder, cls.kind):
            return cls(folder, about)

    @classmethod
    def begin(
        cls,
        folder: str | os.PathLike[str],
        *,
        recipe: Mapping[str, Any],
        items: list[Any],
        shard: int,
        notes: Mapping[str, Any],
    ) -> Self:
        """The store of this call in a folder: a new one, or the one that was begun there, with its size of shards.

        Raises:
            ValueError: the folder holds something else; the message says what differs.
        """
        wanted = json.loads(json.dumps({"recipe": recipe, cls.worked_on: items, "shard": shard}))
        new = cls(folder, {**wanted, "notes": dict(notes)})
        words = KINDS[cls.kind].words
        if new.folder.is_dir() and any((new.folder / name).exists() for name in MANIFESTS):
            old = cls.open(folder)
            if old.hash != new.hash:
                raise ValueError(
                    f"the folder {str(folder)!r} holds another {cls.kind}: {_differences(old, new)}. "
                    "Give a new folder, or delete that one"
                )
            return old
        if new.folder.exists() and not new.folder.is_dir():
            raise ValueError(f"{str(folder)!r} is a file; {words} is stored in a folder")
        if new.folder.is_dir() and (other := [one.name for one in new.folder.iterdir() if _is_foreign(one)]):
            raise ValueError(
                f"the folder {str(folder)!r} is not empty, and holds no {cls.kind}: it has {min(other)!r}. "
                f"Give {words} a folder of its own"
            )
        new.folder.mkdir(parents=True, exist_ok=True)
        new.put_manifest()
        return new

    def put_manifest(self) -> None:
        """Write the manifest, whole."""
        kind = KINDS[self.kind]
        told = {"recipe": self.recipe, self.worked_on: self.items, "shard": self.shard}
        manifest = {"kind": self.kind, "format": kind.newest, **told, "hash": self.hash, "notes": self.notes}
        put(self.folder / kind.manifest, json.dumps(manifest, indent=1).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have the folder to oneself.

        Raises:
            ValueError: another process is writing to it.
        """
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another process is writing {KINDS[self.kind].words} to {str(self.folder)!r}; wait until it ends, or "
                "stop it"
            ) from None
        try:
            for left in self.folder.glob("*.part"):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    @property
    def shards(self) -> list[range]:
        """The numbers of the items in each shard."""
        return in_shards(len(self.items), self.shard)

    def path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05}{self.ending}"


def in_shards(count: int, size: int) -> list[range]:
    """The numbers of so many items, in shards of one size; the last may be smaller."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _is_foreign(path: Path) -> bool:
    """Was a file put into a folder by somebody else? Not what is hidden, nor what was left half written."""
    return not path.name.startswith(".") and path.suffix != ".part"


def _differences(old: Store, new: Store) -> str:
    """What differs between two stores, in words."""
    names = [name for name in {**old.recipe, **new.recipe} if old.recipe.get(name) != new.recipe.get(name)]
    said = [f"{name} is {old.recipe.get(name)!r} there and {new.recipe.get(name)!r} here" for name in names]
    if old.items != new.items:
        said.append(f"its {old.worked_on} differ ({len(old.items)} there, {len(new.items)} here)")
    return "; ".join(said)


def put(path: Path, data: bytes) -> None:
    """Write a file in one step that survives a power cut: the new file is whole, or the old one is still there."""
    with written_whole(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if hasattr(os, "O_DIRECTORY"):  # where a folder can be opened, its entry is forced to disk too
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
