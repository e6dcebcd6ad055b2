"""What a worker does with the texts of a shard: it runs them, and packs what was asked for into one file.

Of each batch only the chosen positions are kept.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import safetensors.torch
import torch

from labkit.activations.run import Run, parts_by_place, run
from labkit.activations.site_kinds import BY_QUERY
from labkit.activations.sites import Site, adds_keys, checked, refuse_without_positions
from labkit.collected.batches import batches
from labkit.collected.positions import chosen
from labkit.elsewhere import tell_progress, where_the_model_is
from labkit.engine.batching import in_chunks
from labkit.language_model import LanguageModel
from labkit.results.file import KINDS
from labkit.shards.workers import Plan
from labkit.text.tokens import describe
from labkit.text.types import Prompt

KIND = "collection shard"
ROWS = ("text", "position", "id")  # of each row: the number of its text, where it is in it, and its token
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def parsed(read: Sequence[str | Site]) -> list[Site]:
    """The sites to read, as far as they can be checked without a model.

    Raises:
        ValueError: none, an unknown one, or one that has no row for each position.
        TypeError: something else than sites.
    """
    given = [read] if isinstance(read, str | Site) else list(read) if isinstance(read, Iterable) else [read]
    if wrong := [one for one in given if not isinstance(one, str | Site)]:
        raise TypeError(f"read= takes sites, such as read=['resid_post']; got {wrong[0]!r:.60}")
    sites = [Site.parse(one) for one in given]
    if not sites:
        raise ValueError("read=[] names nothing to collect; give sites, such as read=['resid_post']")
    for site in sites:
        if site.position is not None:
            raise ValueError(f"{site}: positions= says which positions are collected; leave out @{site.position}")
        if site.kind in BY_QUERY:
            raise ValueError(
                f"{site}: {site.kind} has one number per key, so its rows are as long as their text and do not fit "
                "into one array; lk.attention has the patterns of a text, and q, k and z have one row per position"
            )
        refuse_without_positions(site)
    return sites


def sites_of(lm: LanguageModel, read: Sequence[str | Site]) -> list[Site]:
    """The sites to read, each of one layer, none twice.

    Raises:
        ValueError: as `parsed`, or this model lacks one.
    """
    wanted = [checked(lm, site) for site in parsed(read)]
    parts = [one for some in parts_by_place(lm, wanted).values() for one in some]
    for site in parts:
        if site.kind in ("k", "v") and adds_keys(lm, site.layer or 0):
            raise ValueError(
                f"{site}: this layer of {lm.name} adds compressed keys to those of the positions, so they have no row "
                "for each position"
            )
    return parts


def shapes_of(lm: LanguageModel, sites: Sequence[Site], prompt: Prompt) -> dict[Site, tuple[int, ...]]:
    """The shape of a row of each site, from a run of one token."""
    found = run(lm, lm.encode(prompt)[:, :1], read=sites, logits="none", to="cpu")
    return {site: tuple(found[site].shape[2:]) for site in sites}


def row_size(shapes: dict[Site, tuple[int, ...]], dtype: torch.dtype) -> int:
    """The bytes of one row of every site."""
    return sum(map(prod, shapes.values())) * dtype.itemsize


def shard_of(plan: Plan, texts: Sequence[tuple[int, Prompt]]) -> bytes:
    """The file of a shard: for each site the rows of its texts, one after the other (row, ...)."""
    lm, asked = plan.model(), plan.settings
    at = [chosen(asked["positions"], lm.tokenizer, lm.encode(prompt)[0].tolist()) for _, prompt in texts]
    same = asked["positions"] if isinstance(asked["positions"], tuple) else None
    return _file(lm, texts, at, {**asked, "positions": same})


@where_the_model_is
def _file(
    lm: LanguageModel, texts: Sequence[tuple[int, Prompt]], at: Sequence[list[int]], asked: Mapping[str, Any]
) -> bytes:
    """The same where the model is: `at` has the positions of each text; `positions` those that all have, or None."""
    sites = sites_of(lm, asked["read"])
    dtype = DTYPES[asked["stored_dtype"]] if asked["stored_dtype"] else lm.dtype
    shapes = shapes_of(lm, sites, texts[0][1])
    ids = [lm.encode(prompt)[0] for _, prompt in texts]
    starts = np.cumsum([0, *map(len, at)]).tolist()
    rows = {site: torch.empty((starts[-1], *shape), dtype=dtype) for site, shape in shapes.items()}

    def read(some: list[int]) -> None:
        for n, site, found in _rows_of(lm, sites, asked["positions"], {n: ids[n] for n in some}, at):
            kept = rows[site][starts[n] : starts[n + 1]]
            kept.copy_(found)
            if dtype == torch.float16 and bool((kept.isinf() & found.isfinite()).any()):
                raise ValueError(
                    f"{site} has {float(found.abs().max()):.0f} in text {texts[n][0]}, more than float16 can hold; "
                    "collect with dtype='bfloat16' or 'float32'"
                )

    row = None if asked["positions"] else row_size(shapes, lm.dtype)
    chunks = batches(lm, ids, [n for n in range(len(ids)) if at[n]], batch=asked["batch"], row=row)
    for n, _ in enumerate(in_chunks(chunks, read, stopped=lambda: False), 1):
        tell_progress(n, max(n, len(chunks)))
    every = torch.cat(ids).tolist()
    tensors = {str(site): values for site, values in rows.items()} | {
        "text": torch.tensor([texts[n][0] for n, some in enumerate(at) for _ in some], dtype=torch.int32),
        "position": torch.tensor([one for some in at for one in some], dtype=torch.int32),
        "id": torch.cat([some.cpu()[where] for some, where in zip(ids, at, strict=True)]).int(),
    }
    about = {
        "kind": KIND, "format": KINDS[KIND].newest, "hash": asked["hash"], "layers": lm.n_layers,
        "texts": [texts[0][0], texts[-1][0] + 1],
        "tokens": {token.id: token.display for token in describe(lm.tokenizer, sorted(set(every)))},
        "sums": {name: checksum(values) for name, values in tensors.items()},
    }  # fmt: skip
    return safetensors.torch.save(tensors, metadata={"about": json.dumps(about)})


def checksum(values: torch.Tensor) -> int:
    """Of the bytes of a tensor."""
    return zlib.crc32(values.contiguous().view(torch.uint8).numpy().data)


def _rows_of(
    lm: LanguageModel, sites: Sequence[Site], positions: Any, ids: dict[int, torch.Tensor], at: Sequence[list[int]]
) -> Any:
    """Of one batch the number of each text, with each site and its rows there (row, ...)."""
    prompts = list(ids.values())
    if positions:  # only these leave the model's device
        read = {(site, one): Site(site.kind, site.layer, site.head, one) for site in sites for one in positions}
        found = run(lm, prompts, read=list(read.values()), logits="none", to="cpu")
        for site in sites:
            both = torch.stack([found[read[site, one]] for one in positions], 1)  # (text, position, ...)
            for row, n in enumerate(ids):
                yield n, site, both[row]
        return
    whole: Run = run(lm, prompts, read=sites, logits="none", to="cpu")
    for site in sites:
        values = whole[site]
        for row, n in enumerate(ids):
            skipped = values.shape[1] - len(ids[n])
            yield n, site, values[row, [skipped + one for one in at[n]]]
