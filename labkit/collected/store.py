"""What the shards of a collection hold: the rows of some texts, in safetensors, which are mapped and not read whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from labkit.collected.reading import ROWS, checksum
from labkit.shards import store
from labkit.text.warn import warn

_DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True)
class ShardFile:
    """A shard's file, of which collection it is, and the numbers of its texts."""

    path: str
    hash: str
    start: int
    stop: int


@contextmanager
def opened(shard: ShardFile) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A shard and its description; the arrays taken from it stay mapped.

    Raises:
        FileNotFoundError: it is not there, or this machine does not see it.
        ValueError: it belongs to another collection.
    """
    with safe_open(shard.path, framework="pt") as file:
        about = json.loads((file.metadata() or {})["about"])
        if about["hash"] != shard.hash:
            raise ValueError("it belongs to another collection")
        if about["texts"] != [shard.start, shard.stop]:
            raise ValueError("it holds other texts")
        yield file, about


class Store(store.Store):
    """The folder of one collection."""

    kind, worked_on, ending = "collection", "texts", ".safetensors"

    def write(self, number: int, data: bytes) -> None:
        """Put a shard in its place, whole."""
        store.put(self.path(number), data)

    @contextmanager
    def opened(self, number: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        """A shard and its description; the arrays taken from it stay mapped.

        Raises:
            ValueError: it belongs to another collection.
        """
        with opened(self.shard_file(number)) as found:
            yield found

    def shard_file(self, number: int) -> ShardFile:
        """Where a shard is, for work on it elsewhere, without the texts of the whole collection."""
        texts = self.shards[number]
        return ShardFile(str(self.path(number)), self.hash, texts.start, texts.stop)

    def tensor(self, number: int, name: str) -> torch.Tensor:
        """An array of a shard, mapped."""
        with self.opened(number) as (file, _):
            return file.get_tensor(name)

    def has(self, number: int, *, whole: bool = False) -> bool:
        """Is a shard there? One that is damaged is not, with a warning; with `whole` its checksums are compared."""
        if not self.path(number).exists():
            return False
        try:
            with self.opened(number) as (file, about):
                if missing := {*ROWS, *about["sums"]} - set(file.keys()):
                    raise ValueError(f"it lacks {min(missing)}")
                wrong = (name for name, sum in about["sums"].items() if checksum(file.get_tensor(name)) != sum)
                if whole and (name := next(wrong, None)):
                    raise ValueError(f"the checksum of {name} differs")
        except _DAMAGED as error:
            warn(f"{self.path(number).name} is damaged ({error}); its texts have to be collected again")
            return False
        return True
