"""Patchscopes (Ghandeharioun et al. 2024): put any activation into any place of another prompt, and let a model say
what it finds there.

A target prompt such as `cat->cat; 135->135; hello->hello; ?` asks for whatever stands at its last token to be said
again. An activation of another prompt, layer, or model is written in that token's place while the model reads the
target prompt, and what it then writes is in its own words. Two controls are beside it: what the model writes after the
target prompt as it is, and with a random vector of the same norm. A patchscope that reads the same there has read the
target prompt, not the activation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from labkit.activations.run import run
from labkit.activations.site_kinds import BY_QUERY, KINDS
from labkit.activations.sites import Site, checked, layers_with
from labkit.elsewhere import where_the_model_is
from labkit.generation.access import Access, written_as_code
from labkit.generation.generate import room_for
from labkit.generation.loop import Draft, extend_records
from labkit.generation.samples import keeps_rows_apart
from labkit.generation.sampling import Sampling
from labkit.generation.token_table import Record
from labkit.language_model import LanguageModel
from labkit.lens.patchscope_result import USUAL, Patchscope, PatchscopeRow, Wrote
from labkit.results.job import finish
from labkit.results.recipe import loaded_as, made_with
from labkit.text.prompts import as_json, asked
from labkit.text.types import Prompt
from labkit.text.whole_numbers import whole

ROWS = 16  # texts that are written at once, where a model keeps the rows of a batch apart
INTO = str(USUAL["into"])


@where_the_model_is
def patchscope(
    lm: LanguageModel,
    source_prompt: Prompt,
    *,
    site: str | Site = "resid_post.10@-1",
    into: Prompt = INTO,
    at: int = -1,
    layer: int | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    source: LanguageModel | None = None,
    mapping: Callable[[torch.Tensor], torch.Tensor] | None = None,
    max_new_tokens: int = 20,
    controls: bool = True,
    seed: int = 0,
    batch: int | None = None,
    stop: threading.Event | None = None,
    progress: bool = True,
) -> Patchscope:
    """What the model writes after a prompt that has an activation of another prompt in it.

    Args:
        lm: the model that writes.
        source_prompt: text, chat messages or token ids (1, seq), whose activations are read.
        site: which: `resid_post.10@-1` is the last position's after layer 10.
        into: the target prompt, of any form; it should ask for what stands at one of its tokens.
        at: the position of the target prompt that is written, counted from the end if negative.
        layer: of the target prompt; by default the layer that was read. Early ones leave more layers to work on it.
        layers, positions: several to read, instead of those that `site` names: a row for each pair.
        source: the model that reads, where that is another one.
        mapping: from what was read, (d_model,) or (d_head,), to what is written, such as a linear map between two
            models or layers.
        max_new_tokens: the most tokens to write.
        controls: also write after the target prompt as it is, and with a random vector of the same norm for each row.
        seed: of the random vectors.
        batch: how many texts to write at once; by default 16, or one where a model mixes the rows of a batch. In less
            than float32 rounding can turn a text into another; with 1 each is what `lm.generate(write=...)` gives.
        stop: an event that, once set from any thread, ends the writing within one token.
        progress: show a progress bar.

    Returns:
        A `Patchscope`. After an interrupt, with warnings, it has what was written until then.

    Raises:
        ValueError: invalid input, before the model has written: an unknown site, one without a layer, a position that
            a prompt does not have, patterns or routing, models of different widths and no mapping, a value of the wrong
            shape, a target prompt that leaves no room in the context.
        TypeError: a prompt, a model or a function is none.
    """
    job = PatchscopeJob(
        lm, source_prompt, site, into, at,
        layer=layer, layers=layers, positions=positions, source=source, mapping=mapping,
        max_new_tokens=max_new_tokens, controls=controls, seed=seed, batch=batch, stop=stop,
    )  # fmt: skip
    finish(job, "patchscope", unit="text", kept="patchscope", progress=progress)
    return job.patchscope


@dataclass
class _Text:
    """A text to write: with what in which layer, and where it goes: a row's `wrote` or `random`, or `unpatched`."""

    row: int | None
    name: str
    layer: int
    value: torch.Tensor | None


class PatchscopeJob:
    """The work of `patchscope`, a batch of texts per step."""

    def __init__(
        self,
        lm: LanguageModel,
        source_prompt: Prompt,
        site: str | Site,
        into: Prompt,
        at: int,
        *,
        layer: int | None,
        layers: Sequence[int] | None,
        positions: Sequence[int] | None,
        source: LanguageModel | None,
        mapping: Callable[[torch.Tensor], torch.Tensor] | None,
        max_new_tokens: int,
        controls: bool,
        seed: int,
        batch: int | None,
        stop: threading.Event | None = None,
    ) -> None:
        if source is not None and not isinstance(source, LanguageModel):
            raise TypeError(f"source= is another model that reads the source prompt; got {source!r:.60}")
        if mapping is not None and not callable(mapping):
            raise TypeError(f"mapping= is a function from a tensor to a tensor; got {mapping!r:.60}")
        for name, some in (("layers", layers), ("positions", positions)):
            if some is not None and (isinstance(some, str) or not isinstance(some, Iterable)):
                raise TypeError(f"{name} must be a list of numbers, such as [{some}]; got {some!r:.60}")
        at, seed = whole("at", at), whole("seed", seed)
        batch = None if batch is None else whole("batch", batch, least=1, of=" of texts")
        reader = source or lm
        self.lm, self.sampling = lm, Sampling(max_new_tokens)
        source_prompt, into = asked(reader, source_prompt), asked(lm, into)
        ids = reader.encode(source_prompt)
        self.ids = room_for(lm, into, max_new_tokens)
        self.source, self.target = tuple(reader.tokens(ids)), tuple(lm.tokens(self.ids))
        parsed = Site.parse(site)
        read = [
            checked(reader, replace(parsed, layer=one, position=position), length=len(self.source))
            for one in ([parsed.layer] if layers is None else layers)
            for position in ([parsed.position] if positions is None else positions)
        ]
        self._check(lm, reader, read, mapping)
        count = len(self.target)
        if not -count <= at < count:
            raise ValueError(f"position at={at} is out of range; the target prompt has positions 0 to {count - 1}")
        self.at, self.kind, self.head = at % count, read[0].kind, read[0].head
        self.rows = [self._row(one, layer) for one in read]
        self.unpatched: Wrote | None = None
        self._values = self._read(reader, ids, read, mapping)
        self._texts = [_Text(n, "wrote", row.target_layer, self._values[n]) for n, row in enumerate(self.rows)]
        if controls:
            self._texts.insert(0, _Text(None, "unpatched", self.rows[0].target_layer, None))
            draw = torch.Generator().manual_seed(seed)
            for n, row in enumerate(self.rows):
                noise = torch.randn(self._values[n].shape, generator=draw)
                noise = noise * (self._values[n].float().cpu().norm() / noise.norm())
                self._texts.append(_Text(n, "random", row.target_layer, noise.to(self._values[n])))
        self._access([text for text in self._texts if text.row is not None][:1])  # shapes, before the model writes
        self.done, self._batch, self._stop = 0, batch, stop
        given = {
            "source_prompt": as_json(source_prompt), "site": str(site), "into": as_json(into), "at": at, "layer": layer,
            "layers": layers if layers is None else [int(one) for one in layers],
            "positions": positions if positions is None else [int(one) for one in positions],
            "max_new_tokens": max_new_tokens, "controls": controls, "seed": seed, "batch": batch,
        }  # fmt: skip
        self.recipe: dict[str, Any] = made_with(lm) | {"site": self.kind, "asked": given, "before": ""}
        if source is not None:
            self.recipe |= {"source": "source", "before": loaded_as("source", source.code())}
        if mapping is not None:
            as_code = written_as_code(lm, {read[0]: mapping})
            self.recipe["mapping"] = as_code["write"][str(read[0])]
            self.recipe["before"] += as_code["write_code"].replace("written at", "applied to what was read at")

    @staticmethod
    def _check(lm: LanguageModel, reader: LanguageModel, read: Sequence[Site], mapping: Any) -> None:
        """That these sites can be read, one vector each, and written."""
        if not read:
            raise ValueError("layers or positions is an empty list; name at least one of each, or leave it out")
        site = read[0]
        if site.kind in BY_QUERY or KINDS[site.kind].unit == "expert" or not KINDS[site.kind].by_position:
            raise ValueError(f"a patchscope moves vectors; {site.kind} has none: use a site such as 'resid_post.10@-1'")
        if site.layer is None and site.kind != "embed":
            first = layers_with(reader, site.kind)[0]
            raise ValueError(f"which layer of {site.kind}? Write '{site.kind}.{first}@-1', or give layers=[...]")
        if site.position is None:
            raise ValueError(f"which position of the source prompt? Write '{site}@-1', or give positions=[...]")
        if KINDS[site.kind].unit == "head" and site.head is None:
            raise ValueError(f"which head? Write '{site.kind}.{site.layer}.0@{site.position}'")
        if mapping is None and "d_model" in KINDS[site.kind].axes and reader.d_model != lm.d_model:
            raise ValueError(
                f"{reader.name} has vectors of {reader.d_model} numbers, {lm.name} of {lm.d_model}; give a mapping= "
                "from the one to the other"
            )

    def _row(self, site: Site, layer: int | None) -> PatchscopeRow:
        """Where one activation is read and written."""
        assert site.position is not None
        target = checked(self.lm, Site(self.kind, site.layer if layer is None else layer, self.head))
        return PatchscopeRow(site.layer or 0, site.position, self.source[site.position].display, target.layer or 0)

    def _read(self, reader: LanguageModel, ids: torch.Tensor, read: Sequence[Site], mapping: Any) -> list[torch.Tensor]:
        """What is written for each row, mapped."""
        found = run(reader, ids, read=list(dict.fromkeys(read)), logits="none")
        values = []
        for site in read:
            value = found[site][0]
            if mapping is not None:
                value = mapping(value)
                if not isinstance(value, torch.Tensor):
                    raise TypeError(f"mapping must give a tensor; for {site} it gave {type(value).__name__}")
                if not value.isfinite().all():
                    raise ValueError(f"mapping gave numbers that are not finite for {site}")
            values.append(value.detach().to(self.lm.device))
        return values

    @property
    def total(self) -> int:
        return len(self._texts)

    def steps(self) -> Iterator[int]:
        """Write batch after batch; yields how many texts there are. What is there is not written again."""
        size = self._batch or (ROWS if self.total > 1 and keeps_rows_apart(self.lm) else 1)
        while self.done < self.total:
            some = self._texts[self.done : self.done + size]
            drafts = [
                Draft(self.ids, Record(1), self.sampling, access)
                for access in (self._access(some) if any(t.row is not None for t in some) else [None] * len(some))
            ]
            ends = extend_records(self.lm, drafts, stop=self._stop)
            stopped = False
            for text, draft, (why, *_) in zip(some, drafts, ends, strict=True):
                stopped |= why == "stopped"
                if len(draft.record):
                    self._keep(text, self._wrote(draft.record, why))
                    self.done += why != "stopped"
            yield self.done
            if stopped:
                return

    def _access(self, texts: Sequence[_Text]) -> list[Access]:
        """What each text of a batch writes. All write in the same layers, most of them what is there."""
        layers = sorted({text.layer for text in texts if text.row is not None})
        accesses = []
        for text in texts:
            write = {
                Site(self.kind, layer, self.head): text.value
                if text.value is not None and layer == text.layer
                else _unchanged
                for layer in layers
            }
            accesses.append(Access(self.lm, self.ids, self.sampling.max_new_tokens, write=write, write_at=[self.at]))
        return accesses

    def _keep(self, text: _Text, wrote: Wrote) -> None:
        if text.row is None:
            self.unpatched = wrote
        else:
            row = self.rows[text.row]
            self.rows[text.row] = replace(row, wrote=wrote) if text.name == "wrote" else replace(row, random=wrote)

    def _wrote(self, record: Record, why: str) -> Wrote:
        ids, first = record.ids, record.token(0, self.lm.tokenizer)
        text = self.lm.tokenizer.decode(ids, skip_special_tokens=True)
        return Wrote(tuple(ids), text, first.token.display, float(np.float32(first.probability)), why)

    @property
    def patchscope(self) -> Patchscope:
        """What is written so far."""
        return Patchscope(tuple(self.rows), self.unpatched, self.source, self.target, self.at, self.recipe)


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x
