"""What heads do, one number each: scores for the kinds of head in the literature, from patterns block by block.

Previous-token, duplicate-token and induction heads are those of Elhage et al. 2021 and Olsson et al. 2022, the
first-token sink that of Xiao et al. 2024. A `Tally` is fed blocks of query rows as a pass goes by, so no layer's whole
pattern is ever in memory; the same blocks are max-pooled into thumbnails, so a lone bright cell does not vanish.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from labkit.language_model import LanguageModel
from labkit.models.devices import to_index

SCORES = {
    "previous_token": "attention to the token before, mean over tokens",
    "duplicate_token": "attention to earlier copies of the same token, mean over tokens that have one",
    "induction": "attention to what came after an earlier copy of the same token, mean over tokens that have one",
    "first_token": "attention to the first token (the sink), mean over the others",
    "entropy": "how spread out a token's attention is, in bits; 0 if one token gets all of it",
    "distance": "how far back it looks, in tokens, weighted by attention",
    "repeated_induction": "induction on 25 random tokens shown twice, where only the repetition helps",
}
HeadScore = Callable[[np.ndarray], float]
"""Your own score: from one head's pattern (query, key), float32, to a number."""


class Tally:
    """Sums over one layer's pattern, fed as blocks of query rows from the top down."""

    def __init__(self, ids: torch.Tensor, side: int) -> None:
        """For the prompt `ids` (seq,), with thumbnails of at most `side` rows."""
        ids = ids.cpu()  # once; which pairs of places matter is then known without waiting for the device
        self.length = len(ids)
        self.step = max(1, -(-self.length // side))  # tokens that a row of a thumbnail stands for
        self.side = -(-self.length // self.step)
        earlier = (ids[:, None] == ids[None]).tril(-1)
        self._copies = earlier.nonzero()  # (pairs, 2): query, key
        after = self._copies + torch.tensor([0, 1])
        self._after = after[after[:, 1] < after[:, 0]]
        self._queries = {"duplicate_token": self._copies, "induction": self._after}
        self._counts = {name: len(pairs[:, 0].unique()) for name, pairs in self._queries.items()}

    def begin(self, n_heads: int, device: torch.device) -> None:
        self._sums = {name: torch.zeros(n_heads, device=device) for name in SCORES if name != "repeated_induction"}
        self.picture = torch.zeros(n_heads, self.side, self.side, dtype=torch.uint8, device=device)

    def rows(self, n_heads: int, *, bytes: float = 16e6) -> list[tuple[int, int]]:
        """The blocks to feed: (start, stop) of query rows, whole rows of a thumbnail each."""
        tall = max(1, int(bytes / (4 * n_heads * self.length)) // self.step) * self.step
        return [(start, min(start + tall, self.length)) for start in range(0, self.length, tall)]

    def add(self, pattern: torch.Tensor, start: int) -> None:
        """A block (head, query, key) float32 that begins at query `start`; omitted keys are zero."""
        heads, rows, keys = pattern.shape
        stop, sums = start + rows, self._sums
        tall, wide = -(-rows // self.step), -(-keys // self.step)
        room = (0, wide * self.step - keys, 0, tall * self.step - rows)
        pooled = F.pad(pattern, room).view(heads, tall, self.step, wide, self.step).amax((2, 4))[..., : self.side]
        first = start // self.step
        self.picture[:, first : first + tall, : pooled.shape[-1]] = (pooled * 255).round().to(torch.uint8)
        for name, pairs in self._queries.items():
            low, high = torch.searchsorted(pairs[:, 0].contiguous(), torch.tensor([start, stop]))
            queries, at = (to_index(side, pattern.device) for side in pairs[low:high].T.contiguous())
            sums[name] += pattern[:, queries - start, at].sum(-1)
        seen = pattern[:, 1:] if start == 0 else pattern  # the first token can only look at itself
        if not seen.shape[1]:
            return
        offset = max(start, 1)
        sums["previous_token"] += seen.diagonal(offset - 1, 1, 2).sum(-1)
        sums["first_token"] += seen[..., 0].sum(-1)
        sums["entropy"] -= (seen * (seen + 1e-30).log2()).sum((1, 2))
        places = torch.arange(max(keys, stop), device=pattern.device, dtype=pattern.dtype)
        total = seen.sum(-1)  # 1, less a sink's share
        back = total * places[offset:stop] - seen @ places[:keys]
        sums["distance"] += (back / total.clamp(min=1e-9)).sum(-1)

    def scores(self) -> dict[str, torch.Tensor]:
        """The scores of the layer, each (head,) float32, on its device; NaN if no token of the text can show it."""
        counts = dict.fromkeys(self._sums, self.length - 1) | self._counts
        return {
            name: sums / counts[name] if counts[name] else torch.full_like(sums, torch.nan)
            for name, sums in self._sums.items()
        }


def repeated_tokens(lm: LanguageModel, *, length: int = 25, seed: int = 0) -> torch.Tensor:
    """Random ordinary tokens, shown twice: ids (1, 2 * length), after a BOS where the tokenizer adds one."""
    special = {*lm.tokenizer.all_special_ids, *lm.tokenizer.added_tokens_decoder}
    order = torch.randperm(lm.n_vocab, generator=torch.Generator().manual_seed(seed)).tolist()
    ordinary = [id for id in order[: 4 * length + len(special)] if id not in special]
    half = torch.tensor([ordinary[n % len(ordinary)] for n in range(length)])
    begin = [lm.tokenizer.bos_token_id] if lm.tokenizer("a").input_ids[:1] == [lm.tokenizer.bos_token_id] else []
    return torch.cat([torch.tensor(begin, dtype=torch.long), half, half])[None]
