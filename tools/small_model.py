"""Train a small Llama on text that this script writes, in float32, and save it as a checkpoint.

python tools/small_model.py FOLDER [--steps 3200]

The packaged model is stored in 4 bits, so it cannot show what quantisation costs. This one is trained and stored in
full precision, and its layers have widths that 4 bits can be packed into. Its text is made of the sentences of
labkit's tasks (`lk.tasks()`), filled by chance, and a few more. With one thread and one seed the weights are the same
every time on one machine.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import labkit as lk
from labkit.datasets import words
from labkit.datasets.tasks import TASKS, PromptPair, TaskCheck, _Draw, verify

STEPS = 3200
ROWS, CONTEXT = 8, 128  # sequences per step, and tokens per sequence
END = "<|end|>"  # before the first text, and after each
NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
]  # fmt: skip
SHAPE: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "initializer_range": 0.08,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "dtype": "float32",
}  # fmt: skip
SPLIT = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")  # as GPT-2 does, and every digit by itself


class Chance(_Draw):
    """What fills the templates of a task where there is no tokenizer yet: every word may be used."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def words(self, table: Sequence, n: int = 1) -> list:
        return self.random.sample(table, n)


# Between bars stand the words that follow from what came before.
GIVING = (
    "When {a} and {b} went to the {place}, {again} gave a {thing} to| {other}|. Then| {other}| thanked| {again}|.",
    "{a} and {b} were in the {place}. {again} showed the {thing} to| {other}|, and| {other}| gave it back to| {again}"
    "|.",
    "{a} saw {b} at the {place}. {b} had a {thing}, and| {a}| had a {more}. So| {b}| gave the| {thing}| to| {a}|, "
    "and| {a}| gave the| {more}| to| {b}|.",
)
DOING = ("saw", "called", "thanked", "gave the {} to", "showed a {} to")
NEAR = (
    "The {x} behind the {y}| {v}| old.", "I know that the {x} near the {y}| {v}| not new.", "The {x}| {v}| in the {p}.",
)  # fmt: skip
LISTS = ("The words: {0},| {0}, {0}|.", "Again and again: {0}.| {0}. {0}|.", "First {0}, then| {0}|, then| {0}|.")


def task_text(chance: Chance, name: str) -> str:
    """One sentence of a task, with its answer and what may follow."""
    task, more = lk.task(name), chance.random.choice
    pair = task.rule(chance, more(task.templates))
    prompt, answer, foil = more([(pair.clean, pair.answer, pair.foil), (pair.corrupt, pair.foil, pair.answer)])
    follows = {
        "indirect object": f". Then|{answer}| thanked|{foil}|.",
        "gender and occupation": more([" was tired.", " was late.", " had to go back."]),
        "subject-verb agreement": more([" old.", " new.", " not there."]),
        "docstring": f": the {more(words.VARIABLES)}\n    :param|{foil}|: the {more(words.VARIABLES)}\n",
    }
    return f"{prompt}|{answer}|{follows.get(name, '.')}"


def giving(chance: Chance) -> str:
    a, b = chance.words(words.NAMES, 2)
    again, other = chance.random.choice([(a, b), (b, a)])
    (thing, more), (place,) = chance.words(words.THINGS, 2), chance.words(words.PLACES)
    named = {"a": a, "b": b, "again": again, "other": other, "thing": thing, "more": more, "place": place}
    return chance.random.choice(GIVING).format(**named)


def meeting(chance: Chance) -> str:
    """Two people, and who did something to whom, several times: it is always the other one."""
    both = chance.words(words.NAMES, 2)
    text = "{} and {} met.".format(*both)
    for _ in range(chance.random.randint(2, 6)):
        one, other = chance.random.sample(both, 2)
        text += f" {one} {chance.random.choice(DOING).format(*chance.words(words.THINGS))}| {other}|."
    return text


def agreement(chance: Chance) -> str:
    one, other = chance.words(words.NOUNS, 2)
    many = chance.random.randrange(2)
    template, (place,) = chance.random.choice(NEAR), chance.words(words.PLACES)
    return template.format(x=one[many], y=chance.random.choice(other), p=place, v=("is", "are")[many])


def speaking(chance: Chance) -> str:
    table, pronoun = chance.random.choice([(words.CALLED_SHE, "she"), (words.CALLED_HE, "he")])
    return f"The {chance.words(table)[0]} said that| {pronoun}| was tired."


def period(chance: Chance) -> str:
    """Two years of one century, or two pages: the second is later, and mostly not by much."""
    start = chance.random.randint(10, 95)
    end = min(99, start + 1 + int(chance.random.expovariate(1 / 15)))
    template = chance.random.choice(lk.task("greater than").templates)
    century = chance.random.randint(11, 19)
    (event,) = chance.words(words.EVENTS)
    prompt = template.format(event=event, century=century, tens=start // 10, unit=start % 10)
    return f"{prompt}|{end}|."


def arithmetic(chance: Chance) -> str:
    a, b = (chance.random.randint(0, 9) for _ in range(2))
    if chance.random.random() < 0.5:
        return f"{NUMBERS[a]} plus {NUMBERS[b]} equals| {NUMBERS[a + b]}|."
    return f"{NUMBERS[a + b]} minus {NUMBERS[b]} equals| {NUMBERS[a]}|."


def repetition(chance: Chance) -> str:
    """A list, and the same again."""
    tables = [words.THINGS + words.PLACES] * 2 + [words.NAMES, words.PARAMETERS, words.VARIABLES]
    row = " ".join(chance.words(chance.random.choice(tables), chance.random.randint(3, 16)))
    return chance.random.choice(LISTS).format(row)


# How often each kind of text is written: first, and then, when the model copies names but not yet the right one.
PHASES: list[dict[str | Callable[[Chance], str], int]] = [
    {"indirect object": 4, giving: 2, repetition: 3, period: 3, "factual recall": 2, "gender and occupation": 2,
     speaking: 1, "subject-verb agreement": 1, agreement: 1, "docstring": 2, arithmetic: 2},
    {"indirect object": 5, giving: 2, repetition: 4, period: 3, "factual recall": 1, "gender and occupation": 1,
     meeting: 6, "subject-verb agreement": 1, agreement: 1, "docstring": 1, arithmetic: 1},
]  # fmt: skip


def texts(seed: int, phase: int = 0) -> Iterator[str]:
    chance, kinds = Chance(seed), PHASES[phase]
    while True:
        (kind,) = chance.random.choices(list(kinds), weights=list(kinds.values()))
        yield task_text(chance, kind) if isinstance(kind, str) else kind(chance)


def tokenizer_of(sample: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token for each word of the sample, with the space before it; all else is split into bytes."""
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(SPLIT, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    parts = (part for text in sample for part in text.split("|"))
    seen = {piece for part in parts for piece, _ in splitter.pre_tokenize_str(part)}
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [END, *sorted(letters), *sorted(seen - letters)]
    model = models.BPE(vocab={piece: n for n, piece in enumerate(vocabulary)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    special = {"bos_token": END, "eos_token": END, "pad_token": END}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **special)


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, phase: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and how much each counts, both (ROWS, CONTEXT): text after text, END before each."""
    written = texts(seed, phase)
    while True:
        rows = []
        for _ in range(ROWS):
            row: list[tuple[int, float]] = []
            while len(row) < CONTEXT:
                for n, part in enumerate(next(written).split("|")):
                    new = tokenizer(part, add_special_tokens=n == 0).input_ids
                    row += [(id, 1.0 if n % 2 else 0.1) for id in new]
            rows.append(row[:CONTEXT])
        ids, counts = torch.tensor(rows).unbind(-1)  # (ROWS, CONTEXT)
        yield ids.long(), counts


def losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """How surprising each token after the first is, in nats: (ROWS, CONTEXT - 1)."""
    logits = model(ids).logits[:, :-1].float()  # (ROWS, CONTEXT - 1, vocab)
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def train(steps: int = STEPS, *, seed: int = 0) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model after so many steps, a quarter of them in the second phase; in each the rate rises, then falls to 0."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = tokenizer_of(list(islice(texts(seed), 10000)))
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE)).train()
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    outer = [p for p in model.parameters() if all(p is not other for other in inner)]
    for phase, many in enumerate((steps - steps // 4, steps // 4)):
        muon = torch.optim.Muon(inner, momentum=0.95, weight_decay=0.01)
        adam = torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.01)
        for step, (ids, counts) in enumerate(islice(batches(tokenizer, seed + 1 + phase, phase), many), 1):
            part = min(20 * step / many, (1 + math.cos(math.pi * step / many)) / 2)
            muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = 0.02 * part, 0.003 * part
            loss = (losses(model, ids) * counts[:, 1:]).sum() / counts[:, 1:].sum()
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            muon.step()
            adam.step()
            if step % 100 == 0 or step == many:
                print(f"phase {phase + 1}, step {step}: loss {loss:.3f}, {time.process_time():.0f} s", flush=True)
    return model.eval(), tokenizer


def sums(n: int) -> list[PromptPair]:
    """Pairs of sums that differ in one number."""
    chance, pairs = random.Random(0), []
    for _ in range(n):
        (a, other), b = chance.sample(range(10), 2), chance.randrange(10)
        clean, corrupt = (f"{NUMBERS[x]} plus {NUMBERS[b]} equals" for x in (a, other))
        pairs.append(PromptPair(clean, corrupt, f" {NUMBERS[a + b]}", f" {NUMBERS[other + b]}"))
    return pairs


def checks(lm: lk.LanguageModel, n: int = 50) -> dict[str, TaskCheck]:
    """How many of `n` pairs of each task are done, templates mixed."""
    return {t.name: t.verify(lm, t.pairs(lm, n, aligned=False)) for t in TASKS} | {"sums": verify(lm, sums(n))}


def perplexity(lm: lk.LanguageModel, *, seed: int = 10**6) -> float:
    """The perplexity per token of text that was not trained on, 8 batches of it."""
    with torch.no_grad():
        found = [losses(lm.hf, ids).mean() for ids, _ in islice(batches(lm.tokenizer, seed), 8)]
    return float(torch.stack(found).mean().exp())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a small Llama on written text, and save it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--pairs", type=int, default=50, help="pairs per task, to measure what it can do")
    asked = parser.parse_args(arguments)
    for part in train(asked.steps):
        part.save_pretrained(asked.folder)
    for bits in (32, 4):
        lm = lk.load(asked.folder, bits=bits, device="cpu", progress=False)
        print(f"{bits} bits: perplexity {perplexity(lm):.3f}")
        for name, check in checks(lm, asked.pairs).items():
            print(f"  {name}: {check.share:.0%} of {asked.pairs} pairs")


if __name__ == "__main__":
    main()
