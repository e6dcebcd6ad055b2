"""GGUF files before they are converted: are they whole, and are all parts of a split one there?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from labkit.models.errors import LoadError
from labkit.models.scan import gguf_headers
from labkit.models.scan.loading import more
from labkit.models.scan.places import Bounded
from labkit.models.scan.tensor_headers import Lies
from labkit.models.sources.tensors import AGAIN, refuse_pointer

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)


def parts(path: Path) -> list[Path]:
    """The files of the model that a GGUF file belongs to, in order: the file alone, or all parts of a split one.

    Raises:
        LoadError: it is not a GGUF file, or a part is missing.
    """
    files = [path]
    if (found := _PART.match(path.name)) and (count := int(found["count"])) > 1:
        files = [path.with_name(f"{found['stem']}-{n:05d}-of-{found['count']}.gguf") for n in range(1, count + 1)]
        if missing := [file.name for file in files if not file.is_file()]:
            raise LoadError(
                f"{path.name} is one of {count} parts of a model, and {', '.join(missing[:5])}"
                f"{' and others' if len(missing) > 5 else ''} {'are' if len(missing) > 1 else 'is'} not in "
                f"{str(path.parent)!r}. Fetch all parts into one folder and load any of them"
            )
    for file in files:
        with file.open("rb") as opened:
            if opened.read(4) == b"GGUF":
                continue
        refuse_pointer(file)
        raise LoadError(f"{str(file)!r} is not a GGUF file; it does not begin with the letters GGUF")
    return files


def readers(files: list[Path]) -> list[Any]:
    """gguf's reader of each file, all looked through: none is cut short, no part and no block is missing.

    Raises:
        LoadError: with what is missing.
    """
    for file in files:
        _check_header(file)
    found = [_reader(file) for file in files]
    declared = int(value_of(found[0], "split.count") or 1)
    if declared > 1 and declared != len(files):
        raise LoadError(
            f"{files[0].name} is one of {declared} parts of a model that was split. Give the parts their original "
            f"names, ...-00001-of-{declared:05d}.gguf and so on, in one folder, and load any of them"
        )
    order = [int(value_of(reader, "split.no") or 0) for reader in found]
    if declared > 1 and order != list(range(declared)):
        raise LoadError(f"the parts of {files[0].name} are out of order: their headers say parts {order}")
    names = {tensor.name for reader in found for tensor in reader.tensors}
    total = int(value_of(found[0], "split.tensors.count") or 0)
    if declared > 1 and total and len(names) != total:
        raise LoadError(f"the parts of {files[0].name} hold {len(names)} of {total} tensors; they do not match")
    blocks = value_of(found[0], f"{value_of(found[0], 'general.architecture')}.block_count")
    # layers that predict several tokens ahead are counted and may be left out
    spare = value_of(found[0], f"{value_of(found[0], 'general.architecture')}.nextn_predict_layers") or 0
    there = {int(name.split(".")[1]) for name in names if re.match(r"blk\.\d+\.", name)}
    missing = sorted(set(range(int(blocks or 0) - int(spare))) - there)
    if there and missing:
        others = f" and {len(missing) - 1} others are" if len(missing) > 1 else " is"
        raise LoadError(
            f"{files[0].name} is incomplete: of its {blocks} blocks, blk.{missing[0]}{others} missing. They would be "
            f"random numbers, so it was not loaded. {AGAIN}"
        )
    return found


def format_of(path: Path) -> str | None:
    """The format of most weights of a GGUF file (or of one of its parts), such as `Q4_K`; None for plain numbers."""
    sizes: dict[str, int] = {}
    for tensor in _reader(path).tensors:
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
    name = max(sizes, key=lambda kind: sizes[kind], default="F32")
    return None if name in ("F64", "F32", "F16", "BF16") else name


def opened(file: Path) -> Any:
    """gguf's reader of one file, whatever it holds, once its header was found to be sound.

    Raises:
        LoadError: it is not a GGUF file, cut short or damaged.
    """
    with file.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise LoadError("it is not a GGUF file; it does not begin with the letters GGUF")
    _check_header(file)
    return _reader(file)


def _check_header(file: Path) -> None:
    """Refuse a header that the file has no room for; gguf's own reader loops by the counts that it finds there.

    Raises:
        LoadError: with what does not fit.
    """
    try:
        with file.open("rb") as opened:
            gguf_headers.read(Bounded(opened), file.stat().st_size)
    except Lies as error:
        raise LoadError(f"{file.name} is cut short or damaged: {error}. {AGAIN}; {more(str(file))}") from None


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        raise LoadError(
            f"{file.name} is cut short or damaged: its header lists more than it holds ({file.stat().st_size:,} "
            f"bytes). {AGAIN}"
        ) from error


def value_of(reader: Any, name: str) -> Any:
    """What a header says under a key; None if nothing."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


def join(sources: list[Any], target: Path, *, progress: bool) -> None:
    """Write the parts of a split model, by their readers, into one file; a tensor at a time."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(target, value_of(sources[0], "general.architecture"))
    for field in sources[0].fields.values():
        if field.name.startswith(("GGUF.", "split.")) or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    tensors = [tensor for source in sources for tensor in source.tensors]
    for tensor in tensors:
        data = np.asarray(tensor.data)
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    size = sum(int(tensor.n_bytes) for tensor in tensors)
    with tqdm(total=size, desc="joining parts", unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
        for tensor in tensors:
            writer.write_tensor_data(tensor.data)
            bar.update(int(tensor.n_bytes))
    writer.close()
