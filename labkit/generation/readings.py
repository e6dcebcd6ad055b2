"""What was read while a model wrote, one row per position, in memory or on disk.

Rows come one by one. They are gathered where the model computes, and moved to the CPU, or into a new file of a folder,
whenever they fill 32 MB: no more of them than that waits in memory when they are kept on disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch.nn.functional import pad

from labkit.activations.batch import Batch
from labkit.activations.run import covers, index, not_read, stacked
from labkit.activations.site_kinds import BY_QUERY
from labkit.activations.sites import Site
from labkit.models.devices import on_the_cpu
from labkit.results.file import written_whole

Span = Literal["written", "prompt", "all"]
"""Positions: those of the tokens that the model wrote, those of the prompt, or both."""
BLOCK = 32 << 20  # bytes of rows that wait until they are moved together


def new_folder(store: str | os.PathLike[str]) -> Path:
    """A folder of its own for the rows of one generation, in one that is made if it is not there.

    Raises:
        ValueError: there is a file of that name.
    """
    store = Path(store)
    if store.exists() and not store.is_dir():
        raise ValueError(f"store={str(store)!r} is a file; name a folder, in which each generation gets one of its own")
    store.mkdir(parents=True, exist_ok=True)
    for number in count(sum(1 for _ in store.iterdir())):
        try:
            (found := store / f"{number:05}").mkdir()
        except FileExistsError:
            continue
        return found
    raise AssertionError


def token_axis(site: Site) -> int:
    """The axis of the rows in what is kept of a site: (n_heads, token, key) by query, else (token, ...)."""
    return int(site.kind in BY_QUERY and site.head is None)


def unseen(site: Site) -> float:
    """What patterns and scores have at keys that are not seen."""
    return -inf if site.kind == "scores" else 0.0


@dataclass(eq=False, repr=False)
class Readings:
    """What was read, a row per position: `readings["resid_post.5"]` is (token, d_model), on the CPU.

    Attributes:
        asked: the sites as they were asked for.
        at: the positions that were read: `written`, `prompt` or `all`.
        prompt: how many tokens the prompt has.
        layers: of each kind that was read, the layers that have it.
        n_layers: of the model.
        folder: where the rows are kept; None for in memory.
        rows: how many there are of each site.
        shards: the files in the folder, in order.
    """

    asked: tuple[str, ...]
    at: Span
    prompt: int
    layers: dict[str, list[int]]
    n_layers: int
    folder: Path | None = None
    rows: int = 0
    shards: list[str] = field(default_factory=list)
    blocks: dict[Site, list[torch.Tensor]] = field(default_factory=dict)
    _waiting: dict[Site, list[torch.Tensor]] = field(default_factory=dict)
    _size: int = 0

    @property
    def positions(self) -> range:
        """The positions of the rows, counted from the first token of the prompt."""
        first = self.prompt if self.at == "written" else 0
        return range(first, first + self.rows)

    def add(self, site: Site, rows: torch.Tensor) -> None:
        """Keep rows of a site that follow those that are there."""
        self._waiting.setdefault(site, []).append(rows)
        self._size += rows.nbytes

    def passed(self, rows: int) -> None:
        """A pass is complete; there are now so many rows of every site."""
        self.rows = rows
        if self._size >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Move what waits to the CPU, or into the next file."""
        if not self._waiting:
            return
        moved = on_the_cpu([joined(site, rows) for site, rows in self._waiting.items()])
        found = dict(zip(self._waiting, moved, strict=True))
        if self.folder is None:
            for site, rows in found.items():
                self.blocks.setdefault(site, []).append(rows)
        else:
            name = f"{len(self.shards):05}.safetensors"
            with written_whole(self.folder / name) as file:
                file.write(safetensors.torch.save({str(site): rows.contiguous() for site, rows in found.items()}))
            self.shards.append(name)
        self._waiting, self._size = {}, 0

    @property
    def kept(self) -> list[Site]:
        """The sites that are kept, each of one layer."""
        stored = [Site.parse(name) for name in self._stored()] if self.shards else []
        return list(dict.fromkeys([*stored, *self.blocks, *self._waiting]))

    def _stored(self) -> list[str]:
        assert self.folder is not None
        with self._opened(self.shards[0]) as file:
            return list(file.keys())

    def _opened(self, shard: str) -> Any:
        assert self.folder is not None
        if not (path := self.folder / shard).exists():
            raise FileNotFoundError(
                f"the activations of this generation were kept in {str(self.folder)!r}, where {shard} is missing; put "
                "the folder back where it was"
            )
        return safetensors.safe_open(path, framework="pt")

    def whole(self, site: Site) -> torch.Tensor:
        """All rows of a site that is kept, in the axes of `token_axis`."""
        parts = list(self._parts(site))
        found = joined(site, parts) if len(parts) != 1 else parts[0]
        if self.folder is None:
            self.blocks[site] = [found]
            self._waiting.pop(site, None)
        return found.narrow(token_axis(site), 0, self.rows)

    def _parts(self, site: Site) -> Iterator[torch.Tensor]:
        for shard in self.shards:
            with self._opened(shard) as file:
                yield file.get_tensor(str(site))
        yield from self.blocks.get(site, ())
        yield from (rows.cpu() for rows in self._waiting.get(site, ()))

    def __getitem__(self, site: str | Site) -> torch.Tensor:
        wanted = Site.parse(site)
        if wanted.position is not None:
            raise ValueError(f"{site}: rows have positions here; index what the site without @ gives")
        if wanted.layer is not None and wanted.layer < 0:
            wanted = Site(wanted.kind, wanted.layer + self.n_layers, wanted.head)
        every = self.layers.get(wanted.kind, []) if wanted.layer is None else [wanted.layer]
        found, kept = [], self.kept
        for layer in every:
            one = Site(wanted.kind, layer, wanted.head)
            have = next((place for place in kept if covers(place, one)), None)
            if have is None:
                raise not_read(site, self.asked, "this generation")
            rows = self.whole(have)[None]
            if one.head is not None and have.head is None:
                heads = rows.shape[1 if one.kind in BY_QUERY else 2]
                if not -heads <= one.head < heads:
                    raise ValueError(f"{site}: head {one.head} is out of range; there are heads 0 to {heads - 1}")
            found.append(index(rows, one, Batch(0), taken=have)[0])
        if not found:
            raise not_read(site, self.asked, "this generation")
        return stacked(wanted, found)

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else f"in {str(self.folder)!r}"
        return f"Readings({', '.join(self.asked)}; {self.rows} rows {where})"

    def arrays(self) -> dict[str, np.ndarray]:
        """What is kept in memory, for a file; 16-bit floats that numpy lacks as their bits."""
        found = {}
        for site in self.kept if self.folder is None else ():
            rows = self.whole(site).contiguous()
            found[f"site {site}"] = (rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows).numpy()
        return found

    def about(self, path: Path) -> dict[str, Any]:
        """What else a file at a path has to say of them, for JSON; a folder is named as seen from the file."""
        folder = None
        if self.folder is not None:
            self.flush()
            try:
                folder = os.path.relpath(self.folder, path.parent)
            except ValueError:  # on another drive
                folder = str(self.folder.absolute())
        bits = [str(site) for site in self.kept if self.folder is None and self.whole(site).dtype == torch.bfloat16]
        return {
            "asked": self.asked, "at": self.at, "prompt": self.prompt, "layers": self.layers, "bfloat16": bits,
            "n_layers": self.n_layers, "folder": folder, "rows": self.rows, "shards": self.shards,
        }  # fmt: skip

    @classmethod
    def opened(cls, path: Path, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> Readings:
        """What `about` and `arrays` described."""
        folder = None if about["folder"] is None else path.parent / about["folder"]
        found = cls(
            tuple(about["asked"]), about["at"], about["prompt"], about["layers"], about["n_layers"], folder,
            about["rows"], list(about["shards"]),
        )  # fmt: skip
        for name, array in arrays.items():
            if name.startswith("site "):
                rows, site = torch.from_numpy(array), name.removeprefix("site ")
                found.blocks[Site.parse(site)] = [rows.view(torch.bfloat16) if site in about["bfloat16"] else rows]
        if missing := [one for one in found.asked if folder is None and not found.covered(Site.parse(one))]:
            raise KeyError(f"site {missing[0]}")
        return found

    def covered(self, asked: Site) -> bool:
        """Is every layer of what was asked for among what is kept?"""
        every = self.layers[asked.kind] if asked.layer is None else [asked.layer]
        return all(any(covers(place, Site(asked.kind, layer, asked.head)) for place in self.kept) for layer in every)


def joined(site: Site, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows one after the other; those of patterns and scores, which get longer, are filled up on the right."""
    if not parts:
        return torch.empty(0)
    if site.kind in BY_QUERY:
        keys = max(part.shape[-1] for part in parts)
        parts = [
            pad(part, (0, keys - part.shape[-1]), value=unseen(site)) if part.shape[-1] < keys else part
            for part in parts
        ]
    return torch.cat(list(parts), token_axis(site))
