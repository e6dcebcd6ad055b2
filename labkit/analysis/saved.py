"""Results on disk: numpy arrays and what describes them, in one `.npz` file without pickles."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

_OPENS = {
    "grid": "lk.open_grid(path)",
    "lens": "lk.open_lens(path)",
    "steering vector": "lk.open_steering_vector(path)",
    "lab": "lk.PatchLab.open(lm, path)",
}


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write to that takes its name when the block ends: it is whole, or what was there before stays."""
    path = Path(path)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def save_arrays(path: str | os.PathLike[str], kind: str, about: dict[str, Any], **arrays: np.ndarray) -> Path:
    """Write arrays and a JSON-able description to one file, in one step: the file is whole or not there."""
    with written_whole(path) as file:
        np.savez_compressed(file, about=np.array(json.dumps({"kind": kind, **about})), **arrays)  # type: ignore[arg-type]
    return Path(path)


def open_arrays(
    path: str | os.PathLike[str], kind: str, *, newest: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays of a file that `save_arrays` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else, or comes from a labkit newer than format `newest`.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        held, version = about.get("kind", "grid"), int(about["format"])  # a grid's file did not always say so
    except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is not a {kind} saved by labkit ({error})") from None
    if held != kind:
        hint = f", which {_OPENS[held]} opens" if held in _OPENS else ""
        raise ValueError(f"{str(path)!r} is not a {kind} saved by labkit; it holds a {held}{hint}")
    if version > newest:
        raise ValueError(f"{str(path)!r} was saved by a newer labkit (format {version}); update labkit to open it")
    return about, arrays
