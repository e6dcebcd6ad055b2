"""Continuing a prompt, with the alternatives at every token.

transformers' own `generate` does the work. A logits processor that changes nothing looks at each step's distribution
before penalties, temperature and cuts are applied, a streamer passes tokens on as they come, and a stopping criterion
looks at the caller's stop flag and at the text after every token. Of a checkpoint's own generation defaults only the
end tokens are used: anything that suppresses, forces or re-weights tokens would falsify the record.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from inspect import signature
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from labkit.activations.sites import Site
from labkit.generation.access import Access, Written
from labkit.generation.readings import Span
from labkit.generation.result import Generation
from labkit.generation.sampling import Sampling
from labkit.generation.token_table import Distribution, GeneratedToken, Record
from labkit.models.handle import Model
from labkit.models.processors import look_again
from labkit.results.recipe import made_with
from labkit.text.encode import TooLong, encode
from labkit.text.prompts import asked, each_prompt
from labkit.text.types import Prompt
from labkit.text.warn import warn

OnToken = Callable[[GeneratedToken], None]


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
        self.steps.append(Distribution(scores[0], self.record.alternatives))
        return scores

    def put(self, value: torch.Tensor) -> None:
        if not self.past_prompt:  # the prompt comes first
            self.past_prompt = True
            return
        if self.ending.past:  # the token after the last, whose pass only read
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


@each_prompt
def generate(
    lm: Model,
    prompt: Prompt,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop_strings: Sequence[str] = (),
    truncate_left: bool = False,
    stop: threading.Event | None = None,
    on_token: OnToken | None = None,
    alternatives: int = 10,
    read: Sequence[str | Site] = (),
    read_at: Span = "written",
    write: Mapping[Any, Written] | None = None,
    write_at: Span | slice | Sequence[int] = "all",
    store: str | os.PathLike[str] | None = None,
) -> Generation:
    """Continue a prompt.

    Args:
        prompt: text, chat messages or token ids (1, seq); or a list of these, continued one after the other.
        max_new_tokens: the most tokens to write.
        temperature: 0 takes the likeliest token each time; 1 samples from the model's distribution.
        top_p, top_k, min_p: sample only from the likeliest tokens (1.0, 0 and 0.0: from all); see `Sampling`.
        repetition_penalty: above 1 makes what is in the text already less likely.
        seed: the same seed gives the same text, also when it is resumed midway; by default a new one is drawn, which
            `code()` shows. The global random state is left alone.
        stop_strings: stop once one of these has been written; it stays in the text.
        truncate_left: drop tokens at the beginning of a prompt that is too long, except BOS.
        stop: an event that, once set from any thread, ends generation within one token.
        on_token: called with every `GeneratedToken` as it comes, in this thread.
        alternatives: how many of the likeliest tokens to keep at each place.
        read: sites to keep while the model writes, such as `["resid_post.5", "pattern.3", "z.5.3"]`. The result has
            them as a run has, without its first axis, a row per token: `generation["resid_post.5"]` is (token,
            d_model), `generation["pattern.3"]` (n_heads, token, key), with zeros where a row has not as many keys as
            the last. A row is what passed where that token is, which is also what `lm.run` has at its position in
            prompt and text. For the last token the model makes one more pass.
        read_at: `written`: a row for each token of the text; `prompt`: for each of the prompt's; `all`: for both.
        write: for each site what to write there: a value, a function, or a steering vector, which is added. A value is
            broadcast to the site's shape with one row per position of `write_at`, the written ones up to
            `max_new_tokens`. A function takes the activation, (1, position, ...) or (1, n_heads, position, key), and if
            it has a second argument the step, and gives the new one. It is called for the prompt at once, in step 0,
            and for the n-th token written in step n; what it gives must depend on nothing else, as some models pass
            over a position more than once.
        write_at: the positions that are written, as in `read_at`; or a slice or a list of them, counted from the first
            token of the prompt: `slice(20, None)` writes from position 20 on. By default all. A function is called for
            each stretch of neighbouring positions of the prompt.
        store: a folder on disk in which to keep what is read, for long texts: each generation gets a folder of its
            own in it (safetensors). By default it is kept in memory, on the CPU.

    Returns:
        A `Generation`, or a list of them for several prompts. After an interrupt it holds what was written and read so
            far, with a warning; after an error that is the error's `generation`. A token that was the last when it was
            interrupted has not been passed over, so there may be one row less than tokens.

    Raises:
        ValueError: a bad prompt or setting, settings that contradict each other, or a prompt that leaves no room in the
            context (`labkit.text.tokens.TooLong`, which says by how many tokens); an unknown site, one that this
            architecture lacks, a position in a site, a value of the wrong shape, a `store` that is a file.
    """
    sampling = Sampling(
        max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop_strings
    ).drawn()
    record = Record(min(alternatives, lm.n_vocab))
    prompt = asked(lm, prompt)
    ids = room_for(lm, prompt, max_new_tokens, truncate_left=truncate_left)
    recipe = {"prompt": prompt, "load": lm.code(), **sampling.given(), "made_with": made_with(lm)}
    if truncate_left:
        recipe["truncate_left"] = True
    access = None
    if read or write or store is not None or read_at != "written" or write_at != "all":
        access = Access(
            lm, ids, max_new_tokens, read=read, read_at=read_at, write=write, write_at=write_at, store=store
        )
        recipe |= access.recipe()

    def made(finish: str, seconds: float, first: float) -> Generation:
        if access is not None:
            access.ended(len(record))
        readings = None if access is None else access.readings
        return Generation(lm.tokens(ids), record, finish, seconds, first, recipe, lm.tokenizer, readings)

    try:
        return made(*extend_record(lm, ids, record, sampling, stop=stop, on_token=on_token, access=access))
    except Exception as error:
        error.generation = made("failed", 0.0, 0.0)  # type: ignore[attr-defined]
        error.add_note(f"{len(record)} tokens were written before it; they are in this error's `generation`")
        raise


def room_for(lm: Model, prompt: Prompt, more: int, *, truncate_left: bool = False) -> torch.Tensor:
    """The ids (1, seq) of a prompt after which `more` tokens fit into the context.

    Raises:
        TooLong: they do not fit and nothing may be dropped, or `more` alone is too much.
    """
    ids = encode(lm, prompt, most=None)
    over = ids.shape[1] + more - lm.context if lm.context else 0
    if over <= 0:
        return ids
    bos = int(ids[0, 0] == lm.tokenizer.bos_token_id) if lm.tokenizer.bos_token_id is not None else 0
    if truncate_left and ids.shape[1] - over > bos:
        return torch.cat([ids[:, :bos], ids[:, bos + over :]], 1)
    raise TooLong(
        f"the prompt has {ids.shape[1]} tokens and max_new_tokens={more}: {over} more than the {lm.context} of "
        f"{lm.name}'s context; shorten either, or drop the beginning of the prompt with truncate_left=True",
        over,
    )


def extend_record(
    lm: Model,
    ids: torch.Tensor,
    record: Record,
    sampling: Sampling,
    *,
    stop: threading.Event | None = None,
    on_token: OnToken | None = None,
    own: int = 0,
    access: Access | None = None,
) -> tuple[str, float, float]:
    """Continue ids (1, seq), of which the last `own` are the model's, into a record, with what `access` reads and
    writes; returns why it ended, the seconds it took, and those until the first token.
    """
    stop = stop or threading.Event()
    last = access is not None and access.reads_last
    ending = _Ending(
        stop, sampling.stop_strings, lm.tokenizer, ids.shape[1] - own,
        last=last, length=ids.shape[1] + int(sampling.max_new_tokens), ends=ends_of(lm),
    )  # fmt: skip
    watch = _Watch(record, lm.tokenizer, on_token, ending, access)
    hf = _without_defaults(lm)
    mask = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in signature(hf.forward).parameters else {}
    begin = time.perf_counter()
    interrupted = False
    in_use = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with lm.busy(), torch.random.fork_rng(devices=in_use):
        try:
            with nullcontext() if access is None else access.hooks():
                type(hf).generate(
                    hf,
                    ids,
                    **mask,
                    generation_config=_config(lm, sampling, last=last),
                    logits_processor=LogitsProcessorList([watch, *sampling.processors()]),
                    stopping_criteria=StoppingCriteriaList([ending]),
                    streamer=watch,
                )
        except KeyboardInterrupt:
            interrupted = True
            warn(f"interrupted: the {len(record)} tokens written so far are kept")
    end = time.perf_counter()
    if interrupted:
        finish = "stopped"
    elif len(record) and int(record.rows["id"][-1]) in ends_of(lm):
        finish = "eos"
    else:
        finish = "stop_string" if ending.found else "stopped" if stop.is_set() else "length"
    return finish, end - begin, (watch.first_at or end) - begin


def _without_defaults(lm: Model) -> Any:
    """A second view of the transformers model: same weights and hooks, transformers' own generation defaults.

    `generate` fills whatever a call leaves open from the `generation_config` of the model it is called on, so an empty
    one keeps a checkpoint's settings out, including any that transformers adds later. The user's model keeps its own.
    """
    hf = lm.hf.get_base_model() if hasattr(lm.hf, "get_base_model") else lm.hf  # adapters act within the model
    face = copy(hf)
    face.generation_config = GenerationConfig()
    return face


def _config(lm: Model, sampling: Sampling, *, last: bool) -> GenerationConfig:
    """The settings; with `last` for a token more and without ends, which `_Ending` then sees to."""
    ends, pad = ends_of(lm), lm.tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=int(sampling.max_new_tokens) + last,
        eos_token_id=None if last else ends or None,
        pad_token_id=ends[0] if pad is None and ends else pad,
        bos_token_id=lm.tokenizer.bos_token_id,
        **sampling.for_transformers(),
    )


def ends_of(lm: Model) -> list[int]:
    """The tokens that end a text, as the model's generation config names them: one, several or none."""
    ends = getattr(getattr(lm.hf, "generation_config", None), "eos_token_id", None)
    if ends is None:
        return []
    return [int(id) for id in torch.as_tensor(ends).flatten() if id >= 0]
