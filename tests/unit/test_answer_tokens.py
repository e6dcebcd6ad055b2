"""An answer is the token that would be written after the prompt, on tokenizers of many kinds, each trained here."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import labkit as lk
from labkit.datasets import words as task_words
from labkit.text.encode import single_token, word_for

NAMES = task_words.NAMES[:12]
TEXT = [
    sentence
    for a, b in itertools.permutations(NAMES, 2)
    for sentence in (
        f"After {a} and {b} sat down, {b} gave it to {a}", f'"{a}" said {b}', f"{a}\n{b}\n", f"Then {a} went, {b} too.",
    )
]  # fmt: skip
SPACE = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
NO_STRIP = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
SPECIAL = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def bpe(normalizer=None, pre_tokenizer=None, decoder=SPACE):
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    # merges cross neither words nor marks, as in the real ones
    words = pre_tokenizer or pre_tokenizers.Metaspace(prepend_scheme="never")
    marks = [pre_tokenizers.Split(mark, "isolated") for mark in '"\n.,']
    made.pre_tokenizer = pre_tokenizers.Sequence([words, *marks])
    if normalizer is not None:
        made.normalizer = normalizer
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL, show_progress=False))
    made.pre_tokenizer = pre_tokenizer  # type: ignore[assignment]
    made.decoder = decoder
    return made


def unigram():
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(vocab_size=260, special_tokens=SPECIAL[:3], unk_token="<unk>", show_progress=False),
    )
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    return made


def byte_level(add_prefix_space):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    return made


PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
KINDS = {
    "prepended in the normalizer": lambda: bpe(PREPEND),
    "replaced in the normalizer": lambda: bpe(normalizers.Replace(" ", "▁"), decoder=NO_STRIP),
    "metaspace always": lambda: bpe(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always")),
    "metaspace first": lambda: bpe(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first")),
    "metaspace never": lambda: bpe(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never"), decoder=NO_STRIP),
    "unigram": unigram,
    "byte level": lambda: byte_level(False),
    "byte level with a first space": lambda: byte_level(True),
}


def model(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    hf = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes))
    return lk.wrap(hf, tokenizer)


@pytest.fixture(scope="module", params=KINDS)
def lm(request):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS[request.param](), bos_token="<s>", eos_token="</s>")
    return model(tokenizer)


def written_after(lm, prompt, answer):
    """The one token by which the tokenizer goes on from the prompt."""
    before, both = lm.encode(prompt)[0].tolist(), lm.encode(prompt + answer)[0].tolist()
    assert both[:-1] == before
    return both[-1]


def test_a_word_in_a_sentence_is_the_token_that_the_sentence_would_have(lm):
    a, b = NAMES[:2]
    for prompt in (f"After {a} and {b} sat down, {b} gave it to", a, f"{b} and"):
        after = lm.encode(prompt)
        id = single_token(lm, f" {a}", after=after)
        assert id == written_after(lm, prompt, f" {a}") == lm.encode(prompt + f" {a}")[0, -1]
        assert lm.tokens(prompt + f" {a}")[-1].text == f" {a}"


def test_after_a_quote_or_a_newline_it_is_another_token(lm):
    a, b = NAMES[:2]
    in_words = single_token(lm, f" {a}", after=lm.encode(f"{b} and"))
    for prompt in (f'{b} said "', f"{b}\n"):
        assert single_token(lm, a, after=lm.encode(prompt)) == written_after(lm, prompt, a) != in_words


def test_without_a_prompt_the_token_is_the_one_that_reads_so(lm):
    id = single_token(lm, f" {NAMES[2]}")
    assert id == written_after(lm, f"{NAMES[0]} and", f" {NAMES[2]}")


def test_everything_that_takes_an_answer_takes_it_after_its_prompt(lm):
    a, b = NAMES[:2]
    clean, corrupt = f"After {a} and {b} sat down, {b} gave it to", f"After {a} and {b} sat down, {a} gave it to"
    ids = [written_after(lm, clean, f" {name}") for name in (a, b)]
    pair = (lm, clean, corrupt)
    grid = lk.patch(*pair, f" {a}", f" {b}", progress=False)
    assert np.array_equal(grid.values, lk.patch(*pair, *ids, progress=False).values)
    assert (grid.answer, grid.foil) == (f" {a}", f" {b}")
    assert f"answer={' ' + a!r}" in grid.code()
    direct = lk.direct_logit_attribution(lm, clean, f" {a}", f" {b}")
    assert direct.total == pytest.approx(lk.direct_logit_attribution(lm, clean, *ids).total)
    assert [token.id for token in lk.logit_lens(lm, clean, follow=[f" {a}", f" {b}"]).followed] == ids
    found = lk.knock_out(lm, clean, heads=[(0, 0)])
    assert found.logit_diff(f" {a}", f" {b}") == found.logit_diff(*ids)
    paths = lk.path_patch(*pair, f" {a}", f" {b}", progress=False)
    assert np.array_equal(paths.values, lk.path_patch(*pair, *ids, progress=False).values, equal_nan=True)
    edges = lk.edge_attribution(*pair, f" {a}", f" {b}", steps=1, progress=False)
    assert edges.recipe["answer_id"] == ids[0]
    assert edges.recipe["foil_id"] == ids[1]
    tree = lm.tree(clean, max_new_tokens=2)
    if tree.root.record.ids[0] != ids[0]:
        assert tree.branch("A", 0, f" {a}").record.ids[0] == ids[0]


def test_several_tokens_are_refused_with_what_they_are(lm):
    with pytest.raises(ValueError, match=r"is \d tokens \[.*it must be one. The first is"):
        single_token(lm, f" {NAMES[0]} {NAMES[1]}", after=lm.encode(NAMES[2]))
    with pytest.raises(ValueError, match="is empty"):
        single_token(lm, "", after=lm.encode(NAMES[2]))


def test_a_word_that_has_a_token_with_its_space_alone_is_refused_without_it():
    pieces = ["<unk>", "▁", *"Mary", "▁M", "▁Ma", "▁Mar", "▁Mary"]
    merges = [("▁", "M"), ("▁M", "a"), ("▁Ma", "r"), ("▁Mar", "y")]
    made = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    made.normalizer, made.decoder = PREPEND, SPACE
    lm = model(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"))
    assert single_token(lm, " Mary") == single_token(lm, " Mary", after=lm.encode("Mary")) == pieces.index("▁Mary")
    with pytest.raises(ValueError, match="'Mary' is not a token of its own; ' Mary' is"):
        single_token(lm, "Mary")
    with pytest.raises(ValueError, match="'Mary' is 4 tokens"):
        single_token(lm, "Mary", after=lm.encode("Mary"))


def test_what_a_recipe_says_for_a_token_is_that_token_again(lm):
    after = lm.encode(f"{NAMES[0]} and")
    for id in range(lm.n_vocab):
        assert single_token(lm, word_for(lm, id, after=after), after=after) == id


def test_these_tokenizers_give_back_what_they_get(lm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prompt in TEXT[:8]:
            lm.encode(prompt)


def test_a_task_finds_pairs_for_a_tokenizer_that_prepends_spaces():
    words = [*NAMES, *task_words.PLACES, *task_words.THINGS]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.normalizer = PREPEND
    said = [t.format(a=a, b=b, again=a, place=p, thing=g) for t in lk.task("indirect object").templates
            for a, b, p, g in zip(NAMES, NAMES[1:], task_words.PLACES, task_words.THINGS, strict=False)]  # fmt: skip
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator([*said, *(f"the {word}" for word in words)], trainer)
    made.pre_tokenizer, made.decoder = None, SPACE  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    lm = model(tokenizer)
    task = lk.task("indirect object")
    pairs = task.pairs(lm, 5)
    assert all(pair.answer.startswith(" ") for pair in pairs)
    assert len(task.verify(lm, pairs).clean) == 5
    grid = lk.patch(lm, *pairs[0], progress=False)
    assert grid.recipe["answer_id"] == written_after(lm, pairs[0].clean, pairs[0].answer)
