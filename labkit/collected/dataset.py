"""The rows of one site as a torch Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class ActivationDataset(Dataset[Any]):
    """Rows of one site, float32, each alone or with its label, (row, label); a `DataLoader` makes batches of them.

    Attributes:
        classes: what the labels stand for, if they are not numbers.
        labels: one per row; None where there are none.
    """

    def __init__(self, parts: Sequence[torch.Tensor], labels: np.ndarray | None) -> None:
        self.parts = list(parts)  # mapped
        self._ends = np.cumsum([len(part) for part in self.parts])
        self.classes: list[Any] | None = None
        if labels is not None and not np.issubdtype(labels.dtype, np.number) and labels.dtype != bool:
            names, labels = np.unique(labels, return_inverse=True)
            self.classes = names.tolist()
        self.labels = None if labels is None else torch.as_tensor(np.ascontiguousarray(labels))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> Any:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} is out of range; there are {len(self)}")
        row %= len(self)
        part = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        values = self.parts[part][row - start].to(torch.float32, copy=True)
        return values if self.labels is None else (values, self.labels[row])

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        return [self[int(row)] for row in rows]
