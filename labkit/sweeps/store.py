"""Where a sweep keeps what it has done: a folder with a manifest and one file per shard.

The manifest says what is computed, and its hash is in every shard, so results of two sweeps cannot mix. A shard is
written to a temporary file, synced and moved into place in one step. One that is damaged all the same (by its checksum
or contents) counts as missing. While a sweep runs it holds the folder's lock, which the system releases however the
process ends.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from labkit.patching.grid import PatchGrid, about_of
from labkit.patching.saved_grid import grid_of
from labkit.results.file import KINDS, MANIFEST, described, open_about, reading, written_whole
from labkit.text.warn import warn

Results = dict[int, PatchGrid | str]
"""The result of each pair, by its number: its grid, or the reason why there is none."""


class Store:
    """The folder of one sweep.

    Attributes:
        folder: where it is.
        recipe: what is computed, as JSON has it: model, site, metric, direction, method, axes.
        pairs: what it is computed on, as JSON has it.
        shard: how many pairs a file holds.
        notes: what else the manifest says, such as versions; not part of the hash.
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.recipe: dict[str, Any] = manifest["recipe"]
        self.pairs: list[list[Any]] = manifest["pairs"]
        self.shard: int = manifest["shard"]
        self.notes: dict[str, Any] = manifest["notes"]
        self.hash = hashlib.sha256(json.dumps([self.recipe, self.pairs], sort_keys=True).encode()).hexdigest()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Store:
        """The store in a folder.

        Raises:
            FileNotFoundError: there is no sweep in that folder.
            ValueError: its manifest cannot be read, or was saved by a newer labkit.
        """
        path = Path(folder)
        if not path.exists() or (path.is_dir() and not (path / MANIFEST).is_file()):
            raise FileNotFoundError(f"there is no sweep in {str(folder)!r}: it has no file {MANIFEST}")
        manifest = open_about(folder, "sweep")
        if not path.is_dir():
            raise ValueError(f"{str(folder)!r} is the manifest of a sweep; give the folder that it is in")
        with reading(folder, "sweep"):
            return cls(folder, manifest)

    @classmethod
    def begin(
        cls,
        folder: str | os.PathLike[str],
        *,
        recipe: Mapping[str, Any],
        pairs: list[list[Any]],
        shard: int,
        notes: Mapping[str, Any],
    ) -> Store:
        """The store of this sweep in a folder: a new one, or the one that was begun there, with its size of shards.

        Raises:
            ValueError: the folder holds another sweep; the message says what differs.
        """
        wanted = json.loads(json.dumps({"recipe": recipe, "pairs": pairs, "shard": shard}))
        new = cls(folder, {**wanted, "notes": dict(notes)})
        if (Path(folder) / MANIFEST).exists():
            old = cls.open(folder)
            if old.hash != new.hash:
                raise ValueError(
                    f"the folder {str(folder)!r} holds another sweep: {_differences(old, new)}. "
                    "Give a new folder, or delete that one"
                )
            return old
        if new.folder.exists() and not new.folder.is_dir():
            raise ValueError(f"{str(folder)!r} is a file; a sweep is stored in a folder")
        new.folder.mkdir(parents=True, exist_ok=True)
        about = {"kind": "sweep", "format": KINDS["sweep"].newest}
        manifest = {**about, **wanted, "hash": new.hash, "notes": dict(notes)}
        _write(new.folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        return new

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
                f"another process is writing a sweep to {str(self.folder)!r}; wait until it ends, or stop it"
            ) from None
        try:
            for left in self.folder.glob("*.part"):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    @property
    def shards(self) -> list[range]:
        """The numbers of the pairs in each shard."""
        n = len(self.pairs)
        return [range(start, min(start + self.shard, n)) for start in range(0, n, self.shard)]

    def path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05}.npz"

    def write(self, number: int, results: Results) -> None:
        """Put a shard in its place, whole."""
        arrays = {f"values.{i}": grid.values for i, grid in results.items() if isinstance(grid, PatchGrid)}
        packed = {str(i): one if isinstance(one, str) else about_of(one) for i, one in results.items()}
        about = {"hash": self.hash, "pairs": packed}
        buffer = io.BytesIO()
        np.savez(buffer, about=described("sweep shard", about), **arrays)  # type: ignore[arg-type]
        _write(self.path(number), buffer.getvalue())

    def read(self, number: int) -> Results:
        """What a shard holds; nothing where there is no file, or one that is damaged."""
        path = self.path(number)
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                if about["hash"] != self.hash:
                    raise ValueError("it belongs to another sweep")
                results = {
                    int(i): packed if isinstance(packed, str) else grid_of(file[f"values.{i}"], packed)
                    for i, packed in about["pairs"].items()
                }
            if not set(results) <= set(self.shards[number]):
                raise ValueError("it holds other pairs")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            warn(f"{path.name} is damaged ({error}); its pairs will be computed again")
            return {}
        return results


def _differences(old: Store, new: Store) -> str:
    """What differs between two sweeps, in words."""
    names = [name for name in {**old.recipe, **new.recipe} if old.recipe.get(name) != new.recipe.get(name)]
    said = [f"{name} is {old.recipe.get(name)!r} there and {new.recipe.get(name)!r} here" for name in names]
    if old.pairs != new.pairs:
        sizes = len(old.pairs), len(new.pairs)
        said.append(f"its pairs differ ({sizes[0]} there, {sizes[1]} here)")
    return "; ".join(said)


def _write(path: Path, data: bytes) -> None:
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
