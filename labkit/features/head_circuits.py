"""All heads by their weights: which of them copy, and how much each reads of what earlier ones write.

The composition scores of Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits"): the Frobenius norm
of the product of what a later head reads with and what an earlier one writes with, over the product of their norms.
These matrices have d_model rows and columns and the rank of d_head, so everything is computed on matrices of d_head
rows and columns. Of later layers the weights of one are unpacked at a time, of earlier ones output projections are
kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.elsewhere import where_the_model_is
from labkit.features.head_circuit import eigen_score, evenly
from labkit.features.head_weights import HeadWeights, Unembedding
from labkit.language_model import LanguageModel
from labkit.results.figures import heatmap
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.job import finish
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, as_code, changed
from labkit.text.whole_numbers import whole

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "head circuits"
USUAL = {"layers": None, "sample": 1024}
READS = {"q": "queries", "k": "keys", "v": "values"}


@dataclass(frozen=True, eq=False, repr=False)
class HeadCircuits:
    """How heads compose, and which copy, by their weights alone.

    Attributes:
        layers: which were looked at, in order.
        q, k, v: (layer, head, earlier layer, earlier head), float32: how much of what an earlier head writes the
            queries, keys or values of a later one read, from 0 to 1; NaN where the earlier one is not earlier, and
            where a layer is not done.
        eigen: (layer, head), how much a head copies: the sum of the eigenvalues of OV from token to token, over the sum
            of their sizes, from -1 to 1. See `lk.head_circuit`.
        chance: the score of heads that have nothing to do with each other: if one is turned at random, the mean of its
            square is 1 / d_model.
        missing: why there are no scores of a kind.
        recipe: what repeats it.
    """

    layers: tuple[int, ...]
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    eigen: np.ndarray
    chance: float
    missing: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)

    def above_chance(self, reads: str) -> np.ndarray:
        """The scores of `q`, `k` or `v` minus chance."""
        if reads not in READS:
            raise ValueError(f"reads must be one of {', '.join(READS)}; got {reads!r}")
        if reads in self.missing:
            raise ValueError(f"there are no scores of {reads}: {self.missing[reads]}")
        return getattr(self, reads) - self.chance

    def to_frame(self) -> pd.DataFrame:
        """One row per pair of heads: `layer`, `head`, `earlier_layer`, `earlier_head`, and the scores above chance,
        `q`, `k` and `v`."""
        import pandas as pd

        places = np.argwhere(np.isfinite(self.v))
        at = np.array(self.layers, dtype=int)
        frame = pd.DataFrame(
            {
                "layer": at[places[:, 0]], "head": places[:, 1],
                "earlier_layer": at[places[:, 2]], "earlier_head": places[:, 3],
            }
        )  # fmt: skip
        for name in READS:
            frame[name] = (getattr(self, name) - self.chance)[tuple(places.T)]
        return frame

    def figure(self, show: str = "k", head: tuple[int, int] | None = None) -> go.Figure:
        """A grid: the scores of `q`, `k` or `v` above chance, or `copying`, the score by eigenvalues.

        Args:
            show: which.
            head: (layer, head): the scores of this one alone, by layer and head of what it reads from. By default all
                pairs.
        """
        n_heads = self.eigen.shape[1]
        if show == "copying":
            return self._drawn(self.eigen, "Copying, by eigenvalues of OV", "score", ("head", "layer"), bounds=1.0)
        values = self.above_chance(show)
        if head is not None:
            if head[0] not in self.layers or not 0 <= head[1] < n_heads:
                raise ValueError(f"head {head} is not here; there are layers {self.layers} of {n_heads} heads")
            title = f"How much the {READS[show]} of head {head[0]}.{head[1]} read of what earlier heads write"
            return self._drawn(values[self.layers.index(head[0]), head[1]], title, "above chance", ("head", "layer"))
        names = [f"{layer}.{n}" for layer in self.layers for n in range(n_heads)]
        whole = values.reshape(len(names), len(names))
        title = f"How much the {READS[show]} of heads read of what earlier heads write"
        return self._drawn(whole, title, "above chance", ("earlier head", "head"), names=names)

    def _drawn(
        self, values: np.ndarray, title: str, unit: str, axes: tuple[str, str], *, names: Sequence[str] | None = None,
        bounds: float | None = None,
    ) -> go.Figure:  # fmt: skip
        reach = bounds or float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
        wide = 9 if names else 34
        return heatmap(
            values,
            x=names or list(range(values.shape[1])),
            y=names or list(self.layers),
            axes=axes,
            title=title,
            unit=unit,
            hover=f"{axes[1]} %{{y}}<br>{axes[0]} %{{x}}<br>%{{z:.3f}}",
            size=(min(1400, max(520, 160 + wide * values.shape[1])), min(1300, max(360, 160 + 16 * len(self.layers)))),
            ends=(-reach, reach),
            slanted=bool(names),
        )

    def code(self) -> str:
        """The Python that repeats it."""
        return as_code(self.recipe["load"], "circuits = lk.head_circuits", LM, **changed(USUAL, self.recipe["asked"]))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_head_circuits` reads it."""
        about = {name: getattr(self, name) for name in ("layers", "chance", "missing", "recipe")}
        return save_arrays(path, FILE, about, q=self.q, k=self.k, v=self.v, eigen=self.eigen)

    def __repr__(self) -> str:
        said = []
        for name in READS:
            values = getattr(self, name)
            if np.isfinite(values).any():
                a, b, c, d = np.unravel_index(int(np.nanargmax(values)), values.shape)
                best = f"{self.layers[c]}.{d} -> {self.layers[a]}.{b} {values[a, b, c, d]:.2f}"
                said.append(f"{name} {best}")
        shape = f"{len(self.layers)} layers x {self.eigen.shape[1]} heads"
        return f"HeadCircuits({shape}; most: {', '.join(said) or 'nothing yet'}; chance {self.chance:.2f})"


def open_head_circuits(path: str | os.PathLike[str]) -> HeadCircuits:
    """Open what `HeadCircuits.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        parts = {name: arrays[name] for name in ("q", "k", "v", "eigen")}
        return HeadCircuits(
            tuple(about["layers"]), **parts, chance=about["chance"], missing=about["missing"], recipe=about["recipe"]
        )


@where_the_model_is
def head_circuits(
    lm: LanguageModel, *, layers: Sequence[int] | None = None, sample: int = 1024, progress: bool = True
) -> HeadCircuits:
    """How much each head reads of what earlier heads write, and how much each copies, by weights alone.

    Norms' gains are in the matrices, their scales are left out, and so are biases and rotary embedding: a score says
    that a later head could read an earlier one, not that it does on any text. `lk.path_patch` and
    `lk.edge_attribution` say that.

    Args:
        lm: the model, in any bits.
        layers: which; by default all whose heads have weights of their own.
        sample: how many tokens, evenly spaced in the vocabulary, copying is judged by.
        progress: show a progress bar.

    Returns:
        `HeadCircuits`; after an interrupt of the layers that are done, with a warning.

    Raises:
        ValueError: no such layer, or one whose heads have no weights of their own; the message says why.
    """
    sample = whole("sample", sample, least=1)
    weights = HeadWeights(lm)
    chosen = [weights.layer(one) for one in layers] if layers is not None else weights.layers()
    chosen = sorted(dict.fromkeys(chosen))
    if not chosen:
        weights.check(0 if layers is None else layers[0] if layers else 0)
        raise ValueError("layers=[] names no layer; leave it out for all")
    job = _Job(weights, chosen, sample, {"layers": None if layers is None else list(layers), "sample": sample})
    finish(job, "reading heads", unit="layer", kept="circuits", progress=progress)
    return job.circuits


@dataclass
class _Earlier:
    """What is kept of a layer for later ones."""

    output: torch.Tensor  # (head, d_head, d_model), in the model's dtype
    values: torch.Tensor  # the Gram matrices of what its values read (head, d_head, d_head)
    norm: torch.Tensor  # of OV (head,)


class _Job:
    """One call of `head_circuits`: the layers that are done, and how the rest are."""

    def __init__(self, weights: HeadWeights, layers: Sequence[int], sample: int, asked: dict[str, Any]) -> None:
        self.weights, self.layers = weights, layers
        lm, n = weights.lm, max(weights.n_heads(layer) for layer in layers)
        shape = len(layers), n
        q, k, v = (np.full((*shape, *shape), np.nan, np.float32) for _ in READS)
        eigen = np.full(shape, np.nan, np.float32)
        recipe = {**made_with(lm), "asked": asked}
        self.circuits = HeadCircuits(tuple(layers), q, k, v, eigen, lm.d_model**-0.5, recipe=recipe)
        self.total, self.done = len(layers), 0
        self._ids = evenly(lm, sample)
        self._unembedding = Unembedding(lm, weights.readout)
        self._earlier: list[_Earlier] = []

    def steps(self) -> Iterator[None]:
        """Layer by layer."""
        for n, layer in enumerate(self.layers):
            self._layer(n, layer)
            self.done += 1
            yield

    def _layer(self, n: int, layer: int) -> None:
        weights, circuits = self.weights, self.circuits
        reads = weights.inputs(layer)
        if "v" not in reads:
            raise ValueError(
                f"layer {layer} of {weights.lm.name} has no circuits of heads: its values are no linear map of the "
                "residual stream"
            )
        output = weights.output(layer)  # (head, d_head, d_model)
        n_heads, n_kv = len(output), len(reads["v"])
        mine = torch.tensor([weights.shared(layer, head, n_kv) for head in range(n_heads)])
        grams = {kind: weight @ weight.transpose(1, 2) for kind, weight in reads.items()}
        written, values = output @ output.transpose(1, 2), grams["v"][mine]
        ov = (written * values).sum((1, 2)).clamp(min=0).sqrt()  # (head,)
        tokens = weights.values(layer, weights.embedded(self._ids))
        for head in range(n_heads):
            to_logits = self._unembedding(output[head], self._ids)
            circuits.eigen[n, head] = eigen_score(tokens[:, mine[head]], to_logits)
        others = {"v": (written, ov, mine)}  # what comes after, with the norm of both
        if "q" in reads and "k" in reads:
            keys = grams["k"][mine]
            qk = (grams["q"] * keys).sum((1, 2)).clamp(min=0).sqrt()
            others |= {"q": (keys, qk, torch.arange(n_heads)), "k": (grams["q"], qk, mine)}
        else:
            why = f"queries or keys of layer {layer} are no linear map of the residual stream (they are normed)"
            circuits.missing.update(dict.fromkeys("qk", why))
        for kind, (after, norm, which) in others.items():
            for m, before in enumerate(self._earlier):
                met = torch.einsum("hid,gjd->hgij", reads[kind], before.output.float())  # (head, earlier head, d, d)
                right = (met @ before.values)[which]
                both = (after[:, None] @ met[which] * right).sum((2, 3)).clamp(min=0).sqrt()
                scores = both / (norm[:, None] * before.norm).clamp(min=1e-30)
                getattr(circuits, kind)[n, :n_heads, m, : len(before.norm)] = scores.numpy()
        self._earlier.append(_Earlier(output.to(weights.lm.dtype), values, ov))
