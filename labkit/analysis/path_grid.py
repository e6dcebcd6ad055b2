"""PathGrid: a grid of senders, with the title, the labels and the code that belong to paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.analysis.grid import PatchGrid
from labkit.tokens import Pair, describe

if TYPE_CHECKING:
    import pandas as pd

    from labkit.models.language_model import LanguageModel, Prompt


@dataclass
class PathGrid(PatchGrid):
    """Effects of patching the path from each sender to the receiver, layers x heads; the last column may be MLPs."""

    @property
    def receiver(self) -> str:
        """What received: `logits`, `q.20.3`, or several joined by commas."""
        receiver = self.recipe["receiver"]
        return receiver if isinstance(receiver, str) else ", ".join(receiver)

    def labels(self, axis: str) -> list[str]:
        names = super().labels(axis)
        n_heads = self.recipe["n_heads"]
        if axis != "head":
            return names
        return ["MLP" if n == n_heads else name for n, name in zip(self.index[1], names, strict=True)]

    def to_frame(self) -> pd.DataFrame:
        """One row a sender that was asked for: `sender`, `layer`, `head` (none for an MLP), `value`, `normalized`."""
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
        what = f"{self.recipe['metric']} of {self.answer!r}" if self.answer else str(self.recipe["metric"])
        what += f" minus {self.foil!r}" if self.foil and self.recipe["metric"] == "logit_diff" else ""
        held = ", MLPs held" if self.recipe["mlps"] == "freeze" else ""
        return f"Paths to {self.receiver}: {source} sender in the {base} run ({what}{held})"

    def code(self) -> str:
        """The Python that computes this grid again."""
        recipe = self.recipe
        arguments = [f"clean={recipe['clean']!r}", f"corrupt={recipe['corrupt']!r}"]
        arguments += [f"{name}={recipe[name]!r}" for name in ("answer", "foil") if recipe[name] is not None]
        receivers = recipe["receiver"]
        one = receivers if isinstance(receivers, str) or len(receivers) > 1 else receivers[0]
        arguments.append(f"receiver={one!r}")
        if recipe["senders"] is not None:
            arguments.append(f"senders={recipe['senders']!r}")
        usual = {"mlps": "recompute", "direction": "denoise", "at": -1}
        arguments += [f"{name}={recipe[name]!r}" for name, value in usual.items() if recipe[name] != value]
        if recipe["metric"] != ("logit_diff" if recipe["foil"] is not None else "logprob"):
            arguments.append(f"metric={recipe['metric'] if recipe['own_metric'] else repr(recipe['metric'])}")
        lines = ",\n    ".join(arguments)
        return f"{recipe['load']}paths = lk.path_patch(\n    lm,\n    {lines},\n)\n"

    def __repr__(self) -> str:
        """What was asked, and the five senders whose path moves the metric most."""
        frame = self.to_frame()
        done = frame.dropna(subset="value")
        nothing = 0.0 if self.direction == "denoise" else 1.0
        moved = done.assign(effect=done["normalized"] - nothing).sort_values("effect", key=np.abs, ascending=False)
        most = ", ".join(f"{row.sender} {row.effect:+.2f}" for row in moved.head(5).itertuples())
        partly = "" if len(done) == len(frame) else f", {len(done)} of {len(frame)} computed"
        return (
            f"PathGrid({len(frame)} senders to {self.receiver}, {self.direction}: clean {self.clean:.3f}, "
            f"corrupt {self.corrupt:.3f}{partly}; most: {most or 'none'})"
        )


def recipe_of(
    lm: LanguageModel,
    pair: Pair,
    clean: Prompt,
    corrupt: Prompt,
    *,
    answer: int | None,
    foil: int | None,
    metric: str | Callable[..., Any] | None,
    **more: Any,
) -> dict[str, Any]:
    """What repeats a result made from a pair of prompts, ready for JSON."""
    import transformers

    import labkit

    texts = lambda prompt: prompt if isinstance(prompt, str | list) else None  # noqa: E731
    word = lambda id: None if id is None else describe(lm.tokenizer, [id])[0].text  # noqa: E731
    default = "logit_diff" if foil is not None else "logprob"
    return {
        "kind": "paths",
        "model": lm.name,
        "load": lm.code(),
        "revision": lm.revision,
        "bits": lm.bits,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "clean": texts(clean) or pair.clean[0].tolist(),
        "corrupt": texts(corrupt) or pair.corrupt[0].tolist(),
        "clean_ids": pair.clean[0].tolist(),
        "corrupt_ids": pair.corrupt[0].tolist(),
        "answer": word(answer),
        "foil": word(foil),
        "site": "path",
        "metric": getattr(metric, "__name__", "metric") if callable(metric) else (metric or default),
        "own_metric": callable(metric),
        "method": "exact",
        "usual_over": ("layer", "head"),
        "versions": {
            "labkit": labkit.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        **more,
    }
