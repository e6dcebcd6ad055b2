"""The loop in which tokens are chosen and written into records.

transformers' own `generate` does the work. A logits processor that changes nothing looks at each step's distribution
before penalties, temperature and cuts are applied, a streamer passes tokens on as they come, and a stopping criterion
looks at the caller's stop flag and at the text after every token. Of a checkpoint's own generation defaults only the
end tokens are used: anything that suppresses, forces or re-weights tokens would falsify the record.

Several texts after one prompt can be written in one batch. Each has its own record, seed, ending and sites; a text that
has ended is passed over with the others, and nothing of it is kept.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from labkit.elsewhere import is_elsewhere, where_the_model_is
from labkit.generation.access import Access, hooks_of
from labkit.generation.sampling import Sampling
from labkit.generation.token_table import Distribution, GeneratedToken, Record
from labkit.models.handle import Model
from labkit.models.processors import look_again
from labkit.text.warn import warn

OnToken = Callable[[GeneratedToken], None]


@dataclass
class Draft:
    """A text that is written: its ids so far (1, seq), of which the last `own` are the model's, the record that its
    tokens go to, how they are chosen, and what is read and written meanwhile.
    """

    ids: torch.Tensor
    record: Record
    sampling: Sampling
    access: Access | None = None
    own: int = 0


class _Watch(LogitsProcessor, BaseStreamer):
    """Looks at each step's distribution, which stays as it is, and writes the token that follows into the record."""

    def __init__(
        self, record: Record, tokenizer: Any, on_token: OnToken | None, ending: _Ending, access: Access | None
    ) -> None:
        self.record, self.tokenizer, self.on_token = record, tokenizer, on_token
        self.ending, self.access = ending, access
        self.steps: deque[Distribution] = deque()
        self.past_prompt = False
        self.first_at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        look_again()
        if self.access is not None:
            self.access.passed(input_ids.shape[1])
            self.access.over = self.ending.past
        if self.ending.ended:  # this pass only reads, or in a batch others go on
            return scores
        self.steps.append(Distribution(scores[0], self.record.alternatives))
        return scores

    def put(self, value: torch.Tensor) -> None:
        if not self.past_prompt:  # the prompt comes first
            self.past_prompt = True
            return
        if not self.steps:  # the token after the last; transformers asks before or after this whether that was the end
            return
        self.record.append(self.steps.popleft().row(int(value.view(-1)[0])))
        self.first_at = self.first_at or time.perf_counter()
        if self.on_token is not None:
            self.on_token(self.record.token(len(self.record) - 1, self.tokenizer))

    def end(self) -> None:
        pass


class _Ending(StoppingCriteria):
    """Stop on request, and after a stop string, even one that is split over tokens.

    With `last`, where the model has to pass over the last token too, one more token is chosen after any end, and
    dropped: `most` tokens and the tokens of `ends` are then looked for here as well.
    """

    def __init__(
        self,
        stop: threading.Event,
        strings: Sequence[str],
        tokenizer: Any,
        start: int,
        *,
        last: bool = False,
        length: int = 0,
        ends: Sequence[int] = (),
    ) -> None:
        self.stop, self.strings, self.tokenizer, self.start = stop, strings, tokenizer, start
        self.reach = max((len(text.encode()) for text in strings), default=0) + 8
        self.found = False
        self.last, self.length, self.ends = last, length, ends
        self.ended = self.past = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.past = self.ended
        if self.strings and not self.found and not self.past:  # some devices run one more step before the verdict
            begin = max(self.start, input_ids.shape[1] - self.reach)
            ids = input_ids[0, max(0, begin - 1) :].tolist()
            text, before = (self._text(some, begin > 0) for some in (ids, ids[:-1]))
            self.found = any(text.count(string) > before.count(string) for string in self.strings)
        over = self.stop.is_set() or self.found
        if self.last:
            full = input_ids.shape[1] >= self.length or int(input_ids[0, -1]) in self.ends
            self.ended, over = self.ended or over or full, self.past
        return torch.full((input_ids.shape[0],), over, device=input_ids.device)

    def _text(self, ids: list[int], anchored: bool) -> str:
        """The text of ids; after the first of them, if that is an anchor that keeps the space before the second."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        anchor: str = self.tokenizer.decode(ids[:1], skip_special_tokens=False) if anchored else ""
        return text[len(anchor) :] if text.startswith(anchor) else text


class _WatchEach(LogitsProcessor, BaseStreamer):
    """The watch of each row of a batch."""

    def __init__(self, watches: Sequence[_Watch]) -> None:
        self.watches = watches

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, watch in enumerate(self.watches):
            watch(input_ids[row : row + 1], scores[row : row + 1])
        return scores

    def put(self, value: torch.Tensor) -> None:
        for row, watch in enumerate(self.watches):
            watch.put(value[row : row + 1])

    def end(self) -> None:
        pass


class _EndEach(StoppingCriteria):
    """The ending of each row of a batch."""

    def __init__(self, endings: Sequence[_Ending]) -> None:
        self.endings = endings

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.cat([end(input_ids[row : row + 1], scores) for row, end in enumerate(self.endings)])


def extend_record(
    lm: Model,
    ids: torch.Tensor,
    record: Record,
    sampling: Sampling,
    *,
    stop: threading.Event | None = None,
    on_token: OnToken | None = None,
    own: int = 0,
) -> tuple[str, float, float]:
    """Continue ids (1, seq), of which the last `own` are the model's, into a record; returns why it ended, the seconds
    it took, and those until the first token.
    """
    if not is_elsewhere(lm):
        return extend_records(lm, [Draft(ids, record, sampling, own=own)], stop=stop, on_token=on_token)[0]
    begin = len(record)

    def take(part: Record) -> None:
        for row in part.rows:
            record.append(row)
            if on_token is not None:
                on_token(record.token(len(record) - 1, lm.tokenizer))

    whole, end = written(lm, ids, sampling, record.alternatives, own=own, stop=stop, each=take)
    take(whole.part(len(record) - begin))
    return end


@where_the_model_is(streams="each")
def written(
    lm: Model,
    ids: torch.Tensor,
    sampling: Sampling,
    alternatives: int,
    *,
    own: int = 0,
    stop: threading.Event | None = None,
    each: Callable[[Record], None] | None = None,
) -> tuple[Record, tuple[str, float, float]]:
    """What `extend_record` writes, as a record of its own, and what it returns; `each` gets every row as it comes."""
    record = Record(alternatives)

    def on_token(_: GeneratedToken) -> None:
        if each is not None:
            each(record.part(len(record) - 1))

    return record, extend_record(lm, ids, record, sampling, stop=stop, on_token=on_token, own=own)


def extend_records(
    lm: Model, drafts: Sequence[Draft], *, stop: threading.Event | None = None, on_token: OnToken | None = None
) -> list[tuple[str, float, float]]:
    """Continue drafts, whose ids are as many, in one batch; returns what `extend_record` does, for each.

    Their settings may differ in the seed alone.
    """
    stop = stop or threading.Event()
    first, many = drafts[0], len(drafts) > 1
    last = many or (first.access is not None and first.access.reads_last)
    watches = []
    for draft in drafts:
        ending = _Ending(
            stop, draft.sampling.stop_strings, lm.tokenizer, draft.ids.shape[1] - draft.own,
            last=last, length=draft.ids.shape[1] + int(draft.sampling.max_new_tokens), ends=ends_of(lm),
        )  # fmt: skip
        watches.append(_Watch(draft.record, lm.tokenizer, on_token, ending, draft.access))
    watch: Any = _WatchEach(watches) if many else watches[0]
    ends: StoppingCriteria = _EndEach([one.ending for one in watches]) if many else watches[0].ending
    seeds = [draft.sampling.seed for draft in drafts] if many else None
    ids = torch.cat([draft.ids for draft in drafts])
    hf = _without_defaults(lm)
    mask = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in signature(hf.forward).parameters else {}
    accesses = [draft.access for draft in drafts if draft.access is not None]
    begin = time.perf_counter()
    interrupted = False
    in_use = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with lm.busy(), torch.random.fork_rng(devices=in_use):
        try:
            with hooks_of(lm, accesses) if accesses else nullcontext():
                type(hf).generate(
                    hf,
                    ids,
                    **mask,
                    generation_config=_config(lm, first.sampling, last=last, drawn=many),
                    logits_processor=LogitsProcessorList([watch, *first.sampling.processors(seeds)]),
                    stopping_criteria=StoppingCriteriaList([ends]),
                    streamer=watch,
                )
        except KeyboardInterrupt:
            interrupted = True
            written = sum(len(draft.record) for draft in drafts)
            warn(f"interrupted: the {written} tokens written so far are kept")
    end = time.perf_counter()
    return [
        (_finish(lm, draft, one.ending, interrupted, many), end - begin, (one.first_at or end) - begin)
        for draft, one in zip(drafts, watches, strict=True)
    ]


def _finish(lm: Model, draft: Draft, ending: _Ending, interrupted: bool, many: bool) -> str:
    """Why a text ended."""
    record = draft.record
    if interrupted and not (many and ending.ended):
        return "stopped"
    if len(record) and int(record.rows["id"][-1]) in ends_of(lm):
        return "eos"
    if ending.found:
        return "stop_string"
    full = many and len(record) >= draft.sampling.max_new_tokens
    return "stopped" if ending.stop.is_set() and not full else "length"


def _without_defaults(lm: Model) -> Any:
    """A second view of the transformers model: same weights and hooks, transformers' own generation defaults.

    `generate` fills whatever a call leaves open from the `generation_config` of the model it is called on, so an empty
    one keeps a checkpoint's settings out, including any that transformers adds later. The user's model keeps its own.
    """
    hf = lm.hf.get_base_model() if hasattr(lm.hf, "get_base_model") else lm.hf  # adapters act within the model
    face = copy(hf)
    face.generation_config = GenerationConfig()
    return face


def _config(lm: Model, sampling: Sampling, *, last: bool, drawn: bool) -> GenerationConfig:
    """The settings; with `last` for a token more and without ends, which `_Ending` then sees to; tokens that are
    `drawn` already are not drawn again.
    """
    ends, pad = ends_of(lm), lm.tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=int(sampling.max_new_tokens) + last,
        eos_token_id=None if last else ends or None,
        pad_token_id=ends[0] if pad is None and ends else pad,
        bos_token_id=lm.tokenizer.bos_token_id,
        **({"do_sample": False} if drawn else sampling.for_transformers()),
    )


@where_the_model_is
def ends_of(lm: Model) -> list[int]:
    """The tokens that end a text, as the model's generation config names them: one, several or none."""
    ends = getattr(getattr(lm.hf, "generation_config", None), "eos_token_id", None)
    if ends is None:
        return []
    return [int(id) for id in torch.as_tensor(ends).flatten() if id >= 0]
