"""A device that is not the CPU, on the CPU: a private device of PyTorch whose tensors hold true numbers.

Each tensor there wraps one of the host, on which everything is computed, so values are those of the CPU. But as on a
GPU an operation that mixes tensors of the device with tensors of the host is an error (single numbers excepted, as
PyTorch allows them), and what is made with the model's device is there. It is stricter than CUDA in one thing: an index
from the host, which CUDA copies over and waits for, is an error, too.

Inside `elsewhere()` every time that the host waits for the device is noted with its place in labkit: `.item()`,
`.tolist()`, `bool(x)`, `.cpu()`, `nonzero`, a boolean index.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("elsewhere")
DEVICE = torch.device("elsewhere", 0)
LABKIT = str(Path(__file__).parents[1] / "labkit")
aten = torch.ops.aten
WAITS = {  # what the host cannot have without waiting for the device
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten.is_nonzero.default, aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}  # fmt: skip
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}


class WrongDevice(RuntimeError):
    """Tensors of the host and of the device met in one operation."""


class There(torch.Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device = DEVICE) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=device, requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"There({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return done(func, args, kwargs or {})

    def tolist(self) -> Any:
        note("tolist")
        return self.detach().held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"cannot convert a tensor on {DEVICE} to numpy; use .cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def __deepcopy__(self, memo: Any) -> Any:
        made = There(self.held.clone(), self.device)
        return nn.Parameter(made, self.requires_grad) if isinstance(self, nn.Parameter) else made


def done(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, on what the tensors of the device hold."""
    flat, _ = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, There)]
    here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, There)]
    target = kwargs.get("device")
    goes = target is not None and torch.device(target).type == DEVICE.type
    if func is aten._to_copy.default:
        goes = goes or (target is None and bool(there))
        if there and not goes:
            note("cpu")
        elif here and goes and here[0].numel() and not kwargs.get("non_blocking"):
            note("to the device")
    elif func is aten.copy_.default:
        if there and not isinstance(args[0], There):
            note("copy_ to the host")
    elif there:
        if len({x.device for x in there if x.ndim}) > 1:
            raise WrongDevice(f"{func} got tensors of several devices: {[(tuple(x.shape), x.device) for x in there]}")
        if mixed := [x for x in here if x.ndim]:
            raise WrongDevice(
                f"{func} got tensors of {DEVICE} and of the host: {[tuple(x.shape) for x in there]} and "
                f"{[tuple(x.shape) for x in mixed]}"
            )
        if func in WAITS:
            note(func.__name__.partition(".")[0])
        if func in INDEXED and any(x is not None and x.dtype == torch.bool for x in args[1]):
            note("boolean index")
        goes = target is None or goes
        if not goes and func is not aten._local_scalar_dense.default:
            there = []  # such as zeros_like(x, device="cpu")
    elif goes and here and func not in FACTORIES_LIKE:
        raise WrongDevice(f"{func} makes a tensor on {DEVICE} of one of the host")
    if goes and target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    plain = lambda x: x.held if isinstance(x, There) else x  # noqa: E731
    if func is aten.histc.default and not args[0].is_floating_point():  # a GPU counts whole numbers, the CPU does not
        out = func(plain(args[0]).float(), *args[1:], **kwargs).to(args[0].dtype)
    else:
        out = func(*tree_map(plain, args), **tree_map(plain, kwargs))
    device = _with_number(target)
    if target is None and there:
        device = max(there, key=lambda x: x.ndim).device  # a single number is wherever the others are
    owners = {id(x.held): x for x in flat if isinstance(x, There)}
    if not goes and not (there and func is aten.copy_.default):
        return out

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return owners[id(x)] if id(x) in owners else There(x.resolve_conj().resolve_neg(), device)

    if func is aten.copy_.default:
        return args[0]
    return tree_map(wrap, out)


def _with_number(device: Any) -> torch.device:
    return DEVICE if device is None or torch.device(device).index is None else torch.device(device)


FACTORIES_LIKE = {
    aten.empty_like.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
    aten.rand_like.default, aten.randn_like.default, aten.new_empty.default, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default,
}  # fmt: skip


def _empty(size: Any, *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: Any) -> There:
    made = torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format)
    return There(made, _with_number(device))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> There:
    return There(torch.empty_strided(size, stride, dtype=dtype), _with_number(device))


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    held = [x.held if isinstance(x, There) else x for x in (source, target)]
    held[1].copy_(held[0])
    if source.numel():
        note("list to the device" if isinstance(target, There) else "copy to the host")
    return target


# What PyTorch makes below the reach of a mode: the list in `x[:, [1, 2]]` goes to the device as a tensor of its own.
_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return done(func, args, kwargs or {})


_noted: list[Counter[str]] = []


def note(what: str) -> None:
    """One wait, at the place in labkit that asked for it."""
    if not _noted:
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not (frame.f_code.co_filename.startswith(LABKIT) and frame.f_code.co_name[0] != "<"):
        frame = frame.f_back
    place = "outside labkit"
    if frame is not None:
        name = Path(frame.f_code.co_filename).relative_to(LABKIT).as_posix()
        place = f"{name}:{frame.f_code.co_name}"
    _noted[-1][f"{place} {what}"] += 1


@contextmanager
def elsewhere() -> Iterator[Counter[str]]:
    """Tensors can be made on the device here; yields the waits of the host so far, by place and kind."""
    _noted.append(Counter())
    try:
        with _Mode():
            yield _noted[-1]
    finally:
        _noted.pop()


def moved(hf: nn.Module) -> Any:
    """A copy of a model, on the device."""
    there = copy.deepcopy(hf)
    for module in there.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = _moved(parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = There(buffer)
    tied(hf, there)
    return there


def put_on(module: nn.Module, device: torch.device) -> None:
    """Move a part of a model that is on the device to another, and what comes in with it, as accelerate does."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if isinstance(tensor, There):
                    there = There(tensor.detach().held, device)
                    tensors[name] = nn.Parameter(there, tensor.requires_grad) if tensors is part._parameters else there
    add_hook_to_module(module, AlignDevicesHook(execution_device=device))


def _moved(parameter: nn.Parameter) -> nn.Parameter:
    held = parameter.detach().as_subclass(torch.Tensor)
    there = nn.Parameter(There(held), parameter.requires_grad)
    state = getattr(parameter, "quant_state", None)  # of four bits: its numbers are no buffers
    if state is not None:
        state = copy.deepcopy(state)
        for one in (state, *([state.state2] if state.nested else [])):
            one.absmax, one.code = There(one.absmax), There(one.code)
        if state.nested:
            state.offset = There(state.offset)
        there.quant_state, there.bnb_quantized = state, True
    return there


def tied(hf: nn.Module, there: nn.Module) -> None:
    """Parameters that were one are one again."""
    first: dict[int, nn.Parameter] = {}
    for (_, before), after in zip(hf.named_modules(), there.modules(), strict=True):
        for name, parameter in before._parameters.items():
            if parameter is not None:
                after._parameters[name] = first.setdefault(id(parameter), after._parameters[name])
