"""Items with a right answer, as benchmarks are made of: minimal pairs of sentences, or a question and its choices.

`FORMATS` are the tables that are understood, each known by its columns. What a table means (which choice is counted,
how it is joined to its prompt, what its rows are grouped by) is a `Format`; a new kind of table is a new entry.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Measure = str  # "accuracy" or "preference"


@dataclass(frozen=True)
class Item:
    """One question: which of the choices is likelier after the prompt?

    Attributes:
        prompt: what comes before each choice; empty for whole sentences.
        choices: two or more texts.
        answer: the number of the choice that is counted: the right one, or the more stereotypical one.
        labels: what it belongs to, such as `{"phenomenon": "island_effects"}`.
        delimiter: between the prompt and each choice.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    labels: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same item in another result."""
        return self.prompt, self.choices, self.answer, self.delimiter


@dataclass(frozen=True)
class ItemSet:
    """Items of one source.

    Attributes:
        name: for titles.
        by: the label by which results are grouped; empty for none.
        unit: the finest label, of which `limit` counts items; empty for none.
        measure: `accuracy` where one choice is right, `preference` where none is.
        caution: what a number on these items cannot show, with its reference.
    """

    name: str
    items: tuple[Item, ...] = field(repr=False)
    by: str = ""
    unit: str = ""
    measure: Measure = "accuracy"
    caution: str = field(default="", repr=False)

    def limited(self, most: int) -> ItemSet:
        """The first `most` items of each unit.

        Raises:
            ValueError: fewer than one.
        """
        if most < 1:
            raise ValueError(f"limit is a number of items, at least 1; got {most}")
        seen: dict[str, int] = {}
        some = []
        for item in self.items:
            unit = item.labels.get(self.unit, "")
            seen[unit] = seen.get(unit, 0) + 1
            if seen[unit] <= most:
                some.append(item)
        return replace(self, items=tuple(some))

    def labels_by(self, by: str | None) -> list[str]:
        """The label of each item; by the usual one if `by` is None.

        Raises:
            ValueError: the items have no such label.
        """
        by = self.by if by is None else by
        if by and not all(by in item.labels for item in self.items):
            have = ", ".join(self.items[0].labels) or "none"
            raise ValueError(f"the items of {self.name} have no label {by!r}; they have {have}")
        return [item.labels[by] if by else "" for item in self.items]


@dataclass(frozen=True)
class Format:
    """A kind of table.

    Attributes:
        columns: those by which it is known.
        labels: the name of each label, and the column it is in; one that a table lacks is left out.
        by, unit, measure, caution: as in `ItemSet`.
        delimiter: between prompt and choice; None: a space, if there is none already.
    """

    columns: tuple[str, ...]
    labels: Mapping[str, str]
    by: str
    unit: str
    measure: Measure = "accuracy"
    delimiter: str | None = ""
    caution: str = ""


# Sentences begin after a space or at once, as in the tasks of lm-evaluation-harness of these names.
FORMATS = (
    Format(
        ("sentence_good", "sentence_bad"), {"paradigm": "UID", "phenomenon": "linguistics_term"}, "phenomenon",
        "paradigm", delimiter=" ",
        caution="The sentences of BLiMP are made from templates; people agree with 96 % of its labels (Warstadt et al. "
        "2020, TACL 8).",
    ),
    Format(
        ("sent_more", "sent_less"), {"bias_type": "bias_type", "direction": "stereo_antistereo"}, "bias_type",
        "bias_type", "preference",
        caution="Many pairs of CrowS-Pairs (Nangia et al. 2020, EMNLP) are unclear, ungrammatical or no test of a "
        "stereotype, so it may show bias badly (Blodgett et al. 2021, ACL); a preference is not a harm.",
    ),
    Format(("good", "bad"), {"category": "category"}, "category", "category"),
    Format(("prompt", "choices", "answer"), {"category": "category"}, "category", "category", delimiter=None),
)  # fmt: skip


def from_frame(frame: pd.DataFrame, *, name: str, by: str | None = None, delimiter: str | None = None) -> ItemSet:
    """The items of a table, whatever its format.

    Args:
        frame: with the columns of one of `FORMATS`, one row per item. `choices` is a list, or JSON of one; `answer` the
            text of a choice, or its number from 0.
        name: for titles and errors.
        by: another column by which results are to be grouped.
        delimiter: between prompt and choice, instead of the format's own.

    Raises:
        ValueError: no known columns, no rows, or a row that is no item; the message says which.
    """
    formats = [one for one in FORMATS if set(one.columns) <= set(frame.columns)]
    if not formats:
        known = "; ".join(", ".join(one.columns) for one in FORMATS)
        raise ValueError(
            f"{name} has the columns {', '.join(map(str, frame.columns)) or 'none'}; a benchmark needs those of one of "
            f"these: {known}. Rename yours with frame.rename(columns=...)"
        )
    if not len(frame):
        raise ValueError(f"{name} has no rows")
    shape = formats[0]
    labels = {label: column for label, column in shape.labels.items() if column in frame.columns}
    if by and by not in labels:
        if by not in frame.columns:
            have = ", ".join(labels) or "none"
            raise ValueError(f"{name} has no label or column {by!r} to group by; its labels are {have}")
        labels[by] = by
    join = shape.delimiter if delimiter is None else delimiter
    items = []
    for n, row in enumerate(frame.to_dict("records")):
        try:
            prompt, choices, answer = _read(shape, row)
            own = {label: str(row[column]) for label, column in labels.items()}
        except ValueError as error:
            raise ValueError(f"row {n} of {name}: {error}") from None
        between = ("" if not prompt or _has_space(prompt, choices) else " ") if join is None else join
        items.append(Item(prompt, choices, answer, own, between))
    usual, unit = (label if label in labels else "" for label in (by or shape.by, shape.unit))
    return ItemSet(name, tuple(items), usual, unit, shape.measure, shape.caution)


def _read(shape: Format, row: Mapping[Any, Any]) -> tuple[str, tuple[str, ...], int]:
    """Prompt, choices and answer of a row."""
    if "choices" not in shape.columns:
        return "", tuple(_text(row, column) for column in shape.columns), 0
    prompt, choices = _text(row, "prompt", empty=True), row["choices"]
    if isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except ValueError:
            raise ValueError(f'choices must be a list, or JSON such as ["yes", "no"]; got {choices!r:.60}') from None
    if isinstance(choices, str | Mapping) or not hasattr(choices, "__len__") or len(choices) < 2:
        raise ValueError(f"choices must be a list of two or more; got {choices!r:.60}")
    texts = tuple(map(str, choices))
    if not all(texts):
        raise ValueError(f"one of the choices is empty: {texts}")
    return prompt, texts, _answer(row["answer"], texts)


def _answer(given: Any, choices: Sequence[str]) -> int:
    """The number of the choice that is meant: by its text, or by its number."""
    meant = {n for n, choice in enumerate(choices) if choice == str(given)}
    try:
        number = int(given)
        meant |= {number} if number == float(given) and 0 <= number < len(choices) else set()
    except (TypeError, ValueError):
        pass
    if len(meant) != 1:
        why = "can be more than one of" if meant else "is none of"
        raise ValueError(
            f"the answer {given!r:.40} {why} the choices {list(choices)!r:.80}; give a text that is among them once, "
            f"or a number from 0 to {len(choices) - 1}"
        )
    return meant.pop()


def _text(row: Mapping[Any, Any], column: str, *, empty: bool = False) -> str:
    if not isinstance(row[column], str) or not (row[column] or empty):
        raise ValueError(f"{column} must be text; got {row[column]!r:.40}")
    return str(row[column])


def _has_space(prompt: str, choices: Sequence[str]) -> bool:
    return prompt[-1:].isspace() or any(choice[:1].isspace() for choice in choices)


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The table in a file, or in all files of a folder that are of one kind; `READERS` has the kinds.

    Raises:
        FileNotFoundError: there is no such file, or nothing that can be read in the folder.
        ValueError: the file is of another kind, or damaged.
    """
    import pandas as pd

    path = Path(path)
    if path.is_dir():
        for suffix in READERS:
            if files := sorted(path.glob(f"*{suffix}")):
                return pd.concat([read_table(file) for file in files], ignore_index=True)
        raise FileNotFoundError(f"there is no table in the folder {str(path)!r}: no {', '.join(READERS)}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{str(path)!r} is no table; give a file that ends in {', '.join(READERS)}")
    try:
        return READERS[path.suffix.lower()](path)
    except ImportError as error:  # pandas says which package it takes
        raise ValueError(f"{str(path)!r} cannot be read here: {error}") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged or is no {path.suffix} file: {error}") from error


def _separated(path: Path, between: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(path, sep=between, dtype=str, keep_default_na=False)  # a text may read `None` or `NA`


def _lines(path: Path) -> pd.DataFrame:
    import pandas as pd

    text = path.read_text("utf-8")
    return pd.DataFrame([json.loads(line) for line in text.splitlines() if line.strip()])


def _list(path: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(json.loads(path.read_text("utf-8")))


def _parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(path)


READERS = {
    ".jsonl": _lines,
    ".csv": lambda path: _separated(path, ","),
    ".tsv": lambda path: _separated(path, "\t"),
    ".json": _list,
    ".parquet": _parquet,
}
