"""A search over layers and strengths: where does steering do most of what it should, and least of anything else?

Each direction is added after its layer with each strength. The *effect* is measured on prompts that did not give the
direction: how much likelier the positive continuation becomes than the negative one. It asks the model for words, and
not how far activations moved along the direction, which they do by construction. The *damage* is measured on neutral
prose: the KL divergence of the next-token distributions from those of the unchanged model, and the perplexity. Random
directions of the same norm, which may choose their best layer and strength as well, show what an effect is worth.

What is added after a layer changes nothing below it, so every variant starts there, from the stored run
(`labkit.engine.steered_run`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from labkit.activations.metrics import METRICS, MetricFunction, code_of_own, metric_of
from labkit.activations.sites import checked
from labkit.audits.steering_search_result import SteeringSearch
from labkit.elsewhere import names_only, where_the_model_is
from labkit.engine.batching import chunked, in_chunks, tokens_at_once
from labkit.engine.steered_run import Change, Measure, SteeredRun
from labkit.generation.generate import room_for
from labkit.precision.passage import PASSAGE
from labkit.results.job import finish
from labkit.results.recipe import made_with
from labkit.steering.directions import At, Method, vectors_of
from labkit.text.as_code import changed
from labkit.text.encode import encode
from labkit.text.prompts import as_json, asked, prompts_of
from labkit.text.whole_numbers import whole

if TYPE_CHECKING:
    from labkit.language_model import LanguageModel
    from labkit.steering.vector import SteeringVector
    from labkit.text.types import Prompt

STRENGTHS = (0.5, 1.0, 2.0, 4.0)
LAYERS = 10  # how many are tried where none are named
NEUTRAL = 96  # tokens of the neutral text where none is given

Cell = tuple[int, int, int]  # layer, strength and direction, as places in the result


def steering_search(
    lm: LanguageModel,
    positive: Sequence[Prompt],
    negative: Sequence[Prompt],
    *,
    prompts: Sequence[Any] | None = None,
    layers: Sequence[int] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    effect: str | MetricFunction | None = None,
    neutral: Prompt = PASSAGE,
    random: int = 5,
    method: Method = "mean_difference",
    at: At = "last",
    seed: int = 0,
    progress: bool = True,
) -> SteeringSearch:
    """Measure the effect and the damage of a direction at each layer with each strength, beside random directions.

    Args:
        lm: the model, in any bits.
        positive, negative: prompts that have what is wanted, and prompts that lack it, as for
            `labkit.steering_vector`; pairs, in the same order, where `prompts` is not given.
        prompts: on what the effect is measured: pairs (positive, negative) of texts that begin alike, such as
            `("My week was good", "My week was bad")`; what follows the shared beginning is compared. By default half of
            the pairs of `positive` and `negative`, drawn with `seed`, which then give no direction. With `effect`,
            prompts as such.
        layers: after which layers; by default ten, evenly spaced.
        strengths: how many times the vector is added; negative for the opposite direction.
        effect: a metric of the logits after `prompts` instead, by name or as a function (rows, vocab) -> (rows,).
        neutral: the text on which damage is measured; by default the beginning of a passage of labkit's own.
        random: how many random directions of the same norm are tried at each layer with each strength.
        method, at: how directions are found, as in `labkit.steering_vector`.
        seed: of the halves and the random directions.
        progress: show a progress bar.

    Returns:
        A `SteeringSearch`. After an interrupt, or as `search` on an error, it has what was measured until then: first
        the directions of all layers, then the random ones.

    Raises:
        ValueError: too few prompts, one on both sides or in both uses, a pair that does not begin alike, a layer that
            does not exist, strengths that are no numbers, a metric that needs an answer, or a text too long for the
            context; before anything is measured.
    """
    names_only(lm, effect=effect)
    numbers = _numbers(strengths)
    random = whole("random", random, least=1, of=" of directions, which judge the effect")
    if method not in get_args(Method) or at not in get_args(At):
        raise ValueError(f"method must be 'mean_difference' or 'pca', and at 'last' or 'mean'; got {method!r}, {at!r}")
    some = np.linspace(0, lm.n_layers - 1, min(LAYERS, lm.n_layers)).round() if layers is None else layers
    among = sorted({checked(lm, f"resid_post.{int(layer)}").layer or 0 for layer in some})
    if not among:
        raise ValueError("layers=[] names no layer; give at least one")
    sides = {"positive": prompts_of(positive), "negative": prompts_of(negative)}
    sides = {name: [asked(lm, prompt) for prompt in side] for name, side in sides.items()}
    train, held_out = _uses(lm, sides, prompts, effect, seed)
    usual_text = isinstance(neutral, str) and neutral == PASSAGE
    most = min(NEUTRAL, lm.context or NEUTRAL)
    ids = encode(lm, PASSAGE, most=None)[:, :most] if usual_text else room_for(lm, neutral, 0)
    test = SteeringTest(lm, held_out, effect, ids)
    usual: dict[str, Any] = {
        "prompts": None, "layers": None, "strengths": list(STRENGTHS), "effect": None, "neutral": None, "random": 5,
        "method": "mean_difference", "at": "last", "seed": 0,
    }  # fmt: skip
    given = None if prompts is None else [_packed(lm, one, effect) for one in prompts]
    told: dict[str, Any] = {
        "prompts": given, "layers": None if layers is None else among, "strengths": list(strengths),
        "effect": getattr(effect, "__name__", "effect") if callable(effect) else effect,
        "neutral": None if usual_text else as_json(asked(lm, neutral)), "random": random, "method": method,
        "at": at, "seed": seed,
    }  # fmt: skip
    recipe = {
        **made_with(lm), **{name: [as_json(one) for one in side] for name, side in sides.items()},
        "asked": changed(usual, told), "own_effect": callable(effect), "unit": test.unit, "what": test.what,
    }  # fmt: skip
    if isinstance(effect, str):
        recipe["effect_code"] = code_of_own(effect)

    directions = vectors_of(lm, train, among, at=at, method=method)
    if not directions:
        raise ValueError("positive and negative give the same activations at every layer; they must differ where read")
    job = SearchJob(test, directions, numbers, random, seed, recipe)
    finish(job, "steering", unit="setting", kept="search", progress=progress)
    return job.search


class SearchJob:
    """Settings measured one after the other, several at a time, so that they can be watched and stopped."""

    def __init__(
        self,
        test: SteeringTest,
        directions: dict[int, SteeringVector],
        strengths: tuple[float, ...],
        random: int,
        seed: int,
        recipe: dict[str, Any],
    ) -> None:
        """Measure the unchanged model."""
        self.test, self.directions, self.strengths, self.recipe = test, directions, strengths, recipe
        self._vectors = {
            layer: [own, *(own.random(seed + layer + n * test.lm.n_layers) for n in range(random))]
            for layer, own in directions.items()
        }
        self._layers = list(directions)
        self._plain, self._perplexity = test.unchanged()
        shape = len(self._layers), len(strengths), 1 + random
        self._effects = np.full((*shape, len(self._plain)), np.nan, np.float32)
        self._damage = np.full((*shape, 2), np.nan, np.float32)

    @property
    def total(self) -> int:
        return self._damage[..., 0].size

    @property
    def done(self) -> int:
        return int(np.isfinite(self._damage[..., 0]).sum())

    @property
    def search(self) -> SteeringSearch:
        """What is measured so far."""
        return SteeringSearch(
            self.directions, self.strengths, self._effects.copy(), self._damage.copy(), self._plain, self._perplexity,
            self.recipe,
        )  # fmt: skip

    def steps(self) -> Iterator[int]:
        """What is not measured yet: the directions at each layer, then the random ones."""
        waiting = [(int(a), int(b), int(c)) for a, b, c in np.argwhere(np.isnan(self._damage[..., 0]))]
        size, budget = self.test.neutral_ids.shape[1], tokens_at_once(self.test.lm)
        chunks: list[list[Cell]] = []
        for own in (True, False):
            for layer in range(len(self._layers)):
                here = [cell for cell in waiting if cell[0] == layer and (cell[2] == 0) == own]
                chunks += chunked(here, lambda _: size, budget=budget)
        for cells, values in in_chunks(chunks, self._measured, stopped=lambda: False):
            places = tuple(np.array(cells).T)
            self._effects[places] = values[:, 2:] - self._plain
            self._damage[places] = values[:, :2]
            yield len(cells)

    def _measured(self, cells: list[Cell]) -> np.ndarray:
        layer = self._layers[cells[0][0]]
        added = torch.stack([self.strengths[s] * self._vectors[layer][direction].values for _, s, direction in cells])
        return self.test.measured((layer, added))


@dataclass(frozen=True)
class _Text:
    """One text of a pair, of which the tokens from `start` on are scored; or a prompt, after which a metric is read."""

    run: SteeredRun
    start: int

    def logprob(self, change: Change | None) -> torch.Tensor:
        """(rows,): the log-probability of its tokens from `start` on, nats."""
        target = self.run.ids[0, self.start :]

        def summed(logits: torch.Tensor) -> torch.Tensor:
            index = target.to(logits.device)[None, :, None].expand(len(logits), -1, 1)
            return logits.log_softmax(-1).gather(-1, index)[..., 0].sum(-1)

        return self.run.measured(slice(self.start - 1, self.run.ids.shape[1] - 1), summed, change)


class SteeringTest:
    """What effect and damage are measured on."""

    def __init__(
        self, lm: LanguageModel, held_out: Sequence[Any], effect: str | MetricFunction | None, neutral: torch.Tensor
    ) -> None:
        """
        Raises:
            ValueError: a bad prompt, or one too long; a metric that needs an answer; a neutral text of one token.
        """
        self.lm, self.effect = lm, effect
        if neutral.shape[1] < 2:
            raise ValueError("the neutral text is a single token with nothing before it; give at least two tokens")
        self.unit, self.what = "nats", "log-odds of the positive continuation"
        if effect is not None:
            own = [kind for kind in METRICS.values() if effect in (kind.name, kind.function)]
            kind = own[0] if own else None
            if isinstance(effect, str) and kind is None:
                raise ValueError(f"there is no metric {effect!r}; use one of {', '.join(METRICS)}, or a function")
            if kind is not None and {"answer", "foil"} & set(kind.needs):
                raise ValueError(
                    f"the metric {kind.name} needs an answer, which differs between prompts; leave out effect= and "
                    "give prompts=[(positive, negative), ...], or give a function of the logits"
                )
            self.what = kind.label if kind else getattr(effect, "__name__", "effect")
            self.unit = kind.unit if kind else ""
            texts = [(room_for(lm, prompt, 0), -1) for prompt in held_out]
        else:
            texts = [text for n, pair in enumerate(held_out) for text in _parted(lm, pair, n)]
        self.held_out, self.neutral_ids, self._asked = held_out, neutral, texts
        self._clean: torch.Tensor | None = None  # logits of the unchanged model, (token, vocab)
        self._functions: list[Measure] = []

    @cached_property
    def neutral(self) -> SteeredRun:
        return SteeredRun(self.lm, self.neutral_ids)

    @cached_property
    def _texts(self) -> list[_Text]:
        return [_Text(SteeredRun(self.lm, ids), start) for ids, start in self._asked]

    @where_the_model_is
    def unchanged(self) -> tuple[np.ndarray, float]:
        """What is measured of the unchanged model: by prompt, and the perplexity; later damage is compared with it."""
        kept: list[torch.Tensor] = []

        def keep(logits: torch.Tensor) -> torch.Tensor:
            kept.append(logits[0])
            return logits[:, :1, 0]

        self.neutral.measured(slice(0, -1), keep)
        self._clean = kept[0].log_softmax(-1)  # (token, vocab)
        if self.effect is not None:
            kept.clear()
            for text in self._texts:
                text.run.measured(slice(-1, None), keep)
            self._functions = [
                metric_of(self.effect, answer=None, foil=None, reference=logits[0]).of for logits in kept
            ]
        found = self.measured(None)[0]
        return found[2:], float(found[0])

    @where_the_model_is
    def measured(self, change: Change | None) -> np.ndarray:
        """(rows, 2 + prompt) float32 for each vector that is added: perplexity and KL on the neutral text, and the
        effect's measure for each prompt.
        """
        if self._clean is None:
            self.unchanged()
        damage = self.neutral.measured(slice(0, -1), self._damage, change)
        if self.effect is None:
            each = [text.logprob(change) for text in self._texts]
            effects = [a - b for a, b in zip(each[::2], each[1::2], strict=True)]
        else:
            effects = [
                text.run.measured(slice(-1, None), _of_last(function), change)
                for text, function in zip(self._texts, self._functions, strict=True)
            ]
        return torch.cat([damage, torch.stack(effects, 1).to(damage)], 1).float().cpu().numpy()

    def _damage(self, logits: torch.Tensor) -> torch.Tensor:
        """(rows, 2) for (rows, token, vocab), row by row, as a vocabulary for each token is large."""
        found = []
        for row in logits:
            own = row.log_softmax(-1)
            assert self._clean is not None
            clean = self._clean.to(own.device)
            target = self.neutral.ids[0, 1:].to(own.device)
            kl = (clean.exp() * (clean - own)).sum(-1).mean().clamp(min=0)
            found.append(torch.stack([(-own.gather(1, target[:, None]).mean()).exp(), kl]))
        return torch.stack(found)


def _of_last(function: Measure) -> Measure:
    return lambda logits: function(logits[:, -1])


def _numbers(strengths: Any) -> tuple[float, ...]:
    """
    Raises:
        ValueError: none, or one that is not a finite number other than 0.
    """
    given = list(strengths) if isinstance(strengths, Sequence | np.ndarray) and not isinstance(strengths, str) else None
    if not given:
        raise ValueError(f"strengths must be one number or more, such as {list(STRENGTHS)}; got {strengths!r}")
    for one in given:
        if isinstance(one, bool | str) or not np.isscalar(one) or not np.isfinite(one) or not one:
            raise ValueError(f"strengths must be finite numbers other than 0; got {one!r}")
    return tuple(sorted({float(one) for one in given}))


def _uses(
    lm: LanguageModel,
    sides: dict[str, list[Prompt]],
    prompts: Sequence[Any] | None,
    effect: Any,
    seed: int,
) -> tuple[dict[str, list[Prompt]], list[Any]]:
    """The prompts that give the directions, by side, and those on which the effect is measured.

    Raises:
        ValueError: too few, or the same prompt on both sides or in both uses.
    """
    for name, side in sides.items():
        if not side:
            raise ValueError(f"there are no {name} prompts; give at least one, preferably five")
    known = {name: {tuple(lm.encode(prompt)[0].tolist()): prompt for prompt in side} for name, side in sides.items()}
    if both := [prompt for ids, prompt in known["positive"].items() if ids in known["negative"]]:
        raise ValueError(f"a prompt is both positive and negative: {_short(both[0])}")
    if prompts is None:
        if effect is not None:
            raise ValueError("effect= is measured after prompts; give some that gave no direction, prompts=[...]")
        count = len(sides["positive"])
        if count != len(sides["negative"]) or count < 4:
            raise ValueError(
                "half of the pairs find the direction and half test it: give at least 4, positive and negative in the "
                f"same order, or prompts=[...] to test on; got {count} positive and {len(sides['negative'])} negative"
            )
        order = np.random.default_rng(seed).permutation(count).tolist()
        find, test = sorted(order[count // 2 :]), sorted(order[: count // 2])
        train = {name: [side[n] for n in find] for name, side in sides.items()}
        return train, [(sides["positive"][n], sides["negative"][n]) for n in test]
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("prompts must be a list of what the effect is measured on, and not empty")
    if effect is None:
        for n, pair in enumerate(prompts):
            if isinstance(pair, str) or len(pair) != 2:
                raise ValueError(
                    f"prompt {n} must be a pair (positive, negative) of texts that begin alike; got {_short(pair)}. "
                    "Prompts alone need effect=, a metric"
                )
    for one in [prompt for each in prompts for prompt in (each if effect is None else [each])]:
        ids = tuple(lm.encode(one)[0].tolist())
        if ids in known["positive"] or ids in known["negative"]:
            raise ValueError(f"a prompt would both give the direction and test it: {_short(one)}")
    return sides, list(prompts)


def _parted(lm: LanguageModel, pair: Sequence[Prompt], n: int) -> Iterator[tuple[torch.Tensor, int]]:
    """The ids (1, seq) of both texts of a pair, and where they part.

    Raises:
        ValueError: they do not begin alike, or one is the beginning of the other.
    """
    both = [room_for(lm, text, 0) for text in pair]
    least = min(ids.shape[1] for ids in both)
    unlike = (both[0][0, :least] != both[1][0, :least]).nonzero()[:, 0].tolist()
    if not unlike:
        raise ValueError(f"pair {n}: one text is the beginning of the other, so there is nothing to compare")
    if not unlike[0]:
        raise ValueError(
            f"pair {n} differs from its first token on: {_short(pair[0])}, {_short(pair[1])}. Texts to test on need a "
            "shared beginning; give prompts=[(positive, negative), ...] that have one"
        )
    return ((ids, unlike[0]) for ids in both)


def _packed(lm: LanguageModel, one: Any, effect: Any) -> Any:
    return as_json(asked(lm, one)) if effect is not None else [as_json(asked(lm, side)) for side in one]


def _short(prompt: Any) -> str:
    said = repr(prompt.tolist() if isinstance(prompt, torch.Tensor) else prompt)
    return said if len(said) <= 80 else f"{said[:77]}..."
