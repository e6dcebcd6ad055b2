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
DEEP = 4  # folders below the one that is named in which a set is looked for


@dataclass(frozen=True)
class PublishedSet:
    """A published set.

    Attributes:
        title: its name in titles.
        files: by which a copy is recognised, as patterns; any of them is enough.
        repository: of its makers, on GitHub, and where in it the data is.
        licence: under which they publish it.
        parts: the pattern of the files, in the same folder, that make up the whole; by default those of `files`.
        units: how many files that is.
        hub: its id among the data sets of the hub; empty where that has no tables.
    """

    title: str
    files: tuple[str, ...]
    repository: str
    licence: str
    parts: str = ""
    units: int = 1
    hub: str = ""


BBQ = (
    "Age", "Disability_status", "Gender_identity", "Nationality", "Physical_appearance", "Race_ethnicity", "Race_x_SES",
    "Race_x_gender", "Religion", "SES", "Sexual_orientation",
)  # fmt: skip
"""The categories of BBQ, each a file."""

SETS = {
    "blimp": PublishedSet(
        "BLiMP", ("adjunct_island.jsonl",), "alexwarstadt/blimp (its folder data has one .jsonl file per paradigm)",
        "CC BY 4.0", "*.jsonl", 67, "nyu-mll/blimp",
    ),
    "crows_pairs": PublishedSet(
        "CrowS-Pairs", ("crows_pairs_anonymized.csv",), "nyu-mll/crows-pairs (data/crows_pairs_anonymized.csv)",
        "CC BY-SA 4.0",
    ),
    "winobias": PublishedSet(
        "WinoBias", ("pro_stereotyped_type?.txt.*",), "uclanlp/corefBias (WinoBias/wino/data)", "MIT", units=4,
    ),
    "stereoset": PublishedSet("StereoSet", ("dev.json",), "moinnadeem/StereoSet (data/dev.json)", "CC BY-SA 4.0"),
    "bbq": PublishedSet(
        "BBQ", tuple(f"{name}.jsonl" for name in BBQ), "nyu-mll/BBQ (data)", "CC BY 4.0", units=len(BBQ),
    ),
}  # fmt: skip
NAMES = ("blimp", "crows_pairs", "mini")
"""Those that are items of a benchmark."""


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
        data_dir: the folder the copy is in, or one up to four folders above it.
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


def find_copy(
    name: str, *, data_dir: str | os.PathLike[str] | None = None, instead: str = "lk.benchmark(lm, 'mini')"
) -> list[Path]:
    """The files that hold a published set, or as many parts of it as there are.

    Args:
        instead: what needs no copy, for the error.

    Raises:
        FileNotFoundError: none was found; the message says where to get them.
    """
    wanted, root = SETS[name], data_dir or os.environ.get(FOLDER)
    for depth in range(DEEP + 1) if root else ():
        for pattern in wanted.files:
            for file in sorted(Path(root or "").expanduser().glob("*/" * depth + pattern)):
                parts = [wanted.parts] if wanted.parts else wanted.files
                return sorted(part for one in parts for part in file.parent.glob(one))
    if data_dir is None and wanted.hub and (files := _from_hub(wanted.hub)):
        return files
    looked = [f"data_dir={str(data_dir)!r}"] if data_dir else [f"${FOLDER} ({root or 'not set'})"]
    looked += [] if data_dir or not wanted.hub else ["the cache of the hub"]
    hub = f", or `hf download {wanted.hub} --repo-type dataset`" if wanted.hub else ""
    named = wanted.files[0] + " or another of its files" * (len(wanted.files) > 1)
    raise FileNotFoundError(
        f"there is no copy of {wanted.title} here: no {named} in {' or '.join(looked)}. Get the repository "
        f"of its makers on GitHub, {wanted.repository}{hub}, licence {wanted.licence}; then pass data_dir=, the folder "
        f"it is in, or set {FOLDER} to it. labkit's own set needs nothing: {instead}"
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
