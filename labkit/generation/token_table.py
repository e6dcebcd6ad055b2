"""Each token of a text: how probable the model found it, and the alternatives.

One row per token in one array: 76 bytes with ten alternatives, their probabilities in half precision.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.text.tokens import Token, describe

if TYPE_CHECKING:
    import pandas as pd

ROW = 192
MEASURES = ("probability", "surprisal", "entropy", "rank")


@dataclass(frozen=True)
class GeneratedToken:
    """A token the model wrote or read, and the likeliest ones at its place.

    Probabilities are the model's own: before temperature, penalties and cuts.

    Attributes:
        id: which token.
        probability: float32; NaN if nothing comes before it.
        entropy: entropy of the distribution over all tokens, in bits.
        rank: 1 for the likeliest token; None if nothing comes before it.
        top_ids, top_probabilities: the likeliest tokens (10,), int32 and float16.
    """

    id: int
    probability: float
    entropy: float
    rank: int | None
    top_ids: np.ndarray = field(repr=False, compare=False)
    top_probabilities: np.ndarray = field(repr=False, compare=False)
    tokenizer: Any = field(repr=False, compare=False)

    @cached_property
    def token(self) -> Token:
        return describe(self.tokenizer, [self.id])[0]

    @property
    def surprisal(self) -> float:
        """Minus the logarithm of the probability, in bits: 0 is certain, 1 a coin, 10 one in a thousand."""
        return -float(np.log2(max(self.probability, 1e-45)))

    @property
    def alternatives(self) -> tuple[tuple[int, str, float], ...]:
        """(id, text to show, probability), likeliest first."""
        tokens = describe(self.tokenizer, self.top_ids.tolist())
        return tuple((t.id, t.display, float(p)) for t, p in zip(tokens, self.top_probabilities, strict=True))


class Record:
    """Rows that grow: `rows` is a structured array (n,) with id, logprob, entropy, rank, top_ids, top_probabilities."""

    def __init__(self, alternatives: int = 10, rows: np.ndarray | None = None) -> None:
        if alternatives < 1:
            raise ValueError(f"alternatives must be at least 1; got {alternatives}")
        self.dtype = np.dtype(
            [
                ("id", "<i4"), ("logprob", "<f4"), ("entropy", "<f4"), ("rank", "<i4"),
                ("top_ids", "<i4", (alternatives,)), ("top_probabilities", "<f2", (alternatives,)),
            ]
        )  # fmt: skip
        self._room = np.empty(0, self.dtype) if rows is None else rows.astype(self.dtype)
        self._length = len(self._room)

    @property
    def alternatives(self) -> int:
        return int(self.dtype["top_ids"].shape[0])

    @property
    def rows(self) -> np.ndarray:
        return self._room[: self._length]

    @property
    def ids(self) -> list[int]:
        return [int(id) for id in self.rows["id"]]

    def append(self, row: Any) -> None:
        """Add a row, a tuple in the order of the fields; the room doubles when it is full."""
        if self._length == len(self._room):
            room = np.empty(max(16, 2 * self._length), self.dtype)
            room[: self._length] = self.rows
            self._room = room
        self._room[self._length] = row
        self._length += 1

    def measure(self, name: str) -> np.ndarray:
        """`probability`, `surprisal` (bits), `entropy` (bits) or `rank` of every token, (n,) float32."""
        logprob = self.rows["logprob"]
        if name == "probability":
            return np.exp(logprob)
        if name == "surprisal":
            return np.asarray(-logprob / np.log(2), np.float32)
        return np.where(np.isnan(logprob), np.nan, self.rows[name]).astype(np.float32)

    @property
    def total(self) -> float:
        """The logarithm of the probability of all tokens together; tokens with nothing before them do not count."""
        return float(np.nansum(self.rows["logprob"], dtype=np.float64))

    def token(self, place: int, tokenizer: Any) -> GeneratedToken:
        row = self.rows[place]
        probability = float(np.exp(row["logprob"]))
        entropy, rank = float(row["entropy"]), int(row["rank"]) or None
        top = row["top_ids"].copy(), row["top_probabilities"].copy()
        return GeneratedToken(int(row["id"]), probability, entropy, rank, *top, tokenizer)

    def tokens(self, tokenizer: Any) -> Iterator[GeneratedToken]:
        return (self.token(place, tokenizer) for place in range(len(self)))

    def part(self, start: int, stop: int | None = None) -> Record:
        """Some of the rows, as a record of their own."""
        return Record(self.alternatives, self.rows[start:stop])

    def then(self, other: Record) -> Record:
        """These rows and the other's."""
        return Record(self.alternatives, np.concatenate([self.rows, other.rows]))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the ids in the open, the whole as base64."""
        return {
            "ids": self.ids,
            "alternatives": self.alternatives,
            "rows": base64.b64encode(self.rows.tobytes()).decode(),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Record:
        record = cls(int(saved["alternatives"]))
        record._room = np.frombuffer(base64.b64decode(saved["rows"]), record.dtype).copy()
        record._length = len(record._room)
        if record.ids != list(saved["ids"]):
            raise ValueError("the rows of a saved text do not match its ids; the file has been changed")
        return record

    def __len__(self) -> int:
        return self._length


class Distribution:
    """One next-token distribution, (vocab,) logits, examined: waits for the device only when a row is read."""

    def __init__(self, logits: torch.Tensor, alternatives: int) -> None:
        self.logprob = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        self.entropy = -torch.dot(self.logprob.exp(), self.logprob)  # NaN where a token is impossible: 0 times infinity
        self.top = largest(self.logprob, alternatives)

    def row(self, id: int) -> tuple[Any, ...]:
        """The row of a `Record` for the token that was taken."""
        chosen = self.logprob[id]
        rank = (self.logprob > chosen).sum() + 1
        # one transfer; ids are whole numbers below 2^24, which float32 holds exactly
        parts = [torch.stack([chosen, self.entropy, rank.to(chosen)]), self.top[0], self.top[1].to(chosen)]
        numbers = torch.cat(parts).cpu().numpy()
        if np.isnan(numbers[1]):
            numbers[1] = float(torch.special.entr(self.logprob.exp()).sum())
        top = numbers[3:].reshape(2, -1)
        with np.errstate(under="ignore"):
            likely = np.exp(top[0]).astype(np.float16)
        return id, numbers[0], numbers[1] / np.log(2), int(numbers[2]), top[1].astype(np.int32), likely


def largest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of (n,) values and their indices, as `topk` gives them.

    On a CPU nine times as fast for a vocabulary: they are in those rows of a square whose maxima are the largest.
    """
    if values.device.type != "cpu" or len(values) < 64 * max(count, ROW):
        return tuple(values.topk(count))  # type: ignore[return-value]
    square = torch.nn.functional.pad(values, (0, -len(values) % ROW), value=-torch.inf) if len(values) % ROW else values
    square = square.view(-1, ROW)
    rows = square.amax(1).topk(count).indices
    found = square[rows].view(-1).topk(count)
    return found.values, rows[found.indices // ROW] * ROW + found.indices % ROW


class Transcript:
    """A text by its `record`: what `Generation`, `Score` and `Branch` have in common."""

    record: Record
    tokenizer: Any

    @cached_property
    def tokens(self) -> list[GeneratedToken]:
        return list(self.record.tokens(self.tokenizer))

    @property
    def text(self) -> str:
        """The text of the record, without special tokens."""
        return self.tokenizer.decode(self.record.ids, skip_special_tokens=True)

    @property
    def logprob(self) -> float:
        """The natural logarithm of its probability, given what comes before."""
        return self.record.total

    def to_frame(self) -> pd.DataFrame:
        """One row per token: id, text, probability, surprisal and entropy in bits, rank, the likeliest other token."""
        import pandas as pd

        return pd.DataFrame(frame_rows(self.tokens), columns=COLUMNS).astype({"rank": "Int64"})


def frame_rows(tokens: Sequence[GeneratedToken]) -> list[tuple[Any, ...]]:
    """Rows for a data frame with `COLUMNS`."""
    rows = []
    for t in tokens:
        other = next(((text, p) for id, text, p in t.alternatives if id != t.id), ("", float("nan")))
        rows.append((t.id, t.token.text, t.probability, t.surprisal, t.entropy, t.rank, *other))
    return rows


COLUMNS = ["id", "text", "probability", "surprisal", "entropy", "rank", "other", "other probability"]
