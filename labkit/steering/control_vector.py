"""Control vectors: steering vectors of one layer or several, in the GGUF files that llama.cpp takes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from labkit.models.handle import Model
from labkit.results import gguf_vectors
from labkit.results.recipe import made_with
from labkit.steering.vector import SteeringVector
from labkit.text.as_code import LM, as_code

_CALLED = {"mistral": "llama", "mixtral": "llama"}
"""What llama.cpp calls an architecture (convert_hf_to_gguf.py), where transformers has another word."""


def save_control_vector(
    vectors: Iterable[SteeringVector] | Mapping[int, SteeringVector],
    path: str | os.PathLike[str],
    *,
    model_type: str | None = None,
) -> Path:
    """Write vectors of several layers to a GGUF file for llama.cpp, in one step; `vector.to_gguf(path)` writes one.

    llama.cpp adds each to the output of its layer, at every position, as `lm.steer(vectors)` does: `llama-cli
    --control-vector FILE`, or `--control-vector-scaled FILE:STRENGTH` with a strength that is the same there and here.
    It cannot steer layer 0.

    Args:
        vectors: of different layers, as a list or by layer, as `labkit.steering_vector` gives them.
        path: of the file, such as `kind.gguf`.
        model_type: what transformers calls the architecture, `lm.config.model_type`; by default that of the model the
            vectors were made with.

    Raises:
        ValueError: none, two for one layer, one for layer 0, different widths, several residual streams, or an unknown
            model type.
    """
    by_layer = vectors if isinstance(vectors, Mapping) else _by_layer(vectors)
    if not by_layer:
        raise ValueError("there are no vectors to write; give at least one")
    known = {str(vector.recipe.get("model_type", "")) for vector in by_layer.values()}
    if model_type is None and len(known) != 1:
        raise ValueError("the vectors are not all for one architecture; give model_type=lm.config.model_type")
    if not (model_type := model_type or known.pop()):
        raise ValueError("the vectors do not say for which model they are; give model_type=lm.config.model_type")
    return gguf_vectors.write(path, {layer: one.values.numpy() for layer, one in by_layer.items()}, model_type)


def load_control_vector(
    lm: Model, path: str | os.PathLike[str], *, any_model: bool = False
) -> dict[int, SteeringVector]:
    """The vectors of a GGUF file that llama.cpp, repeng or `save_control_vector` wrote, by layer.

    `lm.steer(vectors)` adds them all, each after its own layer; `vectors[18]` is one.

    Args:
        lm: the model that they are for.
        path: of the file.
        any_model: take a file that names another architecture, too. Such names differ between tools; a direction that
            was really found in another model means nothing in this one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a control vector, or one of another width, architecture or number of layers.
    """
    hint, directions = gguf_vectors.read(path)
    mine = str(lm.config.model_type)
    if hint and not any_model and _name_of(hint) != _name_of(mine):
        raise ValueError(
            f"{str(path)!r} says that it is for {hint!r}, and {lm.name} is {mine!r}. If these are names for the same "
            "architecture, give any_model=True"
        )
    for layer, values in directions.items():
        if len(values) != lm.d_model:
            raise ValueError(
                f"direction.{layer} of {str(path)!r} has {len(values)} numbers; {lm.name} needs {lm.d_model}, the "
                "width of its residual stream. A vector fits only the model it was made with"
            )
        if not 1 <= layer < lm.n_layers:
            raise ValueError(
                f"{str(path)!r} has a direction for layer {layer}; control vectors of {lm.name} are for layers 1 to "
                f"{lm.n_layers - 1}"
            )
    settings = {"any_model": True} if any_model else {}
    code = as_code(lm.code(), "vectors = lk.load_control_vector", LM, str(path), **settings)
    about = f"a control vector for {hint}" if hint else "a control vector"
    return {
        layer: SteeringVector.of(
            directions[layer],
            layer,
            recipe={
                **made_with(lm), "model_type": mine, "code": f"{code}vector = vectors[{layer}]\n", "about": about,
            },
        )
        for layer in sorted(directions)
    }  # fmt: skip


def _by_layer(vectors: Iterable[SteeringVector]) -> dict[int, SteeringVector]:
    found: dict[int, SteeringVector] = {}
    for vector in vectors:
        if found.setdefault(vector.layer, vector) is not vector:
            raise ValueError(f"there are several vectors for layer {vector.layer}; a control vector has one for each")
    return found


def _name_of(architecture: str) -> str:
    """The name of an architecture without what tools write differently: `gemma3_text` and `Gemma-3` are one."""
    plain = re.sub(r"_text$|[^a-z0-9]", "", architecture.lower())
    return _CALLED.get(plain, plain)
