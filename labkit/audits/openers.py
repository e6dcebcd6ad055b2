"""How an answer begins: the log-probabilities of given beginnings after a prompt, without writing anything.

What a model would say is a tree of which greedy or sampled text shows one branch. The probability of a beginning is
exact instead: its tokens are given to the model after the prompt, and the probability of each is read where it would
have been written (teacher forcing). Beginnings that share their first tokens share the work on these.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.run import batch_of, run
from labkit.elsewhere import where_the_model_is
from labkit.generation.generate import Generation, generate
from labkit.text.chat import Chat, is_chat, template_of
from labkit.text.encode import following

if TYPE_CHECKING:
    from labkit.activations.hooks import Edit
    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt

ROWS = 20  # prompts in a batch
MOST = 80  # rows, prompts times the starts of one length
ENDING = ("continue_final_message", "add_generation_prompt")


def asking(lm: LanguageModel, text: Prompt) -> Prompt:
    """A request as the model expects it: a turn of the user where it has a chat template, else a question to answer.

    Chats and token ids stay as they are.
    """
    if not isinstance(text, str):
        return text
    return f"Question: {text}\nAnswer:" if template_of(lm) is None else [{"role": "user", "content": text}]


def opener_ids(lm: LanguageModel, prompt: Prompt, openers: Sequence[str]) -> list[tuple[int, ...]]:
    """The token ids of each beginning of an answer, as they follow a prompt in this model's format.

    Raises:
        ValueError: there are none, one is empty, or one begins another, so that their probabilities do not add up.
    """
    if not openers:
        raise ValueError("there are no beginnings of an answer; give at least one, such as 'I cannot'")
    found = [tuple(_after(lm, prompt, text)) for text in openers]
    for text, ids in zip(openers, found, strict=True):
        if not ids:
            raise ValueError(f"the beginning {text!r} has no tokens after this prompt; give a word")
    check_disjoint(openers, found)
    return found


def check_disjoint(texts: Sequence[str], ids: Sequence[tuple[int, ...]]) -> None:
    """Beginnings have to exclude each other.

    Raises:
        ValueError: one begins another; both are named.
    """
    for n, one in enumerate(ids):
        for m, other in enumerate(ids):
            if n != m and other[: len(one)] == one:
                raise ValueError(f"{texts[n]!r} begins {texts[m]!r}: whatever begins with the second counts twice")


def _after(lm: LanguageModel, prompt: Prompt, text: str) -> list[int]:
    ids = lm.encode(prompt)
    if is_chat(prompt):
        options = prompt.options if isinstance(prompt, Chat) else {}
        kept = {name: value for name, value in options.items() if name not in ENDING}
        opened = Chat([*prompt, {"role": "assistant", "content": text}], **kept)
        whole = lm.encode(opened)[0]  # the template knows whether a space comes first
        if torch.equal(whole[: ids.shape[1]], ids[0]) and len(whole) > ids.shape[1]:
            return [int(id) for id in whole[ids.shape[1] :]]
    elif isinstance(prompt, str) and not prompt[-1:].isspace() and not text[:1].isspace():
        text = f" {text}"
    return following(lm.tokenizer, text, ids)


@where_the_model_is
def opener_logprobs(
    lm: LanguageModel,
    prompts: Sequence[torch.Tensor],
    openers: Sequence[tuple[int, ...]],
    *,
    cut: slice | None = None,
) -> np.ndarray:
    """The natural log-probability of each beginning after each prompt, float64 (prompt, beginning).

    Args:
        prompts: token ids (1, seq) each.
        openers: token ids of each beginning.
        cut: a stretch of the prompts to which no later position attends: what it had goes to the other keys.
    """
    tree: Tree = {}
    for one in openers:
        for n, id in enumerate(one):
            tree.setdefault(one[:n], {})[id] = None
    found = np.zeros((len(prompts), len(openers)))
    widest = max(Counter(map(len, tree)).values())
    rows = max(1, min(ROWS, MOST // widest))
    for first in range(0, len(prompts), rows):
        some = [ids[0] for ids in prompts[first : first + rows]]
        after = (None if cut else _read_once(lm, some, tree)) or _read_again(lm, some, tree, cut)
        for n, one in enumerate(openers):
            for at, id in enumerate(one):
                place = list(tree[one[:at]]).index(id)
                found[first : first + len(some), n] += after[one[:at]][:, place].numpy()
    return found


Tree = dict[tuple[int, ...], dict[int, None]]
"""By how beginnings start: the tokens that follow there."""


def _read_once(lm: LanguageModel, prompts: Sequence[torch.Tensor], tree: Tree) -> dict[tuple[int, ...], torch.Tensor]:
    """The log-probabilities (prompt, token) of what follows each start. Prompts are read once, and after them, as in
    generation, one token of all starts of a length at a time. Empty where the model has no cache for that.
    """
    from transformers import DynamicCache

    ids, mask = batch_of(lm, list(prompts))
    n = len(ids)
    found: dict[tuple[int, ...], torch.Tensor] = {}
    level: list[tuple[int, ...]] = [()]
    cache: Any = None
    with lm.busy():
        while True:
            inputs = {"input_ids": ids, "past_key_values": cache, "use_cache": True, **lm.only_last}
            if not bool(mask.all()):
                places = (mask.long().cumsum(1) - 1).clamp(min=0)
                inputs |= {"attention_mask": mask.long(), "position_ids": places[:, -ids.shape[1] :]}
            out = lm.hf(**{name: value for name, value in inputs.items() if value is not None})
            for start, logits in zip(level, out.logits[:, -1].split(n), strict=True):
                found[start] = _of_next(logits, tree[start])
            deeper = [
                (at, (*start, id)) for at, start in enumerate(level) for id in tree[start] if (*start, id) in tree
            ]
            if not deeper:
                return found
            cache = getattr(out, "past_key_values", None)
            if type(cache) is not DynamicCache:  # one of a model's own may not reorder all that it has
                return {}
            level = [start for _, start in deeper]
            rows = torch.cat([torch.arange(n, device=ids.device) + at * n for at, _ in deeper])
            cache.reorder_cache(rows)
            ids = torch.cat([ids.new_full((n, 1), start[-1]) for start in level])
            mask = torch.cat([mask[rows], mask.new_ones(len(rows), 1)], 1)


def _read_again(
    lm: LanguageModel, prompts: Sequence[torch.Tensor], tree: Tree, cut: slice | None
) -> dict[tuple[int, ...], torch.Tensor]:
    """The same with prompts read anew for each start that begins no other; `cut` is at places of the whole."""
    write = {} if cut is None else {"pattern": _cutting(cut)}
    found: dict[tuple[int, ...], torch.Tensor] = {}
    for start in tree:
        if any((*start, id) in tree for id in tree[start]):
            continue
        rows = [torch.cat([ids, ids.new_tensor(start)]) for ids in prompts]
        logits = run(lm, rows, write=write, logits=list(range(-len(start) - 1, 0)), to="cpu").logits
        for n in range(len(start) + 1):
            found[start[:n]] = _of_next(logits[:, n], tree[start[:n]])
    return found


def _cutting(span: slice) -> Edit:
    """Take attention from all later positions to a stretch away, and give it to their other keys in proportion."""

    def edit(pattern: torch.Tensor) -> torch.Tensor:  # (batch, head, query, key)
        new = pattern.clone()
        later = new[:, :, span.stop :]
        had = later.sum(-1, keepdim=True)
        later[..., span] = 0
        later *= had / later.sum(-1, keepdim=True).clamp(min=1e-6)
        return new

    return edit


def _of_next(logits: torch.Tensor, tokens: Iterable[int]) -> torch.Tensor:
    """The log-probabilities (row, token) of some tokens, float64 on the CPU, from logits (row, vocab)."""
    return logits.cpu().double().log_softmax(-1)[:, list(tokens)]


def log_odds(
    lm: LanguageModel,
    prompts: Sequence[torch.Tensor],
    these: Sequence[tuple[int, ...]],
    others: Sequence[tuple[int, ...]],
    *,
    cut: slice | None = None,
) -> np.ndarray:
    """For each prompt, by how many nats an answer begins with any of `these` rather than any of `others`."""
    found = torch.from_numpy(opener_logprobs(lm, prompts, [*these, *others], cut=cut))
    return (found[:, : len(these)].logsumexp(1) - found[:, len(these) :].logsumexp(1)).numpy()


def uninterrupted(lm: LanguageModel, prompt: Prompt, **settings: Any) -> Generation:
    """`generate`, which ends an interrupted text and warns, as a part of something that the interrupt is meant to end.

    Raises:
        KeyboardInterrupt: there was one.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "interrupted: ")
        answer: Generation = generate(lm, prompt, **settings)
    if answer.finish == "stopped":
        raise KeyboardInterrupt
    return answer
