"""A student of a class who does a patching exercise on a model that is shared, also as a process of its own.

Usage: python student.py URL TOKEN NUMBER FILE. Writes what was found; without a FILE it goes on with the next pair.
"""

from __future__ import annotations

import sys

import numpy as np

import labkit as lk

CALLS = 3  # of one exercise


def pairs(lm: lk.LanguageModel) -> list[lk.PromptPair]:
    """A pair for each student, and many more."""
    return lk.task("indirect object").pairs(lm, 200, seed=20)


def exercise(lm: lk.LanguageModel, pair: lk.PromptPair) -> dict[str, np.ndarray]:
    """A grid, a closer look at its strongest layer, and a second grid of the heads there."""
    first = lk.patch(lm, *pair, progress=False)
    layer = int(np.unravel_index(np.nanargmax(np.abs(first.values)), first.values.shape)[0])
    run = lm.run(pair.clean, read=[f"resid_post.{layer}@-1"], logits="last")
    second = lk.patch(lm, *pair, site="z", layers=[layer], progress=False)
    read = run[f"resid_post.{layer}@-1"].float().numpy()
    return {"first": first.values, "read": read, "logits": run.logits.float().numpy(), "second": second.values}


def same(here: dict[str, np.ndarray], there: dict[str, np.ndarray]) -> bool:
    """The same numbers, to the last bit."""
    return here.keys() == there.keys() and all(
        np.array_equal(value, there[name], equal_nan=True) for name, value in here.items()
    )


def main(url: str, token: str, number: str, file: str = "") -> None:
    lm = lk.connect(url, token=token)
    for pair in pairs(lm)[int(number) :]:
        found = exercise(lm, pair)
        if file:
            np.savez(file, **found)
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
