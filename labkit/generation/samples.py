"""Several texts after one prompt, each with a seed of its own, one by one or in batches."""

from __future__ import annotations

import secrets
import threading
from dataclasses import fields
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from labkit.elsewhere import where_the_model_is
from labkit.generation.generate import Begun, generate
from labkit.generation.loop import Draft, OnToken, extend_records
from labkit.generation.result import Generation
from labkit.generation.sampling import Sampling
from labkit.generation.token_table import Record
from labkit.models.handle import Model
from labkit.text.prompts import each_prompt
from labkit.text.types import Prompt


@where_the_model_is(streams="on_token", without=("store",), draws="seed")
@each_prompt
def samples_of(
    lm: Model,
    prompt: Prompt,
    count: int,
    *,
    seed: int | None = None,
    batch: int = 1,
    stop: threading.Event | None = None,
    on_token: OnToken | None = None,
    **settings: Any,
) -> list[Generation]:
    """Continue a prompt several times; or each prompt of a list, which gives a list of lists.

    Args:
        count: how many texts.
        seed: of the first text; the next have the seeds that follow it. By default one is drawn.
        batch: how many to write at once. One by one, each text is what `generate` gives for its seed. Together they are
            several times as fast, and in float32 the same; in less, rounding can turn a text into another.
        stop, on_token: as in `generate`; tokens of texts that are written at once come in turn.
        settings: as in `generate`; a temperature above 0 is needed.

    Returns:
        The texts, with what was read in each; after an interrupt those that there are. An error has those before it as
        `results`, and those of its batch, as far as they came, too.

    Raises:
        ValueError: there would be no texts, or all the same; the model mixes the rows of a batch (RWKV, as it is in
            transformers); and as `generate`.
    """
    if count < 1 or batch < 1:
        name, value = ("samples", count) if count < 1 else ("batch", batch)
        raise ValueError(f"{name} must be at least 1; got {value}")
    if not settings.get("temperature") and count > 1:
        raise ValueError(
            "at temperature 0 all samples are the same text; set temperature, to 1 for the model's own odds"
        )
    if batch > 1 and not keeps_rows_apart(lm):
        raise ValueError(
            f"{lm.name} mixes the rows of a batch while it writes (its implementation in transformers does), so its "
            "samples can only be written one by one; leave out batch="
        )
    if seed is None:
        seed = secrets.randbits(30)
    found: list[Generation] = []
    for first in range(0, count, batch):
        some = range(first, min(first + batch, count))
        try:
            if batch == 1:
                found.append(generate(lm, prompt, seed=seed + first, stop=stop, on_token=on_token, **settings))
            else:
                texts = [_begun(lm, prompt, seed, n, {"samples": count, "batch": batch}, settings) for n in some]
                found += _together(lm, texts, stop=stop, on_token=on_token)
        except Exception as error:
            error.results = [*found, *getattr(error, "results", ())]  # type: ignore[attr-defined]
            error.add_note(f"this was after sample {first} of {count}; what there is, is in this error's `results`")
            raise
        if found[-1].finish == "stopped":
            break
    return found


_apart: WeakKeyDictionary[Model, bool] = WeakKeyDictionary()


def keeps_rows_apart(lm: Model) -> bool:
    """Is what is written in one row of a batch the same whatever the other row is? Tried once per model."""
    if lm not in _apart:
        seen = []
        for other in (7, 19):
            drafts = [
                Draft((torch.arange(4, device=lm.device)[None] + begin) % lm.n_vocab, Record(1), Sampling(4))
                for begin in (3, other)
            ]
            if any(finish == "stopped" for finish, *_ in extend_records(lm, drafts)):
                raise KeyboardInterrupt
            seen.append(drafts[0].record)
        first, second = seen
        same = first.ids == second.ids
        _apart[lm] = same and np.allclose(first.rows["logprob"], second.rows["logprob"], atol=0.01)
    return _apart[lm]


def _begun(lm: Model, prompt: Prompt, seed: int, n: int, recipe: dict[str, int], settings: dict[str, Any]) -> Begun:
    """The n-th text; its code writes the whole batch again."""
    names = {one.name for one in fields(Sampling)}
    sampling = Sampling(seed=seed + n, **{k: v for k, v in settings.items() if k in names})
    begun = Begun(lm, prompt, sampling, **{k: v for k, v in settings.items() if k not in names})
    begun.recipe |= {**recipe, "seed": seed, "sample": n}
    return begun


def _together(
    lm: Model, texts: list[Begun], *, stop: threading.Event | None, on_token: OnToken | None
) -> list[Generation]:
    try:
        ends = extend_records(lm, [text.draft for text in texts], stop=stop, on_token=on_token)
    except Exception as error:
        error.results = [text.result("failed", 0.0, 0.0) for text in texts]  # type: ignore[attr-defined]
        raise
    return [text.result(*end) for text, end in zip(texts, ends, strict=True)]
