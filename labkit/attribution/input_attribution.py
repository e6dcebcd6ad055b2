"""What in the prompt made the model write this?

*Occlusion* answers it exactly: remove a part of the prompt, and measure again how likely the text is that was written
(Zeiler and Fergus 2014; for contrasts, Yin and Neubig 2022). Gradient estimates are beside it (`input_gradients`).
What is removed together may matter more, or less, than the sum of its parts; the deletion curve looks at that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from labkit.attribution.input_gradients import InputGradients, Path, gap_of
from labkit.attribution.removal import Ids, Removals, Replacement
from labkit.attribution.result import InputAttribution
from labkit.attribution.units import By, Unit, units_of
from labkit.elsewhere import where_the_model_is
from labkit.generation.generate import generate
from labkit.language_model import LanguageModel
from labkit.results.job import finish
from labkit.results.recipe import made_with
from labkit.text.continuation import Added, encode_continuations
from labkit.text.encode import encode
from labkit.text.prompts import as_json, asked
from labkit.text.tokens import describe
from labkit.text.types import Prompt
from labkit.text.warn import warn
from labkit.text.whole_numbers import whole

Method = Literal["occlusion", "gradient_x_input", "integrated_gradients"]


@where_the_model_is
def input_attribution(
    lm: LanguageModel,
    prompt: Prompt,
    *,
    written: str | Sequence[int] | None = None,
    foil: str | Sequence[int] | None = None,
    by: By = "token",
    method: Method = "occlusion",
    replace: str | int = "mean",
    per_token: bool = False,
    max_new_tokens: int = 20,
    tolerance: float = 0.01,
    max_steps: int = 400,
    progress: bool = True,
) -> InputAttribution:
    """How much each part of a prompt made a text likelier that was written after it.

    Args:
        prompt: text, chat messages or token ids (1, seq).
        written: the text, with the space that comes before it, or its ids; by default what the model writes.
        foil: another text of any length. With it everything is measured on the difference of the two log-probabilities:
            what made it write this *rather than* that?
        by: the parts: `token`, `word`, `sentence`, `message` (of a chat), or (start, stop) positions of each.
        method: `occlusion` is exact: the log-probability less the one without the part. `gradient_x_input` is its
            linear estimate, `integrated_gradients` (Sundararajan et al. 2017) the average of that over a path, which
            adds up to what all parts do together. For both the first token of the prompt stays as it is.
        replace: what takes the place of a removed token: `mean`, the mean embedding of the vocabulary; `zero`, zeros,
            with which `gradient_x_input` is the product of that name; one token, as text or id (`"_"`); or, for
            occlusion alone, `delete`: the tokens are left out, and what follows moves up. Anything else leaves
            positions as they are, as well as what was written.
        per_token: for gradients, also the share of each token that was written, which takes a backward pass for each.
            Occlusion has these always.
        max_new_tokens: how many tokens the model writes at most where `written` is not given.
        tolerance: for integrated gradients, how far the sum may be from the whole difference, as a share of it.
        max_steps: the most gradients to take for that.
        progress: show a progress bar.

    Returns:
        An `InputAttribution`, in nats; what an interrupt leaves has NaN for parts not removed yet, or what the path had
        come to. Warns where integrated gradients do not reach `tolerance` in `max_steps`; `gap` says what they reach.

    Raises:
        ValueError: invalid input, before the model has run: an empty text, a part out of range, messages of a plain
            text, a `replace` that the method cannot do, or a prompt and text too long for the context.
        TypeError: a prompt or a text is none.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be {', '.join(map(repr, get_args(Method)))}; got {method!r}")
    if method != "occlusion" and replace == "delete":
        raise ValueError("replace='delete' leaves no embedding to take a gradient at; use it with method='occlusion'")
    if not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise ValueError(f"tolerance is a share between 0 and 1, such as 0.01; got {tolerance!r}")
    max_steps = whole("max_steps", max_steps, least=20)  # a path begins with as many
    for name, text in (("written", written), ("foil", foil)):
        if text is not None and not isinstance(text, str | Iterable):
            raise TypeError(f"{name} must be a text or a list of token ids; got {text!r:.60}")
    prompt = asked(lm, prompt)
    recipe: dict[str, Any] = {
        "prompt": as_json(prompt), "written": _given(written), "foil": _given(foil),
        "method": method, "replace": replace, "per_token": per_token, "max_new_tokens": max_new_tokens,
        "tolerance": tolerance, "max_steps": max_steps,
    }  # fmt: skip
    what = {"occlusion": "removing", "gradient_x_input": "gradient", "integrated_gradients": "integrating"}[method]
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode could not go into a gradient
        ids, spans = _texts(lm, prompt, written, foil, max_new_tokens, by, Replacement.of(lm, replace))
        units = units_of(lm, prompt, ids, by)
        recipe["by"] = by if isinstance(by, str) else [[unit.start, unit.stop] for unit in units]
        job = AttributionJob(lm, ids, spans, units, recipe)
        finish(job, what, unit=job.counts, kept="attribution", progress=progress)
    if method == "integrated_gradients" and job.complete and job.gap >= tolerance:
        warn(
            f"integrated gradients of {job.attribution.steps} steps miss the whole difference by {job.gap:.1%}, more "
            f"than tolerance={tolerance}; raise max_steps, or replace in another way"
        )
    return job.attribution


def _given(text: str | Sequence[int] | None) -> str | list[int] | None:
    return text if text is None or isinstance(text, str) else [int(id) for id in text]


def _texts(
    lm: LanguageModel,
    prompt: Prompt,
    written: str | Sequence[int] | None,
    foil: str | Sequence[int] | None,
    most: int,
    by: By,
    replacement: Replacement,
) -> tuple[Ids, list[Ids]]:
    """The ids of the prompt, of what was written, and of the foil if there is one."""
    for name, text in (("written", written), ("foil", foil)):
        if text is not None and not len(text):
            raise ValueError(f"{name} is empty; give at least one token, or leave it out")
    texts: list[Added] = [
        text if isinstance(text, str) else tuple(map(int, text)) for text in (written, foil) if text is not None
    ]
    for id in (id for text in texts if not isinstance(text, str) for id in text):
        if not 0 <= id < lm.n_vocab:
            raise ValueError(f"token ids go from 0 to {lm.n_vocab - 1}; got {id}")
    if isinstance(prompt, str) and prompt and all(isinstance(text, str) for text in texts) and written is not None:
        pairs = encode_continuations(lm, [(prompt, text) for text in texts])
    else:  # the prompt's ids are what they are
        exact = encode(lm, prompt)
        units_of(lm, prompt, exact[0].tolist(), by)  # before the model has run
        if written is None:
            texts.insert(0, _written(lm, prompt, most))
        pairs = encode_continuations(lm, [(exact, text) for text in texts])
    spans = [span for _, span in pairs]
    if len(spans) == 2 and spans[0] == spans[1]:
        raise ValueError(f"written and foil are the same text, {lm.tokenizer.decode(spans[0])!r:.60}")
    return pairs[0][0], spans


def _written(lm: LanguageModel, prompt: Prompt, most: int) -> Ids:
    """What the model writes, without the token that ends it."""
    made = generate(lm, prompt, max_new_tokens=most)
    if made.finish == "stopped":
        raise KeyboardInterrupt
    ids = made.record.ids
    return tuple(ids[:-1] if made.finish == "eos" and len(ids) > 1 else ids)


class AttributionJob:
    """The work of `input_attribution`, in steps.

    Attributes:
        counts: what it counts: units, or steps.
        complete: is it?
        gap: of integrated gradients, as a share of the whole difference.
    """

    def __init__(
        self, lm: LanguageModel, ids: Ids, spans: Sequence[Ids], units: tuple[Unit, ...], recipe: dict[str, Any]
    ) -> None:
        self.lm, self.ids, self.asked, self.spans = lm, ids, recipe, list(spans)
        self.units = units
        self.replacement = Replacement.of(lm, recipe["replace"])
        self.method = recipe["method"]
        self.counts = "unit" if self.method == "occlusion" else "step"
        self.complete, self.gap, self.steps_taken = False, float("nan"), 0
        self.signs = np.concatenate([np.full(len(span), sign) for span, sign in zip(spans, (1, -1), strict=False)])
        self.table = np.full((len(self.signs), len(self.units)), np.nan)
        self.score = self.without = float("nan")
        self._summed: np.ndarray | None = None  # the values of gradients that were not taken token by token

    @property
    def total(self) -> int:
        return len(self.units) if self.method == "occlusion" else max(self.steps_taken, 20)

    @property
    def done(self) -> int:
        return int((~np.isnan(self.table[0])).sum()) if self.method == "occlusion" else self.steps_taken

    def steps(self) -> Iterator[int]:
        """Do the work; yields how much is done."""
        yield from self._occlusion() if self.method == "occlusion" else self._gradients()
        self.complete = True

    def _occlusion(self) -> Iterator[int]:
        removals = Removals(self.lm, self.ids, self.spans, self.replacement)
        self.score = float(removals.own @ self.signs)
        sets = [frozenset(unit.positions) for unit in self.units]
        everything = frozenset(n for one in sets for n in one)
        for numbers, rows in removals.steps([*sets, everything]):
            for n, row in zip(numbers, rows, strict=True):
                if n < len(sets):
                    self.table[:, n] = (removals.own - row) * self.signs
                else:
                    self.without = float(row @ self.signs)
            yield self.done

    def _gradients(self) -> Iterator[int]:
        spans = list(zip(self.spans, (1, -1), strict=False))
        per_token = bool(self.asked["per_token"])
        taken = InputGradients(self.lm, self.ids, spans, self.units, self.replacement, per_token=per_token)
        self.without, self.score = taken.ends
        if self.method == "gradient_x_input":
            self._take(taken.times_input(), taken)
            yield self.done
            return
        path = Path(taken)
        for _ in path.steps(tolerance=self.asked["tolerance"], most=self.asked["max_steps"]):
            self._take(path.sums, taken)
            yield self.done

    def _take(self, sums: np.ndarray, taken: InputGradients) -> None:
        self.gap, self.steps_taken = gap_of(sums, taken.difference), taken.steps
        if self.asked["per_token"]:
            self.table[:] = sums
        else:
            self._summed = sums[0]

    @property
    def attribution(self) -> InputAttribution:
        """What is computed so far."""
        tokens = tuple(self.lm.tokens(torch.tensor([self.ids])))
        texts = [tuple(describe(self.lm.tokenizer, span)) for span in self.spans]
        each = self.method == "occlusion" or self.asked["per_token"]
        values = self.table.sum(0) if each else self._summed
        if values is None:
            values = np.full(len(self.units), np.nan)
        recipe = made_with(self.lm) | {
            "asked": self.asked, "method": self.method, "ids": list(self.ids), "spans": [list(s) for s in self.spans],
            "stopped": not self.complete,
        }  # fmt: skip
        return InputAttribution(
            tokens, self.units, values.astype(np.float32), self.table.astype(np.float32) if each else None,
            texts[0], texts[1] if len(texts) > 1 else (), self.score, self.without, self.steps_taken, recipe, self.lm,
        )  # fmt: skip
