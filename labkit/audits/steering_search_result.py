"""What a search over layers and strengths found: effect against damage, and what random directions reach."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.results.bootstrap import interval
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.steering.vector import SteeringVector, from_arrays, to_arrays
from labkit.text.as_code import LM, Name, as_code
from labkit.text.prompts import from_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "steering search"
HARMLESS = 0.1  # nats of KL that may come with an effect
LEAST = 1e-4  # nats of KL at the left end of the figure


@dataclass(frozen=True)
class SteeringSetting:
    """A layer and a strength, and what steering with them does.

    Attributes:
        layer, strength: for `lm.steer(search.vector(layer), strength)`.
        effect: the change of the measure, the mean over prompts.
        low, high: its 95 % bootstrap interval over prompts; both the effect where there is a single prompt. The
            interval does not know that the setting was chosen for its effect; `random` does.
        kl: nats per token of neutral text. `perplexity`: of that text.
        random: the largest effect of each random direction in any setting that does no more damage, (random,); 0 where
            every one does more.
    """

    layer: int
    strength: float
    effect: float
    low: float
    high: float
    kl: float
    perplexity: float
    random: np.ndarray = field(repr=False, compare=False)

    @property
    def beats_random(self) -> bool:
        """Is the effect above 0 and above what every random direction reaches with as little damage?"""
        return self.effect > float(self.random.max(initial=0.0))


@dataclass(frozen=True, eq=False, repr=False)
class SteeringSearch:
    """Effect and damage of a direction by layer and strength, and of random directions of the same norm.

    Attributes:
        directions: by layer.
        strengths: how many times each was added.
        effects: (layer, strength, direction, prompt) float32: how far the measure moves; the first direction is the
            one that was found, the others are random. NaN where it was not measured.
        damage: (layer, strength, direction, 2) float32: perplexity of the neutral text, and KL from the unchanged
            model there in nats per token.
        plain: (prompt,) float32, the measure in the unchanged model; `perplexity` of the neutral text there.
        recipe: what repeats it.
    """

    directions: dict[int, SteeringVector]
    strengths: tuple[float, ...]
    effects: np.ndarray
    damage: np.ndarray
    plain: np.ndarray
    perplexity: float
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.directions)

    @property
    def done(self) -> np.ndarray:
        """Which settings were measured, bool (layer, strength, direction)."""
        return np.isfinite(self.damage).all(-1)

    @property
    def frontier(self) -> list[SteeringSetting]:
        """The settings of the direction than which none has more effect for as little damage, by damage."""
        found: list[SteeringSetting] = []
        effects, kl = self.effects[:, :, 0].mean(-1), self.damage[:, :, 0, 1]
        cells = [(int(layer), int(strength)) for layer, strength in np.argwhere(self.done[:, :, 0])]
        for layer, strength in sorted(cells, key=lambda cell: (kl[cell], -effects[cell])):
            if effects[layer, strength] > (found[-1].effect if found else 0.0):
                found.append(self._setting(layer, strength))
        return found

    def best(self, damage: float = HARMLESS) -> SteeringSetting:
        """The setting of most effect among those that do no more damage.

        Args:
            damage: nats of KL per token of neutral text.

        Raises:
            ValueError: nothing that was measured has an effect for so little damage.
        """
        allowed = [one for one in self.frontier if one.kl <= damage]
        if not allowed:
            least = min((one.kl for one in self.frontier), default=None)
            why = (
                "no setting has an effect above 0"
                if least is None
                else f"the least that has an effect does {least:.3g}"
            )
            raise ValueError(f"no setting has an effect for a damage of at most {damage:g} nats per token: {why}")
        return allowed[-1]

    def vector(self, layer: int) -> SteeringVector:
        """The direction of a layer, for `lm.steer`.

        Raises:
            ValueError: the layer was not tried, or the two sides are the same there.
        """
        if layer not in self.directions:
            raise ValueError(
                f"there is no direction of layer {layer}; there is one of {', '.join(map(str, self.layers))}"
            )
        return self.directions[layer]

    def reached(self, damage: Sequence[float] | np.ndarray, *, own: bool = False) -> np.ndarray:
        """The largest effect for at most so much damage, (direction, damage), of the random directions, or of `own`."""
        some = slice(0, 1) if own else slice(1, None)
        effects = np.moveaxis(self.effects[:, :, some].mean(-1), 2, 0).reshape(self.effects[:, :, some].shape[2], -1)
        kl = np.moveaxis(self.damage[:, :, some, 1], 2, 0).reshape(effects.shape)
        allowed = kl[..., None] <= np.asarray(damage, np.float64)  # NaN is not
        return np.where(allowed, effects[..., None], 0.0).max(1, initial=0.0)

    def to_frame(self) -> pd.DataFrame:
        """One row per setting that was measured, by `layer`, `strength` and `direction` (`direction`, `random 0`, ...):
        `effect`, with `low` and `high` of its interval; `kl` and `perplexity` on neutral text; `frontier`, is it there?
        """
        import pandas as pd

        front = {(one.layer, one.strength) for one in self.frontier}
        rows = []
        for place in map(tuple, np.argwhere(self.done)):
            layer, strength = self.layers[place[0]], self.strengths[place[1]]
            name = f"random {place[2] - 1}" if place[2] else "direction"
            perplexity, kl = self.damage[place]
            on = not place[2] and (layer, strength) in front
            rows.append((layer, strength, name, *_mean(self.effects[place]), float(kl), float(perplexity), on))
        columns = ["layer", "strength", "direction", "effect", "low", "high", "kl", "perplexity", "frontier"]
        return pd.DataFrame(rows, columns=columns).set_index(["layer", "strength", "direction"])

    def words(self) -> str:
        """What it shows, in sentences."""
        if not self.done[:, :, 0].any():
            return "Nothing has been measured yet."
        if not (front := self.frontier):
            return "No setting moves the measure in the wanted direction."
        one = self.best(max(HARMLESS, front[0].kl))
        missing = int((~self.done).sum())
        return (
            f"Added {one.strength:g} times after layer {one.layer}, the direction moves the {self._what} by "
            f"{one.effect:+.2f}{self._unit} ({one.low:+.2f} to {one.high:+.2f}) for a KL of {one.kl:.3f} nats per "
            f"token on neutral text, whose perplexity goes from {self.perplexity:.1f} to {one.perplexity:.1f}. Random "
            f"directions of the same norm reach at most {one.random.max(initial=0.0):+.2f} for as little damage: "
            + ("it is more than they do." if one.beats_random else "it is no more than they do.")
            + (f" {missing} settings are not measured." if missing else "")
        )

    def figure(self) -> go.Figure:
        """Effect against damage: a line per layer, its strengths as points; the frontier; the band of the random
        directions, from the least to the most that one of them reaches.
        """
        import plotly.graph_objects as go
        from plotly.colors import sample_colorscale

        kl, effects = np.maximum(self.damage[..., 1], LEAST), self.effects.mean(-1)
        seen = kl[np.isfinite(kl)]
        ends = (seen.min(), seen.max()) if seen.size else (LEAST, 1.0)
        x = np.geomspace(ends[0], max(ends[1], 1.01 * ends[0]), 200)
        band = self.reached(x)
        fig = go.Figure()
        grey = {"mode": "lines", "line": {"width": 0, "shape": "hv"}, "hoverinfo": "skip"}
        if len(band):
            fig.add_scatter(x=x, y=band.min(0), showlegend=False, **grey)
            fig.add_scatter(
                x=x, y=band.max(0), fill="tonexty", fillcolor="rgba(120,120,120,0.3)",
                name=f"best of {len(band)} random directions", **grey,
            )  # fmt: skip
        depth = [n / max(1, len(self.layers) - 1) for n in range(len(self.layers))]
        for n, (layer, colour) in enumerate(zip(self.layers, sample_colorscale("Viridis", depth), strict=True)):
            fig.add_scatter(
                x=kl[n, :, 0], y=effects[n, :, 0], mode="lines+markers", name=f"layer {layer}",
                line={"color": colour, "width": 1}, marker={"size": 7}, customdata=self.strengths,
                hovertemplate=f"layer {layer}, %{{customdata:g}} times<br>KL %{{x:.3g}}<br>%{{y:+.2f}}<extra></extra>",
            )  # fmt: skip
        front = self.frontier
        fig.add_scatter(
            x=[max(one.kl, LEAST) for one in front], y=[one.effect for one in front], mode="lines", name="frontier",
            line={"color": "#000", "width": 2, "shape": "hv"}, hoverinfo="skip",
        )  # fmt: skip
        fig.update_xaxes(title="damage: KL on neutral text, nats per token", type="log")
        fig.update_yaxes(title=f"change of the {self._what}{self._unit and ',' + self._unit}", zerolinecolor="#555")
        title = "Steering: effect against damage, by layer and strength"
        return fig.update_layout(title={"text": title, "font": {"size": 14}}, width=740, height=480)

    def code(self) -> str:
        """The Python that searches again."""
        asked = dict(self.recipe["asked"])
        if "prompts" in asked:
            pairs = "effect" not in asked
            asked["prompts"] = [tuple(map(from_json, one)) if pairs else from_json(one) for one in asked["prompts"]]
        if "neutral" in asked:
            asked["neutral"] = from_json(asked["neutral"])
        if self.recipe["own_effect"]:
            asked["effect"] = Name(asked["effect"])
        sides = [[from_json(one) for one in self.recipe[name]] for name in ("positive", "negative")]
        before = self.recipe["load"] + self.recipe.get("effect_code", "")
        return as_code(before, "search = lk.steering_search", LM, *sides, **asked)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_steering_search` reads it."""
        vectors, values = to_arrays(self.directions.values())
        about = {
            "strengths": self.strengths, "perplexity": self.perplexity, "recipe": self.recipe,
            "directions": vectors,
        }  # fmt: skip
        return save_arrays(path, FILE, about, values=values, effects=self.effects, damage=self.damage, plain=self.plain)

    @property
    def _what(self) -> str:
        return str(self.recipe.get("what", "measure"))

    @property
    def _unit(self) -> str:
        unit = self.recipe.get("unit")
        return f" {unit}" if unit else ""

    def _setting(self, layer: int, strength: int) -> SteeringSetting:
        perplexity, kl = map(float, self.damage[layer, strength, 0])
        found = _mean(self.effects[layer, strength, 0])
        random = self.reached([kl])[:, 0]
        return SteeringSetting(self.layers[layer], self.strengths[strength], *found, kl, perplexity, random)

    def __repr__(self) -> str:
        done = f"{int(self.done.sum())} of {self.done.size} settings measured"
        if not (front := self.frontier):
            return f"SteeringSearch({done}; none has an effect above 0)"
        one = self.best(max(HARMLESS, front[0].kl))
        return (
            f"SteeringSearch(layer {one.layer}, {one.strength:g} times: {one.effect:+.2f}{self._unit} for a KL of "
            f"{one.kl:.3f}, {'above' if one.beats_random else 'not above'} random directions; {done})"
        )


def open_steering_search(path: str | os.PathLike[str]) -> SteeringSearch:
    """Open what `SteeringSearch.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        vectors = from_arrays(about["directions"], arrays.pop("values"))
        directions = {vector.layer: vector for vector in vectors}
        strengths = tuple(about["strengths"])
        return SteeringSearch(directions, strengths, perplexity=about["perplexity"], recipe=about["recipe"], **arrays)


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    """The mean over prompts, and the ends of its bootstrap interval."""
    each = values.astype(np.float64)
    if len(each) < 2:
        return float(each[0]), float(each[0]), float(each[0])
    low, high = interval(lambda weights: weights @ each, len(each))
    return float(each.mean()), float(low), float(high)
