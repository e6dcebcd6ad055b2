"""Task templates: pairs that keep what a pair promises, whatever the tokenizer, and models that do the task."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import labkit as lk
from labkit.datasets.tasks import TASKS, verify
from labkit.text.pair import align

NAMES = [task.name for task in TASKS]


def with_tokenizer(vocabulary: list[str], split: pre_tokenizers.PreTokenizer) -> lk.LanguageModel:
    """A tiny model whose tokenizer knows these words whole and splits everything else into bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = {letter: n for n, letter in enumerate(letters)}, []
    for word in vocabulary:
        known = word[0]
        for letter in word[1:]:
            if known + letter not in vocab:
                vocab[known + letter] = len(vocab)
                merges.append((known, letter))
            known += letter
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=len(vocab), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return lk.wrap(LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_the_list_says_what_each_task_asks_and_where_it_comes_from():
    table = lk.tasks()
    assert list(table.index) == NAMES
    assert table.about.str.len().min() > 20
    assert table.paper.str.contains(r"(?:19|20)\d\d").all()


@pytest.mark.parametrize("name", NAMES)
def test_every_pair_keeps_what_a_pair_promises(lm4, name):
    pairs = lk.task(name).pairs(lm4, n=30)
    assert len(set(pairs)) == 30
    layouts = set()
    for clean, corrupt, answer, foil in pairs:
        both = align(lm4, clean, corrupt)  # raises where the lengths differ
        assert both.differ
        assert answer != foil
        for word in (answer, foil):
            assert len(lm4.tokenizer(word, add_special_tokens=False).input_ids) == 1
            assert lm4.encode(clean + word).shape[1] == both.clean.shape[1] + 1
        layouts.add((both.clean.shape[1], tuple(both.differ)))
    assert len(layouts) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_pairs_and_another_gives_others(lm4, name):
    task = lk.task(name)
    assert task.pairs(lm4, n=10, seed=3) == task.pairs(lm4, n=10, seed=3)
    assert task.pairs(lm4, n=10, seed=3) != task.pairs(lm4, n=10, seed=4)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_model_does_the_task_more_often_than_not(lm4, name):
    task = lk.task(name)
    check = task.verify(lm4, task.pairs(lm4, n=10))
    assert check.share >= 0.5, check
    for pair in check.done:
        assert pair in check.pairs
    assert f"does the task on {len(check.done)} of 10 pairs" in repr(check)


def test_verify_counts_what_the_model_prefers(lm4):
    pair = lk.task("factual recall").pairs(lm4, n=1)[0]
    backwards = lk.PromptPair(pair.clean, pair.corrupt, pair.foil, pair.answer)
    check = verify(lm4, [pair, backwards])
    assert check.done == [pair]
    assert check.clean[0] == -check.clean[1] > 0
    with pytest.raises(ValueError, match="no pairs"):
        verify(lm4, [])


def test_a_pair_is_the_arguments_of_patch(lm4):
    pair = lk.task("indirect object").pairs(lm4, n=1)[0]
    grid = lk.patch(lm4, *pair, layers=[20], positions=[-1], progress=False)
    assert (grid.answer, grid.foil) == (pair.answer, pair.foil)
    with pytest.raises(AttributeError):
        pair.clean = "something else"


def test_mixed_templates_give_more_kinds_of_sentence(lm4):
    task = lk.task("indirect object")
    lengths = {lm4.encode(pair.clean).shape[1] for pair in task.pairs(lm4, n=30, aligned=False)}
    assert len(lengths) > 1


def test_too_many_are_refused_with_the_number_that_can_be_had(lm4):
    task = lk.task("factual recall")
    with pytest.raises(ValueError, match=r"factual recall: the tokenizer of .* only (\d+) different pairs") as refused:
        task.pairs(lm4, n=5000)
    possible = int(str(refused.value).split("n=")[1].split(".")[0])
    assert possible > 200
    assert len(task.pairs(lm4, n=possible)) == possible
    with pytest.raises(ValueError, match="at least 1"):
        task.pairs(lm4, n=0)


def test_a_tokenizer_that_splits_the_words_is_told_of():
    lm = with_tokenizer(["ab"], pre_tokenizers.Split(Regex(r" ?\S+"), "isolated"))
    for name in NAMES:
        if name != "greater than":  # its digits are single bytes, which are tokens
            with pytest.raises(ValueError, match=f"{name}: no pair can be made"):
                lk.task(name).pairs(lm, n=2)


def test_years_are_asked_for_in_the_parts_that_a_tokenizer_has():
    from labkit.datasets.words import EVENTS

    numbers = [f"{n:02}" for n in range(100)]
    in_twos = with_tokenizer(
        [*numbers, *(f"Ġ{w}" for w in EVENTS)], pre_tokenizers.Split(Regex(r" ?\p{L}+| |\d\d?|."), "isolated")
    )
    pairs = lk.task("greater than").pairs(in_twos, n=20)
    assert {len(pair.answer) for pair in pairs} == {2}
    for pair in pairs:
        start, late = (
            int(text.split("until")[0].split("and ended")[0].split()[-1][-2:]) for text in (pair.corrupt, pair.clean)
        )
        assert start < int(pair.foil) < late < int(pair.answer)


def test_an_unknown_task_is_refused_with_the_ones_there_are():
    with pytest.raises(ValueError, match="use one of indirect object, greater than"):
        lk.task("sorting")
