"""From prompts to token ids, and from an answer to its one token."""

from __future__ import annotations

import unicodedata
from itertools import zip_longest
from typing import Any

import torch

from labkit.text.chat import is_chat, render
from labkit.text.prompts import several
from labkit.text.tokens import Token, describe
from labkit.text.types import Prompt, TextModel
from labkit.text.warn import first_time


class TooLong(ValueError):
    """A prompt that does not fit into the context: `over` is by how many tokens."""

    def __init__(self, message: str, over: int) -> None:
        super().__init__(message)
        self.over = over


def encode(lm: TextModel, prompt: Prompt, *, most: int | None = -1) -> torch.Tensor:
    """Token ids (1, seq), int64, on the model's device; one BOS where the tokenizer wants one, never two.

    Args:
        prompt: text, chat messages or token ids.
        most: how many tokens it may have; None: any number. By default the model's context.

    Raises:
        ValueError: the prompt is empty, or too long; a `TooLong` says by how much.
        TypeError: it is not text, chat messages or ids.
    """
    with torch.inference_mode(False), torch.no_grad():  # ids of inference mode could not go into a gradient
        ids = _encoded(lm, prompt, most=most)
        return ids.clone() if ids.is_inference() else ids


def _encoded(lm: TextModel, prompt: Prompt, *, most: int | None) -> torch.Tensor:
    most = lm.context if most == -1 else most
    if (many := several(prompt)) is not None:
        raise ValueError(
            f"this takes one prompt at a time; got {len(many)}. Call it once per prompt. lm.run takes several as one "
            "batch; lm.generate, lk.score, lk.logit_lens, lk.attention and lk.direct_logit_attribution give a list"
        )
    if isinstance(prompt, torch.Tensor):
        ids = prompt if prompt.ndim == 2 else prompt[None]
        if ids.ndim != 2 or ids.dtype.is_floating_point:
            raise TypeError(f"token ids must be integers (1, seq); got {tuple(prompt.shape)}, {prompt.dtype}")
    elif isinstance(prompt, str):
        if not prompt:
            raise ValueError("the prompt is empty; give it at least one character")
        ids = _with_one_bos(lm.tokenizer, lm.tokenizer(prompt, return_tensors="pt").input_ids)
        _expect_back(lm, prompt, ids[0].tolist())
    elif is_chat(prompt):
        text = render(lm, prompt)
        ids = _with_one_bos(lm.tokenizer, lm.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids)
        _expect_back(lm, text, ids[0].tolist())
        _expect_bos(lm, ids[0].tolist())
    else:
        raise TypeError(f"a prompt is text, a list of chat messages, or token ids (1, seq); got {prompt!r:.80}")
    if ids.shape[1] == 0:
        raise ValueError("the prompt has no tokens; give it at least one character")
    if most and ids.shape[1] > most:
        over = ids.shape[1] - most
        raise TooLong(
            f"the prompt has {ids.shape[1]} tokens, {over} more than the {most} of {lm.name}'s context; "
            f"shorten it by {over} tokens",
            over,
        )
    least, greatest = torch.stack(ids.aminmax()).tolist()  # one wait where they are on a GPU
    if greatest >= lm.embedding.shape[0] or least < 0:
        raise ValueError(f"token ids go from 0 to {lm.n_vocab - 1}; got {least} to {greatest}")
    return ids.to(device=lm.device, dtype=torch.long)


def tokens_of(lm: TextModel, prompt: Prompt) -> list[Token]:
    """The prompt as the model sees it, one `Token` per position."""
    return describe(lm.tokenizer, encode(lm, prompt)[0].tolist())


def _with_one_bos(tokenizer: Any, ids: torch.Tensor) -> torch.Tensor:
    """Drop a second BOS: it appears when a text that spells BOS out meets a tokenizer that adds one."""
    bos = tokenizer.bos_token_id
    if _adds_bos(tokenizer) and ids.shape[1] > 1 and bool((ids[0, :2] == bos).all()):
        return ids[:, 1:]
    return ids


def _adds_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a").input_ids[:1] == [bos]


def _expect_bos(lm: TextModel, ids: list[int]) -> None:
    """Warn, once, that chats have no BOS where plain text gets one."""
    if ids[:1] != [lm.tokenizer.bos_token_id] and _adds_bos(lm.tokenizer):
        first_time(
            lm.tokenizer,
            f"the chat template of {lm.name} does not write {lm.tokenizer.bos_token!r} at the beginning, though plain "
            "text gets it; chats are passed without it, as in transformers",
        )


def _expect_back(lm: TextModel, text: str, ids: list[int]) -> None:
    """Warn, once, of a tokenizer that does not round-trip.

    Case, equivalent characters, a space at the beginning and spaces next to special tokens are ignored: many tokenizers
    change those by design.
    """
    tokenizer = lm.tokenizer
    if ids[:1] == [tokenizer.bos_token_id] and not text.startswith(str(tokenizer.bos_token)):
        ids = ids[1:]
    if ids[-1:] == [tokenizer.eos_token_id] and not text.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if back.lstrip(" ") == text.lstrip(" "):
        return
    given, came = (unicodedata.normalize("NFKC", t.casefold()).lstrip() for t in (text, back))
    added = tokenizer.added_tokens_decoder
    if any(id in added for id in ids):
        given, came = ("".join(t.split()) for t in (given, came))
    if given != came:
        pairs = enumerate(zip_longest(text, back.lstrip(" ")))
        start = max(0, next((n for n, (a, b) in pairs if a != b), 0) - 12)
        first_time(
            tokenizer,
            f"the tokenizer of {lm.name} does not round-trip: {text[start : start + 40]!r} comes back as "
            f"{back[start : start + 40]!r}. The model may see a different text; lm.tokens(prompt) shows what it sees",
            about="does not round-trip",
        )


TAIL = 16  # tokens of a prompt that decide how what follows is cut into tokens


def single_token(lm: TextModel, text: str | int, *, role: str = "answer", after: torch.Tensor | None = None) -> int:
    """The id of an answer that is one token: the one that would be written next; a number is taken as the id itself.

    Args:
        text: the answer, with its space if it begins a word.
        role: what errors call it.
        after: the ids (1, seq) that it follows, where they are known. Many tokenizers write a word in another way at
            the beginning of a text, after a space, and after a quote or a newline.

    Raises:
        ValueError: the text is empty or several tokens; the message offers the first one.
    """
    if isinstance(text, int):
        if not 0 <= text < lm.n_vocab:
            raise ValueError(f"{role} id {text} is out of range; ids go from 0 to {lm.n_vocab - 1}")
        return text
    if not text:
        raise ValueError(f"the {role} is empty; give it one token, such as ' Mary'")
    ids = following(lm.tokenizer, text, after)
    if not ids:
        near = describe(lm.tokenizer, lm.tokenizer(text, add_special_tokens=False).input_ids)[0].text
        raise ValueError(f"the {role} {text!r} is not a token of its own; {near!r} is. Give that, or the token's id")
    if len(ids) != 1:
        parts = [t.text for t in describe(lm.tokenizer, ids)]
        hint = "" if text.startswith(" ") else f" Most words in a sentence start with a space: try {' ' + text!r}."
        raise ValueError(
            f"the {role} {text!r} is {len(ids)} tokens {parts}; it must be one. The first is {parts[0]!r}.{hint}"
        )
    return int(ids[0])


def word_for(lm: TextModel, id: int, *, after: torch.Tensor | None = None) -> str | int:
    """How to write a token so that `single_token` finds it again: its text, or else its id."""
    text = describe(lm.tokenizer, [id])[0].text
    try:
        return text if text and single_token(lm, text, after=after) == id else id
    except ValueError:
        return id


def following(tokenizer: Any, text: str, after: torch.Tensor | None) -> list[int]:
    """The ids of a text that continues others, or anything.

    One token if there is one: what the tokenizer makes of the text at that place, else a token that reads like it.
    None where the only token reads otherwise, as `Mary` does that stands for ` Mary`.
    """

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    found = None
    if after is not None:
        before = tokenizer.decode(after.reshape(-1)[-TAIL:].tolist(), clean_up_tokenization_spaces=False)
        found = _added(ids_of(before), ids_of(before + text))
        if found is not None and len(found) == 1:
            return found
    alone = ids_of(text)
    for other in (_added(ids_of("\n"), ids_of("\n" + text)), alone):
        if other is not None and len(other) == 1 and describe(tokenizer, other)[0].text in (text, text.strip() or text):
            return other
    return found or (alone if len(alone) > 1 else [])


def _added(before: list[int], both: list[int]) -> list[int] | None:
    """What comes after some ids; None if others took their place."""
    return both[len(before) :] if len(both) > len(before) and both[: len(before)] == before else None
