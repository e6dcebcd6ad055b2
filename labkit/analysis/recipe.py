"""What repeats a result that was made from a pair of prompts: as data in its file, and as Python to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from labkit.tokens import Pair, describe

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel, Prompt


def recipe_of(
    lm: LanguageModel,
    pair: Pair,
    clean: Prompt,
    corrupt: Prompt,
    *,
    answer: int | None,
    foil: int | None,
    metric: str | Callable[..., Any] | None,
    **more: Any,
) -> dict[str, Any]:
    """Model, prompts, metric, versions and whatever else it takes, as JSON can hold it."""
    texts = lambda prompt: prompt if isinstance(prompt, str | list) else None  # noqa: E731
    word = lambda id: None if id is None else describe(lm.tokenizer, [id])[0].text  # noqa: E731
    return {
        "model": lm.name,
        "load": lm.code(),
        "revision": lm.revision,
        "bits": lm.bits,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "clean": texts(clean) or pair.clean[0].tolist(),
        "corrupt": texts(corrupt) or pair.corrupt[0].tolist(),
        "clean_ids": pair.clean[0].tolist(),
        "corrupt_ids": pair.corrupt[0].tolist(),
        "answer": word(answer),
        "foil": word(foil),
        "metric": getattr(metric, "__name__", "metric") if callable(metric) else (metric or _usual_metric(foil)),
        "own_metric": callable(metric),
        "versions": versions(),
        **more,
    }


def code_of(recipe: dict[str, Any], call: str, own: Sequence[str], *, usual: dict[str, Any]) -> str:
    """The Python that makes a result again.

    Args:
        recipe: as `recipe_of` gives it.
        call: what is called, and the name of what it gives: `grid = lk.patch`.
        own: the arguments that only this call has, `name=value` each.
        usual: of arguments that the recipe has under their own names, the value that need not be said.
    """
    arguments = [f"clean={recipe['clean']!r}", f"corrupt={recipe['corrupt']!r}"]
    arguments += [f"{name}={recipe[name]!r}" for name in ("answer", "foil") if recipe[name] is not None]
    arguments += own
    if recipe["metric"] != _usual_metric(recipe["foil"]):
        arguments.append(f"metric={recipe['metric'] if recipe['own_metric'] else repr(recipe['metric'])}")
    arguments += [f"{name}={recipe[name]!r}" for name, value in usual.items() if recipe[name] != value]
    lines = ",\n    ".join(arguments)
    return f"{recipe['load']}{call}(\n    lm,\n    {lines},\n)\n"


def versions() -> dict[str, str]:
    """The libraries that a result came from."""
    import torch
    import transformers

    import labkit

    return {"labkit": labkit.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def _usual_metric(foil: object) -> str:
    return "logprob" if foil is None else "logit_diff"
