"""A context and what continues it, as token ids: text is cut into tokens as lm-evaluation-harness cuts it.

For a context that is text (`_encode_pair` and `loglikelihood` in lm_eval/api/model.py, 0.4):

* spaces and newlines at the end of the context move to the continuation, where most tokenizers have them;
* the continuation's ids are those of the whole text after as many as the context has alone, also where the two share a
  token: its first letters are then not counted;
* an empty context is BOS, or EOS where the tokenizer has no BOS.

It differs in this. There is never a second BOS. An EOS that the tokenizer appends to every text is left out; the
harness counts it, and shifts the continuation by it. A context of spaces alone is an empty one; the harness stops
there. A continuation without tokens of its own and a pair that is too long are refused; the harness stops at the one,
and drops the beginning of the other.

Chat messages and token ids are encoded as everywhere in labkit, and none of their tokens moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labkit.text.encode import TooLong, encode, following
from labkit.text.types import Prompt, TextModel

Added = str | tuple[int, ...]
"""What continues a context: text, or token ids."""


def encode_continuations(
    lm: TextModel, pairs: Sequence[tuple[Prompt, Added]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ids of each context and of its continuation; neither is empty.

    Args:
        lm: the model whose tokenizer is used.
        pairs: contexts (text, also none: `""`; chat messages; ids) and the texts that continue them, or their ids.

    Raises:
        ValueError: a continuation is empty or has no tokens of its own, or a context cannot be encoded.
        TooLong: context and continuation do not fit into the model's context.
        TypeError: a continuation is neither text nor ids, or a context is no prompt.
    """
    cut = _Cutter(lm.tokenizer)
    cut.learn([text for context, added in pairs for text in cut.needs(context, added)])
    found = []
    for n, (context, added) in enumerate(pairs):
        if not isinstance(added, str | tuple):
            raise TypeError(f"a continuation is text; number {n} is {added!r:.60}")
        if not added:
            raise ValueError(f"continuation {n} is empty; give it at least one character")
        if isinstance(added, tuple):
            before, after = tuple(encode(lm, context, most=None)[0].tolist()), added
        elif isinstance(context, str):
            before, after = cut.text(context, added)
        else:
            ids = encode(lm, context, most=None)
            before, after = tuple(ids[0].tolist()), tuple(following(lm.tokenizer, added, ids))
        if not after:
            raise ValueError(
                f"continuation {n}, {added!r:.60}, has no tokens of its own: it is part of the last token of its "
                "context. Begin it where a token begins, such as with the space before a word"
            )
        over = len(before) + len(after) - 1 - (lm.context or len(before) + len(after))
        if over > 0:  # nothing is predicted after the last token, so it needs no room
            raise TooLong(
                f"pair {n} has {len(before)} tokens and {len(after)} after them, {over} more than {lm.name}'s context "
                f"of {lm.context} has room for; shorten it by {over} tokens",
                over,
            )
        found.append((before, after))
    return found


class _Cutter:
    """Texts as ids, each tokenized once and all in one call, which is several times faster than one by one."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        usual = tokenizer("a").input_ids
        self.adds_bos = self.bos is not None and usual[0] == self.bos
        self.adds_eos = self.eos is not None and len(usual) > 1 and usual[-1] == self.eos
        self.ids: dict[tuple[str, bool], list[int]] = {}  # by text, and whether special tokens are added

    @staticmethod
    def moved(context: str, added: str) -> tuple[str, str]:
        """Context and continuation after the spaces between them went to the continuation."""
        bare = context.rstrip()
        return bare, context[len(bare) :] + added

    def needs(self, context: Prompt, added: Added) -> list[tuple[str, bool]]:
        """The texts that a pair takes."""
        if not isinstance(context, str) or not isinstance(added, str):
            return []
        bare, added = self.moved(context, added)
        return [(bare, True), (bare + added, True)] if bare else [(added, False)]

    def learn(self, texts: Sequence[tuple[str, bool]]) -> None:
        for special in (True, False):
            some = list(dict.fromkeys(text for text, with_special in texts if with_special is special))
            if some:
                ids = self.tokenizer(some, add_special_tokens=special).input_ids
                self.ids |= {(text, special): self.own(found, special) for text, found in zip(some, ids, strict=True)}

    def own(self, ids: list[int], special: bool) -> list[int]:
        """Without a second BOS and without an EOS that the tokenizer adds."""
        if special and self.adds_bos and ids[:2] == [self.bos, self.bos]:
            ids = ids[1:]
        return ids[:-1] if special and self.adds_eos else ids

    def text(self, context: str, added: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        bare, added = self.moved(context, added)
        if bare:
            before = self.ids[bare, True]
            return tuple(before), tuple(self.ids[bare + added, True][len(before) :])
        ids = self.ids[added, False]
        prefix = self.eos if self.bos is None else self.bos
        if prefix is None:
            raise ValueError(
                "the tokenizer has neither BOS nor EOS to begin a text with, so its first token has no probability; "
                "give each continuation a context"
            )
        return ((prefix,), tuple(ids[1:] if ids[:1] == [prefix] else ids))
