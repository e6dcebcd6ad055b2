"""An audit: does a model prefer stereotypes, by how much, and how sure is that?

Each minimal pair asks one question: is the text that a stereotype would prefer likelier than the other? Answers are
counted by category. Templates and words are both a choice that could have been another, so intervals resample both (see
`labkit.results.crossed`), and p values are corrected for the number of categories.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from labkit.audits.result import NORMALISED, Audit
from labkit.datasets.minimal_pairs import MinimalPair, own_pairs, pairs_from
from labkit.datasets.published import NAMES
from labkit.datasets.stereotypes import STEREOTYPES
from labkit.generation.continuations import score_continuations
from labkit.results.job import finish
from labkit.results.recipe import made_with, names_of

if TYPE_CHECKING:
    from labkit.language_model import LanguageModel

CHUNK = 256  # pairs that are scored before what is done is kept
Data = str | os.PathLike[str] | Sequence[MinimalPair]


def audit(
    lm: LanguageModel | Sequence[LanguageModel],
    data: Data = "en",
    *,
    categories: Sequence[str] | None = None,
    normalise: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Audit:
    """Ask a model which of two texts it prefers, for many pairs, and count how often it is the stereotype.

    Args:
        lm: a model; or several, such as one in 4 and in 16 bits, which are then compared on the same pairs.
        data: `en`, labkit's own pairs in English; the path of a file of templates (JSON, see
            `labkit.datasets.minimal_pairs`); a published set, `crows_pairs`, `winobias`, `stereoset` or `bbq`; or a
            list of `MinimalPair`.
        categories: only these.
        normalise: `sum` compares log-probabilities of whole texts, `token` and `byte` divide them by their length. By
            default the sum where both texts of every pair have the same continuation, else by byte.
        limit: at most so many pairs per category, drawn at random.
        seed: of the order in which pairs are scored, and of which are drawn.
        data_dir: the folder with the published sets; without it the one that `LABKIT_DATA` names.
        progress: show a progress bar.

    Returns:
        An `Audit`; after an interrupt, or as `audit` on an error, with the pairs scored until then, a random sample of
        all.

    Raises:
        FileNotFoundError: a data set is not there; the message says where to get it.
        ValueError: an unknown category, data of another form, no model; before anything has run.
    """
    job = AuditJob(lm, data, categories=categories, normalise=normalise, limit=limit, seed=seed, data_dir=data_dir)
    finish(job, "auditing", unit="pair", kept="audit", progress=progress)
    return job.audit


class AuditJob:
    """The pairs scored one chunk after the other, so that they can be watched and stopped."""

    def __init__(
        self,
        lm: LanguageModel | Sequence[LanguageModel],
        data: Data = "en",
        *,
        categories: Sequence[str] | None = None,
        normalise: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.models: list[LanguageModel] = list(lm) if isinstance(lm, Sequence) else [lm]
        if not self.models:
            raise ValueError("there is no model to audit; give one or several")
        if normalise not in (None, *NORMALISED):
            raise ValueError(f"normalise must be one of {', '.join(NORMALISED)}; got {normalise!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1; got {limit}")
        read, notes = _read(data, data_dir)
        pairs = _limited(_of(read, categories), limit, seed)
        same = all(pair.stereotype[1] == pair.other[1] for pair in pairs)
        n = len(pairs)
        recipe = {
            **made_with(self.models[0]),
            "others": [model.code() for model in self.models[1:]],
            "data": os.fspath(data) if isinstance(data, (str, os.PathLike)) else None,
            "categories": None if categories is None else list(categories),
            "normalise": normalise, "limit": limit, "seed": seed,
            "data_dir": None if data_dir is None else os.fspath(data_dir),
        }  # fmt: skip
        self.audit = Audit(
            names_of(self.models), pairs, np.full((len(self.models), n, 2), np.nan),
            np.zeros((len(self.models), n, 2, 2), np.int64), normalise or ("sum" if same else "byte"),
            [*notes, *_notes(self.models, pairs)], recipe,
        )  # fmt: skip
        order = list(range(n))
        random.Random(seed).shuffle(order)
        self._order = [order[first : first + CHUNK] for first in range(0, n, CHUNK)]

    @property
    def total(self) -> int:
        return len(self.models) * len(self.audit.pairs)

    @property
    def done(self) -> int:
        return int(self.audit.done.sum())

    def steps(self) -> Iterator[int]:
        """Score what is not scored, a chunk in every model before the next, so that models can be compared early."""
        kept = self.audit
        for chunk in self._order:
            for m, lm in enumerate(self.models):
                todo = [i for i in chunk if not kept.done[m, i]]
                texts = [side for i in todo for side in (kept.pairs[i].stereotype, kept.pairs[i].other)]
                for n, found in enumerate(score_continuations(lm, texts)):
                    kept.logprobs[m, todo[n // 2], n % 2] = found.logprob
                    kept.lengths[m, todo[n // 2], n % 2] = len(found.tokens), found.n_bytes
                kept.__dict__.pop("rows", None)  # they were of fewer pairs
                yield len(todo)


def _read(data: Data, data_dir: str | os.PathLike[str] | None) -> tuple[list[MinimalPair], list[str]]:
    """The pairs, and what has to be known of them."""
    if isinstance(data, os.PathLike) or (isinstance(data, str) and data.endswith(".json")):
        return pairs_from(data), []
    if isinstance(data, str) and data in STEREOTYPES:
        return STEREOTYPES[data].pairs_and_notes(data_dir)
    if isinstance(data, str) and data in NAMES:
        raise ValueError(f"{data!r} has right answers and no stereotypes; it is for lk.benchmark(lm, {data!r})")
    if isinstance(data, str):
        return own_pairs(data), []
    pairs = list(data)
    if not pairs or not all(isinstance(pair, MinimalPair) for pair in pairs):
        raise ValueError("data must be a list of lk.MinimalPair, one or more, or the name of a set or file")
    return pairs, []


def _of(pairs: list[MinimalPair], categories: Sequence[str] | None) -> list[MinimalPair]:
    known = list(dict.fromkeys(pair.category for pair in pairs))
    if isinstance(categories, str):
        raise ValueError(f"categories must be a list of names, such as [{categories!r}]")
    if categories is not None and not categories:
        raise ValueError(f"categories is empty; leave it out for all, or name some of {', '.join(known)}")
    if categories is not None and (unknown := [name for name in categories if name not in known]):
        raise ValueError(f"there is no category {unknown[0]!r}; the data have {', '.join(known)}")
    return [pair for pair in pairs if categories is None or pair.category in categories]


def _limited(pairs: list[MinimalPair], limit: int | None, seed: int) -> list[MinimalPair]:
    if limit is None:
        return pairs
    draw = random.Random(seed)
    by_category: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        by_category.setdefault(pair.category, []).append(i)
    kept = {i for mine in by_category.values() for i in draw.sample(mine, min(limit, len(mine)))}
    return [pair for i, pair in enumerate(pairs) if i in kept]


def _notes(models: Sequence[LanguageModel], pairs: Sequence[MinimalPair]) -> Iterator[str]:
    words = {pair.word for pair in pairs if pair.word}
    for name, lm in zip(names_of(models), models, strict=True):
        split = sum(len(lm.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) > 1 for word in words)
        if split:
            yield (
                f"{name}: {split} of {len(words)} words are several tokens; their log-probabilities are added up, "
                "which is fair, as each word is compared with itself."
            )
    if any(lm.tokenizer.get_vocab() != models[0].tokenizer.get_vocab() for lm in models[1:]):
        yield (
            "The models have different tokenizers. Each is asked about the same texts, so that their shares can be "
            "compared; their log-probabilities by token cannot."
        )
