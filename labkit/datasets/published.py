"""Published sets of items, read from a copy that the user has; nothing is downloaded.

They are looked for in a folder that is named, else in `$LABKIT_DATA`, else in the user's cache of the hub. `SETS` says
how each is recognised and who made it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.datasets.items import ItemSet, from_frame, read_table
from labkit.datasets.mini import MINI

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "LABKIT_DATA"
"""The environment variable that names the folder with published sets."""
DEEP = 3  # folders below the one that is named in which a set is looked for


@dataclass(frozen=True)
class PublishedSet:
    """A published set.

    Attributes:
        title: its name in titles.
        file: a file by which a copy is recognised.
        units: how many files like it, in the same folder, make up the whole; each is a unit of its own.
        repository: of its makers, on GitHub, and where in it the data is.
        hub: its id among the data sets of the hub; empty where that has no tables.
    """

    title: str
    file: str
    units: int
    repository: str
    hub: str = ""


SETS = {
    "blimp": PublishedSet(
        "BLiMP", "adjunct_island.jsonl", 67, "alexwarstadt/blimp (its folder data has one .jsonl file per paradigm)",
        "nyu-mll/blimp",
    ),
    "crows_pairs": PublishedSet(
        "CrowS-Pairs", "crows_pairs_anonymized.csv", 1, "nyu-mll/crows-pairs (data/crows_pairs_anonymized.csv)",
    ),
}  # fmt: skip
NAMES = (*SETS, "mini")


def published(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    by: str | None = None,
    delimiter: str | None = None,
) -> ItemSet:
    """A set by its name: one of `SETS`, from a copy on this machine, or labkit's own `mini`.

    Args:
        name: `blimp`, `crows_pairs` or `mini`.
        data_dir: the folder the copy is in, or one up to three folders above it.
        by, delimiter: as in `from_frame`.

    Raises:
        FileNotFoundError: there is no copy; the message says where to get one.
        ValueError: no set of that name.
    """
    import pandas as pd

    if name not in NAMES:
        raise ValueError(f"there is no set {name!r}; there are {', '.join(NAMES)}")
    if name == "mini":
        return from_frame(_mini(), name="the mini set", by=by, delimiter=delimiter)
    wanted, files = SETS[name], find_copy(name, data_dir=data_dir)
    title = wanted.title if len(files) >= wanted.units else f"{wanted.title}, {len(files)} of {wanted.units} parts"
    frame = pd.concat([read_table(file) for file in files], ignore_index=True)
    return from_frame(frame, name=title, by=by, delimiter=delimiter)


def find_copy(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """The files that hold a published set, or as many parts of it as there are.

    Raises:
        FileNotFoundError: none was found; the message says where to get them.
    """
    wanted, root = SETS[name], data_dir or os.environ.get(FOLDER)
    for depth in range(DEEP + 1) if root else ():
        for file in sorted(Path(root or "").expanduser().glob("*/" * depth + wanted.file)):
            return [file] if wanted.units == 1 else sorted(file.parent.glob(f"*{file.suffix}"))
    if data_dir is None and wanted.hub and (files := _from_hub(wanted.hub)):
        return files
    looked = [f"data_dir={str(data_dir)!r}"] if data_dir else [f"$LABKIT_DATA ({root or 'not set'})"]
    looked += [] if data_dir or not wanted.hub else ["the cache of the hub"]
    hub = f", or `hf download {wanted.hub} --repo-type dataset`" if wanted.hub else ""
    raise FileNotFoundError(
        f"there is no copy of {wanted.title} here: no {wanted.file} in {' or '.join(looked)}. Get the repository of "
        f"its makers on GitHub, {wanted.repository}{hub}; then pass data_dir=, the folder it is in, or set LABKIT_DATA "
        "to it. labkit's own small set needs nothing: lk.benchmark(lm, 'mini')"
    )


def _from_hub(repository: str) -> list[Path]:
    """The tables of a data set that are in the user's cache of the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(repository, repo_type="dataset", local_files_only=True)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return []
    return sorted(Path(folder).rglob("*.parquet"))


def _mini() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(MINI, columns=["good", "bad", "category"])
