"""What in a prompt made a model write what it wrote: the result, its pictures and its file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.attribution.units import Unit
from labkit.language_model import LanguageModel
from labkit.models.reference import RefersToModel
from labkit.results.figures import of_patching
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.text.as_code import LM, as_code, changed
from labkit.text.prompts import from_json
from labkit.text.tokens import Token, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "input attribution"
NAMES = {
    "occlusion": "Removed, exactly",
    "gradient_x_input": "Gradient x input",
    "integrated_gradients": "Integrated gradients",
}
"""What figures call each method."""
USUAL = {
    "written": None, "foil": None, "by": "token", "method": "occlusion", "replace": "mean", "per_token": False,
    "max_new_tokens": 20, "tolerance": 0.01, "max_steps": 400,
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class InputAttribution(RefersToModel):
    """How much each part of a prompt made a text likelier that was written after it.

    Attributes:
        tokens: of the prompt.
        units: the parts of the prompt, in order.
        values: what each adds to the log-probability of what was written, or to its difference to that of the foil, in
            nats, float32 (unit,); NaN where it was not computed. Positive: the text is less likely without it.
        per_token: the same for each token that was written, then with the opposite sign for each of the foil's, float32
            (token, unit), which sums to `values`; None if it was not asked for.
        written, foil: the tokens of both texts.
        score: the log-probability with nothing removed, less the foil's.
        without: the same with all units removed; NaN where nothing would be left.
        steps: at how many places gradients were taken; 0 for occlusion.
        recipe: what repeats it.
    """

    tokens: tuple[Token, ...]
    units: tuple[Unit, ...]
    values: np.ndarray
    per_token: np.ndarray | None
    written: tuple[Token, ...]
    foil: tuple[Token, ...]
    score: float
    without: float
    steps: int
    recipe: dict[str, Any] = field(repr=False)
    lm: LanguageModel | None = field(default=None, repr=False, compare=False)

    @property
    def method(self) -> str:
        return str(self.recipe["method"])

    @property
    def finish(self) -> str:
        """`stopped` where values are missing, else `complete`."""
        return "stopped" if np.isnan(self.values).any() or self.recipe.get("stopped") else "complete"

    @property
    def gap(self) -> float:
        """How far the values are from adding up to the difference between nothing and everything removed, as a share of
        it. For integrated gradients this is the error of the integral; others do not promise to add up."""
        whole = self.score - self.without
        return abs(float(self.values.sum(dtype=np.float64)) - whole) / max(abs(whole), 1e-6)

    def strongest(self, count: int = 5) -> list[tuple[Unit, float]]:
        """The units with the largest effects of either sign."""
        order = np.argsort(-np.abs(np.nan_to_num(self.values)), kind="stable")[:count]
        return [(self.units[n], float(self.values[n])) for n in order if not np.isnan(self.values[n])]

    def to_frame(self, *, per_token: bool = False) -> pd.DataFrame:
        """One row per unit: its text, positions, role and value; with `per_token` one per token and unit.

        Raises:
            ValueError: there are no values by token.
        """
        import pandas as pd

        rows = [
            {"unit": n, "text": u.text, "start": u.start, "stop": u.stop, "role": u.role}
            for n, u in enumerate(self.units)
        ]
        if not per_token:
            return pd.DataFrame(rows).assign(value=self.values)
        table = self._per_token()
        said = [("written", t) for t in self.written] + [("foil", t) for t in self.foil]
        return pd.DataFrame(
            {"of": of, "token": token.text, "place": n, **row, "value": value}
            for n, (of, token) in enumerate(said)
            for row, value in zip(rows, table[n], strict=True)
        )

    def figure(self, *, per_token: bool = False) -> go.Figure:
        """The prompt's units in order with a bar for each; with `per_token` a map of tokens by units.

        Raises:
            ValueError: there are no values by token.
        """
        import plotly.graph_objects as go

        names = [f"{n} {visible(unit.text)[:60]}" for n, unit in enumerate(self.units)]
        title = f"{NAMES[self.method]}: what each {self._word} adds to {self._text(self.written)!r:.80}"
        title += f" rather than {self._text(self.foil)!r:.60}" if self.foil else ""
        if per_token:
            rows = [f"{n} {token.display}" for n, token in enumerate(self.written)]
            rows += [f"{n} {token.display} (foil)" for n, token in enumerate(self.foil)]
            return of_patching(
                self._per_token(), ("written", "position"), (rows, names), nothing=0.0, least=0.1, title=title,
                unit="nats", hover=" nats",
            )  # fmt: skip
        reach = max(0.1, float(np.nanmax(np.abs(self.values), initial=0.0)))
        bars = go.Bar(
            x=self.values, y=names, orientation="h",
            marker={"color": self.values, "colorscale": "RdBu", "cmin": -reach, "cmax": reach,
                    "line": {"color": "#888", "width": 0.5}},
            hovertemplate="%{y}<br>%{x:.3f} nats<extra></extra>",
        )  # fmt: skip
        return go.Figure(bars).update_layout(
            title={"text": title, "font": {"size": 14}},
            xaxis={"title": "change of the log-probability (nats)", "zeroline": True},
            yaxis={"title": self._word, "type": "category", "autorange": "reversed"},
            width=740,
            height=max(320, 160 + 20 * len(names)),
        )

    def code(self) -> str:
        """The Python that computes it again."""
        asked = self.recipe["asked"]
        more = {name: from_json(value) for name, value in changed(USUAL, asked).items()}
        return as_code(
            self.recipe["load"], "attribution = lk.input_attribution", LM, from_json(asked["prompt"]), **more
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_input_attribution` reads it."""
        about = {name: getattr(self, name) for name in ("score", "without", "steps", "recipe")}
        about |= {name: [vars(one) for one in getattr(self, name)] for name in ("tokens", "units", "written", "foil")}
        about["each"] = self.per_token is not None
        more = {} if self.per_token is None else {"per_token": self.per_token}
        return save_arrays(path, FILE, about, values=self.values, **more)

    def __repr__(self) -> str:
        said = ", ".join(f"{unit.text!r:.40} {value:+.2f}" for unit, value in self.strongest(3))
        left = f", {int(np.isnan(self.values).sum())} not computed" if np.isnan(self.values).any() else ""
        foil = f" rather than {self._text(self.foil)!r:.40}" if self.foil else ""
        of = f"{len(self.units)} {self._word}s{left}, of {self._text(self.written)!r:.60}"
        return f"InputAttribution({self.method}, {of}{foil}: {said})"

    @property
    def _word(self) -> str:
        by = self.recipe["asked"]["by"]
        return by if isinstance(by, str) else "span"

    def _text(self, tokens: tuple[Token, ...]) -> str:
        return "".join(token.text for token in tokens)

    def _per_token(self) -> np.ndarray:
        if self.per_token is None:
            raise ValueError("there are no values by token; ask for them with per_token=True")
        return self.per_token


def open_input_attribution(path: str | os.PathLike[str], lm: LanguageModel | None = None) -> InputAttribution:
    """Open what `InputAttribution.save` wrote; given the model, it also has a deletion curve.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        tokens, written, foil = (tuple(Token(**one) for one in about[n]) for n in ("tokens", "written", "foil"))
        units = tuple(Unit(**one) for one in about["units"])
        values, per_token = arrays["values"], arrays["per_token"] if about["each"] else None
        return InputAttribution(
            tokens, units, values, per_token, written, foil, about["score"], about["without"], about["steps"],
            about["recipe"], lm,
        )  # fmt: skip
