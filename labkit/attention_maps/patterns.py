"""Attention patterns on demand.

One forward pass keeps the queries, keys and values of each layer, which grow with the text and not with its square; a
pattern is computed from them on demand, one head or one block of query rows at a time. All layers x heads x tokens x
tokens never exist at once. If even queries, keys and values are too large, those of the layers used last are kept, and
another layer costs another pass.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.attention_interface import AttentionCall, pattern_of
from labkit.activations.hooks import hooked
from labkit.activations.site_kinds import HEAD_IN
from labkit.activations.sites import checked, layers_with, n_heads_of
from labkit.activations.unembedding import last_logits
from labkit.attention_maps import weighting
from labkit.attention_maps.base import ModelPatterns, frame_of, rows_of
from labkit.attention_maps.file import save
from labkit.attention_maps.head_scores import SCORES, HeadScore, Tally, repeated_tokens
from labkit.elsewhere import where_the_model_is
from labkit.language_model import LanguageModel
from labkit.models.devices import Copies
from labkit.models.reference import RefersToModel
from labkit.text.as_code import LM, as_code
from labkit.text.prompts import asked, each_prompt
from labkit.text.types import Prompt

if TYPE_CHECKING:
    import pandas as pd

KEEP = 256e6  # bytes of queries, keys and values to keep
BLOCK = 4e6  # bytes of float32 pattern to compute at once


@each_prompt
def attention(lm: LanguageModel, prompt: Prompt) -> AttentionPatterns:
    """The attention patterns of a prompt (text, chat messages, or ids (1, seq)), computed on demand; a list of patterns
    for a list of prompts.

    Raises:
        ValueError: a bad prompt, or a model whose attention cannot be read.
    """
    return AttentionPatterns(lm, prompt)


class AttentionPatterns(RefersToModel, ModelPatterns):
    """Where every head of every layer looks."""

    def __init__(self, lm: LanguageModel, prompt: Prompt) -> None:
        checked(lm, "pattern")
        self.lm, self.prompt = lm, asked(lm, prompt)
        self.ids = lm.encode(self.prompt)
        self.tokens = lm.tokens(self.ids)
        self.layers = layers_with(lm, "pattern")
        self.n_layers, self.n_heads = lm.n_layers, n_heads_of(lm, "pattern")
        self._calls: OrderedDict[int, AttentionCall] = OrderedDict()  # of the layers looked at last
        self._before_projection: dict[int, torch.Tensor] = {}  # (head, d_head) at the last token
        self._scores: dict[str, np.ndarray] = {}  # each (layer, head)
        self._thumbnails: np.ndarray | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """What can be recomputed stays out of copies and pickles."""
        state = super().__getstate__()
        again: dict[str, Any] = {"_calls": OrderedDict(), "_before_projection": {}}
        return {name: value for name, value in state.items() if name != "_lock"} | again

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()

    @where_the_model_is(small=True)
    def pattern(self, layer: int, head: int | None = None) -> np.ndarray:
        site = checked(self.lm, f"pattern.{layer}" + ("" if head is None else f".{head}"))
        assert site.layer is not None
        heads = slice(None) if site.head is None else slice(site.head, site.head + 1)
        call = self.call(site.layer)
        n_heads = call.q.shape[1] if site.head is None else 1
        found = np.zeros((n_heads, call.q.shape[2], call.k.shape[2]), np.float32)
        for start, block in self.blocks(call, heads):
            found[:, start : start + block.shape[1], : block.shape[2]] = block.cpu().numpy()
        return found if site.head is None else found[0]

    @where_the_model_is(small=True)
    def looks(self, query: int, key: int) -> np.ndarray:
        """How much the token at `query` attends to the one at `key`: (layer, head) float32, NaN without heads.

        Raises:
            ValueError: a position that the prompt does not have.
        """
        for what, position in (("query", query), ("key", key)):
            if not -len(self.tokens) <= position < len(self.tokens):
                raise ValueError(f"{what} {position} is out of range; positions go from 0 to {len(self.tokens) - 1}")
        query, key = query % len(self.tokens), key % len(self.tokens)
        found = np.full((self.n_layers, self.n_heads), np.nan, np.float32)
        for layer in self.layers:
            part = self.call(layer).part(queries=slice(query, query + 1))
            row = pattern_of(part)[0, :, 0, key]
            found[layer, : len(row)] = row.cpu().numpy()
        return found

    def call(self, layer: int) -> AttentionCall:
        with self._lock:
            if layer not in self._calls:
                self._pass(lambda at, call: None, keep=layer)
            self._calls.move_to_end(layer)
            return self._calls[layer]

    def before_projection(self, layer: int) -> torch.Tensor:
        with self._lock:
            if layer not in self._before_projection:
                self._pass(lambda at, call: None, keep=layer)
            return self._before_projection[layer]

    @staticmethod
    def blocks(call: AttentionCall, heads: slice = slice(None)) -> Iterator[tuple[int, torch.Tensor]]:
        """(first query, pattern (head, query, key) float32), block by block, without keys that none of them sees."""
        queries, keys = call.q.shape[2], call.k.shape[2]
        n_heads = len(range(call.q.shape[1])[heads])
        tall = max(1, int(BLOCK / (4 * n_heads * keys)))
        for start in range(0, queries, tall):
            yield start, rows_of(call, start, min(start + tall, queries), heads)

    def _pass(self, see: Callable[[int, AttentionCall], None], *, keep: int | None = None) -> None:
        """One forward pass; `see(layer, call)` at each layer. Calls are kept while there is room, `keep` first."""
        wanted, room = set(self.layers), KEEP

        def watch(layer: int, call: AttentionCall) -> None:
            nonlocal room
            if layer not in wanted:
                return
            size = sum(x.numel() * x.element_size() for x in (call.q, call.k, call.v))
            if layer == keep or (size <= room and (keep is None or layer > keep or size <= room - size)):
                room -= size
                q, k, v = (x.detach() for x in (call.q, call.k, call.v))
                self._calls[layer] = AttentionCall(call.module, q, k, v, call.mask, call.scaling, dict(call.options))
            see(layer, call)

        reads = {(HEAD_IN, layer) for layer in layers_with(self.lm, HEAD_IN) if layer in wanted}
        with self.lm.busy():
            self._calls.clear()
            with hooked(self.lm, reads, {}, keep=lambda x: x[0, -1].detach().clone(), watch=watch) as found:
                last_logits(self.lm, self.ids)
        self._before_projection = {layer: value for (_, layer), value in found.items()}

    def survey(
        self, *, size: int = 24, each: Callable[[int, np.ndarray, dict[str, np.ndarray]], None] | None = None
    ) -> np.ndarray:
        """Thumbnails and scores of all heads from one forward pass, layer by layer.

        Args:
            size: rows of a thumbnail, at most.
            each: called after every layer with its number, thumbnails (head, size, size) and scores; an exception ends
                the pass.

        Returns:
            The thumbnails (layer, head, size, size) uint8, 255 = all attention, pooled by their maximum. Layers without
            attention are black. Scores are then in `scores()`.
        """
        small, table = self._surveyed(size, each=each)
        with self._lock:
            self._scores |= table
            self._thumbnails = small
        return small

    @where_the_model_is(streams="each", small=True)
    def _surveyed(
        self, size: int, *, each: Callable[[int, np.ndarray, dict[str, np.ndarray]], None] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The thumbnails, and the scores by name, each (layer, head)."""
        tally = Tally(self.ids[0], size)
        small = np.zeros((self.n_layers, self.n_heads, tally.side, tally.side), np.uint8)
        table: dict[str, np.ndarray] = {}

        copies, seen = Copies(), dict[int, tuple[np.ndarray, dict[str, np.ndarray]]]()

        def see(layer: int, call: AttentionCall) -> None:
            n_heads = call.q.shape[1]
            tally.begin(n_heads, call.q.device)
            for start, stop in tally.rows(n_heads, bytes=BLOCK):
                tally.add(rows_of(call, start, stop), start)
            scores = {name: copies.of(values) for name, values in tally.scores().items()}
            seen[layer] = copies.of(tally.picture), scores
            if each is not None:  # who does not look on waits for the device once, at the end
                take()
                each(layer, small[layer], scores)

        def take() -> None:
            copies.done()
            for layer, (picture, scores) in seen.items():
                small[layer, : len(picture)] = picture
                for name, values in scores.items():
                    table.setdefault(name, np.full((self.n_layers, self.n_heads), np.nan, np.float32))
                    table[name][layer, : len(values)] = values
            seen.clear()

        with self._lock:
            self._pass(see)
        take()
        return small, table

    def thumbnails(self, size: int = 24) -> np.ndarray:
        """Small pictures of all heads, uint8 (layer, head, size, size), 255 = all attention; see `survey`.

        A prompt shorter than `size` gives pictures of its own length.
        """
        fits = self._thumbnails is not None and self._thumbnails.shape[-1] == Tally(self.ids[0], size).side
        return self._thumbnails if fits else self.survey(size=size)  # type: ignore[return-value]

    def grid(self, score: str) -> np.ndarray:
        """One score of all heads, (layer, head) float32, NaN where there is no head; computed once.

        Raises:
            ValueError: there is no such score.
        """
        if score not in self._scores:
            if score not in SCORES:
                raise ValueError(f"there is no score {score!r}; use one of {', '.join([*SCORES, *self._scores])}")
            if score == "repeated_induction":
                repeated = AttentionPatterns(self.lm, repeated_tokens(self.lm))
                repeated.survey(size=1)
                self._scores[score] = repeated._scores["induction"]
            else:
                self.survey()
        return self._scores[score]

    @property
    def known_scores(self) -> tuple[str, ...]:
        """The names of the scores that have been computed."""
        return tuple(self._scores)

    def add_score(self, name: str, score: HeadScore) -> np.ndarray:
        """Score every head with your own function, from its pattern (query, key) float32 to a number: (layer, head)."""
        found = np.full((self.n_layers, self.n_heads), np.nan, np.float32)
        for layer in self.layers:
            for head in range(n_heads_of(self.lm, "pattern", layer)):
                found[layer, head] = float(score(self.pattern(layer, head)))
        self._scores[name] = found
        return found

    def scores(self, own: Mapping[str, HeadScore] | None = None) -> pd.DataFrame:
        """One row per head: `layer`, `head`, and a column per score; `head_scores.SCORES` says what each is.

        Args:
            own: your own scores by name, each from a head's pattern (query, key) to a number.
        """
        for name, score in (own or {}).items():
            self.add_score(name, score)
        return frame_of({name: self.grid(name) for name in [*SCORES, *(set(self._scores) - set(SCORES))]}, self.layers)

    value_weighted = weighting.value_weighted
    rollout = weighting.rollout
    contribution = weighting.contribution

    def save(self, path: str | os.PathLike[str], *, layers: Sequence[int] | None = None) -> Path:
        """Write patterns, scores and tokens to one file, a layer at a time; `open_attention` opens it.

        Args:
            path: the file, written in one step.
            layers: which layers' patterns, kept as float16; all by default.

        Raises:
            ValueError: a layer that has no pattern.
        """
        chosen = self.layers if layers is None else [int(layer) for layer in layers]
        if missing := [layer for layer in chosen if layer not in self.layers]:
            raise ValueError(f"layers {missing} have no patterns; layers {self.layers} have")
        scores = {name: self.grid(name) for name in self.scores().columns[2:]}
        return save(Path(path), self, chosen, scores=scores, thumbnails=self.thumbnails())

    def code(self) -> str:
        """The Python that computes the same patterns."""
        return as_code(self.lm.code(), "patterns = lk.attention", LM, self.prompt)

    def __repr__(self) -> str:
        return f"AttentionPatterns({len(self.tokens)} tokens, {self.n_layers} layers x {self.n_heads} heads)"
