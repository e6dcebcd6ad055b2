"""One head as two circuits, from its weights alone (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"): what it writes when it looks at a token (OV), and at which tokens a token would look (QK).

A token by itself stands for its embedding, as if nothing had been added to it yet: of what earlier layers write, and of
position embeddings, nothing is in it. In the first layers that is close to what a head gets; later it is less and less.
A token of a text stands for the residual stream that reaches the layer there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.elsewhere import where_the_model_is
from labkit.features.head_weights import Head, HeadWeights, Unembedding, head_of
from labkit.language_model import LanguageModel
from labkit.results.figures import heatmap, width_for
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, as_code, changed
from labkit.text.encode import single_token
from labkit.text.prompts import as_json, asked, from_json
from labkit.text.tokens import Token, describe
from labkit.text.types import Prompt
from labkit.text.whole_numbers import from_start, whole

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FILE = "head circuit"
USUAL = {"tokens": None, "prompt": None, "positions": None, "top": 10, "offset": None, "sample": 1024}
CIRCUITS = {"promotes": "writes for", "suppresses": "writes against", "looks at": "looks at"}
OWN = 5  # a token is copied if it is among so many promoted ones, as Wang et al. 2022 count it
_ARRAYS = ("promoted_ids", "promoted", "suppressed_ids", "suppressed", "keys_ids", "keys", "own_ranks")


@dataclass(frozen=True, eq=False, repr=False)
class HeadCircuit:
    """What one head writes when it looks at a token, and at which tokens a token looks: by its weights alone, or with
    the tokens of a text.

    Attributes:
        layer, head: which.
        tokens: those that are looked at, and that look.
        promoted_ids, promoted: (token, top) the tokens whose logits rise most when the head looks at this one, and by
            how much: in logits for a last residual stream of root mean square 1, and full attention. Biases are left
            out.
        suppressed_ids, suppressed: (token, top) those whose logits fall most.
        keys_ids, keys: (token, top) those with the highest scores when this token looks: how far above the mean of the
            vocabulary, before the softmax. A soft cap is left out.
        own_ranks: (token,) the rank, from 1, of each token among what it promotes.
        copying: of a sample of the vocabulary, the share of tokens that are among the five they promote most.
        eigen: the sum of the eigenvalues of OV from token to token, over the sum of their sizes: 1 where all are
            positive and the head copies, -1 where it does the opposite.
        offset: how many tokens before the query its keys are, for rotary embedding; None: without it.
        words: every token that is named, by id.
        recipe: what repeats it.
    """

    layer: int
    head: int
    tokens: tuple[Token, ...]
    promoted_ids: np.ndarray
    promoted: np.ndarray
    suppressed_ids: np.ndarray
    suppressed: np.ndarray
    keys_ids: np.ndarray
    keys: np.ndarray
    own_ranks: np.ndarray
    copying: float
    eigen: float
    offset: int | None
    words: dict[int, Token] = field(repr=False)
    recipe: dict[str, Any] = field(repr=False)

    def rows(self, circuit: str, n: int) -> list[tuple[str, float]]:
        """Of token n, the tokens that it `promotes`, `suppresses` or `looks at`, as displayed, with their numbers."""
        ids, values = self._of(circuit)
        return [(self.words[int(id)].display, float(v)) for id, v in zip(ids[n], values[n], strict=True)]

    def _of(self, circuit: str) -> tuple[np.ndarray, np.ndarray]:
        if circuit not in CIRCUITS:
            raise ValueError(f"circuit must be one of {', '.join(CIRCUITS)}; got {circuit!r}")
        name = {"promotes": "promoted", "suppresses": "suppressed", "looks at": "keys"}[circuit]
        return getattr(self, f"{name}_ids"), getattr(self, name)

    def to_frame(self) -> pd.DataFrame:
        """One row per pair of tokens: `token`, `circuit` (`promotes`, `suppresses`, `looks at`), `rank`, `other`,
        `value`."""
        import pandas as pd

        rows = [
            (token.text, circuit, rank, self.words[int(id)].text, float(value))
            for n, token in enumerate(self.tokens)
            for circuit in CIRCUITS
            for rank, (id, value) in enumerate(zip(*(part[n] for part in self._of(circuit)), strict=True), 1)
        ]
        return pd.DataFrame(rows, columns=["token", "circuit", "rank", "other", "value"])

    def figure(self, circuit: str = "promotes") -> go.Figure:
        """Each token's strongest others in one circuit, in order: `promotes`, `suppresses` or `looks at`."""
        ids, values = self._of(circuit)
        words = [[self.words[int(id)].display for id in row] for row in ids]
        reach = float(np.abs(values).max(initial=0.0)) or 1.0
        places = self.recipe["asked"].get("positions") or range(len(self.tokens))
        labels = [f"{n} {token.display}" for n, token in zip(places, self.tokens, strict=True)]
        titles = {
            "promotes": "what it writes for when it looks at a token",
            "suppresses": "what it writes against when it looks at a token",
            "looks at": "where a token would look",
        }
        return heatmap(
            values,
            x=list(range(1, values.shape[1] + 1)),
            y=labels,
            axes=("rank", "token that looks" if circuit == "looks at" else "token looked at"),
            title=f"Head {self.layer}.{self.head}, {self._by}: {titles[circuit]}",
            unit="score above the mean" if circuit == "looks at" else "logits",
            hover="%{y}<br>%{hovertext}<br>%{z:.3f}",
            size=(max(620, width_for(values.shape[1], least=56, most=84)), max(320, 180 + 24 * len(values))),
            ends=(-reach, reach),
            slanted=False,
            words=words,
        ).update_yaxes(autorange="reversed")

    @property
    def _by(self) -> str:
        return "by its weights alone" if self.recipe["asked"].get("prompt") is None else "in a text"

    def code(self) -> str:
        """The Python that repeats it."""
        head = f"{self.layer}.{self.head}"
        asked = {**USUAL, **self.recipe["asked"]}
        if asked["prompt"] is not None:
            asked["prompt"] = from_json(asked["prompt"])
        return as_code(self.recipe["load"], "circuit = lk.head_circuit", LM, head, **changed(USUAL, asked))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_head_circuit` reads it."""
        about = {name: getattr(self, name) for name in ("layer", "head", "copying", "eigen", "offset", "recipe")}
        about |= {"tokens": [vars(one) for one in self.tokens], "words": [vars(one) for one in self.words.values()]}
        return save_arrays(path, FILE, about, **{name: getattr(self, name) for name in _ARRAYS})

    def __repr__(self) -> str:
        said = "; ".join(
            f"{token.text!r} -> {', '.join(repr(self.words[int(id)].text) for id in self.promoted_ids[n][:3])}"
            for n, token in enumerate(self.tokens[:3])
        )
        more = "; ..." if len(self.tokens) > 3 else ""
        return (
            f"HeadCircuit({self.layer}.{self.head}: copies {self.copying:.0%} of tokens, eigenvalues "
            f"{self.eigen:+.2f}; {said}{more})"
        )


def open_head_circuit(path: str | os.PathLike[str]) -> HeadCircuit:
    """Open what `HeadCircuit.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, FILE)
    with reading(path, FILE):
        tokens, words = (tuple(Token(**one) for one in about[name]) for name in ("tokens", "words"))
        return HeadCircuit(
            about["layer"], about["head"], tokens, **{name: arrays[name] for name in _ARRAYS},
            copying=about["copying"], eigen=about["eigen"], offset=about["offset"],
            words={one.id: one for one in words}, recipe=about["recipe"],
        )  # fmt: skip


@where_the_model_is
def head_circuit(
    lm: LanguageModel,
    head: Head,
    *,
    tokens: Sequence[str | int] | str | int | None = None,
    prompt: Prompt | None = None,
    positions: Sequence[int] | None = None,
    top: int = 10,
    offset: int | None = None,
    sample: int = 1024,
) -> HeadCircuit:
    """What a head writes when it looks at a token, and at which tokens a token would look.

    By weights alone each token is its embedding, through the norm and the projections of the layer as the model has
    them: packed weights stay packed, and only this layer's output projection is dequantised. What earlier layers would
    add, position embeddings, biases of what is written, and the scale of the last norm are left out. With `prompt` the
    tokens are those of a text, with all that earlier layers wrote there; what is looked at stays the vocabulary by its
    embeddings.

    Args:
        lm: the model, in any bits.
        head: `"5.3"` or `(5, 3)`: layer and head.
        tokens: one token each, as text or id; by default the ten of the sample for which the head writes most.
        prompt: instead of `tokens`, a text in which they stand.
        positions: which of its tokens, counted from the end if negative; by default all.
        top: how many others are named for each.
        offset: look that many tokens back, with the turn that rotary embedding gives keys and queries; by default
            without it.
        sample: how many tokens, evenly spaced in the vocabulary, copying is judged by.

    Raises:
        ValueError: no such head, token or position, or heads that have no weights of their own (no softmax attention,
            several residual streams, an output that is gated or mixed); the message says which.
    """
    layer, number = head_of(lm, head)
    top, sample = whole("top", top, least=1), whole("sample", sample, least=1)
    offset = None if offset is None else whole("offset", offset, least=1)
    given = [tokens] if isinstance(tokens, str | int) else tokens
    ids = None if given is None else [single_token(lm, one, role="token") for one in given]
    if ids is not None and not ids:
        raise ValueError("tokens=[] names no token; leave it out for those that the head writes most for")
    if prompt is None and positions is not None:
        raise ValueError("positions= are those of a text; give prompt=, too")
    if prompt is not None:
        if ids is not None:
            raise ValueError("give tokens= or prompt=, not both")
        prompt = asked(lm, prompt)
        every = lm.encode(prompt)[0].tolist()
        positions = _places(positions, len(every))
        ids = [every[n] for n in positions]
    weights = HeadWeights(lm, offset=offset or 0)
    written = weights.output(layer)[number]  # (d_head, d_model)
    drawn = evenly(lm, sample)
    values = _values(weights, layer, number, weights.embedded(drawn))  # (sample, d_head)
    to_logits = Unembedding(lm, weights.readout)(written)  # (d_head, vocab)
    copying, eigen = copied_share(values, to_logits, drawn), eigen_score(values, to_logits[:, drawn])
    if ids is None:
        ids = drawn[(values @ written).norm(dim=1).topk(min(10, len(drawn))).indices].tolist()
    chosen = torch.tensor(ids)
    x = weights.embedded(chosen) if prompt is None else weights.streams(layer, prompt, positions or ())
    logits = _values(weights, layer, number, x) @ to_logits  # (token, vocab)
    own = 1 + (logits > logits.gather(1, chosen[:, None])).sum(1)
    scores = _scores(weights, layer, number, x, logits.shape[1])
    count = min(top, logits.shape[1])
    best, worst, keys = logits.topk(count), (-logits).topk(count), scores.topk(count)
    named = sorted({*ids, *(int(id) for part in (best, worst, keys) for id in part.indices.flatten())})
    words = dict(zip(named, describe(lm.tokenizer, named), strict=True))
    how = {
        "tokens": None if given is None else list(given), "prompt": None if prompt is None else as_json(prompt),
        "positions": None if positions is None else list(positions), "top": top, "offset": offset, "sample": sample,
    }  # fmt: skip
    return HeadCircuit(
        layer, number, tuple(words[id] for id in ids),
        best.indices.numpy(), best.values.numpy(), worst.indices.numpy(), -worst.values.numpy(),
        keys.indices.numpy(), keys.values.numpy(), own.numpy(), copying, eigen, offset, words,
        {**made_with(lm), "asked": how},
    )  # fmt: skip


def evenly(lm: LanguageModel, count: int) -> torch.Tensor:
    """Ids of so many tokens, evenly spaced in the vocabulary, or of all."""
    n = min(lm.n_vocab, len(lm.embedding), max(len(lm.tokenizer), 1))
    return torch.linspace(0, n - 1, min(count, n)).round().long()


def _places(positions: Sequence[int] | None, count: int) -> list[int]:
    """Positions of a text of so many tokens, counted from its beginning."""
    found = [whole("a position", one) for one in (range(count) if positions is None else positions)]
    if not found:
        raise ValueError("positions=[] names no token; leave it out for all")
    return from_start(found, count)


def _values(weights: HeadWeights, layer: int, head: int, x: torch.Tensor) -> torch.Tensor:
    """What a head gets (rows, d_head) from residual streams before its layer."""
    every = weights.values(layer, x)
    return every[:, weights.shared(layer, head, every.shape[1])]


def copied_share(values: torch.Tensor, to_logits: torch.Tensor, ids: torch.Tensor) -> float:
    """The share of tokens that are among the five they promote most.

    Args:
        values: (sample, d_head).
        to_logits: (d_head, vocab).
        ids: (sample,).
    """
    among = 0
    for some, own in zip(values.split(256), ids.split(256), strict=True):
        logits = some @ to_logits
        among += int(((logits > logits.gather(1, own[:, None])).sum(1) < OWN).sum())
    return among / len(ids)


def eigen_score(values: torch.Tensor, to_logits: torch.Tensor) -> float:
    """The sum of the eigenvalues of OV from token to token, over the sum of their sizes.

    The matrix (sample, sample) has the rank of d_head, so those of its eigenvalues that are not 0 are those of a matrix
    (d_head, d_head).

    Args:
        values: (sample, d_head).
        to_logits: of the same tokens (d_head, sample).
    """
    eigenvalues = np.linalg.eigvals((values.T.double() @ to_logits.T.double()).numpy())
    return float(eigenvalues.sum().real / max(float(np.abs(eigenvalues).sum()), 1e-30))


def _scores(weights: HeadWeights, layer: int, head: int, x: torch.Tensor, vocab: int) -> torch.Tensor:
    """How residual streams before a layer would look at each token of the vocabulary (rows, vocab), above the mean."""
    q = weights.attention(layer, x, query=True)["q"][:, head]
    lm, found = weights.lm, []
    for some in torch.arange(min(vocab, len(lm.embedding))).split(8192):
        k = weights.attention(layer, weights.embedded(some))["k"]
        found.append(q @ k[:, weights.shared(layer, head, k.shape[1])].T * weights.scaling(layer))
    scores = torch.cat(found, 1)
    return scores - scores.mean(1, keepdim=True)
