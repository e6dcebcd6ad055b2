"""What the shards of a collection hold: the rows of some texts, in safetensors, which are mapped and not read whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from labkit.collected.reading import ROWS, checksum
from labkit.shards import store
from labkit.text.warn import warn

_DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


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
        with safe_open(self.path(number), framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            if about["hash"] != self.hash:
                raise ValueError("it belongs to another collection")
            texts = self.shards[number]
            if about["texts"] != [texts.start, texts.stop]:
                raise ValueError("it holds other texts")
            yield file, about

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
