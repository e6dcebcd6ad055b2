"""Which part of a prompt belongs to whom.

A message is not found by searching for its words, which may occur elsewhere too: the template renders the chat once
more with a mark in the message's place, and what is at the mark is the message. Text that the template strips or leaves
out is handled; if the rest of the text changes with the message, so that its place is unknown, there is no region.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch

from labkit.text.chat import ANSWERS, Writer, text_in, with_text
from labkit.text.encode import encode
from labkit.text.tokens import Token, bytes_of, describe
from labkit.text.types import Prompt, TextModel

Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]


@dataclass(frozen=True)
class Region:
    """A stretch of a prompt, positions `start` to `stop` - 1: a `system`, `user` or `assistant` message, or `thinking`,
    a reasoning model's own notes with their marks.
    """

    kind: str
    start: int
    stop: int


def regions(lm: TextModel, prompt: Prompt) -> list[Region]:
    """Which part of a prompt belongs to whom, in order; everything else is the chat template's own.

    Messages are known for a chat. Thoughts are the model's: in a chat `<think>` is looked for in its own turns alone,
    elsewhere everywhere. A message that is empty, or whose place is unknown, has no region.
    """
    ids = encode(lm, prompt)[0].tolist()
    tokens = describe(lm.tokenizer, ids)
    if isinstance(prompt, str | torch.Tensor):
        return thinking(tokens)
    writer = Writer(lm, prompt)
    places = places_of(writer)
    if (widths := widths_of(lm, writer.text, ids)) is None:
        return thinking(tokens)
    said: list[tuple[int, Region]] = []  # with the number of its message
    for number, spans in enumerate(places):
        for begin, end in spans:
            inside = [n for n, (a, b) in enumerate(widths) if a < end and b > begin and b > a]
            if inside:
                said.append((number, Region(writer.chat[number]["role"], inside[0], inside[-1] + 1)))
    found = [region for _, region in said] + _thoughts(tokens, said, writer.chat)
    return sorted(found, key=lambda region: (region.start, -region.stop))


def thinking(tokens: Sequence[Token]) -> list[Region]:
    """The `<think>` regions among tokens, marks included; one that is not closed extends to the end.

    A `</think>` that nothing opened closes what began after the last special token: models whose template opens it
    write only the rest.
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


def _thoughts(tokens: Sequence[Token], said: list[tuple[int, Region]], messages: Messages) -> list[Region]:
    """The thoughts in a chat: between what others say, where the model has a turn there."""
    others = [(number, r.start, r.stop) for number, r in said if messages[number]["role"] not in ANSWERS]
    own = [region for number, region in said if messages[number]["role"] in ANSWERS]
    borders = [(-1, 0, 0), *others, (len(messages), len(tokens), len(tokens))]
    found = []
    for (before, _, start), (after, stop, _) in pairwise(borders):
        between = messages[before + 1 : after]
        if not any(m["role"] in ANSWERS for m in between) and (after < len(messages) or not others):
            continue
        for thought in thinking(tokens[start:stop]):
            first, last = start + thought.start, start + thought.stop
            if last == stop:  # not closed: it ends with the message that it is in
                last = next((region.stop for region in own if region.start <= first < region.stop), last)
            found.append(Region("thinking", first, last))
    return found


# -- where the messages stand in the text -----------------------------------------------------------------------------


def places_of(writer: Writer) -> list[list[Span]]:
    """For each message of a chat, its places in the text, in characters: none if it is left out or unknown, several if
    the template repeats it.
    """
    found = _all_at_once(writer) or [_place(writer, number) for number in range(len(writer.chat))]
    if writer.begins is not None:
        found[-1] = [(writer.begins, len(writer.text))]
    return [[(begin, end) for begin, end in spans if end > begin] for spans in found]


def _all_at_once(writer: Writer) -> list[list[Span]] | None:
    """The places of all messages from one more text, where the template writes each once, as it is or stripped."""
    messages, marks = writer.chat.messages, [writer.mark(n) for n in range(len(writer.chat))]
    said = [content for message in messages if (content := text_in(message)) is not None]
    if len(said) < len(messages):
        return None
    try:
        other = writer.write([with_text(m, mark) for m, mark in zip(messages, marks, strict=True)])
    except ValueError:
        return None
    if any(other.count(mark) != 1 for mark in marks):
        return None
    order = sorted(range(len(marks)), key=lambda n: other.index(marks[n]))
    for kept in (lambda content: content, str.strip):
        text, here = "", 0
        found: list[list[Span]] = [[] for _ in marks]
        for n in order:
            text += other[here : other.index(marks[n])]
            content = kept(said[n])
            found[n] = [(len(text), len(text) + len(content))]
            text, here = text + content, other.index(marks[n]) + len(marks[n])
        if text + other[here:] == writer.text:
            return found
    return None


def _place(writer: Writer, number: int) -> list[Span]:
    """Where one message stands, by writing the chat with a mark in its place."""
    messages, text, mark = writer.chat.messages, writer.text, writer.mark
    if not (said := text_in(messages[number])):
        return []

    def instead(content: str) -> str:
        try:
            return writer.write([*messages[:number], with_text(messages[number], content), *messages[number + 1 :]])
        except ValueError:
            return ""

    stand_ins = [mark(0)]
    if "</think>" in said:  # what precedes it may go elsewhere, or nowhere
        thoughts, _, answer = said.rpartition("</think>")
        stand_ins.append(f"{thoughts}</think>{answer[: len(answer) - len(answer.lstrip())]}{mark(0)}")
    for stand_in in stand_ins:
        other = instead(stand_in)
        if not (count := other.count(mark(0))):
            continue
        length, rest = divmod(len(text) - len(other) + count * len(mark(0)), count)
        begin = other.index(mark(0))
        kept = text[begin : begin + length] if length > 0 and not rest else ""
        if kept and kept in said and other.replace(mark(0), kept) == text:
            pieces = other.split(mark(0))[:-1]
            begins = [end + n * length for n, end in enumerate(accumulate(map(len, pieces)))]
            return [(begin, begin + length) for begin in begins]
    # a template that changes the message: marks at both its ends are to change nothing else
    other = instead(mark(0) + said.strip() + mark(1))
    if other.count(mark(0)) == other.count(mark(1)) == 1 and other.replace(mark(0), "").replace(mark(1), "") == text:
        begin, end = other.index(mark(0)), other.index(mark(1)) - len(mark(0))
        return [(begin, end)] if end > begin else []
    return []


def widths_of(lm: TextModel, text: str, ids: list[int]) -> list[Span] | None:
    """Where each token stands in the text, in characters, parts of a character as the whole; None: it is not known."""
    pieces = bytes_of(lm.tokenizer, ids)
    if b"".join(pieces) == text.encode():
        ends = list(accumulate(len(char.encode()) for char in text))  # of each character, in bytes
        borders = [0, *accumulate(map(len, pieces))]
        return [(bisect_right(ends, a), bisect_left(ends, b) + 1 if b > a else bisect_right(ends, a))
                for a, b in pairwise(borders)]  # fmt: skip
    if not lm.tokenizer.is_fast:
        return None
    spans = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [(int(a), int(b)) for a, b in spans[-len(ids) :]]
