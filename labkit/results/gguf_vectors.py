"""Control vectors in GGUF files, as llama.cpp reads and writes them.

A file of architecture `controlvector` holds float32 tensors `direction.N`, (d_model,), and says in
`controlvector.model_hint` for which architecture and in `controlvector.layer_count` how many. N counts layers from 0,
and the tensor is added to the output of layer N at every position; N = 0 is refused by llama.cpp, which therefore
cannot steer its first layer, and layers without a tensor are left alone (`common_control_vector_load_one` in
common/common.cpp and `llama_adapter_cvec` in src/llama-adapter.cpp). repeng numbers its exported layers in the same
way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from labkit.models.errors import LoadError
from labkit.models.sources.gguf import opened, value_of
from labkit.results.file import written_whole

ARCHITECTURE = "controlvector"


def write(path: str | os.PathLike[str], directions: Mapping[int, np.ndarray], model_type: str) -> Path:
    """Write directions (d_model,) by layer, in one step.

    Raises:
        ValueError: a direction for layer 0, or of another shape than the others.
    """
    from gguf import GGUFWriter

    shapes = {np.shape(one) for one in directions.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        found = ", ".join(map(str, sorted(shapes)))
        raise ValueError(f"a control vector has directions of one shape, (d_model,); these have {found}")
    if 0 in directions:
        raise ValueError(
            "llama.cpp cannot steer layer 0: control vectors are for the layers from 1 on. Take the vector of another "
            "layer, or save it with vector.save(path) for labkit alone"
        )
    with written_whole(path) as file:  # gguf's writer opens a file by its name
        writer = GGUFWriter(file.name, ARCHITECTURE)
        try:
            writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
            for layer, values in sorted(directions.items()):
                writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(values, np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return Path(path)


def read(path: str | os.PathLike[str]) -> tuple[str, dict[int, np.ndarray]]:
    """The architecture that a control vector says it is for, "" if it says none, and its directions by layer, float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no GGUF file, one of something else, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        reader = opened(path)
    except LoadError as error:
        raise ValueError(f"{str(path)!r} is not a control vector: {error}") from None
    if (held := value_of(reader, "general.architecture")) != ARCHITECTURE:
        what = f"the weights of a model ({held}), which lk.load(path) loads" if held else "no architecture"
        raise ValueError(f"{str(path)!r} is not a control vector: it holds {what}")
    directions = {}
    for tensor in reader.tensors:
        if (found := re.fullmatch(r"direction\.(\d+)", tensor.name)) is None:
            raise ValueError(f"{str(path)!r} has a tensor {tensor.name[:60]!r}; a control vector has direction.1, ...")
        if tensor.tensor_type.name != "F32" or np.ndim(tensor.data) != 1:
            raise ValueError(
                f"{tensor.name} of {str(path)!r} is {tensor.tensor_type.name} of shape {np.shape(tensor.data)}; a "
                "control vector has F32 of shape (d_model,)"
            )
        directions[int(found[1])] = np.array(tensor.data, np.float32)
    if not directions:
        raise ValueError(f"{str(path)!r} is a control vector without any direction")
    return str(value_of(reader, f"{ARCHITECTURE}.model_hint") or ""), directions
