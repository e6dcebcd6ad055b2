"""What repeats a result: as data in its file, and as Python to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from labkit._version import __version__
from labkit.activations.metrics import usual_metric
from labkit.models.handle import Model
from labkit.text.as_code import LM, Name, as_code, changed
from labkit.text.encode import single_token, word_for
from labkit.text.pair import Pair
from labkit.text.prompts import asked, packed
from labkit.text.tokens import describe
from labkit.text.types import Prompt


def recipe_of(
    lm: Model,
    pair: Pair,
    clean: Prompt,
    corrupt: Prompt,
    *,
    answer: int | None,
    foil: int | None,
    **more: Any,
) -> dict[str, Any]:
    """Model, prompts, answer and foil, and all `more` that is needed (metric, own_metric, at, ...), for JSON."""
    texts = lambda prompt: None if isinstance(prompt, torch.Tensor) else packed(asked(lm, prompt))  # noqa: E731
    word = lambda id: None if id is None else describe(lm.tokenizer, [id])[0].text  # noqa: E731
    upto = lambda ids: ids[:, : more.get("at", -1) % ids.shape[1] + 1]  # noqa: E731
    tokens = {"answer": (answer, upto(pair.clean)), "foil": (foil, upto(pair.corrupt))}
    return {
        **made_with(lm),
        "clean": texts(clean) or pair.clean[0].tolist(),
        "corrupt": texts(corrupt) or pair.corrupt[0].tolist(),
        "clean_ids": pair.clean[0].tolist(),
        "corrupt_ids": pair.corrupt[0].tolist(),
        "answer": word(answer),
        "foil": word(foil),
        "answer_id": answer,
        "foil_id": foil,
        "said_by_id": [
            name for name, (id, after) in tokens.items() if id is not None and word_for(lm, id, after=after) == id
        ],
        **more,
    }


def made_with(lm: Model) -> dict[str, Any]:
    """The origin of any result: the model as it was loaded, and the libraries."""
    return {
        "model": lm.name,
        "load": lm.code(),
        "revision": lm.revision,
        "bits": lm.bits,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def names_of(models: Sequence[Model]) -> list[str]:
    """A name for each model that tells it from the others: its own, its bits, both, or a number."""
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        named = len(set(names)) > 1
        names = [f"{model.name}, {model.bits}-bit" if named else f"{model.bits}-bit" for model in models]
    if len(set(names)) < len(names):
        names = [f"{n}: {name}" for n, name in enumerate(names, 1)]
    return names


def loaded_as(name: str, load: str) -> str:
    """The line that loads a model, from the Python that loads it as `lm`, under another name."""
    return load.split("\n\n")[-1].replace("lm = ", f"{name} = ", 1)


def code_of(recipe: dict[str, Any], call: str, own: dict[str, Any], *, usual: dict[str, Any]) -> str:
    """The Python that makes a result again.

    Args:
        recipe: as `recipe_of` gives it.
        call: what is called, and the name of what it gives: `grid = lk.patch`.
        own: the arguments specific to this call.
        usual: default values of arguments that the recipe has by name, which are left out.
    """
    by_id = recipe.get("said_by_id", ())  # those whose text would be taken as other tokens
    words = {name: recipe[f"{name}_id" if name in by_id else name] for name in ("answer", "foil")}
    asked: dict[str, Any] = {name: _prompt(recipe[name]) for name in ("clean", "corrupt")}
    before = f"{recipe['load']}{recipe.get('metric_code', '')}"
    if "source" in recipe:  # another model's run of the same prompt
        before = recipe["load"] + loaded_as("source", recipe["source"]["load"])
        before += recipe.get("metric_code", "")
        asked = {"clean": asked["clean"], "source": Name("source")}
    if "by" in recipe:  # the clean prompt alone
        asked = {"clean": asked["clean"]}
    asked |= {name: word for name, word in words.items() if word is not None}
    how = measured_by(recipe) | changed(usual, recipe)
    return as_code(before, call, LM, **asked, **own, **how)


def _prompt(kept: Any) -> Any:
    """A prompt of a recipe as it is passed: ids are a list there."""
    ids = isinstance(kept, list) and all(isinstance(one, int) for one in kept)
    return torch.tensor([kept]) if ids else kept


def measured_by(recipe: dict[str, Any]) -> dict[str, Any]:
    """The metric of a recipe as an argument, where it is not the usual one."""
    name = recipe["metric"]
    if name == usual_metric(recipe["foil"], several="answer_tokens" in recipe):
        return {}
    return {"metric": Name(name) if recipe["own_metric"] else name}


def answer_ids(lm: Model, recipe: dict[str, Any]) -> tuple[int | None, int | None]:
    """The ids of answer and foil; of a file from before ids were kept, of their texts; None where they are several."""
    if "answer_tokens" in recipe:
        return None, None
    found: list[int | None] = []
    for name, side in (("answer", "clean"), ("foil", "corrupt")):
        id, text = recipe.get(f"{name}_id"), recipe[name]
        if id is None and text is not None:
            ids = torch.tensor(recipe[f"{side}_ids"])
            id = single_token(lm, text, role=name, after=ids[: recipe.get("at", -1) % len(ids) + 1])
        found.append(id)
    return found[0], found[1]


def versions() -> dict[str, str]:
    """The libraries that a result came from."""
    return {"labkit": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
