"""Collection: activations of many texts, on disk, one row per text and position."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.batch import Batch
from labkit.activations.run import covers, index, not_read
from labkit.activations.sites import Site
from labkit.collected.dataset import ActivationDataset
from labkit.collected.reading import ROWS
from labkit.collected.store import Store
from labkit.text.as_code import LM, Name, as_code, as_python, changed
from labkit.text.prompts import from_json

if TYPE_CHECKING:
    import pandas as pd

USUAL = {"positions": "'all'", "dtype": None}


class Temporary:
    """A temporary folder that is deleted with the last collection in it."""

    def __init__(self) -> None:
        self.name = mkdtemp(prefix="labkit-")
        weakref.finalize(self, shutil.rmtree, self.name, ignore_errors=True)


@dataclass(frozen=True, eq=False, repr=False)
class Part:
    """A shard of a collection: the rows of some texts, and `part["resid_post.5"]` (row, ...) for them, mapped."""

    collection: Collection
    number: int

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per text and position; see `Collection.rows`."""
        return self.collection._frame([self.number])

    def __len__(self) -> int:
        return self.collection._sizes[self.number]

    def __getitem__(self, site: str | Site) -> np.ndarray:
        return self.collection._read(site, [self.number])


@dataclass(frozen=True, eq=False, repr=False)
class Collection:
    """Activations of many texts, on disk: `collected["resid_post.5"]` is (rows, d_model).

    A row is a position of a text; `rows` says of which. Shards are mapped: only what is looked at is read.

    Attributes:
        store: the folder, and what was asked for.
        done: the numbers of the shards that are there, in order.
    """

    store: Store
    done: tuple[int, ...]
    temporary: Temporary | None = None

    @classmethod
    def of(cls, store: Store, temporary: Temporary | None = None) -> Collection:
        """What a store holds by now."""
        return cls(store, tuple(n for n in range(len(store.shards)) if store.has(n)), temporary)

    @property
    def texts(self) -> list[Any]:
        """The texts that were asked for."""
        return [from_json(one) for one in self.store.items]

    @property
    def texts_done(self) -> list[int]:
        """The numbers of the texts that are there."""
        return [n for number in self.done for n in self.store.shards[number]]

    @property
    def complete(self) -> bool:
        return len(self.done) == len(self.store.shards)

    @property
    def positions(self) -> str | list[int]:
        """The positions of each text: a list, or in words (`all`, a slice, the code of a function)."""
        return self.store.recipe["positions"]

    @cached_property
    def kept(self) -> list[Site]:
        """The sites that are here, each of one layer."""
        if not self.done:
            return []
        with self.store.opened(self.done[0]) as (file, _):
            return sorted(Site.parse(name) for name in file.keys() if name not in ROWS)  # noqa: SIM118

    @property
    def sites(self) -> list[str]:
        """The same, as they are written."""
        return [str(site) for site in self.kept]

    @cached_property
    def n_layers(self) -> int:
        """How many layers the model has."""
        with self.store.opened(self.done[0]) as (_, about):
            return about["layers"]

    @cached_property
    def dtype(self) -> str:
        """Of what is on disk; what is not started has the one that was asked for."""
        if not self.kept:
            return self.store.recipe["stored_dtype"] or "no dtype"
        found = self.store.tensor(self.done[0], str(self.kept[0])).dtype
        return str(found).removeprefix("torch.")

    @cached_property
    def _sizes(self) -> dict[int, int]:
        """How many rows each shard has."""
        return {number: len(self.store.tensor(number, "text")) for number in self.done}

    def __len__(self) -> int:
        return sum(self._sizes.values())

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per text and position, in the order of the activations: `text`, its number; `position`, counted from
        its first token; `token`, as it is displayed; and the columns of the data frame that had the texts."""
        return self._frame(self.done)

    def _column(self, name: str, numbers: Sequence[int]) -> np.ndarray:
        found = [self.store.tensor(number, name).numpy() for number in numbers]
        return np.concatenate([np.empty(0, np.int32), *found])

    @cached_property
    def ids(self) -> np.ndarray:
        """The token id of each row, (rows,) int32."""
        return self._column("id", self.done)

    def _frame(self, numbers: Sequence[int]) -> pd.DataFrame:
        import pandas as pd

        shown: dict[int, str] = {}
        for number in numbers:
            with self.store.opened(number) as (_, about):
                shown |= {int(id): display for id, display in about["tokens"].items()}
        text, position, id = (self._column(name, numbers) for name in ROWS)
        frame = pd.DataFrame({"text": text, "position": position, "token": [shown[one] for one in id.tolist()]})
        for name, values in self.store.notes["columns"].items():
            frame[name] = pd.Series(values)[text].to_numpy()
        return frame

    def __getitem__(self, site: str | Site) -> np.ndarray:
        """The rows of a site in one array: float32 or float16 as they are on disk, bfloat16 as float32.

        (rows, d_model) for the residual stream, (rows, n_heads, d_head) by head; a kind without a layer has its layers
        on a first axis. One shard is mapped; several are copied into memory: `parts` goes through them one by one.
        """
        return self._read(site, self.done)

    def _read(self, site: str | Site, numbers: Sequence[int]) -> np.ndarray:
        places = self.places(site)
        found = []
        for have, one in places:
            parts = [_as_numpy(self.mapped(number, have, one)) for number in numbers]
            found.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
        wanted = Site.parse(site)
        return found[0] if wanted.layer is not None or wanted.kind == "embed" else np.stack(found)

    def places(self, site: str | Site) -> list[tuple[Site, Site]]:
        """For each layer that a site names, what is kept of it, and what is wanted of that.

        Raises:
            KeyError: it was not collected.
            ValueError: it is no site, or has a position.
        """
        wanted = Site.parse(site)
        if wanted.position is not None:
            raise ValueError(f"{site}: rows have positions here; choose them by `rows.position`")
        every = [one.layer for one in self.kept if one.kind == wanted.kind] if wanted.layer is None else [wanted.layer]
        found = []
        for layer in dict.fromkeys(every):
            one = Site(wanted.kind, layer + self.n_layers if layer is not None and layer < 0 else layer, wanted.head)
            have = next((place for place in self.kept if covers(place, one)), None)
            if have is None:
                raise not_read(site, self.store.recipe["read"], "this collection")
            found.append((have, one))
        if not found:
            raise not_read(site, self.store.recipe["read"], "this collection")
        return found

    def mapped(self, number: int, have: Site, wanted: Site) -> torch.Tensor:
        """The rows of a site in a shard, out of what is kept of its layer: not read until they are looked at."""
        values = self.store.tensor(number, str(have))
        if wanted.head is not None and have.head is None:
            if not -values.shape[1] <= wanted.head < values.shape[1]:
                raise ValueError(f"{wanted}: head {wanted.head} is out of range; it has {values.shape[1]} heads")
            values = index(values[None], wanted, Batch(0), taken=have)[0]
        return values

    def parts(self) -> Iterator[Part]:
        """Shard by shard, so that never more than one has to be in memory: `part.rows`, `part["resid_post.5"]`."""
        return (Part(self, number) for number in self.done)

    def dataset(self, site: str | Site, labels: Any = None) -> ActivationDataset:
        """A torch `Dataset` of one site: item n is its row n, float32, with its label if there are labels.

        Args:
            site: of one layer.
            labels: one per text, one per row, or the name of a column of `rows`. Numbers stay numbers; anything else is
                counted: `dataset.classes` has what each stands for.

        Raises:
            KeyError: the site was not collected.
            ValueError: it is not of one layer, or there are not as many labels.
        """
        wanted = Site.parse(site)
        if wanted.layer is None and wanted.kind != "embed":
            raise ValueError(f"a dataset is of one layer; write which, such as {wanted.kind}.{self.kept[0].layer}")
        [(have, one)] = self.places(wanted)
        parts = [self.mapped(number, have, one) for number in self.done]
        return ActivationDataset(parts, None if labels is None else self.by_row(labels))

    def by_row(self, values: Any, *, what: str = "labels") -> np.ndarray:
        """Values that are given for each text, for each row, or as the name of a column of `rows`: for each row.

        Raises:
            ValueError: there are not as many, or there is no such column.
        """
        if isinstance(values, str):
            if values not in self.rows:
                raise ValueError(f"{what}={values!r} is no column; there are {', '.join(map(repr, self.rows))}")
            return self.rows[values].to_numpy()
        found = np.asarray(values)
        if found.shape == (len(self.store.items),):
            return found[self._column("text", self.done)]
        if found.shape == (len(self),):
            return found
        raise ValueError(
            f"expected one of {what} per text or per row: {len(self.store.items)} texts, {len(self)} rows; got "
            f"{found.shape[0] if found.ndim == 1 else found.shape}"
        )

    def to_frame(self, *sites: str) -> pd.DataFrame:
        """`rows`, with one more column for each number of the sites that are named: `resid_post.5[0]` and so on."""
        import pandas as pd

        wide = [self.rows]
        for site in sites:
            values = self[site].reshape(len(self), -1)
            wide.append(pd.DataFrame(values, columns=[f"{site}[{n}]" for n in range(values.shape[1])]))
        return pd.concat(wide, axis=1)

    def code(self) -> str:
        """The Python that collects it again, texts and all; with its folder, if it has one, that opens it."""
        notes, columns = self.store.notes, self.store.notes["columns"]
        texts = "".join(f"    {as_python(text)},\n" for text in self.texts)
        before, given = f"{notes['load']}{notes['before']}texts = [\n{texts}]\n", Name("texts")
        if columns:
            before = before.replace("import labkit", "import pandas as pd\n\nimport labkit", 1)
            kept = {name: list(map(_number, values)) for name, values in columns.items()}
            before += f"frame = pd.DataFrame({{'text': texts, **{kept!r}}})\n"
            given = Name("frame")
        how: dict[str, Any] = {"read": self.store.recipe["read"]}
        how |= changed(USUAL, {"positions": notes["positions"], "dtype": self.store.recipe["stored_dtype"]})
        if "positions" in how:
            how["positions"] = Name(how["positions"])
        if self.temporary is None:
            how["store"] = str(self.store.folder)
        return as_code(before, "collected = lk.collect", LM, given, **how)

    def __repr__(self) -> str:
        n = len(self.store.items)
        texts = f"{n} text{'s' * (n != 1)}" if self.complete else f"{len(self.texts_done)} of {n} texts"
        return f"Collection({', '.join(self.store.recipe['read'])}; {texts}, {len(self)} rows, {self.dtype})"


def _number(value: Any) -> Any:
    """A value of a column whose `repr` is code: nan and infinity have none of their own."""
    return Name(f"float('{value}')") if isinstance(value, float) and not isfinite(value) else value


def _as_numpy(values: torch.Tensor) -> np.ndarray:
    """What is mapped, as numpy, which has no bfloat16."""
    found = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    found.flags.writeable = False  # it is the file
    return found


def open_collection(folder: str | os.PathLike[str]) -> Collection:
    """What was collected in a folder so far; no model is needed, and whoever is still writing to it is not disturbed.

    Raises:
        FileNotFoundError: there is no collection in that folder.
        ValueError: it cannot be read.
    """
    return Collection.of(Store.open(folder))
