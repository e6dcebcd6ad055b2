"""Weight files on disk: their headers, and each tensor read on demand.

A safetensors file begins with a header that names its tensors, their dtypes, shapes and places. From headers alone one
sees whether a checkpoint is whole. `Tensor` has the two things that transformers asks of a tensor in a file (its dtype,
and the numbers when they are needed), so a dictionary of them can be loaded as a checkpoint is, one tensor in memory
at a time, whatever has to be done to the numbers on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from labkit.models.errors import LoadError, ModelNotFound, UnsafeCheckpoint, UnsafeWeights
from labkit.models.scan import tensor_headers
from labkit.models.scan.loading import check_paths, more

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": getattr(torch, "float8_e8m0fnu", None),
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read when it is indexed.

    Attributes:
        shape: what it has once read.
        kind: its dtype as safetensors writes it, `BF16`.
        read: gives it, on the CPU.
    """

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], torch.Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES.get(self.kind) or torch.float32

    def get_dtype(self) -> str:
        return self.kind

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.read()[index]

    def empty(self) -> Tensor:
        """The same without numbers, on the meta device."""
        dtype = self.dtype if self.dtype.is_floating_point else torch.float32
        return replace(self, read=lambda: torch.empty(self.shape, dtype=dtype, device="meta"))


def open_files(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of some safetensors files by name; nothing but the headers is read.

    A file is mapped anew for each tensor: what was read of a mapping counts as memory of this process until it closes.

    Raises:
        LoadError: a file is cut short, damaged or a pointer.
    """
    from safetensors import safe_open

    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, entry in header(file).items():
            read = lambda file=file, name=name: safe_open(file, framework="pt", device="cpu").get_tensor(name)  # noqa: E731
            tensors[name] = Tensor(tuple(entry["shape"]), entry["dtype"], read)
    return tensors


def header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors: by name `dtype`, `shape`, `data_offsets`.

    Raises:
        LoadError: it is cut short, damaged, or a pointer in its place.
        UnsafeCheckpoint: what it says does not fit the file.
    """
    refuse_pointer(file)
    size = file.stat().st_size
    with file.open("rb") as opened:
        first = opened.read(9)
        length = int.from_bytes(first[:8], "little")
        if length > size - 8 and first[8:9] == b"{":
            raise LoadError(f"{file.name} is cut short inside its header. {AGAIN}")
        if length > size - 8 or length < 2:
            raise LoadError(f"{file.name} is damaged: it is not a safetensors file. {AGAIN}")
        try:
            tensor_headers.lengths(first, size)
            opened.seek(8)
            entries = tensor_headers.parse(opened.read(length))
            end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        except tensor_headers.Lies as error:
            raise LoadError(f"{file.name} is damaged: {error}. {AGAIN}") from None
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise LoadError(f"{file.name} is damaged: its header cannot be read. {AGAIN}") from None
    if size < 8 + length + end:
        raise LoadError(
            f"{file.name} is cut short: it has {size:,} bytes and its header lists {8 + length + end:,}. {AGAIN}"
        )
    try:
        tensor_headers.check(entries, size - 8 - length)
    except tensor_headers.Lies as error:
        raise UnsafeCheckpoint(
            f"the header of {file.name} does not fit the file: {error}. It is damaged or made to mislead. {AGAIN}; "
            f"{more(str(file.parent))}"
        ) from None
    return entries


AGAIN = "Download or copy it again"


def refuse_pointer(file: Path) -> None:
    """Raise a `LoadError` if this is a Git LFS pointer."""
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) != _POINTER:
            return
    raise LoadError(
        f"{file.name} is a Git LFS pointer, a few lines of text in place of the file. Fetch the file itself, with `git "
        "lfs pull` in its folder or with `hf download`"
    ) from None


# -- folders --------------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Look at a model's folder before anything in it is read.

    Raises:
        ModelNotFound: it is empty, has no config.json, or holds an adapter alone.
        LoadError: a file is a pointer or damaged.
    """
    files = {file.name: file for file in folder.iterdir() if file.is_file()}
    if not any(folder.iterdir()):
        raise ModelNotFound(f"the folder {str(folder)!r} has no config.json; it is empty")
    if "adapter_config.json" in files and "config.json" not in files:
        raise adapter_alone(str(folder), files["adapter_config.json"])
    if "config.json" not in files:
        found = sorted(name for name in files if name.endswith(".gguf"))
        hint = f" It holds {found[0]}: load that file" if found else " Give the folder that save_pretrained made"
        raise ModelNotFound(f"the folder {str(folder)!r} has no config.json.{hint}")
    for name, file in files.items():
        if name.endswith((".json", ".model", ".jinja", ".txt", ".tiktoken", ".safetensors")):
            refuse_pointer(file)
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        if name in files:
            read_json(files[name])
    kinds = (".safetensors", *PICKLES, ".index.json")
    whole = any(name.startswith("model") and name.endswith(kinds) for name in files)
    if "adapter_config.json" in files and not whole:
        raise adapter_alone(str(folder), files["adapter_config.json"])


def check_tokenizer(folder: Path) -> None:
    """Is there a tokenizer in a model's folder?

    Raises:
        LoadError: there is none.
    """
    known = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "tekken", "bpe", "tokenization")
    names = [file.name for file in folder.iterdir()]
    if not any(name.startswith(known) or name.endswith((".model", ".tiktoken")) for name in names):
        raise LoadError(
            f"the folder {str(folder)!r} has no tokenizer (tokenizer.json or the like). Save it beside the model with "
            "tokenizer.save_pretrained(folder), or load the model with transformers and call lk.wrap(model, tokenizer)"
        )


def adapter_alone(label: str, config: Path) -> ModelNotFound:
    """What to say of an adapter that was given in place of a model."""
    stored = read_json(config)
    base = stored.get("base_model_name_or_path") or "the model that it was trained on"
    kind = {"LORA": "a LoRA adapter"}.get(str(stored.get("peft_type")).upper(), "an adapter")
    return ModelNotFound(
        f"{label} is {kind} of {base}, not a whole model. Merge the two once, with peft: "
        f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {label!r}).merge_and_unload(); "
        "then lk.wrap the result, or save it with its tokenizer and load that folder"
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        LoadError: it holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        refuse_pointer(file)
        raise LoadError(f"{file.name} is damaged: it is not valid JSON. {AGAIN}") from None
    if not isinstance(found, dict):
        raise LoadError(f"{file.name} is damaged: it is not a JSON object. {AGAIN}")
    return found


def weight_files(folder: Path, *, named: str | None = None) -> list[Path]:
    """The safetensors files of a model's folder, in order.

    Args:
        folder: where they are.
        named: the file that the configuration names, where it does.

    Raises:
        LoadError: one that the index names is missing, or the index is damaged.
        UnsafeWeights: there are only pickles.
        ModelNotFound: there are none.
    """
    if named and named.endswith(".safetensors") and (folder / named).is_file():
        return [folder / named]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (index := folder / INDEX).is_file():
        return [folder / name for name in _indexed(index)]
    if found := sorted(file.name for file in folder.glob("*.safetensors")):
        shards = "-of-" in found[0]
        raise LoadError(
            f"the folder {str(folder)!r} has {found[0]}{' and others' if len(found) > 1 else ''}, but no "
            + (f"{INDEX}, which says what is in which file. Fetch that file as well" if shards else
               f"{SINGLE} or {INDEX}. Name the file {SINGLE}, as save_pretrained does")
        )  # fmt: skip
    if found := sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES):
        raise UnsafeWeights(
            f"{str(folder)!r} has its weights in {found[0]}, a pickle, which can run code when it is read. If you "
            "trust it, load it once with transformers on a machine you can spare; model.save_pretrained(folder) writes "
            "safetensors"
        )
    few = ", ".join(sorted(file.name for file in folder.iterdir())[:5])
    raise ModelNotFound(f"the folder {str(folder)!r} has no .safetensors file, only {few}")


def _indexed(index: Path) -> Iterator[str]:
    """The files that an index names; all are there."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise LoadError(f"{index.name} is damaged: it has no weight_map. {AGAIN}")
    names = sorted(set(places.values()))
    check_paths(names, str(index.parent), of=index.name)
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        named = ", ".join(missing[:5]) + (" and others" if len(missing) > 5 else "")
        raise LoadError(
            f"the folder {str(index.parent)!r} lacks {named}: {len(missing)} of the {len(names)} weight files that its "
            "index names. Fetch the missing ones: the download or copy did not finish"
        )
    yield from names


def check_index(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Are all tensors in the files that the index names?

    Raises:
        LoadError: some are not.
    """
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return
    if missing := sorted(set(read_json(folder / INDEX)["weight_map"]) - set(tensors)):
        raise LoadError(
            f"{INDEX} names {len(missing)} tensors that no file has: "
            f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}. The files are not from one model, "
            f"or are incomplete. {AGAIN}"
        )
