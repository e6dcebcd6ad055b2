"""One copy of a 4-bit model's weights for all processes of a machine.

What a CPU computes with is not what a checkpoint has: bitsandbytes packs a layer anew for its kernel, and labkit keeps
it unpacked as well (`models.unpacked_layers`), three times the size of the checkpoint, in every process. Twenty kernels
of a class would each hold their own. So `labkit pull --shared` writes both into the cache, as they lie in memory, and a
process that loads the model on the CPU maps that file instead of making them. Pages of it are in memory once, however
many processes map it. The mapping is private: what a process writes there is its own.

The form depends on the processor and on the versions of PyTorch and bitsandbytes, which are in the entry's name. Where
PyTorch would choose another form than the file's, or there is no file, a process makes its own copy as before.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labkit.models.bf16_matmul import has_bfloat16
from labkit.models.cache import cache_folder, entry, is_whole
from labkit.models.unpacked_layers import Mapped

if TYPE_CHECKING:
    from labkit.models.handle import Model

FORMAT = 1
ALIGNED = 4096  # bytes
_MKLDNN = 3  # c10::Layout::Mkldnn
_PACKED_BY_KERNEL = "packing_format_for_cpu"


def write(lm: Model) -> Path | None:
    """Put a model's weights into the cache, as this machine computes with them; where they are there, nothing is done.

    Returns:
        The entry; None where there is nothing to share: a model that is not from labkit's cache, has no 4-bit layers
        or is not on the CPU.

    Raises:
        CacheUnusable: the cache cannot be written.
    """
    name = _name(lm.hf)
    with lm.busy():
        kept = lm.fast.unpack_all() if name else {}
    if name is None or not kept:
        return None
    names = {module: path for path, module in lm.hf.named_modules()}
    return entry(name, lambda part: _write(part, {names[layer]: (layer, weight) for layer, weight in kept.items()}))


def mapped(hf: Any) -> dict[Any, Mapped]:
    """By layer, the unpacked weights that the cache has for this model on this machine; packed ones are exchanged for
    mapped ones in the same step. Empty where there are none."""
    name = _name(hf)
    folder = cache_folder() / (name or "")
    if name is None or not is_whole(folder):
        return {}
    index = json.loads((folder / "index.json").read_text())
    if not all(_form(shape) == form for form, shape in _forms(index).items()):
        return {}
    data = torch.from_file(str(folder / "weights.bin"), shared=False, size=index["bytes"], dtype=torch.uint8)
    found = {}
    for path, about in index["layers"].items():
        layer = hf.get_submodule(path)
        if "packed" in about:
            _exchange(layer.weight, _plain(data, about["packed"]), _plain(data, about["absmax"]))
        packed = layer.weight.detach()
        found[layer] = Mapped(_read(data, about["kept"]), packed.data_ptr(), layer.weight._version)
    return found


def _name(hf: Any) -> str | None:
    """The entry for a model that was loaded from labkit's cache onto the CPU."""
    models = cache_folder() / "models"
    source = Path(getattr(hf.config, "_name_or_path", "") or "")
    packed_as_usual = source.parent == models and "-nf4-" in source.name
    if not packed_as_usual or hf.get_input_embeddings().weight.device.type != "cpu":
        return None
    about = [FORMAT, torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), has_bfloat16()]
    try:
        about.append(version("bitsandbytes"))
    except PackageNotFoundError:
        return None
    layers = [m for m in hf.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    about += sorted({f"{bool(m.support_avx512bf16_for_cpu)} {m.compute_dtype}" for m in layers})
    return f"shared/{source.name}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]}"


def _exchange(weight: Any, packed: torch.Tensor, absmax: torch.Tensor) -> None:
    """Give a 4-bit weight what bitsandbytes' kernel would have packed it into, as its first pass does."""
    state = weight.quant_state
    state.original_dtype, state.original_nested, state.original_qshape = state.dtype, state.nested, weight.shape
    if state.nested:
        state.nested = False
        del state.state2
    state.absmax, state.dtype = absmax, torch.bfloat16
    setattr(state, _PACKED_BY_KERNEL, True)
    weight.data = packed


# -- the file -------------------------------------------------------------------------------------------------------


def _write(part: Path, layers: dict[str, tuple[Any, torch.Tensor]]) -> None:
    index: dict[str, Any] = {"layers": {}}
    with (part / "weights.bin").open("wb") as file:

        def put(tensor: torch.Tensor) -> dict[str, Any]:
            file.seek(-file.tell() % ALIGNED, 1)
            about: dict[str, Any] = {
                "at": file.tell(),
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
            if tensor.is_mkldnn:
                about |= {"form": _form_of(tensor), "bytes": torch.ops.mkldnn._nbytes(tensor)}
                content: Any = (ctypes.c_ubyte * about["bytes"]).from_address(torch.ops.mkldnn.data_ptr(tensor))
            else:
                tensor = tensor.detach().contiguous()
                about["bytes"] = tensor.nbytes
                content = tensor.reshape(-1).view(torch.uint8).numpy().data
            file.write(content)
            return about

        for path, (layer, kept) in layers.items():
            about = index["layers"][path] = {"kept": put(kept)}
            state = layer.weight.quant_state
            if getattr(state, _PACKED_BY_KERNEL, False):
                about |= {"packed": put(layer.weight.data), "absmax": put(state.absmax)}
        file.seek(-file.tell() % ALIGNED, 1)
        index["bytes"] = file.tell()
        file.truncate()
    (part / "index.json").write_text(json.dumps(index))


def _plain(data: torch.Tensor, about: dict[str, Any]) -> torch.Tensor:
    found = data[about["at"] : about["at"] + about["bytes"]]
    return found.view(getattr(torch, about["dtype"])).view(about["shape"])


def _read(data: torch.Tensor, about: dict[str, Any]) -> torch.Tensor:
    return _in_form(data, about) if "form" in about else _plain(data, about)


# -- the order in which oneDNN reads a matrix -----------------------------------------------------------------------


def _forms(index: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The forms in a file, and a shape that has each."""
    kept = (about["kept"] for about in index["layers"].values())
    return {about["form"]: tuple(about["shape"]) for about in kept if "form" in about}


def _form(shape: tuple[int, ...]) -> str:
    """The form that PyTorch would choose here; empty if this PyTorch cannot read one from a file."""
    try:
        _library(), torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr
        return _form_of(torch.ops.mkldnn._reorder_linear_weight(torch.zeros(shape, dtype=torch.bfloat16), 2048))
    except (AttributeError, OSError, RuntimeError):
        return ""


def _form_of(tensor: torch.Tensor) -> str:
    return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(tensor).tolist()).hex()


def _library() -> Any:
    """PyTorch's C interface for tensors whose memory belongs to somebody else."""
    name = {"Windows": "torch_cpu.dll", "Darwin": "libtorch_cpu.dylib"}.get(platform.system(), "libtorch_cpu.so")
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
    library.aoti_torch_create_tensor_from_blob_v2.argtypes = [
        ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_int64),
        ctypes.c_int64, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_int32, ctypes.c_char_p, ctypes.c_int64,
    ]  # fmt: skip
    return library


def _in_form(data: torch.Tensor, about: dict[str, Any]) -> torch.Tensor:
    library, form = _library(), bytes.fromhex(about["form"])
    shape = (ctypes.c_int64 * 2)(*about["shape"])
    strides, handle = (ctypes.c_int64 * 2)(about["shape"][1], 1), ctypes.c_void_p()
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        data.data_ptr() + about["at"], 2, shape, strides, 0, library.aoti_torch_dtype_bfloat16(),
        library.aoti_torch_device_type_cpu(), 0, ctypes.byref(handle), _MKLDNN, form, len(form),
    )  # fmt: skip
    if failed:
        raise RuntimeError("PyTorch cannot use a weight that is mapped from a file")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    found: torch.Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule(handle, None, None))
    _memory_of.append(data)  # the tensor does not own its memory
    return found


_memory_of: list[torch.Tensor] = []
