"""Two prompts side by side while they are written: where they diverge, and what would make them fit.

Patching puts activations at the same position, or along an alignment. If the prompts have different numbers of tokens,
`side_by_side` pairs what is equal, finds the words responsible and looks for a replacement: single tokens whose
embeddings are close to that of the word in the other prompt, the most similar in spelling first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

import torch

from labkit.elsewhere import where_the_model_is
from labkit.text.encode import tokens_of
from labkit.text.pair import Spans, checked_spans, joined, matched, partners
from labkit.text.tokens import Token, describe
from labkit.text.types import TextModel

_CANDIDATES = 80  # tokens close to the word in the other prompt
_MOST_WORK = 2**31  # multiply-adds that a suggestion may cost while somebody is typing


@dataclass(frozen=True)
class Fix:
    """A change of one prompt that takes a mismatch away: `prompt` ("clean" or "corrupt") becomes `text`."""

    prompt: str
    text: str
    words: str  # what it does, for a button: "replace ' Maryanne' with ' Mary'"


@dataclass(frozen=True)
class SideBySide:
    """Two prompts in columns.

    Attributes:
        clean, corrupt: their tokens.
        columns: the position in each prompt, None where the other prompt has more tokens there.
        differ: the columns in which they differ.
        lone: the columns with tokens that have no partner in the other prompt.
        words: one sentence: their length, and where they differ or why they do not fit.
        fix: a change that makes them fit better, if one was found.
    """

    clean: list[Token]
    corrupt: list[Token]
    columns: list[tuple[int | None, int | None]]
    differ: list[int]
    words: str
    fix: Fix | None = None
    lone: tuple[int, ...] = ()

    @property
    def fits(self) -> bool:
        """Do they have the same number of tokens, and at least one?"""
        return len(self.clean) == len(self.corrupt) > 0

    @property
    def spans(self) -> Spans:
        """What is paired, as `lk.patch` takes it as `alignment`."""
        pairs = [pair for n, pair in enumerate(self.columns) if n not in self.lone]
        return joined(((i, i + 1), (j, j + 1)) for i, j in pairs if i is not None and j is not None)

    @property
    def paired(self) -> bool:
        """Can they be patched: is there a position that has a partner?"""
        return bool(self.clean and self.corrupt and self.spans)


def side_by_side(
    lm: TextModel,
    clean: str,
    corrupt: str,
    *,
    spans: Sequence[Sequence[Sequence[int]]] | None = None,
    suggest: bool = True,
) -> SideBySide:
    """Compare two prompts; either may be empty.

    Args:
        spans: which positions belong together, as `lk.patch` takes them as `alignment`; by default all where the
            prompts have the same number of tokens, and else what is equal.
        suggest: if they do not fit, look for a change that helps (some milliseconds).

    Raises:
        ValueError: a prompt cannot be used, or spans do not fit them; the message says which.
    """
    tokens = {}
    for name, prompt in (("clean", clean), ("corrupt", corrupt)):
        try:
            tokens[name] = tokens_of(lm, prompt) if prompt else []
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    left, right = tokens["clean"], tokens["corrupt"]
    columns: list[tuple[int | None, int | None]]
    if not left or not right:
        columns = [*zip_longest(range(len(left)), range(len(right)))]
        return SideBySide(left, right, columns, [], "Write two prompts with the same number of tokens.")
    if spans is not None:
        return _along(left, right, checked_spans(spans, {"clean": len(left), "corrupt": len(right)}))
    if len(left) == len(right):
        columns = [(i, i) for i in range(len(left))]
        differ = [i for i in range(len(left)) if left[i].id != right[i].id]
        where = ", ".join(map(str, differ[:6])) + ("…" if len(differ) > 6 else "")
        said = f"they differ at position {where}" if differ else "they are the same"
        count = f"{len(left)} tokens each" + (", BOS included" if begins(lm, left) else ", no BOS in front")
        return SideBySide(left, right, columns, differ, f"{count}; {said}.")
    blocks = matched(*([token.id for token in side] for side in (left, right)))
    columns = []
    lone: list[int] = []
    for a, b, c, d in blocks:
        if b - a != d - c:
            lone += range(len(columns), len(columns) + max(b - a, d - c))
        columns += zip_longest(range(a, b), range(c, d))
    differ = [n for n, (i, j) in enumerate(columns) if i is None or j is None or left[i].id != right[j].id]
    span = _words(left, right, next(block for block in blocks if block[1] - block[0] != block[3] - block[2]))
    words = f"Clean has {len(left)} tokens, corrupt {len(right)}: {_difference(left, right, span)}"
    fix = _fix(lm, {"clean": clean, "corrupt": corrupt}, left, right, span) if suggest else None
    return SideBySide(left, right, columns, differ, words, fix, tuple(lone))


def _along(left: list[Token], right: list[Token], spans: Spans) -> SideBySide:
    """Two prompts along the spans that somebody gave: a token without a partner has a column of its own."""
    beside = partners(spans, "clean", length=len(left), other=len(right))
    free = [j for j in range(len(right)) if j not in set(beside)]
    columns: list[tuple[int | None, int | None]] = []
    for i, j in enumerate(beside):
        while free and j is not None and free[0] < j:
            columns.append((None, free.pop(0)))
        columns.append((i, j))
    columns += [(None, j) for j in free]
    lone = tuple(n for n, column in enumerate(columns) if None in column)
    differ = [n for n, (i, j) in enumerate(columns) if i is None or j is None or left[i].id != right[j].id]
    count = len(columns) - len(lone)
    words = f"Clean has {len(left)} tokens, corrupt {len(right)}: {count} positions are paired as you say."
    return SideBySide(left, right, columns, differ, words, None, lone)


def begins(lm: TextModel, tokens: Sequence[Token]) -> bool:
    """Is the first token the one that begins a text (BOS)?"""
    return bool(tokens) and lm.tokenizer.bos_token_id is not None and tokens[0].id == lm.tokenizer.bos_token_id


Span = tuple[int, int, int, int]
"""Positions a to b of clean stand where c to d of corrupt do."""


def _words(left: Sequence[Token], right: Sequence[Token], span: Span) -> Span:
    """The same span, widened to whole words: a word's later tokens have no space in front and are letters."""
    a, b, c, d = span
    inside = lambda side, at: at < len(side) and side[at].text[:1].isalnum() and not side[at].special  # noqa: E731
    while a > 0 and c > 0 and left[a - 1].id == right[c - 1].id and (inside(left, a) or inside(right, c)):
        a, c = a - 1, c - 1
    while b < len(left) and d < len(right) and left[b].id == right[d].id and inside(left, b):
        b, d = b + 1, d + 1
    return a, b, c, d


def _difference(left: Sequence[Token], right: Sequence[Token], span: Span) -> str:
    a, b, c, d = span
    sides = []
    for name, part in (("clean", left[a:b]), ("corrupt", right[c:d])):
        if not part:
            sides.append(f"{name} has no tokens there")
            continue
        count = "1 token" if len(part) == 1 else f"{len(part)} tokens"
        pieces = f" ({' + '.join(t.display for t in part)})" if 1 < len(part) <= 6 else ""
        sides.append(f"{_text(part)!r:.60} is {count}{pieces}")
    return f"at position {a}, {', '.join(sides)}."


def _text(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


def _fix(
    lm: TextModel, prompts: dict[str, str], left: Sequence[Token], right: Sequence[Token], span: Span
) -> Fix | None:
    a, b, c, d = span
    name, side, (start, stop) = ("clean", left, (a, b)) if b - a > d - c else ("corrupt", right, (c, d))
    wanted = min(b - a, d - c)
    where = _characters(lm, prompts[name], len(side), start, stop)
    if where is None or wanted > 1:
        return None
    before, after = prompts[name][: where[0]], prompts[name][where[1] :]
    old = _text(side[start:stop])
    if wanted == 0:
        shorter = before.rstrip(" ") + after
        ends = bool(shorter) and len(tokens_of(lm, shorter)) == len(side) - (stop - start)
        return Fix(name, shorter, f"remove {old!r} from {name}") if ends else None
    for word in _near(lm, right[c] if name == "clean" else left[a], old):
        changed = before + word.strip() + after
        if len(tokens_of(lm, changed)) == len(side) - (stop - start) + 1:
            return Fix(name, changed, f"replace {old!r} with {word!r}")
    return None


def _characters(lm: TextModel, prompt: str, length: int, start: int, stop: int) -> tuple[int, int] | None:
    """Where the tokens from start to stop stand in the prompt's text, without the spaces around them."""
    if not lm.tokenizer.is_fast or tokens_of(lm, prompt)[start].special:
        return None
    spans = lm.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"][-length:]
    begin, end = spans[start][0], spans[stop - 1][1]
    word = prompt[begin:end]
    return begin + len(word) - len(word.lstrip()), end


@where_the_model_is(small=True)
def _near(lm: TextModel, model: Token, word: str) -> list[str]:
    """Single tokens close to `model` and of the form of `word`; the most similar to `word` in spelling first."""
    table = lm.embedding  # (vocab, d_model)
    if table.ndim != 2 or table.numel() > _MOST_WORK:
        return []
    with torch.no_grad():
        close = (table @ table[model.id]).float() / table.float().norm(dim=1).clamp(min=1e-6)
        nearest = close.topk(min(_CANDIDATES, len(close))).indices.tolist()
    spaced, name = word.startswith(" "), word.strip()[:1].isupper()
    found = []
    for token in describe(lm.tokenizer, nearest):
        bare = token.text.strip()
        alike = token.text.startswith(" ") == spaced and bare[:1].isupper() == name and bare.isalpha()
        if alike and not token.special and len(bare) > 2 and token.text not in (word, model.text):
            found.append(token.text)
    return sorted(found, key=lambda text: -SequenceMatcher(None, text.lower(), word.lower()).ratio())[:12]
