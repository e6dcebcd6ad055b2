"""The scores of all edges between the parts of a model."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.circuits.circuit import Circuit
from labkit.circuits.graph import Wiring
from labkit.circuits.mib import write_mib
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.text.as_code import TORCH, with_imports

if TYPE_CHECKING:
    import pandas as pd


@dataclass(repr=False)
class EdgeScores:
    """How much each edge carries toward the answer, in the metric's unit: what cutting it alone is estimated to cost.

    Attributes:
        values: (sender, receiver) float32; NaN where there is no edge.
        wiring: the names along both axes.
        clean, corrupt: the metric on the two runs.
        recipe: what repeats it.
    """

    values: np.ndarray
    wiring: Wiring
    clean: float
    corrupt: float
    recipe: dict[str, Any] = field(repr=False)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per edge: `sender`, `receiver`, `score`, the largest magnitude first."""
        import pandas as pd

        sender, receiver = np.nonzero(self.wiring.exists)
        frame = pd.DataFrame(
            {
                "sender": np.array(self.wiring.senders)[sender],
                "receiver": np.array(self.wiring.receivers)[receiver],
                "score": self.values[sender, receiver],
            }
        )
        return frame.sort_values("score", key=np.abs, ascending=False, kind="stable", ignore_index=True)

    def circuit(self, n_edges: int | None = None, *, threshold: float | None = None) -> Circuit:
        """The strongest edges that lie on a path from the embedding to the logits.

        Args:
            n_edges: at most this many, not counting those on no path.
            threshold: instead, every edge whose score has at least this magnitude.

        Raises:
            ValueError: neither or both are given, or no edge is left.
        """
        if (n_edges is None) == (threshold is None):
            raise ValueError("give the size of the circuit: n_edges=200, or threshold=0.01")
        size = np.nan_to_num(np.abs(self.values))
        kept = self.wiring.pruned(size >= threshold) if n_edges is None else self._largest(size, n_edges)
        if not kept.any():
            best = np.sort(size.ravel())[::-1][:3].tolist()
            raise ValueError(
                f"no path from the embedding to the logits is left; take more edges (the largest scores are {best})"
            )
        how = f"n_edges={n_edges}" if threshold is None else f"threshold={threshold!r}"
        return Circuit(kept, self, f"circuit = edges.circuit({how})\n")

    def _largest(self, size: np.ndarray, n_edges: int) -> np.ndarray:
        """The largest edges, as many as keep at most `n_edges` on a path."""
        order = np.append(np.inf, np.sort(size[self.wiring.exists])[::-1])
        kept = lambda n: self.wiring.pruned(size >= order[n])  # noqa: E731
        # what is on a path only grows with the number of edges
        most = bisect_right(range(len(order)), n_edges, key=lambda n: int(kept(n).sum())) - 1
        return kept(max(0, most))

    @classmethod
    def mean(cls, several: Sequence[EdgeScores]) -> EdgeScores:
        """The mean over several pairs of prompts of one model; its circuit belongs to the task, not to one prompt.

        Raises:
            ValueError: there are none, or they are of different models.
        """
        if not several or any(one.wiring != several[0].wiring for one in several):
            raise ValueError("the mean needs at least one EdgeScores, all of the same model")
        alone = lambda one: one.code().removeprefix(TORCH).removeprefix(one.recipe["load"])  # noqa: E731
        calls = [alone(one).removeprefix("edges = ").rstrip() for one in several]
        mean: np.ndarray = np.stack([one.values for one in several]).mean(0, dtype=np.float64)
        clean, corrupt = (float(np.mean([getattr(one, name) for one in several])) for name in ("clean", "corrupt"))
        inner = ",\n    ".join(call.replace("\n", "\n    ") for call in calls)
        code = with_imports(f"{several[0].recipe['load']}edges = lk.EdgeScores.mean([\n    {inner},\n])\n")
        return replace(
            several[0],
            values=mean.astype(np.float32),
            clean=clean,
            corrupt=corrupt,
            recipe=several[0].recipe | {"code": code},
        )

    def code(self) -> str:
        """The Python that computes these scores again."""
        return str(self.recipe["code"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write scores and recipe to one file (`.npz`), in one step: the file is whole or not there."""
        about = {"edges": asdict(self.wiring), "clean": self.clean, "corrupt": self.corrupt, "recipe": self.recipe}
        return save_arrays(path, "edges", about, values=self.values)

    def save_mib(self, path: str | os.PathLike[str], *, d_model: int | None = None) -> Path:
        """Write the scores as MIB's JSON, with no edge chosen, for its tools and others; see `labkit.circuits.mib`.

        Args:
            path: the file, usually `.json`.
            d_model: width of the model; only for scores that a labkit before 0.3 saved.

        Raises:
            ValueError: layers that differ in ways the format cannot say.
        """
        width = d_model or self.recipe.get("d_model")
        return write_mib(path, self.wiring, self.values, np.zeros_like(self.wiring.exists), width)

    def __repr__(self) -> str:
        """How many edges there are, and the five that carry most."""
        most = ", ".join(f"{e.sender} -> {e.receiver} {e.score:+.2f}" for e in self.scores.head(5).itertuples())
        return (
            f"EdgeScores({int(self.wiring.exists.sum())} edges, {self.recipe['metric']}: clean {self.clean:.3f}, "
            f"corrupt {self.corrupt:.3f}; most: {most})"
        )


def open_edges(path: str | os.PathLike[str]) -> EdgeScores:
    """Open scores that `EdgeScores.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no edge scores, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, "edges")
    with reading(path, "edges"):
        wiring = Wiring.of(**about["edges"])
        return EdgeScores(arrays["values"], wiring, about["clean"], about["corrupt"], about["recipe"])
