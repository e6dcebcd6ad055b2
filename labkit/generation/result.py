"""A text that a model wrote, with what was read meanwhile, and its file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from labkit.activations.run import not_read
from labkit.activations.sites import Site
from labkit.generation.readings import Readings
from labkit.generation.token_table import Record, Transcript
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.text.as_code import Name, as_code
from labkit.text.prompts import as_json, from_json
from labkit.text.tokens import Token


@dataclass
class Generation(Transcript):
    """The continuation of a prompt; `generation["resid_post.5"]` is what was read while it was written (`generate`).

    Attributes:
        prompt: its tokens.
        record: the generated tokens with their probabilities and alternatives, compactly.
        finish: why it ended: `length`, `eos` (the model ended the text), `stop_string` or `stopped`.
        seconds: how long it took; `first_seconds` of that until the first token.
        readings: what was read; None if nothing was.
    """

    prompt: list[Token]
    record: Record
    finish: str
    seconds: float
    first_seconds: float
    recipe: dict[str, Any] = field(repr=False)
    tokenizer: Any = field(repr=False)
    readings: Readings | None = field(default=None, repr=False)

    @property
    def tokens_per_second(self) -> float:
        """Measured from the first token on, without the prompt."""
        return speed(len(self.record), self.seconds, self.first_seconds)

    def __getitem__(self, site: str | Site) -> torch.Tensor:
        """What was read at a site, on the CPU: a row per token, as `generate` says.

        Raises:
            KeyError: it was not read.
        """
        if self.readings is None:
            raise not_read(site, (), "this generation")
        return self.readings[site]

    def code(self) -> str:
        """The Python that generates it again. A function or a long tensor that was written is only named there."""
        apart = ("load", "prompt", "write", "write_code", "made_with", "sample")
        settings = {name: value for name, value in self.recipe.items() if name not in apart}
        if "write" in self.recipe:
            settings["write"] = {site: Name(code) for site, code in self.recipe["write"].items()}
            if str(at := self.recipe.get("write_at", "")).startswith("slice("):
                settings["write_at"] = Name(at)
        before = self.recipe["load"] + self.recipe.get("write_code", "")
        code = as_code(before, "generation = lm.generate", self.recipe["prompt"], **settings)
        return f"{code[:-1]}[{self.recipe['sample']}]\n" if "sample" in self.recipe else code

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it with what was read to one file (`.npz`), in one step; `labkit.open_generation` reads it.

        Activations that were kept in a folder (`store`) stay there; the file says where, relative to itself.
        """
        arrays = {} if self.readings is None else self.readings.arrays()
        return save_arrays(path, "generation", self.about(Path(path)), **arrays)

    def about(self, path: Path) -> dict[str, Any]:
        """Everything about it but the arrays that were read, for JSON in a file at this path."""
        ids = self.record.ids
        known = SavedTokens.of(
            self.tokenizer, [*(token.id for token in self.prompt), *ids, *self.record.rows["top_ids"].flat]
        )
        return {
            "prompt": [vars(token) for token in self.prompt],
            "text": self.text,
            "vocabulary": vars(known),
            "finish": self.finish,
            "seconds": self.seconds,
            "first_seconds": self.first_seconds,
            "recipe": {**self.recipe, "prompt": as_json(self.recipe["prompt"])},
            "record": self.record.to_dict(),
            "readings": None if self.readings is None else self.readings.about(path),
        }

    def __repr__(self) -> str:
        return f"Generation({len(self.record)} tokens, finish={self.finish!r}: {self.text!r:.80})"


def speed(tokens: int, seconds: float, first_seconds: float) -> float:
    """Tokens per second after the prompt."""
    return (tokens - 1) / (seconds - first_seconds) if tokens > 1 and seconds > first_seconds else 0.0


def open_generation(path: str | os.PathLike[str]) -> Generation:
    """Open a generation that `Generation.save` wrote. No model is needed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a saved generation, or was saved by a newer labkit.
    """
    about, arrays = open_arrays(path, "generation")
    with reading(path, "generation"):
        return generation_of(about, Path(path), arrays)


def generation_of(about: dict[str, Any], path: Path, arrays: dict[str, Any]) -> Generation:
    """The generation that `Generation.about` described, in a file at this path with these arrays."""
    record = Record.from_dict(about["record"])
    known = SavedTokens(**about["vocabulary"])
    known.whole[" ".join(map(str, record.ids))] = about["text"]
    readings = None if about["readings"] is None else Readings.opened(path, about["readings"], arrays)
    recipe = {**about["recipe"], "prompt": from_json(about["recipe"]["prompt"])}
    prompt, seconds = [Token(**token) for token in about["prompt"]], (about["seconds"], about["first_seconds"])
    return Generation(prompt, record, about["finish"], *seconds, recipe, known, readings)


@dataclass
class SavedTokens:
    """What of a tokenizer shows the tokens of one text: by id how its vocabulary writes one, and its text."""

    raw: dict[str, str]
    text: dict[str, str]
    all_special_ids: list[int]
    added_tokens_decoder: dict[int, Any] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any, ids: Iterable[int]) -> SavedTokens:
        some = sorted(set(map(int, ids)))
        raw = {str(id): text for id in some if (text := tokenizer.convert_ids_to_tokens(id)) is not None}
        text = {str(id): tokenizer.decode([id], clean_up_tokenization_spaces=False) for id in some if str(id) in raw}
        added = tokenizer.added_tokens_decoder
        special = {*tokenizer.all_special_ids, *(id for id in some if id in added and added[id].special)}
        return cls(raw, text, sorted(special & set(some)))

    def convert_ids_to_tokens(self, id: int) -> str | None:
        return self.raw.get(str(id))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        """The text of ids; of those of the whole text as the tokenizer had it, of others token by token."""
        if skip_special_tokens and (key := " ".join(map(str, ids))) in self.whole:
            return self.whole[key]
        special = self.all_special_ids if skip_special_tokens else ()
        return "".join(self.text.get(str(id), "") for id in ids if id not in special)
