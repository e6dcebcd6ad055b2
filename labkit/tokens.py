"""Token text for people, prompts to ids, and two prompts held side by side.

What the model sees and what people are shown are kept apart: a `Token` has the id, the exact bytes it stands for where
they are known, and a display text in which spaces, newlines, lone bytes and special tokens are visible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from labkit.chat import render

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel, Prompt

VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽", "\u200b": "∅"}


@dataclass(frozen=True)
class Token:
    """One position of a prompt: its id, its text, the text to show, and whether it is a special token."""

    id: int
    text: str
    display: str
    special: bool = False

    def __str__(self) -> str:
        return self.display


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (Radford et al. 2019)."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in keep}
    extra = (byte for byte in range(256) if byte not in set(keep))
    table.update({chr(256 + n): byte for n, byte in enumerate(extra)})
    return table


def visible(text: str) -> str:
    """The text with its first and last spaces, newlines and tabs made visible."""
    inner = "".join(VISIBLE[c] if c in VISIBLE and c != " " else c for c in text)
    stripped = inner.strip(" ")
    lead = len(inner) - len(inner.lstrip(" "))
    tail = len(inner) - len(inner.rstrip(" ")) if stripped else 0
    return VISIBLE[" "] * lead + stripped + VISIBLE[" "] * tail


def describe(tokenizer: Any, ids: Sequence[int]) -> list[Token]:
    """A `Token` for every id. A token that is a part of a character is shown as its bytes, such as `‹E2 98›`."""
    special = set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    tokens = []
    for id in map(int, ids):
        raw = tokenizer.convert_ids_to_tokens(id)
        if raw is None:
            tokens.append(Token(id, "", f"‹{id}›"))
            continue
        if id in special or (id in added and added[id].special):
            tokens.append(Token(id, raw, raw, special=True))
            continue
        # A leading anchor keeps the space that some tokenizers drop from the first token of a text.
        text = tokenizer.decode([id], clean_up_tokenization_spaces=False)
        if raw.startswith("▁") and not text.startswith(" "):
            text = " " + text
        if "\ufffd" in text:
            tokens.append(Token(id, text, _with_bytes(_bytes_of(raw)) or f"‹{id}›"))
        else:
            tokens.append(Token(id, text, visible(text) or "∅"))
    return tokens


class TooLong(ValueError):
    """A prompt that does not fit into the context: `over` is by how many tokens."""

    def __init__(self, message: str, over: int) -> None:
        super().__init__(message)
        self.over = over


def _bytes_of(raw: str) -> bytes:
    """The bytes of a token that is a part of a character, from how its vocabulary writes it."""
    if raw.startswith("<0x"):
        return bytes.fromhex(raw[3:5])
    return bytes(_byte_of()[c] for c in raw if c in _byte_of())


def _with_bytes(held: bytes) -> str:
    """What of the bytes is text as text, the rest in hexadecimal: ` ` and the beginning of 😀 are `·‹F0 9F 98›`."""
    parts = re.split("([\udc80-\udcff]+)", held.decode("utf-8", "surrogateescape"))
    loose = [part.encode("utf-8", "surrogateescape").hex(" ").upper() for part in parts[1::2]]
    return visible(parts[0]) + "".join(
        f"‹{code}›{visible(rest)}" for code, rest in zip(loose, parts[2::2], strict=True)
    )


def bytes_of(tokenizer: Any, ids: Sequence[int]) -> list[bytes]:
    """What each token stands for in UTF-8; joined, the text they spell, also where a character is split over tokens."""
    return [
        _bytes_of(tokenizer.convert_ids_to_tokens(token.id)) if "\ufffd" in token.text else token.text.encode()
        for token in describe(tokenizer, ids)
    ]


def split_characters(tokenizer: Any, ids: Sequence[int]) -> dict[int, str]:
    """For each position that holds a part of a character alone, what it is a part of, such as 😀."""
    parts = bytes_of(tokenizer, ids)
    loose = [token.text.count("\ufffd") > 0 for token in describe(tokenizer, ids)]
    found: dict[int, str] = {}
    start = 0
    while start < len(parts):
        stop = start + 1
        if loose[start]:
            while stop < len(parts) and loose[stop]:
                stop += 1
            if whole := b"".join(parts[start:stop]).decode("utf-8", "ignore").strip():
                found |= dict.fromkeys(range(start, stop), whole)
        start = stop
    return found


def encode(lm: LanguageModel, prompt: Prompt, *, most: int | None = -1) -> torch.Tensor:
    """See `LanguageModel.encode`. At most the model's context, or this many tokens; None: any number."""
    most = lm.context if most == -1 else most
    if isinstance(prompt, torch.Tensor):
        ids = prompt if prompt.ndim == 2 else prompt[None]
        if ids.ndim != 2 or ids.dtype.is_floating_point:
            raise TypeError(f"token ids are integers (1, seq); got {tuple(prompt.shape)}, {prompt.dtype}")
    elif isinstance(prompt, str):
        if not prompt:
            raise ValueError("the prompt is empty; give it at least one character")
        ids = _with_one_bos(lm.tokenizer, lm.tokenizer(prompt, return_tensors="pt").input_ids)
    elif isinstance(prompt, Sequence) and prompt and all(isinstance(m, Mapping) for m in prompt):
        text = render(lm, prompt)  # type: ignore[arg-type]
        ids = _with_one_bos(lm.tokenizer, lm.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids)
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
    if int(ids.max()) >= lm.hf.get_input_embeddings().weight.shape[0] or int(ids.min()) < 0:
        raise ValueError(f"token ids go from 0 to {lm.n_vocab - 1}; got {int(ids.min())} to {int(ids.max())}")
    return ids.to(device=lm.device, dtype=torch.long)


@dataclass(frozen=True)
class Region:
    """A stretch of a prompt, positions `start` to `stop` - 1: what a `system`, `user` or `assistant` message says, or
    `thinking`, what a reasoning model says to itself, its marks included."""

    kind: str
    start: int
    stop: int


def regions(lm: LanguageModel, prompt: Prompt) -> list[Region]:
    """Which part of a prompt is whose, in order; what is in no region is the chat template's own.

    Messages are known for a prompt of messages, `<think>` for any.
    """
    ids = lm.encode(prompt)[0].tolist()
    found = thinking(describe(lm.tokenizer, ids))
    if not isinstance(prompt, str | torch.Tensor):
        found += _messages(lm, prompt, len(ids))
    return sorted(found, key=lambda region: (region.start, -region.stop))


def thinking(tokens: Sequence[Token]) -> list[Region]:
    """The `<think>` regions among tokens, marks included; one that is not closed goes on to the end.

    A `</think>` that nothing opened closes what began after the last special token: models whose template opens it
    put out the rest alone.
    """
    text, at = "", []  # at: the position of each character
    for position, token in enumerate(tokens):
        text += token.text
        at += [position] * len(token.text)
    found, opened, after_special = [], None, 0
    for mark in re.finditer(r"<(/?)think>", text):
        if not mark[1]:
            opened = at[mark.start()] if opened is None else opened
            continue
        if opened is None:
            after_special = max((n + 1 for n in range(at[mark.start()]) if tokens[n].special), default=0)
        found.append(Region("thinking", after_special if opened is None else opened, at[mark.end() - 1] + 1))
        opened = None
    if opened is not None:
        found.append(Region("thinking", opened, len(tokens)))
    return found


def _messages(lm: LanguageModel, messages: Sequence[Mapping[str, str]], length: int) -> list[Region]:
    """Where each message stands: its text is looked for in what the template made, one after the other."""
    if not lm.tokenizer.is_fast:
        return []
    text = render(lm, messages)
    spans = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][-length:]
    found, here = [], 0
    for message in messages:
        for content in (message["content"].strip(), message["content"].split("</think>")[-1].strip()):
            begin = text.find(content, here)
            if content and begin >= 0:
                here = begin + len(content)
                inside = [n for n, (a, b) in enumerate(spans) if a < here and b > begin and b > a]
                found.append(Region(message["role"], inside[0], inside[-1] + 1))
                break
    return found


def _with_one_bos(tokenizer: Any, ids: torch.Tensor) -> torch.Tensor:
    """Drop a second BOS: it appears when a text that spells BOS out meets a tokenizer that adds one."""
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("a").input_ids[:1] == [bos]
    if adds_bos and ids.shape[1] > 1 and bool((ids[0, :2] == bos).all()):
        return ids[:, 1:]
    return ids


def single_token(lm: LanguageModel, text: str | int, *, role: str = "answer") -> int:
    """The id of an answer that is one token; a number is taken as the id itself.

    Raises:
        ValueError: the text is empty or several tokens; the message offers the first of them.
    """
    if isinstance(text, int):
        if not 0 <= text < lm.n_vocab:
            raise ValueError(f"{role} id {text} is out of range; ids go from 0 to {lm.n_vocab - 1}")
        return text
    if not text:
        raise ValueError(f"the {role} is empty; give it one token, such as ' Mary'")
    ids = lm.tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) != 1:
        parts = [t.text for t in describe(lm.tokenizer, ids)]
        hint = "" if text.startswith(" ") else f" Most words in a sentence start with a space: try {' ' + text!r}."
        raise ValueError(
            f"the {role} {text!r} is {len(ids)} tokens {parts}; it has to be one. The first is {parts[0]!r}.{hint}"
        )
    return int(ids[0])


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupt prompt of the same length, token by token; `differ` holds the positions that differ."""

    clean: torch.Tensor  # (1, seq)
    corrupt: torch.Tensor  # (1, seq)
    clean_tokens: list[Token]
    corrupt_tokens: list[Token]

    @property
    def differ(self) -> list[int]:
        return (self.clean[0] != self.corrupt[0]).nonzero()[:, 0].tolist()


def align(lm: LanguageModel, clean: Prompt, corrupt: Prompt) -> Pair:
    """Two prompts held side by side.

    Raises:
        ValueError: they have different numbers of tokens; the message shows where they part.
    """
    a, b = lm.encode(clean), lm.encode(corrupt)
    left, right = (describe(lm.tokenizer, ids[0].tolist()) for ids in (a, b))
    if a.shape != b.shape:
        shared = min(len(left), len(right))
        first = next((i for i in range(shared) if left[i].id != right[i].id), shared)
        show = lambda tokens: " ".join(repr(t.text) for t in tokens[first : first + 4]) or "the end"  # noqa: E731
        raise ValueError(
            f"clean has {len(left)} tokens, corrupt {len(right)}; they differ from token {first}: "
            f"clean {show(left)}, corrupt {show(right)}. Patching puts activations at the same position, so choose "
            "words with the same number of tokens."
        )
    return Pair(a, b, left, right)
