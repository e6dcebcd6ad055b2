"""Tokenizers made by hand, and a model that is nothing else, for what needs text and no forward pass."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,"


def of_pieces(*pieces: str, bos: str | None = None, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Cuts a text into as few of these pieces and of single letters as it can; a space belongs to the word after it.

    Ids follow the order of the pieces; a BOS comes first.
    """
    vocabulary = dict.fromkeys([*([bos] if bos else []), *pieces, *LETTERS])
    cut = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary]))
    cut.decoder = decoders.Fuse()
    if adds_bos:
        cut.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(str(bos), 0)])
    special = {"bos_token": AddedToken(bos, special=True)} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=cut, **special)


def as_written(*raw: str) -> PreTrainedTokenizerFast:
    """A byte-level vocabulary of these entries (`Ġthe` is ` the`), for ids that no text needs to lead to."""
    vocabulary = {entry: n for n, entry in enumerate(raw)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=raw[0]))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def of_bytes() -> PreTrainedTokenizerFast:
    """One token per byte."""
    vocabulary = {symbol: n for n, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    single = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    single.pre_tokenizer, single.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=single)


def sentencepiece(*pieces: str) -> PreTrainedTokenizerFast:
    """Spaces as `▁`, and bytes such as `<0xE2>` for what it has no piece for."""
    vocabulary = dict.fromkeys(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *pieces])
    cut = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary], unk_id=0, byte_fallback=True))
    cut.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    cut.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=cut)


def text_model(tokenizer: Any, *alike: Sequence[str], context: int | None = None) -> Any:
    """What `labkit.text` needs to know of a model; the words of a group in `alike` have embeddings that are alike."""
    table = torch.eye(len(tokenizer))  # (vocab, d_model)
    for group in alike:
        ids = tokenizer.convert_tokens_to_ids(list(group))
        table[ids] += table[ids[0]]
    return SimpleNamespace(
        name="pieces", tokenizer=tokenizer, context=context, n_vocab=len(tokenizer), embedding=table, device="cpu"
    )
