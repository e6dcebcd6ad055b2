"""Classic tasks: generators of prompt pairs on which circuits have been found, made for the tokenizer at hand.

A `Task` has templates with slots and a rule that fills them. Words that are more than one token for the loaded
tokenizer are left out, and every pair is verified: clean and corrupt have the same number of tokens, and answer and
foil are one token each, also when tokenized as part of the sentence. Whether the model does the task on a pair is for
`Task.verify` to say.

Templates and word lists are labkit's own; each task names its paper.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from labkit.activations.unembedding import measured_logits
from labkit.datasets import words
from labkit.models.handle import Model
from labkit.text.encode import single_token
from labkit.text.pair import align

if TYPE_CHECKING:
    import pandas as pd

_PATIENCE = 1500  # draws in a row without a new pair, after which there are taken to be no more


class PromptPair(NamedTuple):
    """Two prompts and the token that each calls for: `lk.patch(lm, *pair)`."""

    clean: str
    corrupt: str
    answer: str
    foil: str


@dataclass(frozen=True)
class TaskCheck:
    """On how many pairs the model does the task: clean prefers the answer, and corrupt the foil.

    Attributes:
        pairs: the pairs that were run.
        clean, corrupt: the logit of the answer minus that of the foil after each prompt, one number per pair.
    """

    pairs: list[PromptPair] = field(repr=False)
    clean: list[float] = field(repr=False)
    corrupt: list[float] = field(repr=False)

    @property
    def done(self) -> list[PromptPair]:
        """The pairs on which the model does the task."""
        return [p for p, a, b in zip(self.pairs, self.clean, self.corrupt, strict=True) if a > 0 > b]

    @property
    def share(self) -> float:
        return len(self.done) / len(self.pairs)

    def __repr__(self) -> str:
        n = len(self.pairs)
        clean, corrupt = sum(a > 0 for a in self.clean), sum(b < 0 for b in self.corrupt)
        return (
            f"TaskCheck(does the task on {len(self.done)} of {n} pairs: "
            f"clean prefers the answer on {clean}, corrupt the foil on {corrupt})"
        )


def verify(lm: Model, pairs: Sequence[PromptPair]) -> TaskCheck:
    """Run the model on both prompts of each pair: does it do the task?"""
    if not pairs:
        raise ValueError("there are no pairs to verify")
    differences: dict[str, list[float]] = {"clean": [], "corrupt": []}
    for pair in map(PromptPair._make, pairs):
        clean, corrupt = lm.encode(pair.clean), lm.encode(pair.corrupt)
        ids = [single_token(lm, pair.answer, after=clean), single_token(lm, pair.foil, role="foil", after=corrupt)]
        for side, prompt in (("clean", clean), ("corrupt", corrupt)):
            with lm.busy():
                answer, foil = measured_logits(lm, prompt)[0, ids].tolist()
            differences[side].append(answer - foil)
    return TaskCheck([PromptPair._make(p) for p in pairs], differences["clean"], differences["corrupt"])


@dataclass(frozen=True)
class Task:
    """A task: its question, its paper, templates, and the rule that fills them."""

    name: str
    about: str
    paper: str
    templates: tuple[str, ...] = field(repr=False)
    rule: Callable[[_Draw, str], PromptPair] = field(repr=False)

    def pairs(self, lm: Model, n: int = 50, *, seed: int = 0, aligned: bool = True) -> list[PromptPair]:
        """`n` different pairs for the model's tokenizer; the same for the same seed.

        Args:
            lm: the model whose tokenizer they are made for.
            n: how many.
            seed: another seed gives other pairs.
            aligned: all from one template and with one layout, so that a position has the same role in every pair and
                grids over positions can be averaged. False mixes the templates, which is the better test of a finding.

        Raises:
            ValueError: this tokenizer does not allow so many; the message says how many it does.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1; got {n}")
        most: list[PromptPair] = []
        for templates in [(t,) for t in self.templates] if aligned else [self.templates]:
            made = _make(self, lm, templates, n, seed=seed, aligned=aligned)
            if len(made) >= n:
                return made
            most = max(most, made, key=len)
        mixed = " aligned=False may allow more." if aligned and len(self.templates) > 1 else ""
        raise ValueError(
            f"{self.name}: the tokenizer of {lm.name} allows only {len(most)} different pairs, not {n}; ask for "
            f"n={len(most)}." + mixed
            if most
            else f"{self.name}: no pair can be made with the tokenizer of {lm.name}, which splits the words or "
            "numbers it needs; choose another task"
        )

    verify = staticmethod(verify)


def tasks() -> pd.DataFrame:
    """The classic tasks: name, question and paper."""
    import pandas as pd

    return pd.DataFrame([{"task": t.name, "about": t.about, "paper": t.paper} for t in TASKS]).set_index("task")


def task(name: str) -> Task:
    """A classic task by its name, such as `"indirect object"`; `lk.tasks()` lists them.

    Raises:
        ValueError: there is no such task.
    """
    wanted = name.lower().replace("_", " ").strip()
    for known in TASKS:
        if known.name == wanted:
            return known
    raise ValueError(f"there is no task {name!r}; use one of {', '.join(t.name for t in TASKS)}")


class _TooFewWords(Exception):
    """A table has not enough words that are one token."""


class _Draw:
    """Chance, and the words that are one token for a tokenizer."""

    def __init__(self, lm: Model, seed: int) -> None:
        self.random = random.Random(seed)
        self._lm = lm
        self._kept: dict[int, list] = {}

    def is_token(self, text: str) -> bool:
        try:
            single_token(self._lm, text)
        except ValueError:
            return False
        return True

    def words(self, table: Sequence, n: int = 1) -> list:
        """`n` different entries of a table, each a word or a row of words that are one token within a sentence."""
        if id(table) not in self._kept:
            rows = [(entry,) if isinstance(entry, str) else entry for entry in table]
            whole = [all(self.is_token(f" {word}") for word in row) for row in rows]
            self._kept[id(table)] = [entry for entry, fits in zip(table, whole, strict=True) if fits]
        if len(kept := self._kept[id(table)]) < n:
            raise _TooFewWords
        return self.random.sample(kept, n)


def _make(task: Task, lm: Model, templates: Sequence[str], n: int, *, seed: int, aligned: bool) -> list[PromptPair]:
    """Different verified pairs, `n` of one layout if `aligned`; fewer if they run out."""
    draw = _Draw(lm, seed)
    seen: set[PromptPair] = set()
    found: dict[object, list[PromptPair]] = {}
    waited = 0
    while waited < _PATIENCE:
        waited += 1
        try:
            pair = task.rule(draw, draw.random.choice(templates))
        except _TooFewWords:
            continue
        if pair in seen:
            continue
        seen.add(pair)
        if (layout := _layout(lm, pair)) is None:
            continue
        kept = found.setdefault(layout if aligned else None, [])
        kept.append(pair)
        if len(kept) == n:
            return kept
        waited = 0
    return max(found.values(), key=len, default=[])


def _layout(lm: Model, pair: PromptPair) -> tuple[int, tuple[int, ...]] | None:
    """Length and differing positions of a pair that keeps what a pair promises; None for one that does not."""
    try:
        both = align(lm, pair.clean, pair.corrupt)
        for word in (pair.answer, pair.foil):
            follows = single_token(lm, word, after=both.clean)
            for prompt, ids in ((pair.clean, both.clean), (pair.corrupt, both.corrupt)):
                if lm.encode(prompt + word)[0].tolist() != [*ids[0].tolist(), follows]:
                    return None
    except ValueError:
        return None
    if pair.answer == pair.foil or not both.differ:
        return None
    return both.clean.shape[1], tuple(both.differ)


# -- the rules: one a task, from chance and a template to a pair -------------------------------------------------------


def _indirect_object(draw: _Draw, template: str) -> PromptPair:
    a, b = draw.words(words.NAMES, 2)
    (place,), (thing,) = draw.words(words.PLACES), draw.words(words.THINGS)
    clean, corrupt = (template.format(a=a, b=b, again=again, place=place, thing=thing) for again in (b, a))
    return PromptPair(clean, corrupt, f" {a}", f" {b}")


def _greater_than(draw: _Draw, template: str) -> PromptPair:
    # Tokenizers split numbers into parts of one, two or three digits. The answer is the next part, whatever its length.
    start, end = draw.random.randint(1, 3), draw.random.randint(6, 8)
    low, high = draw.random.randint(start + 1, start + 2), draw.random.randint(end + 1, 9)
    unit, century = draw.random.randint(1, 9), draw.random.randint(11, 19)
    (event,) = draw.words(words.EVENTS)
    clean, corrupt = (template.format(event=event, century=century, tens=tens, unit=unit) for tens in (end, start))
    tail = str(draw.random.randint(0, 9)) if draw.is_token("65") else ""
    return PromptPair(clean, corrupt, f"{high}{tail}", f"{low}{tail}")


def _factual_recall(draw: _Draw, template: str) -> PromptPair:
    table = words.LANGUAGES if "{language}" in template else words.CAPITALS
    (here, answer), (there, foil) = draw.words(table, 2)
    template = template.removeprefix("{language}")
    return PromptPair(template.format(x=here), template.format(x=there), f" {answer}", f" {foil}")


def _gender_and_occupation(draw: _Draw, template: str) -> PromptPair:
    sides = [(*draw.words(words.CALLED_SHE), " she"), (*draw.words(words.CALLED_HE), " he")]
    draw.random.shuffle(sides)
    (place,) = draw.words(words.PLACES)
    (one, answer), (other, foil) = sides
    return PromptPair(template.format(x=one, place=place), template.format(x=other, place=place), answer, foil)


def _subject_verb_agreement(draw: _Draw, template: str) -> PromptPair:
    (one, many), (near, nears) = draw.words(words.NOUNS, 2)
    between = draw.random.choice((near, nears))  # the noun in between may mislead
    sides = [(one, " is"), (many, " are")]
    draw.random.shuffle(sides)
    (clean, answer), (corrupt, foil) = sides
    return PromptPair(template.format(x=clean, y=between), template.format(x=corrupt, y=between), answer, foil)


def _docstring(draw: _Draw, template: str) -> PromptPair:
    name, *about = draw.words(words.VARIABLES, 5)
    a, b, c, d = draw.words(words.PARAMETERS, 4)
    fill = {"name": name, "a": a, "b": b, "x": about[0], "y": about[1], "z": about[2]}
    clean, corrupt = (template.format(c=third, d=fourth, **fill) for third, fourth in ((c, d), (d, c)))
    return PromptPair(clean, corrupt, f" {c}", f" {d}")


def _induction(draw: _Draw, template: str) -> PromptPair:
    *row, other = draw.words(words.THINGS + words.PLACES, template.count("{") + 1)
    again = draw.random.randint(2, len(row) - 2)
    clean, corrupt = (template.format(*row[:again], w, *row[again + 1 :]) for w in (row[again], other))
    repeated = " " + " ".join(row[:again])
    return PromptPair(clean + repeated, corrupt + repeated, f" {row[again]}", f" {other}")


TASKS = (
    Task(
        "indirect object",
        "Two people are named and one is named again: who receives something?",
        "Wang et al. 2022, Interpretability in the Wild",
        (
            "After {a} and {b} sat down in the {place}, {again} handed a {thing} to",
            "Yesterday {a} and {b} met near the {place}, and {again} offered the {thing} to",
            "While {a} and {b} were waiting at the {place}, {again} decided to give a {thing} to",
            "Then {b} and {a} walked to the {place} together, and {again} passed a {thing} to",
        ),
        _indirect_object,
    ),
    Task(
        "greater than",
        "A period begins in a year: which two digits can the end year have?",
        "Hanna et al. 2023, How does GPT-2 compute greater-than?",
        (
            "The {event} began in the year {century}{tens}{unit} and ended in the year {century}",
            "The {event} lasted from {century}{tens}{unit} until {century}",
            "Please read the book from page {tens}{unit} to page ",
        ),
        _greater_than,
    ),
    Task(
        "factual recall",
        "A country is named: what is its capital, or its language?",
        "Meng et al. 2022, Locating and Editing Factual Associations in GPT",
        (
            "The capital of {x} is the city of",
            "If you travel to {x} and want to see its capital, you have to go to",
            "{language}Most people in {x} speak a language called",
        ),
        _factual_recall,
    ),
    Task(
        "gender and occupation",
        "An occupation is named: which pronoun follows? This measures a stereotype in the text a model was trained on.",
        "Vig et al. 2020, Causal Mediation Analysis for Interpreting Neural NLP",
        (
            "The {x} went home from the {place} early because",
            "The {x} forgot the keys at the {place}, so",
            "Last week the {x} came late to the {place} again, and everyone knew that",
        ),
        _gender_and_occupation,
    ),
    Task(
        "subject-verb agreement",
        "Another noun stands between a subject and its verb: is it 'is' or 'are'?",
        "Linzen et al. 2016, Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies",
        (
            "The {x} that I saw near the {y} yesterday",
            "The {x} next to the {y}",
            "As far as I know, the {x} behind the {y}",
        ),
        _subject_verb_agreement,
    ),
    Task(
        "docstring",
        "A function's parameters are documented in order: which comes next?",
        "Heimersheim and Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer",
        (
            'def {name}(self, {a}, {b}, {c}, {d}):\n    """{x} {y}\n\n    :param {a}: the {y}\n    :param {b}: the '
            "{z}\n    :param",
        ),
        _docstring,
    ),
    Task(
        "induction",
        "A list of words starts again: which word came next the first time?",
        "Olsson et al. 2022, In-context Learning and Induction Heads",
        ("The words: {} {} {} {} {} {},", "Again and again: {} {} {} {} {} {} {} {}."),
        _induction,
    ),
)
