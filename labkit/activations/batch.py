"""Positions in a batch of prompts, counted within each prompt although shorter ones are padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from labkit.activations import sites
from labkit.activations.sites import Site
from labkit.models.devices import to_index

if TYPE_CHECKING:
    from labkit.models.handle import Model


@dataclass(frozen=True)
class Batch:
    """The rows of a batch.

    With padding, non-negative positions count from each row's own first token and negative ones from the end; without
    padding all count from the start.

    Attributes:
        length: how many positions the batch has, padding included.
        padding: how many of them are padding in each row; empty where no row has any.
        shortest: the shortest prompt, as text; where there is padding.
    """

    length: int
    padding: tuple[int, ...] = ()
    shortest: str = field(default="", compare=False)

    @classmethod
    def of(cls, lm: Model, ids: torch.Tensor, mask: torch.Tensor) -> Batch:
        """The rows of ids and mask (batch, position), both."""
        length = ids.shape[1]
        if mask.shape[0] == 1 or bool(mask.all()):  # one row is never padded
            return cls(length)
        padding = tuple(int(n) for n in (~mask).sum(1).tolist())
        row = padding.index(max(padding))
        return cls(length, padding, f"prompt {row}, {lm.tokenizer.decode(ids[row, padding[row] :][:20])!r}")

    def checked(self, lm: Model, site: str | Site) -> Site:
        """`sites.checked`, with a position that every row has.

        Raises:
            ValueError: as `sites.checked`, or a position that the shortest prompt does not have.
        """
        if not self.padding:
            return sites.checked(lm, site, length=self.length)
        found = sites.checked(lm, site)
        if found.position is not None:
            self.position(lm, found.position, what=f"{site}: ")
        return found

    def position(self, lm: Model, position: int, *, what: str = "") -> int:
        """A position that every row has: counted from the start, or in a padded batch from the side it was given.

        Raises:
            ValueError: it is out of range.
        """
        count = self.length - max(self.padding, default=0)
        if not -count <= position < count:
            has = (
                f"{self.shortest}, is the shortest of this padded batch and has positions 0 to {count - 1}"
                if self.padding
                else f"{lm.name} has positions 0 to {count - 1}"
            )
            raise ValueError(f"{what}position {position} is out of range; {has}")
        return position if self.padding else position % count

    def columns(self, position: int) -> list[int]:
        """Where a position is in each row; one number for all of them where it is the same."""
        if not self.padding or position < 0:
            return [position % self.length]
        return [skipped + position for skipped in self.padding]

    def take(self, x: torch.Tensor, axis: int, position: int) -> torch.Tensor:
        """A position on an axis (1 or 2) of x (row, ...); a view where it is in one place in all rows."""
        if len(columns := self.columns(position)) == 1:
            return x.select(axis, columns[0])
        each = torch.arange(len(columns), device=x.device), torch.tensor(columns, device=x.device)
        return x[each] if axis == 1 else x[each[0], :, each[1]]

    def put(self, x: torch.Tensor, axis: int, position: int, value: torch.Tensor) -> None:
        """Write to x, in place, what was made of the copy that `take` gave; of a view nothing is left to write."""
        if len(columns := self.columns(position)) == 1:
            return
        for row, column in enumerate(columns):
            x[row].select(axis - 1, column).copy_(value[row])

    def logits(self, lm: Model, inputs: dict[str, Any], positions: Sequence[int] | None) -> torch.Tensor:
        """Logits (row, position, vocab) of a pass at some positions; the others are computed only where they have to
        be."""
        if positions is None:
            return lm.hf(**inputs).logits
        columns = sorted({column for position in positions for column in self.columns(position)})
        last = self.length - min(columns, default=self.length - 1)  # how many from the end
        if columns and len(columns) < last and lm.any_logits:
            had = columns
            logits = lm.hf(**inputs, logits_to_keep=to_index(columns, lm.device)).logits
        else:
            had = list(range(self.length - last, self.length)) if lm.only_last else list(range(self.length))
            keep = dict.fromkeys(lm.only_last, last)
            logits = lm.hf(**inputs, **keep).logits
        rows = [[had.index(c) for c in self.columns(position)] for position in positions]  # of each position
        if all(len(row) == 1 for row in rows):
            return logits.index_select(1, to_index([row[0] for row in rows], logits.device))
        each = [[row[n if len(row) > 1 else 0] for row in rows] for n in range(len(logits))]  # (row, position)
        at = torch.tensor(each, device=logits.device)
        return logits[torch.arange(len(at), device=logits.device)[:, None], at]
