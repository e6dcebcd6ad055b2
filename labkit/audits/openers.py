"""How an answer begins: the log-probabilities of given beginnings after a prompt, without writing anything.

What a model would say is a tree of which greedy or sampled text shows one branch. The probability of a beginning is
exact instead: its tokens are given to the model after the prompt, and the probability of each is read where it would
have been written (teacher forcing). Beginnings that share their first tokens share a forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.run import run
from labkit.text.chat import Chat, is_chat, template_of
from labkit.text.encode import following

if TYPE_CHECKING:
    from labkit.activations.hooks import Edit
    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt

ROWS = 20  # prompts in a batch
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


def opener_logprobs(
    lm: LanguageModel,
    prompts: Sequence[torch.Tensor],
    openers: Sequence[tuple[int, ...]],
    *,
    write: Mapping[Any, torch.Tensor | Edit] | None = None,
) -> np.ndarray:
    """The natural log-probability of each beginning after each prompt, float64 (prompt, beginning).

    Args:
        prompts: token ids (1, seq) each.
        openers: token ids of each beginning.
        write: sites that are written meanwhile, as for `lm.run`.
    """
    starts = {one[:-1] for one in openers}
    rows = [one for one in starts if not any(one != other and other[: len(one)] == one for other in starts)]
    found = np.full((len(prompts), len(openers)), np.nan)
    for row in sorted(rows):
        mine = [n for n, one in enumerate(openers) if row[: len(one) - 1] == one[:-1]]
        for first in range(0, len(prompts), ROWS):
            some = [torch.cat([ids[0], ids.new_tensor(row)]) for ids in prompts[first : first + ROWS]]
            logits = run(lm, some, write=write, logits=list(range(-len(row) - 1, 0)), to="cpu").logits
            logprobs = logits.double().log_softmax(-1)  # (prompt, 1 + len(row), vocab)
            for n in mine:
                each = [logprobs[:, place, id] for place, id in enumerate(openers[n])]
                found[first : first + len(some), n] = torch.stack(each).sum(0).numpy()
    return found


def log_odds(
    lm: LanguageModel,
    prompts: Sequence[torch.Tensor],
    these: Sequence[tuple[int, ...]],
    others: Sequence[tuple[int, ...]],
    *,
    write: Mapping[Any, torch.Tensor | Edit] | None = None,
) -> np.ndarray:
    """For each prompt, by how many nats an answer begins with any of `these` rather than any of `others`."""
    found = torch.from_numpy(opener_logprobs(lm, prompts, [*these, *others], write=write))
    return (found[:, : len(these)].logsumexp(1) - found[:, len(these) :].logsumexp(1)).numpy()
