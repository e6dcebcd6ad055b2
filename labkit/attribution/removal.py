"""A written text scored again with parts of its prompt removed.

What is removed is the embedding of its tokens: the mean embedding, zeros or the embedding of another token takes its
place. Everything that was written after the prompt is kept as it was, and so are all positions. Removing is thus a
patch of what enters the first layer, and many of them go up the blocks together in the patching engine
(`engine.wavefront`), each from its first removed position on. Where a model cannot be restarted there, or a layer sees
more of a token than what enters the first (checked on two removals once per model), each gets a whole forward pass, in
batches. With `delete` the tokens are not there at all, and whatever follows moves up: that is a shorter prompt.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from labkit.activations.hooks import Edit, Place, hooked
from labkit.activations.sites import absent
from labkit.activations.unembedding import measured_tail
from labkit.engine.batching import chunked, in_chunks, tokens_at_once
from labkit.engine.cells import Cell
from labkit.engine.readout import Readout, readout_of
from labkit.engine.recorded_run import RecordedRun, Unsupported, record
from labkit.engine.wavefront import Lane, Wavefront
from labkit.generation.continuations import ContinuationJob
from labkit.models.handle import Model, PerModel
from labkit.text.encode import single_token
from labkit.text.warn import warn

CHECKED: PerModel[set[str]] = PerModel(set)
"""For each model the replacements whose fast path was checked against whole runs, and `rows` if rows of a batch are."""

Ids = tuple[int, ...]
LOGITS = 1 << 25  # numbers of the logits of a batch


@dataclass(frozen=True)
class Replacement:
    """What takes the place of a removed token.

    Attributes:
        name: as it was asked for.
        token: the id that takes its place; None for an embedding that no token has, or for none at all.
        embedding: the embedding that takes its place, (d_model,); None where it is a token's, or with `delete`.
    """

    name: str | int
    token: int | None = None
    embedding: torch.Tensor | None = None

    @classmethod
    def of(cls, lm: Model, name: str | int) -> Replacement:
        """`mean`, `zero`, `delete`, or a token as text or id.

        Raises:
            ValueError: it is none of these.
        """
        if name == "delete":
            return cls(name)
        if name not in ("mean", "zero"):
            try:
                return cls(name, token=single_token(lm, name, role="replacement"))
            except ValueError as error:
                raise ValueError(f"replace is 'mean', 'zero', 'delete', or one token; {error}") from None
        every = torch.arange(lm.n_vocab, device=lm.device)
        with lm.busy():
            if name == "zero":
                return cls(name, embedding=torch.zeros_like(lm.anatomy.embed(every[None, :1])[0, 0].float()))
            total = sum(lm.anatomy.embed(some[None])[0].double().sum(0) for some in every.split(8192))
        assert isinstance(total, torch.Tensor)
        return cls(name, embedding=(total / lm.n_vocab).float())

    def ids(self, ids: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
        """Ids (rows, seq) with the removed positions, bool (rows, seq), replaced where that is another token."""
        return ids if self.token is None else ids.masked_fill(removed, self.token)

    def edits(self, removed: torch.Tensor) -> dict[Place, Edit]:
        """The writes that replace the embeddings at the removed positions, bool (rows, seq)."""
        if self.embedding is None:
            return {}
        put = self.embedding
        return {("embed", 0): lambda x: torch.where(removed[..., None], put.to(x), x)}


class Removals:
    """Texts written after a prompt, scored with sets of its positions removed.

    Args:
        prompt: its ids.
        spans: the texts, as ids.
        replacement: what takes the place of removed tokens.

    Attributes:
        engine: `wavefront`, `whole runs` or, with `delete`, `shorter prompts`.
        own: the log-probability of each token of each text with nothing removed, float64, one text after the other.
    """

    def __init__(self, lm: Model, prompt: Ids, spans: Sequence[Ids], replacement: Replacement) -> None:
        self.lm, self.prompt, self.spans, self.replacement = lm, prompt, tuple(spans), replacement
        self.engine = "shorter prompts" if replacement.name == "delete" else "wavefront"
        self._passes = {} if replacement.name == "delete" else {span[:-1]: _Pass(self, span) for span in self.spans}
        self.own = self([frozenset()])[0]

    def __call__(self, sets: Sequence[frozenset[int]]) -> np.ndarray:
        """(set, token), float64; NaN where nothing would be left before a text."""
        if self.engine == "shorter prompts":
            return self._shorter(sets)
        found = {rest: one.logprobs(sets, self.spans) for rest, one in self._passes.items()}
        return np.concatenate([found[span[:-1]][span] for span in self.spans], 1)

    def steps(
        self, sets: Sequence[frozenset[int]], *, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """The same in chunks of about a second: the numbers of some sets, and their rows."""
        longest = len(self.prompt) + max(map(len, self.spans)) - 1
        tokens = lambda n: longest - min(sets[n], default=0)  # noqa: E731
        chunks = chunked(list(range(len(sets))), tokens, budget=tokens_at_once(self.lm))
        yield from in_chunks(chunks, lambda some: self([sets[n] for n in some]), stopped=stopped)

    def _shorter(self, sets: Sequence[frozenset[int]]) -> np.ndarray:
        left = [tuple(id for n, id in enumerate(self.prompt) if n not in removed) for removed in sets]
        pairs = [(torch.tensor([ids]), span) for ids in left if ids for span in self.spans]
        job = ContinuationJob(self.lm, pairs)
        for _ in job.steps():
            pass
        scored = iter(job.found)
        rows = np.full((len(sets), sum(map(len, self.spans))), np.nan)
        for row, ids in zip(rows, left, strict=True):
            if ids:
                row[:] = np.concatenate([one.logprobs for one in (next(scored) for _ in self.spans) if one is not None])
        return rows


class _Pass:
    """The passes over a prompt and all but the last token of a text, of which those that differ in it have the same."""

    def __init__(self, of: Removals, span: Ids) -> None:
        self._of = weakref.ref(of)  # it holds this pass, and both are to be free at once
        self.lm = of.lm
        self.ids = torch.tensor([[*of.prompt, *span[:-1]]], device=self.lm.device)
        self.count = len(span)  # positions at which a token of the text is predicted
        self.base: RecordedRun | None = None
        self.readout: Readout | None = None
        self.removed: torch.Tensor | None = None  # what enters the first layer with the whole prompt removed

    @property
    def of(self) -> Removals:
        of = self._of()
        assert of is not None
        return of

    def logprobs(self, sets: Sequence[frozenset[int]], spans: Sequence[Ids]) -> dict[Ids, np.ndarray]:
        """For each text of this pass (set, token)."""
        mine = [span for span in spans if len(span) == self.count and span[:-1] == self._rest()]
        taken = torch.tensor(mine, device=self.lm.device).T  # (token, text)
        if self.of.engine == "wavefront":
            try:
                self._prepare(taken)
            except Unsupported as why:
                self._fall_back(str(why))
        found = self._fast(sets, taken) if self.of.engine == "wavefront" else self._whole(sets, taken)
        return {span: found[..., n] for n, span in enumerate(mine)}

    def _rest(self) -> Ids:
        return tuple(self.ids[0, len(self.of.prompt) :].tolist())

    def _prepare(self, taken: torch.Tensor) -> None:
        """Record the run, and check two removals against whole runs the first time that a model is used.

        Raises:
            Unsupported: the model cannot be restarted, or gives other numbers then.
        """
        if self.base is not None:
            return
        lm, n = self.lm, len(self.of.prompt)
        if (why := absent(lm, "resid_pre", 0)) is not None:
            raise Unsupported(f"{lm.name} has no residual stream to restart from: {why}")
        base, _ = record(lm, self.ids)
        self.readout = readout_of(base)
        everything = self._mask([frozenset(range(n))])
        edits = self.of.replacement.edits(everything)
        ids = self.of.replacement.ids(self.ids, everything)
        with lm.busy(), lm.for_patching(), hooked(lm, {("resid_pre", 0)}, edits) as found:
            measured_tail(lm, ids, 1)
        self.removed, self.base = found["resid_pre", 0][0], base
        name = str(self.of.replacement.name)
        if name in CHECKED[lm]:
            return
        some = [frozenset({0}), frozenset({n - 1}), frozenset()]
        fast, whole = self._fast(some, taken), np.concatenate([self._whole([one], taken) for one in some])
        tolerance = (1e-3 if lm.dtype == torch.float32 else 0.1) * max(1.0, float(np.abs(whole).max()))
        if not np.abs(fast - whole).max() <= tolerance:
            raise Unsupported(f"fast removal gave {fast.sum(1).tolist()} where whole runs gave {whole.sum(1).tolist()}")
        CHECKED[lm].add(name)

    def _fall_back(self, why: str) -> None:
        self.of.engine = "whole runs"
        warn(f"removing parts of the prompt with whole forward passes, which is slow: {why}")

    def _mask(self, sets: Sequence[frozenset[int]]) -> torch.Tensor:
        """Which positions are removed, bool (set, seq)."""
        mask = torch.zeros(len(sets), self.ids.shape[1], dtype=torch.bool)
        for row, removed in zip(mask, sets, strict=True):
            row[list(removed)] = True
        return mask.to(self.lm.device)

    def _fast(self, sets: Sequence[frozenset[int]], taken: torch.Tensor) -> np.ndarray:
        """Each set as a run of its own that is patched where it begins: (set, token, text)."""
        assert self.base is not None
        assert self.readout is not None
        assert self.removed is not None
        own = self.base.resid[0]
        shape = (-1, *[1] * (own.ndim - 1))
        lanes = [
            Lane(
                self.base,
                {0: torch.where(mask.view(shape).to(own.device), self.removed.to(own), own)},
                min(some),
                self.count,
            )
            for mask, some in zip(self._mask(sets), sets, strict=True)
            if some
        ]
        tails = self.base.resid[-1][None, -self.count :].repeat_interleave(len(sets), 0)
        if lanes:
            wavefront = Wavefront(lanes, site="resid_pre")
            changed = wavefront([Cell(0, lane=n) for n in range(len(lanes))]).unflatten(0, (-1, self.count))
            tails[torch.tensor([bool(some) for some in sets], device=tails.device)] = changed
        step = max(1, LOGITS // (self.count * self.lm.n_vocab))
        with self.lm.busy():
            rows = [
                _taken(self.readout(part.flatten(0, 1)).unflatten(0, part.shape[:2]), taken)
                for part in tails.split(step)
            ]
        return np.concatenate(rows)

    def _whole(self, sets: Sequence[frozenset[int]], taken: torch.Tensor) -> np.ndarray:
        """Each set by a whole forward pass, in batches where a batch gives what its rows give alone."""
        step = max(1, min(tokens_at_once(self.lm) // self.ids.shape[1], LOGITS // (self.count * self.lm.n_vocab)))
        if len(sets) > 1 and "rows" not in CHECKED[self.lm]:
            known = partial(self._rows, taken=taken)
            alone = np.concatenate([known([one]) for one in sets[:2]])
            limit = (1e-3 if self.lm.dtype == torch.float32 else 0.1) * max(1.0, float(np.abs(alone).max()))
            if np.abs(known(sets[:2]) - alone).max() <= limit:
                CHECKED[self.lm].add("rows")
            else:
                step = 1
        return np.concatenate([self._rows(sets[n : n + step], taken) for n in range(0, len(sets), step)])

    def _rows(self, sets: Sequence[frozenset[int]], taken: torch.Tensor) -> np.ndarray:
        mask = self._mask(sets)
        ids = self.of.replacement.ids(self.ids.expand(len(sets), -1), mask)
        with self.lm.busy(), hooked(self.lm, set(), self.of.replacement.edits(mask)):
            return _taken(measured_tail(self.lm, ids, self.count), taken)


def _taken(logits: torch.Tensor, taken: torch.Tensor) -> np.ndarray:
    """Log-probabilities (row, token, text), float64, of tokens (token, text) in logits (row, token, vocab)."""
    ids = taken.to(logits.device).expand(len(logits), -1, -1)
    return (logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)).double().cpu().numpy()
