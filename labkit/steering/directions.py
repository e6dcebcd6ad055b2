"""Directions from prompts that have something and prompts that lack it.

`mean_difference` is the mean of one side minus that of the other (Turner et al. 2023; Rimsky et al. 2024). `pca` is the
first principal component of the differences of pairs (Zou et al. 2023, "Representation engineering",
arXiv:2310.01405): where some pairs differ much more than others, or in something else besides, it follows what most of
the variance has in common rather than the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, overload

import torch

from labkit.activations.run import run
from labkit.activations.sites import checked
from labkit.elsewhere import where_the_model_is
from labkit.models.handle import Model
from labkit.results.recipe import made_with
from labkit.steering.vector import SteeringVector
from labkit.text.as_code import LM, as_code
from labkit.text.prompts import asked, packed, prompts_of
from labkit.text.types import Prompt

At = Literal["last", "mean"]
Method = Literal["mean_difference", "pca"]


@overload
def steering_vector(
    lm: Model, positive: Prompt | Sequence[Prompt], negative: Prompt | Sequence[Prompt], layer: int, *,
    at: At = "last", method: Method = "mean_difference",
) -> SteeringVector: ...  # fmt: skip
@overload
def steering_vector(
    lm: Model, positive: Prompt | Sequence[Prompt], negative: Prompt | Sequence[Prompt], layer: Sequence[int], *,
    at: At = "last", method: Method = "mean_difference",
) -> dict[int, SteeringVector]: ...  # fmt: skip
@where_the_model_is
def steering_vector(
    lm: Model,
    positive: Prompt | Sequence[Prompt],
    negative: Prompt | Sequence[Prompt],
    layer: int | Sequence[int],
    *,
    at: At = "last",
    method: Method = "mean_difference",
) -> SteeringVector | dict[int, SteeringVector]:
    """The direction from some prompts to others in the output of a layer.

    Args:
        lm: the model, in any bits.
        positive, negative: prompts that have what is wanted, and prompts that lack it; one or a list of each, as text,
            chat messages or token ids. Pairs that differ in nothing else give the cleanest direction.
        layer: after which layer, from the end if negative; several give a vector for each, from the same runs.
        at: `last` takes each prompt's last position, `mean` the mean of all positions but the first.
        method: `mean_difference`, or `pca` of the differences of pairs, of which at least two are needed, in the same
            order on both sides. It is as long as the differences are along it (root mean square), and points from
            negative to positive.

    Returns:
        A `SteeringVector`; for several layers a dict of them by layer, for `lm.steer` or `labkit.save_control_vector`.

    Raises:
        ValueError: no prompts, a bad one, a layer out of range, a model without a residual stream to read, no pairs for
            `pca`, or two equal sides.
    """
    found = [checked(lm, f"resid_post.{one}").layer for one in (layer if isinstance(layer, Iterable) else [layer])]
    layers = list(dict.fromkeys(one for one in found if one is not None))
    if not layers:
        raise ValueError("layer=[] names no layer; give at least one")
    if at not in get_args(At):
        raise ValueError(f"at must be 'last' or 'mean'; got {at!r}")
    if method not in get_args(Method):
        raise ValueError(f"method must be 'mean_difference' or 'pca'; got {method!r}")
    sides = {
        name: [asked(lm, prompt) for prompt in prompts_of(side)]
        for name, side in (("positive", positive), ("negative", negative))
    }
    vectors = vectors_of(lm, sides, layers, at=at, method=method)
    if missing := [one for one in layers if one not in vectors]:
        raise ValueError(
            f"positive and negative give the same activations at layer {missing[0]}; they must differ where they are "
            "read, " + ("at their last token" if at == "last" else "after their first token")
        )
    return vectors if isinstance(layer, Iterable) else vectors[layers[0]]


@where_the_model_is
def vectors_of(
    lm: Model, sides: Mapping[str, Sequence[Prompt]], layers: Sequence[int], *, at: At, method: Method
) -> dict[int, SteeringVector]:
    """The vectors of layers by layer, from `positive` and `negative` prompts; none where the two sides are the same.

    Raises:
        ValueError: a side without prompts, or no pairs for `pca`.
    """
    for name, prompts in sides.items():
        if not prompts:
            raise ValueError(f"there are no {name} prompts; give at least one, preferably five")
    count = [len(prompts) for prompts in sides.values()]
    if method == "pca" and (count[0] != count[1] or count[0] < 2):
        raise ValueError(
            "method='pca' takes the differences of pairs: give as many positive as negative prompts, at least two; "
            f"got {count[0]} and {count[1]}"
        )
    seen = [torch.stack([_leaving(lm, prompt, layers, at) for prompt in prompts]) for prompts in sides.values()]
    how: dict[str, Any] = {} if at == "last" else {"at": at}
    how |= {} if method == "mean_difference" else {"method": method}
    vectors = {}
    for n, layer in enumerate(layers):
        if torch.equal(seen[0][:, n].mean(0), seen[1][:, n].mean(0)):
            continue
        recipe = {
            "code": as_code(lm.code(), "vector = lk.steering_vector", LM, *map(list, sides.values()), layer, **how),
            "about": f"{count[0]} positive and {count[1]} negative prompts" + ", PCA" * (method == "pca"),
            **made_with(lm),
            "model_type": str(lm.config.model_type),
            **{
                name: [one.flatten().tolist() if isinstance(one, torch.Tensor) else packed(one) for one in prompts]
                for name, prompts in sides.items()
            },
        }
        make = of_pairs if method == "pca" else of_means
        vectors[layer] = make(seen[0][:, n], seen[1][:, n], layer, recipe)
    return vectors


def of_means(
    positive: torch.Tensor, negative: torch.Tensor, layer: int, recipe: dict[str, Any] | None = None
) -> SteeringVector:
    """The vector from one mean to another, of activations (prompt, d_model) that a layer has for some prompts."""
    return _along(positive.mean(0) - negative.mean(0), positive, negative, layer, recipe)


def of_pairs(
    positive: torch.Tensor, negative: torch.Tensor, layer: int, recipe: dict[str, Any] | None = None
) -> SteeringVector:
    """The first principal component of the differences of pairs, of activations (pair, d_model).

    It is that of the activations from which each pair's own mean was taken, +d/2 and -d/2, so the mean difference is
    not subtracted: it is what is looked for.
    """
    apart = (positive - negative).flatten(1)
    _, sizes, directions = torch.linalg.svd(apart.double(), full_matrices=False)
    vector = directions[0] * sizes[0] / len(apart) ** 0.5
    if float((apart.double() @ vector).sum()) < 0:
        vector = -vector
    return _along(vector.float().view_as(positive[0]), positive, negative, layer, recipe)


def _along(
    vector: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, layer: int, recipe: dict[str, Any] | None
) -> SteeringVector:
    """The vector, with how far apart along it the sides of each pair are."""
    spread: tuple[float, ...] = ()
    if len(positive) == len(negative) and bool(vector.any()):
        apart = (positive - negative).flatten(1) @ vector.flatten() / vector.norm() ** 2
        spread = tuple(round(float(x), 4) for x in apart)
    typical = float(torch.cat([positive, negative]).flatten(1).norm(dim=-1).mean())
    return SteeringVector(vector, layer, typical, spread, recipe or {})


def _leaving(lm: Model, prompt: Prompt, layers: Sequence[int], at: At) -> torch.Tensor:
    """The output of some layers (layer, d_model), float32, at the last position, or its mean without the first, of
    unusual norm in many models.
    """
    sites = [f"resid_post.{layer}" + ("@-1" if at == "last" else "") for layer in layers]
    seen = run(lm, prompt, read=sites, logits="none", to="cpu")
    found = torch.stack([seen[site][0].float() for site in sites])
    return found if at == "last" else found[:, 1:].mean(1) if found.shape[1] > 1 else found[:, 0]
