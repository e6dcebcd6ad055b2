"""Several texts after one prompt, each with a seed of its own."""

from __future__ import annotations

import secrets
from typing import Any

from labkit.generation.generate import generate
from labkit.generation.result import Generation
from labkit.models.handle import Model
from labkit.text.prompts import each_prompt
from labkit.text.types import Prompt


@each_prompt
def samples_of(lm: Model, prompt: Prompt, count: int, *, seed: int | None = None, **settings: Any) -> list[Generation]:
    """Continue a prompt several times; or each prompt of a list, which gives a list of lists.

    Each text is the one that `generate` gives for its seed alone, with what is read and written there.

    Args:
        count: how many texts.
        seed: of the first text; the next have the seeds that follow it. By default one is drawn.
        settings: as in `generate`; a temperature above 0 is needed.

    Returns:
        The texts; after an interrupt those that there are. An error has those before it as `results`.

    Raises:
        ValueError: there would be no texts, or all the same; and as `generate`.
    """
    if count < 1:
        raise ValueError(f"samples must be at least 1; got {count}")
    if not settings.get("temperature") and count > 1:
        raise ValueError(
            "at temperature 0 all samples are the same text; set temperature, to 1 for the model's own odds"
        )
    if seed is None:
        seed = secrets.randbits(30)
    found: list[Generation] = []
    for n in range(count):
        try:
            found.append(generate(lm, prompt, seed=seed + n, **settings))
        except Exception as error:
            error.results = found  # type: ignore[attr-defined]
            error.add_note(f"this was sample {n + 1} of {count}; earlier ones are in this error's `results`")
            raise
        if found[-1].finish == "stopped":
            break
    return found
