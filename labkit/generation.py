"""Continuing a prompt, with what else the model could have said.

transformers' own `generate` does the work. A logits processor that changes nothing looks at each step's distribution
before temperature and cuts are applied, a streamer hands tokens on as they come, and a stopping criterion looks at the
caller's stop flag after every token.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from labkit.tokens import Token, describe

if TYPE_CHECKING:
    import pandas as pd

    from labkit.models.language_model import LanguageModel, Prompt


@dataclass(frozen=True)
class GeneratedToken:
    """A token the model wrote, and the likeliest ones at its place.

    Probabilities are the model's own: before temperature, top-p and top-k.
    """

    id: int
    probability: float
    top_ids: tuple[int, ...]
    top_probabilities: tuple[float, ...]
    tokenizer: Any = field(repr=False)

    @cached_property
    def token(self) -> Token:
        return describe(self.tokenizer, [self.id])[0]

    @cached_property
    def alternatives(self) -> tuple[tuple[int, str, float], ...]:
        """(id, text to show, probability), likeliest first."""
        tokens = describe(self.tokenizer, self.top_ids)
        return tuple((t.id, t.display, p) for t, p in zip(tokens, self.top_probabilities, strict=True))


@dataclass
class Generation:
    """What came of a prompt. `finish` says why it ended: `length`, `eos` or `stopped`."""

    prompt: list[Token]
    tokens: list[GeneratedToken]
    finish: str
    seconds: float
    recipe: dict[str, Any] = field(repr=False)
    tokenizer: Any = field(repr=False)

    @property
    def text(self) -> str:
        """The generated text, without special tokens."""
        return self.tokenizer.decode([t.id for t in self.tokens], skip_special_tokens=True)

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / self.seconds if self.seconds else 0.0

    def to_frame(self) -> pd.DataFrame:
        """One row a generated token: id, text, probability, and the likeliest other token with its probability."""
        import pandas as pd

        rows = []
        for t in self.tokens:
            other = next(((text, p) for id, text, p in t.alternatives if id != t.id), ("", float("nan")))
            rows.append((t.id, t.token.text, t.probability, *other))
        return pd.DataFrame(rows, columns=["id", "text", "probability", "other", "other probability"])

    def code(self) -> str:
        """The Python that generates it again."""
        recipe = dict(self.recipe)
        load, prompt = recipe.pop("load"), recipe.pop("prompt")
        settings = "".join(f", {name}={value!r}" for name, value in recipe.items())
        return f"{load}generation = lm.generate({prompt!r}{settings})\n"

    def __repr__(self) -> str:
        return f"Generation({len(self.tokens)} tokens, finish={self.finish!r}: {self.text!r:.80})"


class _Watch(LogitsProcessor):
    """Notes the likeliest tokens of each step; what it returns is what it was given."""

    def __init__(self, alternatives: int) -> None:
        self.alternatives = alternatives
        self.steps: deque[tuple[torch.Tensor, torch.Tensor, torch.return_types.topk]] = deque()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        row = scores[0]
        self.steps.append((row, row.logsumexp(-1), row.topk(self.alternatives)))
        return scores


class _Stream(BaseStreamer):
    def __init__(self, watch: _Watch, tokenizer: Any, on_token: Callable[[GeneratedToken], None] | None) -> None:
        self.watch, self.tokenizer, self.on_token = watch, tokenizer, on_token
        self.tokens: list[GeneratedToken] = []
        self.past_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if not self.past_prompt:  # the prompt comes first
            self.past_prompt = True
            return
        logits, total, top = self.watch.steps.popleft()
        id = int(value.view(-1)[0])  # on the CPU already
        # one copy from the device a token: double, which holds every token id exactly
        probabilities = (torch.cat([logits[id, None], top.values]) - total).exp()
        numbers = torch.cat([probabilities.double(), top.indices.double()]).tolist()
        count = len(top.indices)
        ids = tuple(int(n) for n in numbers[1 + count :])
        token = GeneratedToken(id, numbers[0], ids, tuple(numbers[1 : 1 + count]), self.tokenizer)
        self.tokens.append(token)
        if self.on_token is not None:
            self.on_token(token)

    def end(self) -> None:
        pass


class _Stop(StoppingCriteria):
    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.stop.is_set(), device=input_ids.device)


def generate(
    lm: LanguageModel,
    prompt: Prompt,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop: threading.Event | None = None,
    on_token: Callable[[GeneratedToken], None] | None = None,
    alternatives: int = 10,
) -> Generation:
    """Continue a prompt.

    Args:
        lm: the model.
        prompt: text, chat messages or token ids (1, seq).
        max_new_tokens: how many tokens at most.
        temperature: 0 takes the likeliest token each time; 1 samples from the model's distribution.
        top_p, top_k: sample only from the likeliest tokens (0 and 1.0: from all).
        seed: the same seed gives the same text; without one a new one is drawn, which `code()` tells. The program's
            own random numbers are left alone.
        stop: an event that, once set from any thread, ends generation within one token.
        on_token: called with every `GeneratedToken` as it comes, in this thread.
        alternatives: how many of the likeliest tokens to keep at each place.

    Raises:
        ValueError: a bad prompt or setting, or a prompt that leaves no room in the context.
    """
    ids = lm.encode(prompt)
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0 or max_new_tokens < 1 or alternatives < 1:
        raise ValueError(
            "temperature is 0 or more, top_p above 0 and at most 1, top_k 0 or more, max_new_tokens and alternatives 1 "
            f"or more; got temperature={temperature}, top_p={top_p}, top_k={top_k}, max_new_tokens={max_new_tokens}, "
            f"alternatives={alternatives}"
        )
    if lm.context and ids.shape[1] + max_new_tokens > lm.context:
        over = ids.shape[1] + max_new_tokens - lm.context
        raise ValueError(
            f"the prompt has {ids.shape[1]} tokens and max_new_tokens={max_new_tokens}: {over} more than the "
            f"{lm.context} of {lm.name}'s context; shorten one of them"
        )
    watch = _Watch(min(alternatives, lm.n_vocab))
    stream = _Stream(watch, lm.tokenizer, on_token)
    stop = stop or threading.Event()
    settings: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        settings |= {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    pad = lm.tokenizer.pad_token_id if lm.tokenizer.pad_token_id is not None else lm.tokenizer.eos_token_id
    devices = [lm.device] if lm.device.type == "cuda" else []
    begin = time.perf_counter()
    if temperature > 0 and seed is None:
        seed = secrets.randbits(31)  # drawn here and kept, so that code() can repeat what was sampled
    with lm.busy(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed or 0)
        lm.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            logits_processor=LogitsProcessorList([watch]),
            stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
            streamer=stream,
            **settings,
        )
    seconds = time.perf_counter() - begin
    ends = lm.hf.generation_config.eos_token_id
    ended = bool(stream.tokens) and stream.tokens[-1].id in (ends if isinstance(ends, list) else [ends])
    finish = "eos" if ended else "stopped" if stop.is_set() else "length"
    recipe = {
        "prompt": prompt if isinstance(prompt, str | list) else ids[0].tolist(),
        "load": lm.code(),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
    }
    return Generation(lm.tokens(ids), stream.tokens, finish, seconds, recipe, lm.tokenizer)
