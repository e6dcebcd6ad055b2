"""Steering: a direction that does something, and what else it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from labkit.audits.steering_search import steering_search
from labkit.course.checks import Verdict, a_layer, a_number, exercise, once, parts
from labkit.language_model import LanguageModel
from labkit.steering.directions import SteeringVector, steering_vector
from labkit.text.encode import single_token

LAYER = 18
POSITIVE = [
    "The film was wonderful", "What a beautiful day", "The food was delicious", "My neighbours are kind",
    "Everything is going well",
]  # fmt: skip
NEGATIVE = [
    "The film was terrible", "What an awful day", "The food was disgusting", "My neighbours are cruel",
    "Everything is going badly",
]  # fmt: skip
OPENINGS = ["My week at work was", "The weather today is", "The book that I read was", "Her new job is"]
GOOD = [" good", " great", " wonderful", " beautiful", " perfect", " amazing", " lovely"]
BAD = [" bad", " terrible", " awful", " horrible", " poor", " worse", " difficult"]
GLOOMY = [f"It was a terrible, cruel disaster. {opening}" for opening in OPENINGS]
PAIRS = [(f"{opening} wonderful", f"{opening} terrible") for opening in OPENINGS]
PLAIN = (
    "The sun rises in the east and sets in the west. Water boils at one hundred degrees. "
    "A week has seven days, and a year has twelve months."
)


def mood(lm: LanguageModel, openings: Sequence[str] = OPENINGS) -> float:
    """How much likelier a good word is than a bad one after some openings: mean log odds, in nats."""
    found = []
    for opening in openings:
        ids = lm.encode(opening)
        logits = lm.run(ids).logits[0, -1].float()
        good, bad = (
            logits[[single_token(lm, word, after=ids) for word in words]].logsumexp(0) for words in (GOOD, BAD)
        )
        found.append(float(good - bad))
    return sum(found) / len(found)


def cost(lm: LanguageModel, text: str = PLAIN) -> float:
    """The mean surprisal of a plain text, in nats per token; lower is better."""
    ids = lm.encode(text)
    logprobs = lm.run(ids).logits[0, :-1].float().log_softmax(-1)
    return -float(logprobs.gather(1, ids[0, 1:, None]).mean())


@once
def _plain(lm: LanguageModel) -> tuple[float, float, float]:
    """The mood after the openings and after gloomy ones, and the cost, of the model as it is."""
    return mood(lm), mood(lm, GLOOMY), cost(lm)


@once
def _vector(lm: LanguageModel, layer: int) -> SteeringVector:
    return steering_vector(lm, POSITIVE, NEGATIVE, layer)


@once
def _shift(lm: LanguageModel, layer: int) -> float:
    with lm.steer(_vector(lm, layer)):
        return mood(lm)


@exercise("06.1", "a layer, such as 3")
def _a_layer_that_steers(answer: Any, lm: LanguageModel) -> Verdict:
    layer = a_layer(answer, lm)
    before, after, first = _plain(lm)[0], _shift(lm, layer), _shift(lm, 0)
    moved = after - before
    said = f"A vector at layer {layer} moves the mood by {moved:+.1f}, one at layer 0 by {first - before:+.1f}."
    good = moved > 4 and after > first
    return Verdict(good, said if good else said + " Look for more than +4.")


@exercise("06.2", "a number, such as 2")
def _a_strength_that_costs_little(answer: Any, lm: LanguageModel) -> Verdict:
    strength, (before, _, cheap) = a_number(answer), _plain(lm)
    with lm.steer(_vector(lm, LAYER), strength):
        moved, more = mood(lm) - before, cost(lm) - cheap
    said = f"At {strength:g} the mood moves by {moved:+.1f}, and plain text costs {more:+.2f} nats per token more."
    if moved > 3 and more < 0.4:
        return Verdict(True, said)
    if moved < 0:
        return Verdict(False, said + " That is the other way.")
    return Verdict(False, said + (" That moves too little." if moved <= 3 else " That costs too much."))


@exercise("06.3", "two lists of texts: (positive, negative)")
def _pairs_of_ones_own(answer: Any, lm: LanguageModel) -> Verdict:
    if not isinstance(answer, list | tuple) or len(answer) != 2 or any(isinstance(side, str) for side in answer):
        raise TypeError("that is not two lists")
    positive, negative = ([str(text) for text in side] for side in answer)
    if set(positive) & set(POSITIVE) or set(negative) & set(NEGATIVE):
        return Verdict(False, "Those are this notebook's pairs. Make your own, about something else.")
    if len(positive) != len(negative) or len(positive) < 4:
        return Verdict(
            False, f"At least four pairs are needed; got {len(positive)} positive and {len(negative)} negative."
        )
    if positive == negative:
        return Verdict(False, "Both lists are the same, so their difference is no direction.")
    agree = 0
    each = torch.stack([steering_vector(lm, *pair, LAYER).values for pair in zip(positive, negative, strict=True)])
    for one in each:  # the vector of several pairs is the mean of theirs
        agree += float((each.sum(0) - one) @ one) > 0
    said = f"{agree} of {len(positive)} pairs point in the same direction as the others."
    right = agree == len(positive)
    return Verdict(right, said if right else said + " Make every pair differ in the same single thing.")


@once
def _searched(lm: LanguageModel, layer: int, strength: float) -> tuple[float, float, float]:
    """Effect and damage of one setting, and the effect of the better of two random directions."""
    search = steering_search(
        lm, POSITIVE, NEGATIVE, prompts=PAIRS, layers=[layer], strengths=[strength], random=2, neutral=PLAIN,
        progress=False,
    )  # fmt: skip
    effects = search.effects[0, 0].mean(-1)
    return float(effects[0]), float(search.damage[0, 0, 0, 1]), float(effects[1:].max())


@exercise("06.4", "a layer and a strength: (layer, strength), such as (18, 1)")
def _much_effect_for_little_damage(answer: Any, lm: LanguageModel) -> Verdict:
    first, second = (a_number(one) for one in parts(answer, 2))
    if first != int(first) and second == int(second):
        return Verdict(False, f"The layer comes first: ({second:g}, {first:g})?")
    layer, strength = a_layer(first, lm), second
    effect, damage, random = _searched(lm, layer, strength)
    said = f"Layer {layer} at strength {strength:g} has an effect of {effect:+.2f} for a damage of {damage:.2f}."
    if effect <= 4.5:
        return Verdict(False, said + " Look for more than +4.5.")
    if damage >= 0.18:
        return Verdict(False, said + " That is too much damage.")
    return Verdict(effect > random, f"{said} The better of two random directions has {random:+.2f}.")


@exercise("06.5", "a number, such as 0")
def _a_floor(answer: Any, lm: LanguageModel) -> Verdict:
    low, vector, (_, before, cheap) = a_number(answer), _vector(lm, LAYER), _plain(lm)
    with lm.steer(vector, manner="clamp", low=low, when=(vector, -500)):
        moved, more = mood(lm, GLOOMY) - before, cost(lm) - cheap
    said = (
        f"With a floor of {low:g} the gloomy openings move by {moved:+.1f}, and plain text costs {more:+.2f} nats per "
        "token more."
    )
    if moved > 5.5 and more < 0.2:
        return Verdict(True, said)
    return Verdict(False, said + (" That moves too little." if moved <= 5.5 else " That costs too much."))
