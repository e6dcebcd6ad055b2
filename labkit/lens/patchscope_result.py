"""What a model wrote about activations that were put into a prompt: the table, its picture and its file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.results.figures import heatmap
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.text.as_code import Name, as_call, changed, with_imports
from labkit.text.prompts import from_json
from labkit.text.tokens import Token

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "patchscope"
USUAL = {
    "site": "resid_post.10@-1", "into": "cat->cat; 135->135; hello->hello; ?", "at": -1, "layer": None, "layers": None,
    "positions": None, "max_new_tokens": 20, "controls": True, "seed": 0, "batch": None,
}  # fmt: skip


@dataclass(frozen=True)
class Wrote:
    """A text that a model wrote.

    Attributes:
        ids: of its tokens.
        text: without special tokens.
        first: the first token, as it is shown; `probability` is the model's for it.
        finish: why it ended, as of a generation.
    """

    ids: tuple[int, ...]
    text: str
    first: str
    probability: float
    finish: str


@dataclass(frozen=True)
class PatchscopeRow:
    """One activation that was put into the target prompt.

    Attributes:
        layer, position: where it was read.
        token: the source prompt's there.
        target_layer: where it was written.
        wrote: what the model wrote then; None if it was not reached.
        random: what it wrote with a random vector of the same norm there; None without controls.
    """

    layer: int
    position: int
    token: str
    target_layer: int
    wrote: Wrote | None = None
    random: Wrote | None = None


@dataclass(frozen=True, repr=False)
class Patchscope:
    """What a model writes after a prompt that has activations of another prompt in it.

    Attributes:
        rows: one per layer and position that was read.
        unpatched: what the model writes after the target prompt as it is; None if it was not reached or not asked for.
        source, target: the tokens of both prompts.
        at: the position of the target prompt that was written.
        recipe: what repeats it.
    """

    rows: tuple[PatchscopeRow, ...]
    unpatched: Wrote | None
    source: tuple[Token, ...]
    target: tuple[Token, ...]
    at: int
    recipe: dict[str, Any] = field(repr=False)

    @property
    def finish(self) -> str:
        """`stopped` where texts are missing or were interrupted, else `complete`."""
        controls = self.recipe["asked"]["controls"]
        texts = [row.wrote for row in self.rows]
        texts += [self.unpatched, *(row.random for row in self.rows)] if controls else []
        return "stopped" if any(text is None or text.finish == "stopped" for text in texts) else "complete"

    def text(self, layer: int | None = None, position: int | None = None) -> str:
        """What was written with the activation of a layer and position; of the only one if none is named.

        Raises:
            ValueError: there is none, or there are several.
        """
        found = [
            row for row in self.rows
            if layer in (None, row.layer) and position in (None, row.position, row.position - len(self.source))
        ]  # fmt: skip
        if len(found) != 1:
            have = ", ".join(f"{row.layer}@{row.position}" for row in self.rows[:12])
            raise ValueError(f"{len(found)} rows fit layer {layer}, position {position}; there are {have}")
        return "" if found[0].wrote is None else found[0].wrote.text

    def to_frame(self) -> pd.DataFrame:
        """One row per activation: where it was read and written, what was written, the first token with its
        probability, and the same for a random vector."""
        import pandas as pd

        def said(name: str, wrote: Wrote | None) -> dict[str, Any]:
            return {
                f"{name}text": None if wrote is None else wrote.text,
                f"{name}first": None if wrote is None else wrote.first,
                f"{name}probability": np.nan if wrote is None else wrote.probability,
            }

        where = ("layer", "position", "token", "target_layer")
        return pd.DataFrame(
            {name: getattr(row, name) for name in where} | said("", row.wrote) | said("random_", row.random)
            for row in self.rows
        )

    def figure(self) -> go.Figure:
        """Layers by positions: the beginning of what was written, coloured by the probability of its first token."""
        layers, positions = sorted({row.layer for row in self.rows}), sorted({row.position for row in self.rows})
        values = np.full((len(layers), len(positions)), np.nan)
        words = [["" for _ in positions] for _ in layers]
        for row in self.rows:
            if row.wrote is not None:
                y, x = layers.index(row.layer), positions.index(row.position)
                values[y, x] = row.wrote.probability
                words[y][x] = " ".join(row.wrote.text.split())[:200]
        unpatched = "" if self.unpatched is None else f"; unpatched: {self.unpatched.text.strip()!r:.60}"
        return heatmap(
            values,
            x=[f"{n} {self.source[n].display}" for n in positions],
            y=layers,
            axes=("source position", "source layer"),
            title=f"What the model writes with {self.recipe['site']} of each place in {self._into()!r:.60}{unpatched}",
            unit="probability of the first token",
            hover="layer %{y}, %{x}<br>%{hovertext}<br>first token %{z:.3f}",
            size=(max(560, 160 + 210 * len(positions)), max(320, 180 + 24 * len(layers))),
            colours="Blues",
            ends=(0, 1),
            words=words,
        )

    def code(self) -> str:
        """The Python that repeats it; a mapping without a source of its own is only named there."""
        return with_imports(self.recipe["load"] + self.recipe["before"] + self.call())

    def call(self, writer: str = "lm", reader: str = "source") -> str:
        """The Python of the call alone, with the names of the model that writes and of another one that reads."""
        asked = self.recipe["asked"]
        more = {name: from_json(value) for name, value in changed(USUAL, asked).items()}
        more |= {"source": Name(reader)} if self.recipe.get("source") else {}
        more |= {"mapping": Name(self.recipe["mapping"])} if self.recipe.get("mapping") else {}
        return as_call("scope = lk.patchscope", Name(writer), from_json(asked["source_prompt"]), **more)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_patchscope` reads it."""
        rows = [vars(row) | {name: _packed(getattr(row, name)) for name in ("wrote", "random")} for row in self.rows]
        about = {
            "rows": rows, "unpatched": _packed(self.unpatched), "at": self.at, "recipe": self.recipe,
            "source": [vars(one) for one in self.source], "target": [vars(one) for one in self.target],
        }  # fmt: skip
        return save_arrays(path, FILE, about)

    def __repr__(self) -> str:
        said = [f"{row.layer}@{row.position} {row.wrote.text!r:.40}" for row in self.rows if row.wrote is not None]
        more = f", and {len(self.rows) - 3} more" if len(self.rows) > 3 else ""
        return f"Patchscope({self.recipe['site']}; {', '.join(said[:3])}{more})"

    def _into(self) -> str:
        return "".join(token.text for token in self.target)


def _packed(wrote: Wrote | None) -> dict[str, Any] | None:
    return None if wrote is None else vars(wrote)


def _opened(wrote: dict[str, Any] | None) -> Wrote | None:
    return None if wrote is None else Wrote(**{**wrote, "ids": tuple(wrote["ids"])})


def open_patchscope(path: str | os.PathLike[str]) -> Patchscope:
    """Open what `Patchscope.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, _ = open_arrays(path, FILE)
    with reading(path, FILE):
        rows: Sequence[dict[str, Any]] = about["rows"]
        return Patchscope(
            tuple(
                PatchscopeRow(**{**row, "wrote": _opened(row["wrote"]), "random": _opened(row["random"])})
                for row in rows
            ),
            _opened(about["unpatched"]),
            tuple(Token(**one) for one in about["source"]),
            tuple(Token(**one) for one in about["target"]),
            about["at"],
            about["recipe"],
        )
