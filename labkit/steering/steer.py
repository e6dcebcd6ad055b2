"""Steering as a block of code, in which a model has a vector added to its residual stream."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from labkit.activations.hooks import Place, hooked, never_reached
from labkit.activations.sites import checked, layers_with
from labkit.elsewhere import while_it_runs
from labkit.models.handle import Model
from labkit.steering.vector import Manner, Steering, SteeringVector


@while_it_runs
@contextmanager
def steer(
    lm: Model,
    vector: SteeringVector | Mapping[int, SteeringVector] | torch.Tensor,
    strength: float = 1.0,
    *,
    layer: int | Sequence[int] | None = None,
    manner: Manner = "add",
    to: float | None = None,
    low: float | None = None,
    high: float | None = None,
    when: tuple[SteeringVector, float] | None = None,
) -> Iterator[None]:
    """Add `strength` times a vector to a layer's output, at every position, while the block runs; or steer along it in
    another manner.

    It acts on everything this thread does with the model meanwhile: `lm.run`, `lm.generate`, patching. Other threads
    are not affected. Blocks can be nested; their vectors add up. The model is always restored afterwards. To steer only
    the prompt or only what is written, give `lm.generate(write={site: vector.edit(...)}, write_at=...)`.

    Args:
        vector: a `SteeringVector`; several by layer, each for its own, as `labkit.steering_vector` gives them for
            several layers; or any values (d_model,), which need a `layer`.
        strength: how many times; negative for the opposite direction. 1 is the distance of the two sides.
        layer: after this layer, or these, instead of the one where the vector was found.
        manner: `add`, `set` or `clamp` after those layers, as in `Steering`; or `project_out`: what the residual stream
            has along the vector is taken out `strength` times, 1 for all of it, before and after attention and after
            the MLP of every layer.
        to, low, high, when: as in `Steering`.

    Raises:
        ValueError: the vector does not fit the model, a layer is out of range, or there is no such manner.
        RuntimeError: the model ran without passing a layer, so nothing was changed there.
    """
    settings: dict[str, Any] = {"to": to, "low": low, "high": high, "when": when}
    if isinstance(vector, Mapping):
        if layer is not None or manner == "project_out":
            raise ValueError(
                "vectors by layer are each for its layer; leave out layer= and project_out, or give one of them"
            )
        if not vector:
            raise ValueError("there are no vectors to steer along; give at least one")
        given: list[tuple[Any, Any]] = [(one, at) for at, one in vector.items()]
    else:
        given = [(vector, layer)]
    edits: dict[Place, Steering] = {}
    for one, at in given:
        edits |= _edits(lm, one, strength, at, manner, settings)
    mine = threading.get_ident()
    reached: set[Place] = set()

    def changed(place: Place, x: torch.Tensor) -> torch.Tensor:
        if threading.get_ident() != mine:
            return x
        reached.add(place)
        return edits[place](x)

    def passed(*_: Any) -> None:
        if threading.get_ident() != mine:
            return
        for place in edits:
            if place not in reached:
                raise never_reached(lm, *place, "written")
        reached.clear()

    if not strength:
        yield
        return
    with hooked(lm, set(), {place: partial(changed, place) for place in edits}, may_wait=True):
        handle = lm.hf.register_forward_hook(passed)  # after each pass over the whole model
        try:
            yield
        finally:
            handle.remove()


def _edits(
    lm: Model,
    vector: SteeringVector | torch.Tensor,
    strength: float,
    layer: int | Sequence[int] | None,
    manner: Manner,
    settings: dict[str, Any],
) -> dict[Place, Steering]:
    """What one vector does, and where."""
    values = vector.values if isinstance(vector, SteeringVector) else torch.as_tensor(vector)
    for one in (values, *([settings["when"][0].values] if settings["when"] else [])):
        if one.ndim not in (1, 2) or one.shape[-1] != lm.d_model:
            raise ValueError(
                f"a vector for {lm.name} has shape ({lm.d_model},), its residual stream's; this one has "
                f"{tuple(one.shape)}. A vector fits only the model it was made with."
            )
    edit = SteeringVector(values.detach().float(), 0, 0.0).edit(manner, strength, **settings)
    if manner == "project_out":
        if layer is not None:
            raise ValueError("a direction is projected out of every layer; leave out layer=, which is for adding")
        return dict.fromkeys(_everywhere(lm), edit)
    after = vector.layer if layer is None and isinstance(vector, SteeringVector) else layer
    if after is None:
        raise ValueError("a plain tensor has no layer to be added after; give layer=...")
    found = [checked(lm, f"resid_post.{one}").layer for one in (after if isinstance(after, Iterable) else [after])]
    if not found:
        raise ValueError("layer=[] names no layer to steer after")
    return {("resid_post", one): edit for one in found if one is not None}


def _everywhere(lm: Model) -> list[Place]:
    """Where the residual stream can be written so that nothing of the model reads it unwritten."""
    checked(lm, "resid_post")
    kinds = ("resid_pre", "resid_mid", "resid_post")
    return [(kind, n) for kind in kinds for n in layers_with(lm, kind) if kind != "resid_pre" or n == 0]
