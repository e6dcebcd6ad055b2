"""Token text for people: what the model sees and what is displayed are kept apart.

A `Token` has the id, the exact bytes it stands for where they are known, and a display text in which spaces, newlines,
lone bytes and special tokens are visible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

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
    return re.sub(r"^ +| +\Z", lambda spaces: VISIBLE[" "] * len(spaces[0]), inner)


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
    loose = ["\ufffd" in token.text for token in describe(tokenizer, ids)]
    found: dict[int, str] = {}
    for is_loose, run in groupby(range(len(parts)), key=loose.__getitem__):
        places = list(run)
        whole = b"".join(parts[n] for n in places).decode("utf-8", "ignore").strip()
        if is_loose and whole:
            found |= dict.fromkeys(places, whole)
    return found
