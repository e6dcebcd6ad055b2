"""The logit lens: what the model would predict if it stopped at a layer (nostalgebraist 2020, "interpreting GPT: the
logit lens").

The final norm and the unembedding are applied to the residual stream of every layer, or to the output of one layer's
attention or MLP. At the last layer that is the model's own prediction. Earlier layers need not use the same basis: what
the lens shows is there, but what it does not show may be there too (Belrose et al. 2023).

Positions are unembedded in blocks, one layer at a time, and of each only the likeliest tokens, the entropy, the
divergence from the model's own distribution and the ranks of followed tokens are kept: (layers x positions x vocab)
numbers never exist at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from labkit.activations.hooks import hooked
from labkit.activations.sites import absent, layers_with
from labkit.activations.unembedding import last_logits
from labkit.elsewhere import where_the_model_is
from labkit.engine.readout import Readout, readout_of
from labkit.engine.recorded_run import RecordedRun, Unsupported
from labkit.engine.wavefront import Cancelled
from labkit.language_model import LanguageModel
from labkit.models.devices import Copies, to_index
from labkit.models.reference import RefersToModel
from labkit.results.figures import heatmap, width_for
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.recipe import made_with
from labkit.text.as_code import LM, as_code
from labkit.text.encode import single_token
from labkit.text.prompts import asked, each_prompt
from labkit.text.tokens import Token, describe
from labkit.text.types import Prompt
from labkit.text.whole_numbers import from_start

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

LensSite = Literal["resid_post", "attn_out", "mlp_out"]
SITES: tuple[LensSite, ...] = ("resid_post", "attn_out", "mlp_out")
SHADES = ("probability", "entropy", "rank", "kl")
AT_ONCE = 8_000_000  # logits in one block of positions: 32 MB


@dataclass(repr=False)
class LogitLens(RefersToModel):
    """What every layer would predict next, at every position.

    Attributes:
        site: what was read: `resid_post`, `attn_out` or `mlp_out`.
        layers: the layers that have such a site, the rows of everything below.
        positions: the positions that were read, the columns.
        tokens: the whole prompt.
        top_ids, top_probabilities: (layer, position, k), the likeliest tokens first; int32 and float16.
        entropy: (layer, position), of the whole distribution, in nats.
        kl: (layer, position), KL(the model's own distribution, this one), in nats; 0 at the last layer.
        final_ids, final_probabilities: (position, k), what the model itself predicts.
        followed: the followed tokens, with `ranks` (followed, layer, position) int32, 1 for the likeliest, and
            `probabilities` float32.
        words: the tokens behind all these ids.
        recipe: what repeats it.
    """

    site: LensSite
    layers: list[int]
    positions: list[int]
    tokens: list[Token]
    top_ids: np.ndarray
    top_probabilities: np.ndarray
    entropy: np.ndarray
    kl: np.ndarray
    final_ids: np.ndarray
    final_probabilities: np.ndarray
    followed: list[Token]
    ranks: np.ndarray
    probabilities: np.ndarray
    words: dict[int, Token]
    recipe: dict[str, Any]
    lm: LanguageModel | None = field(default=None, repr=False)

    def top(self, layer: int, position: int = -1) -> list[tuple[str, float]]:
        """The likeliest next tokens that a layer shows at a position, as (text to show, probability).

        Raises:
            ValueError: the lens did not read there.
        """
        row, column = self.place(layer, position)
        ids, shares = self.top_ids[row, column], self.top_probabilities[row, column]
        return [(self.words[int(id)].display, float(p)) for id, p in zip(ids, shares, strict=True)]

    def place(self, layer: int, position: int = -1) -> tuple[int, int]:
        """The row and the column of a layer and a position, counted from the end if negative.

        Raises:
            ValueError: the lens did not read there.
        """
        at = position + len(self.tokens) if position < 0 else position
        n_layers = int(self.recipe["n_layers"])
        wanted = layer + n_layers if layer < 0 else layer
        if wanted not in self.layers or at not in self.positions:
            raise ValueError(
                f"this lens has no layer {layer}, position {position}; it read {self.site} at layers "
                f"{_span(self.layers)} and positions {_span(self.positions)}"
            )
        return self.layers.index(wanted), self.positions.index(at)

    def rank(self, token: str | int) -> np.ndarray:
        """The rank of this token, (layer, position) int32; 1 where it is the likeliest.

        A token that was not followed needs another run of the model.

        Raises:
            ValueError: the text is not one token, or the lens has no model.
        """
        for one, ranks in zip(self.followed, self.ranks, strict=True):
            if token in (one.id, one.text):
                return ranks
        lm = self._model()
        ids = torch.tensor([self.recipe["ids"]], device=lm.device)
        return logit_lens(lm, ids, site=self.site, positions=self.positions, follow=[token]).ranks[0]

    @where_the_model_is(small=True)
    def logits(self, layer: int) -> torch.Tensor:
        """One layer's logits (position, vocab), float32, recomputed; at the last layer the model's own."""
        lm = self._model()
        row, _ = self.place(layer, self.positions[0])
        reading = _Reading(lm, torch.tensor([self.recipe["ids"]], device=lm.device), self.site, self.positions)
        with lm.busy():
            return reading.readout(reading.found[self.layers[row]])

    def shade(self, name: str, token: str | int | None = None) -> np.ndarray:
        """What a cell can be coloured by, (layer, position) float32: `probability` of the likeliest token, `entropy`,
        `kl`, or `rank` of a token (of the first one followed, if none is named).

        Raises:
            ValueError: there is no such name, or no token to take the rank of.
        """
        if name not in SHADES:
            raise ValueError(f"a lens can be coloured by {', '.join(SHADES)}; got {name!r}")
        if name == "rank":
            if token is None and not self.followed:
                raise ValueError("rank of which token? Name one, such as ' Mary'")
            return (self.ranks[0] if token is None else self.rank(token)).astype(np.float32)
        values = self.top_probabilities[:, :, 0] if name == "probability" else getattr(self, name)
        return values.astype(np.float32)

    def labels(self) -> list[str]:
        """Labels of the positions: `13 ·to`."""
        return [f"{n} {self.tokens[n].display}" for n in self.positions]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and position: the token there, the likeliest next one with its probability, entropy, KL,
        and the rank of every followed token."""
        import pandas as pd

        rows, columns = np.indices(self.entropy.shape)
        at = np.array(self.positions)[columns.ravel()]
        data: dict[str, Any] = {
            "layer": np.array(self.layers)[rows.ravel()],
            "position": at,
            "token": [self.tokens[n].text for n in at],
            "top": [self.words[int(id)].text for id in self.top_ids[:, :, 0].ravel()],
            "probability": self.top_probabilities[:, :, 0].astype(np.float32).ravel(),
            "entropy": self.entropy.ravel(),
            "kl": self.kl.ravel(),
        }
        data |= {f"rank of {one.text!r}": ranks.ravel() for one, ranks in zip(self.followed, self.ranks, strict=True)}
        return pd.DataFrame(data)

    def figure(self, shade: str = "probability", token: str | int | None = None) -> go.Figure:
        """A plotly heatmap, the likeliest token written in each cell; coloured as in `shade()`."""
        values = self.shade(shade, token)
        words = [[self.words[int(id)].display for id in row] for row in self.top_ids[:, :, 0]]
        units = {"probability": "probability", "entropy": "entropy (nats)", "kl": "KL to the final layer (nats)"}
        of = "" if shade != "rank" else f" of {(self.followed[0].text if token is None else token)!r}"
        return heatmap(
            -np.log10(values) if shade == "rank" else values,
            x=self.labels(),
            y=self.layers,
            axes=("position", "layer"),
            title=f"Logit lens on {self.site}: the likeliest next token, by {shade}{of}",
            unit=units.get(shade, f"−log10(rank){of}"),
            hover="layer %{y}, %{x}<br>%{hovertext}<br>" + f"{shade} " + "%{customdata:.3g}",
            size=(max(520, width_for(len(self.positions), least=42, most=62)), max(360, 180 + 19 * len(self.layers))),
            colours="Blues" if shade in ("probability", "rank") else "Oranges",
            words=words,
            customdata=values,
        )

    def code(self) -> str:
        """The Python that repeats it."""
        return str(self.recipe["code"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it all to one file (`.npz`), in one step; `labkit.open_lens` reads it."""
        about = {name: getattr(self, name) for name in ("site", "layers", "positions", "recipe")}
        about |= {name: [vars(token) for token in getattr(self, name)] for name in ("tokens", "followed")}
        about["words"] = [vars(token) for token in self.words.values()]
        return save_arrays(path, "lens", about, **{name: getattr(self, name) for name in _ARRAYS})

    def __repr__(self) -> str:
        last, k = len(self.positions) - 1, len(self.layers) - 1
        says = self.words[int(self.top_ids[k, last, 0])].text
        return (
            f"LogitLens({self.site}, {len(self.layers)} layers x {len(self.positions)} positions; layer "
            f"{self.layers[k]} says {says!r} after {self.tokens[self.positions[last]].text!r})"
        )

    def _model(self) -> LanguageModel:
        if self.lm is None:
            raise ValueError(
                "this needs the model, which a saved lens does not have; open it with lk.open_lens(path, lm)"
            )
        return self.lm


_ARRAYS = (
    "top_ids", "top_probabilities", "entropy", "kl", "final_ids", "final_probabilities", "ranks", "probabilities",
)  # fmt: skip


@where_the_model_is(small=True)
@each_prompt
def logit_lens(
    lm: LanguageModel,
    prompt: Prompt,
    *,
    site: LensSite = "resid_post",
    positions: Sequence[int] | None = None,
    follow: str | int | Sequence[str | int] = (),
    k: int = 10,
    stop: threading.Event | None = None,
) -> LogitLens:
    """What every layer would predict next if it were the last one.

    Args:
        lm: the model, in any bits.
        prompt: text, chat messages, or token ids (1, seq); or a list of these, which gives a list of lenses.
        site: `resid_post`, the residual stream leaving each layer; `attn_out` or `mlp_out`, the output of one part of
            the layer, read on its own (and scaled by the final norm as if it were the whole stream).
        positions: which positions to read, counted from the end if negative; all of them if not given.
        follow: tokens, as text or id, whose rank and probability are kept for every cell.
        k: how many of the likeliest tokens to keep.
        stop: an event that, once set from any thread, ends the work before the next layer.

    Raises:
        ValueError: a bad prompt, position or token; or a model whose logits are not norm and unembedding of one
            residual stream.
        Cancelled: `stop` was set.
    """
    if site not in SITES:
        raise ValueError(f"a lens reads {', '.join(SITES)}; got {site!r}")
    prompt = asked(lm, prompt)
    ids = lm.encode(prompt)
    tokens = lm.tokens(ids)
    at = _positions(positions, len(tokens))
    chosen = [
        single_token(lm, t, role="followed token", after=ids)
        for t in ([follow] if isinstance(follow, str | int) else follow)
    ]
    if k < 1:
        raise ValueError(f"k, the number of tokens to keep, must be at least 1; got {k}")
    k = min(k, lm.n_vocab)
    reading = _Reading(lm, ids, site, at)
    shape = (len(reading.layers), len(at))
    lens = LogitLens(
        site,
        reading.layers,
        at,
        tokens,
        np.zeros((*shape, k), np.int32),
        np.zeros((*shape, k), np.float16),
        np.zeros(shape, np.float32),
        np.zeros(shape, np.float32),
        np.zeros((len(at), k), np.int32),
        np.zeros((len(at), k), np.float16),
        describe(lm.tokenizer, chosen),
        np.zeros((len(chosen), *shape), np.int32),
        np.zeros((len(chosen), *shape), np.float32),
        {},
        {
            **made_with(lm), "n_layers": lm.n_layers, "ids": ids[0].tolist(),
            "code": _code(lm, prompt, site, positions, follow, k),
        },
        lm,
    )  # fmt: skip
    copies = Copies()
    for rows, layer, logits, own in reading.blocks(stop):
        here = logits.log_softmax(-1)  # (position, vocab)
        share = here.exp()
        top = share.topk(k)
        if layer is None:
            copies.into(lens.final_ids[rows], top.indices)
            copies.into(lens.final_probabilities[rows], top.values)
            continue
        n = reading.layers.index(layer)
        copies.into(lens.top_ids[n, rows], top.indices)
        copies.into(lens.top_probabilities[n, rows], top.values)
        copies.into(lens.entropy[n, rows], -(share * here).nan_to_num(0).sum(-1))  # a token that cannot be: 0 x -inf
        copies.into(lens.kl[n, rows], (own.exp() * (own - here)).nan_to_num(0).sum(-1).clamp(min=0))
        for i, id in enumerate(chosen):
            copies.into(lens.ranks[i, n, rows], (logits > logits[:, id, None]).sum(-1) + 1)
            copies.into(lens.probabilities[i, n, rows], share[:, id])
    copies.done()
    seen = sorted({*lens.top_ids.ravel().tolist(), *lens.final_ids.ravel().tolist(), *chosen})
    lens.words = dict(zip(seen, describe(lm.tokenizer, seen), strict=True))
    return lens


def open_lens(path: str | os.PathLike[str], lm: LanguageModel | None = None) -> LogitLens:
    """Open a lens that `LogitLens.save` wrote; given the model, it can also rank tokens that were not followed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a saved lens, was saved by a newer labkit, or was made with another model.
    """
    about, arrays = open_arrays(path, "lens")
    with reading(path, "lens"):
        if about.get("format", 1) < 2:  # which counted ranks from 0
            arrays["ranks"] = arrays["ranks"] + 1
        tokens, followed, words = ([Token(**token) for token in about[n]] for n in ("tokens", "followed", "words"))
        model = about["recipe"]["model"]
        lens = LogitLens(
            about["site"], about["layers"], about["positions"], tokens, followed=followed,
            words={word.id: word for word in words}, recipe=about["recipe"], lm=lm, **arrays,
        )  # fmt: skip
    if lm is not None and lm.name != model:
        raise ValueError(f"{str(path)!r} is a lens on {model}, not on {lm.name}")
    return lens


class _Reading:
    """One run of the model: a site at some positions in every layer that has it, and the readout."""

    def __init__(self, lm: LanguageModel, ids: torch.Tensor, site: str, positions: Sequence[int]) -> None:
        for kind in ("resid_post", site):
            if (why := absent(lm, kind)) is not None:
                raise ValueError(f"{lm.name} has no logit lens on {kind}: {why}")
        last = lm.n_layers - 1
        self.lm, self.layers = lm, layers_with(lm, site)
        reads = {(site, layer) for layer in self.layers} | {("resid_post", last)}
        at = torch.tensor([*positions, ids.shape[1] - 1])  # the last position is what the readout is checked against
        with lm.busy(), hooked(lm, reads, {}, keep=lambda x: x[0, to_index(at, x.device)].detach().clone()) as found:
            logits = last_logits(lm, ids)[0].float()
        own = found["resid_post", last]
        if own.shape[1:] != (lm.d_model,):
            raise ValueError(f"{lm.name} has no logit lens: its residual stream has several copies")
        try:
            # the distributions of a lens are the model's own, and many: with the last product as the model does it
            self.readout: Readout = replace(readout_of(RecordedRun(lm, ids, [own[-1:]], [], {}, logits)), exact=False)
        except Unsupported as error:
            raise ValueError(f"{lm.name} has no logit lens: {error}") from None
        self.own = own[:-1]  # (position, d_model)
        self.found = {layer: found[site, layer][:-1].to(own.device) for layer in self.layers}

    def blocks(self, stop: threading.Event | None) -> Iterator[tuple[slice, int | None, torch.Tensor, torch.Tensor]]:
        """(columns, layer, its logits, the model's log-probabilities) by block of positions; first with layer None."""
        step = max(1, AT_ONCE // self.lm.n_vocab)
        for start in range(0, len(self.own), step):
            rows = slice(start, start + step)
            with self.lm.busy():
                logits = self.readout(self.own[rows])
            own = logits.log_softmax(-1)
            yield rows, None, logits, own
            for layer in self.layers:
                if stop is not None and stop.is_set():
                    raise Cancelled
                with self.lm.busy():  # for a layer at a time, so that others get their turn
                    logits = self.readout(self.found[layer][rows])
                yield rows, layer, logits, own


def _positions(positions: Sequence[int] | None, length: int) -> list[int]:
    if positions is None:
        return list(range(length))
    if len(positions) == 0:
        raise ValueError("no positions to read; leave positions out for all of them")
    return sorted(set(from_start(positions, length)))


def _span(numbers: list[int]) -> str:
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if whole and len(numbers) > 1 else ", ".join(map(str, numbers))


def _code(lm: LanguageModel, prompt: Prompt, site: str, positions: Any, follow: Any, k: int) -> str:
    given: dict[str, Any] = {"site": site} if site != "resid_post" else {}
    given |= {"positions": list(positions)} if positions is not None else {}
    given |= {"follow": follow} if follow not in ((), []) else {}
    given |= {"k": k} if k != 10 else {}
    return as_code(lm.code(), "lens = lk.logit_lens", LM, prompt, **given)
