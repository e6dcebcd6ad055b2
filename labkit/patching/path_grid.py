"""PathGrid: a grid of senders, with the title, the labels and the code that belong to paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from labkit.activations.metrics import in_title
from labkit.patching.grid import PatchGrid
from labkit.results.recipe import code_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class PathGrid(PatchGrid):
    """Effects of patching the path from each sender to the receiver, layers x heads; the last column may be MLPs."""

    @property
    def receiver(self) -> str:
        """The receiver: `logits`, `q.20.3`, or several joined by commas."""
        receiver = self.recipe["receiver"]
        return receiver if isinstance(receiver, str) else ", ".join(receiver)

    def labels(self, axis: str) -> list[str]:
        names = super().labels(axis)
        n_heads = self.recipe["n_heads"]
        if axis != "head":
            return names
        return ["MLP" if n == n_heads else name for n, name in zip(self.index[1], names, strict=True)]

    def to_frame(self) -> pd.DataFrame:
        """One row per requested sender: `sender`, `layer`, `head` (none for an MLP), `value`, `normalized`."""
        frame = super().to_frame()
        mlp = frame["head"] == self.recipe["n_heads"]
        places = zip(frame["layer"], frame["head"], mlp, strict=True)
        names = [f"mlp_out.{layer}" if is_mlp else f"z.{layer}.{head}" for layer, head, is_mlp in places]
        frame.insert(0, "sender", names)
        frame["head"] = frame["head"].astype("Int64").mask(mlp)
        asked = self.recipe["senders"]
        return frame if asked is None else frame[frame["sender"].isin(asked)].reset_index(drop=True)

    @property
    def complete(self) -> bool:
        return not bool(self.to_frame()["value"].isna().any())

    def title(self) -> str:
        source, base = ("clean", "corrupt") if self.direction == "denoise" else ("corrupt", "clean")
        what = in_title(self.recipe["metric"], self.answer, self.foil)
        held = ", MLPs frozen" if self.recipe["mlps"] == "freeze" else ""
        return f"Paths to {self.receiver}: {source} sender in the {base} run ({what}{held})"

    def code(self) -> str:
        """The Python that computes this grid again."""
        receivers, senders = self.recipe["receiver"], self.recipe["senders"]
        one = receivers if isinstance(receivers, str) or len(receivers) > 1 else receivers[0]
        own = {"receiver": one} | ({} if senders is None else {"senders": senders})
        usual = {"mlps": "recompute", "direction": "denoise", "at": -1}
        return code_of(self.recipe, "paths = lk.path_patch", own, usual=usual)

    def __repr__(self) -> str:
        """The request, and the five senders whose path moves the metric most."""
        frame = self.to_frame()
        done = frame.dropna(subset="value")
        ends = (self.corrupt, self.clean) if self.too_close else (0.0, 1.0)
        scale, nothing = "value" if self.too_close else "normalized", ends[self.direction == "noise"]
        moved = done.assign(effect=done[scale] - nothing).sort_values("effect", key=np.abs, ascending=False)
        most = ", ".join(f"{row.sender} {row.effect:+.2f}" for row in moved.head(5).itertuples())
        partly = "" if len(done) == len(frame) else f", {len(done)} of {len(frame)} computed"
        return (
            f"PathGrid({len(frame)} senders to {self.receiver}, {self.direction}: clean {self.clean:.3f}, "
            f"corrupt {self.corrupt:.3f}{partly}; most: {most or 'none'})"
        )
