"""The kinds of place that a model can come from. To add one, add it here, or `register` it.

A source says whether a name is one of its own, and turns such a name into a folder that transformers reads, or leaves
it to the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from labkit.models.errors import ModelNotFound
from labkit.models.sources import default_model
from labkit.models.sources.gguf import format_of


class Found(NamedTuple):
    """Where a model is.

    Attributes:
        folder: None: on the hub.
        label: what to call it.
        revision: pinned.
        ours: is the folder labkit's?
        stored_as: the format that its weights were quantised in, where the folder does not say.
    """

    folder: Path | None
    label: str
    revision: str | None = None
    ours: bool = False
    stored_as: str | None = None


@dataclass(frozen=True)
class Source:
    """A kind of place that a model can come from.

    Attributes:
        name, written: what it is, and how one writes it in `lk.load`.
        is_one: is this name (None: nothing was given) one of its own?
        find: (name, bits, progress) -> `Found`; downloads or converts what it has to, into labkit's cache. Raises a
            `LoadError` that says what to do.
    """

    name: str
    written: str
    is_one: Callable[[str | None], bool]
    find: Callable[[str | None, int, bool], Found]


SOURCES: list[Source] = []


def register(source: Source) -> None:
    """Let `lk.load` read from another place; its names are looked at before those of all others.

    Raises:
        ValueError: there is a source of that name.
    """
    if any(one.name == source.name for one in SOURCES):
        raise ValueError(f"there is already a model source {source.name!r}")
    SOURCES.insert(0, source)


def find(name: str | None, *, bits: int, progress: bool) -> Found:
    """Where a model is.

    Raises:
        LoadError: it is not there; the message says what labkit reads.
    """
    return next(source for source in SOURCES if source.is_one(name)).find(name, bits, progress)


def _path(name: str | None) -> Path:
    return Path(name or "").expanduser()


def _default(name: str | None, bits: int, progress: bool) -> Found:
    folder = default_model.default_checkpoint(bits=bits, progress=progress)
    return Found(folder, default_model.NAME, default_model.REVISION, ours=True, stored_as="Q4_1")


def _gguf(name: str | None, bits: int, progress: bool) -> Found:
    folder = default_model.gguf_checkpoint(_path(name), bits=bits, progress=progress)
    return Found(folder, str(name), ours=True, stored_as=format_of(_path(name)))


def _hub(name: str | None, bits: int, progress: bool) -> Found:
    path = _path(name)
    if path.is_file():
        written = ", ".join(source.written for source in SOURCES)
        raise ModelNotFound(f"{name!r} is a file that labkit does not read; it reads {written}")
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise ModelNotFound(f"there is no folder or file {name!r}")
    return Found(None, str(name))


SOURCES += [
    Source("the default model", "nothing", lambda name: name is None or name == default_model.NAME, _default),
    Source("a GGUF file", "a path that ends in .gguf", lambda name: _path(name).suffix == ".gguf", _gguf),
    Source(
        "a folder",
        "a folder with safetensors weights",
        lambda name: _path(name).is_dir(),
        lambda name, bits, progress: Found(_path(name), str(name)),
    ),
    Source("the hub", "a hub id such as owner/name", lambda name: True, _hub),
]
