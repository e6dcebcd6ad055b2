"""The runs of a PromptLab in a JSON file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from labkit._version import __version__
from labkit.generation.score import Score
from labkit.generation.token_table import Record
from labkit.generation.tree import Tree
from labkit.language_model import LanguageModel
from labkit.results.file import KINDS, open_about, reading, written_whole
from labkit.text.chat import template_of

KIND = "labkit prompt session"


@dataclass(eq=False)
class Run:
    """One press of Run: the settings, and the result for each model, None if there was none."""

    mode: str
    prompt: str
    system: str
    messages: list[dict[str, Any]]
    results: list[Tree | Score | None] = field(default_factory=list)

    @property
    def label(self) -> str:
        said = self.messages[-1]["content"] if self.mode == "chat" and self.messages else self.prompt
        words = " ".join(said.split())
        return f"{self.mode}: {words[:48]}{'…' if len(words) > 48 else ''}"


def template_mark(lm: LanguageModel) -> str | None:
    """A short hash of a model's chat template; None if there is none."""
    template = template_of(lm)
    return None if template is None else hashlib.sha256(template.encode()).hexdigest()[:12]


def save(path: str | Path, lms: Sequence[LanguageModel], settings: dict[str, Any], runs: Sequence[Run]) -> Path:
    """Write a session. The file is put in place when it is whole; an older one of that name stays until then."""
    whole = {
        "kind": KIND, "format": KINDS[KIND].newest, "labkit": __version__,
        "models": [
            {"name": lm.name, "revision": lm.revision, "bits": lm.bits, "template": template_mark(lm)} for lm in lms
        ],
        "settings": settings,
        "runs": [
            {
                "mode": run.mode, "prompt": run.prompt, "system": run.system, "messages": run.messages,
                "results": [_saved(result) for result in run.results],
            }
            for run in runs
        ],
    }  # fmt: skip
    file = Path(path)
    file = file if file.suffix else file.with_suffix(".json")
    text = json.dumps(whole, ensure_ascii=False, indent=1)
    with written_whole(file) as part:
        part.write(text.encode())
    return file


def read(path: str | Path, lms: Sequence[LanguageModel]) -> tuple[dict[str, Any], list[Run], str]:
    """The settings and runs of a session, and in words how these models differ from those that wrote it.

    Raises:
        ValueError: there is no such file, it is not a session, or belongs to other models.
    """
    try:
        whole = open_about(path, KIND)
    except FileNotFoundError:
        raise ValueError(f"there is no file {str(path)!r} in {Path.cwd()}") from None
    with reading(path, KIND):
        models = [(model["name"], model["bits"]) for model in whole["models"]]
        settings, saved = dict(whole["settings"]), list(whole["runs"])
    if len(models) != len(lms):
        names = ", ".join(f"{name} in {bits} bits" for name, bits in models)
        raise ValueError(f"the session compares {len(models)} models ({names}); this PromptLab has {len(lms)}")
    apart = [
        f"{name} in {bits} bits (here {lm.name} in {lm.bits})"
        for (name, bits), lm in zip(models, lms, strict=True)
        if (name, bits) != (lm.name, lm.bits)
    ]
    with reading(path, KIND):
        runs = [
            Run(
                run["mode"], run["prompt"], run["system"], run["messages"],
                [_opened(lm, result) for lm, result in zip(lms, run["results"], strict=False)],
            )
            for run in saved
        ]  # fmt: skip
    return settings, runs, f"written by {', '.join(apart)}" if apart else ""


def _saved(result: Tree | Score | None) -> dict[str, Any] | None:
    if isinstance(result, Tree):
        return {"tree": result.to_dict()}
    if isinstance(result, Score):
        return {"score": {"text": result.recipe["prompt"], "record": result.record.to_dict()}}
    return None


def _opened(lm: LanguageModel, saved: dict[str, Any] | None) -> Tree | Score | None:
    if saved is None:
        return None
    if "tree" in saved:
        return Tree.from_dict(lm, saved["tree"])
    record = Record.from_dict(saved["score"]["record"])
    prompt = lm.tokens(torch.tensor([record.ids]))
    return Score(prompt, record, {"prompt": saved["score"]["text"], "load": lm.code()}, lm.tokenizer)
