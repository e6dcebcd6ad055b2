"""Continuing a prompt, with the alternatives at every token.

transformers' own `generate` does the work. A logits processor that changes nothing looks at each step's distribution
before penalties, temperature and cuts are applied, a streamer passes tokens on as they come, and a stopping criterion
looks at the caller's stop flag and at the text after every token. Of a checkpoint's own generation defaults only the
end tokens are used: anything that suppresses, forces or re-weights tokens would falsify the record.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from labkit.generation.sampling import Sampling
from labkit.generation.token_table import Distribution, GeneratedToken, Record, Transcript
from labkit.models.handle import Model
from labkit.models.processors import look_again
from labkit.text.as_code import as_code
from labkit.text.encode import TooLong, encode
from labkit.text.prompts import asked, each_prompt
from labkit.text.tokens import Token
from labkit.text.types import Prompt
from labkit.text.warn import warn

OnToken = Callable[[GeneratedToken], None]


@dataclass
class Generation(Transcript):
    """The continuation of a prompt.

    Attributes:
        prompt: its tokens.
        record: the generated tokens with their probabilities and alternatives, compactly.
        finish: why it ended: `length`, `eos` (the model ended the text), `stop_string` or `stopped`.
        seconds: how long it took; `first_seconds` of that until the first token.
    """

    prompt: list[Token]
    record: Record
    finish: str
    seconds: float
    first_seconds: float
    recipe: dict[str, Any] = field(repr=False)
    tokenizer: Any = field(repr=False)

    @property
    def tokens_per_second(self) -> float:
        """Measured from the first token on, without the prompt."""
        return speed(len(self.record), self.seconds, self.first_seconds)

    def code(self) -> str:
        """The Python that generates it again."""
        settings = {name: value for name, value in self.recipe.items() if name not in ("load", "prompt")}
        return as_code(self.recipe["load"], "generation = lm.generate", self.recipe["prompt"], **settings)

    def __repr__(self) -> str:
        return f"Generation({len(self.record)} tokens, finish={self.finish!r}: {self.text!r:.80})"


def speed(tokens: int, seconds: float, first_seconds: float) -> float:
    """Tokens per second after the prompt."""
    return (tokens - 1) / (seconds - first_seconds) if tokens > 1 and seconds > first_seconds else 0.0


class _Watch(LogitsProcessor, BaseStreamer):
    """Looks at each step's distribution, which stays as it is, and writes the token that follows into the record."""

    def __init__(self, record: Record, tokenizer: Any, on_token: OnToken | None) -> None:
        self.record, self.tokenizer, self.on_token = record, tokenizer, on_token
        self.steps: deque[Distribution] = deque()
        self.past_prompt = False
        self.first_at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        look_again()
        self.steps.append(Distribution(scores[0], self.record.alternatives))
        return scores

    def put(self, value: torch.Tensor) -> None:
        if not self.past_prompt:  # the prompt comes first
            self.past_prompt = True
            return
        self.record.append(self.steps.popleft().row(int(value.view(-1)[0])))
        self.first_at = self.first_at or time.perf_counter()
        if self.on_token is not None:
            self.on_token(self.record.token(len(self.record) - 1, self.tokenizer))

    def end(self) -> None:
        pass


class _Stop(StoppingCriteria):
    """Stop on request, and after a stop string, even one that is split over tokens."""

    def __init__(self, stop: threading.Event, strings: Sequence[str], tokenizer: Any, start: int) -> None:
        self.stop, self.strings, self.tokenizer, self.start = stop, strings, tokenizer, start
        self.reach = max((len(text.encode()) for text in strings), default=0) + 8
        self.found = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if self.strings and not self.found:  # on some devices one more step runs before the first verdict is read
            begin = max(self.start, input_ids.shape[1] - self.reach)
            ids = input_ids[0, max(0, begin - 1) :].tolist()
            text, before = (self._text(some, begin > 0) for some in (ids, ids[:-1]))
            self.found = any(text.count(string) > before.count(string) for string in self.strings)
        return torch.full((input_ids.shape[0],), self.stop.is_set() or self.found, device=input_ids.device)

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

    Returns:
        A `Generation`, or a list of them for several prompts. After an interrupt it holds what was written so far, with
            a warning; after an error that is the error's `generation`.

    Raises:
        ValueError: a bad prompt or setting, settings that contradict each other, or a prompt that leaves no room in the
            context (`labkit.text.tokens.TooLong`, which says by how many tokens).
    """
    sampling = Sampling(
        max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop_strings
    ).drawn()
    record = Record(min(alternatives, lm.n_vocab))
    prompt = asked(lm, prompt)
    ids = room_for(lm, prompt, max_new_tokens, truncate_left=truncate_left)
    recipe = {"prompt": prompt, "load": lm.code(), **sampling.given()}
    if truncate_left:
        recipe["truncate_left"] = True

    def made(finish: str, seconds: float, first: float) -> Generation:
        return Generation(lm.tokens(ids), record, finish, seconds, first, recipe, lm.tokenizer)

    try:
        return made(*write(lm, ids, record, sampling, stop=stop, on_token=on_token))
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


def write(
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
    stop = stop or threading.Event()
    watch = _Watch(record, lm.tokenizer, on_token)
    ending = _Stop(stop, sampling.stop_strings, lm.tokenizer, ids.shape[1] - own)
    hf = _without_defaults(lm)
    mask = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in signature(hf.forward).parameters else {}
    begin = time.perf_counter()
    interrupted = False
    in_use = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with lm.busy(), torch.random.fork_rng(devices=in_use):
        try:
            type(hf).generate(
                hf,
                ids,
                **mask,
                generation_config=_config(lm, sampling),
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


def _config(lm: Model, sampling: Sampling) -> GenerationConfig:
    ends, pad = ends_of(lm), lm.tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=int(sampling.max_new_tokens),
        eos_token_id=ends or None,
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
