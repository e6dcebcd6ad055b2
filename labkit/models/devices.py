"""Where a module computes, and how things get there: models split over several devices by accelerate.

Each part runs on one device, to which accelerate moves what comes in. Weights that do not fit on a GPU are kept on the
CPU or on disk and moved in only while their module runs; otherwise the module holds tensors on the meta device, which
have a shape but no numbers. So the device of a module is asked for here, not of its weights, and a weight is moved in
before it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

_OF_ACCELERATE = {"_hf_hook", "forward", "_old_forward"}


def runs_on(module: nn.Module) -> torch.device:
    """The device on which a module computes, wherever its weights are kept."""
    for part in module.modules():
        if (hook := getattr(part, "_hf_hook", None)) is None:
            continue
        for one in getattr(hook, "hooks", [hook]):  # several in a row are a hook of hooks
            where = getattr(one, "execution_device", None)
            if where is not None and (device := torch.device(where)).type != "meta":
                return device
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
    return torch.device("cpu")


def is_away(module: nn.Module) -> bool:
    """Are a module's weights kept elsewhere?"""
    return any(p.device.type == "meta" for p in (*module.parameters(), *module.buffers()))


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Move a module's weights in, submodules included, while the block runs."""
    with ExitStack() as stack:
        for part in module.modules():
            hook: Any = getattr(part, "_hf_hook", None)
            own = (*part.parameters(recurse=False), *part.buffers(recurse=False))
            if hook is not None and any(tensor.device.type == "meta" for tensor in own):
                hook.pre_forward(part)
                stack.callback(hook.post_forward, part, None)
        yield


def copied(module: nn.Module) -> nn.Module:
    """A copy of a module with its weights in it and without accelerate's hooks."""
    hooks = {
        id(part.__dict__[name]): None for part in module.modules() for name in _OF_ACCELERATE & part.__dict__.keys()
    }
    with present(module):
        copy = deepcopy(module, hooks)
    for part in copy.modules():
        for name in _OF_ACCELERATE:
            part.__dict__.pop(name, None)
    return copy


def to_index(numbers: Sequence[int] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """An index (n,) of whole numbers, sent to the device without waiting for it."""
    return sent(torch.as_tensor(numbers, dtype=torch.long), device)


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device, without waiting for it where it comes from the CPU."""
    if device.type == "cuda" and x.device.type == "cpu":  # only from pinned memory is a copy to a GPU asynchronous
        x = x.pin_memory()
    return x.to(device, non_blocking=x.device.type == "cpu")


def on_the_cpu(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors on the CPU, in their dtypes; the host waits once for each device and dtype, not for each tensor."""
    found, kinds = list(tensors), dict[Any, list[int]]()
    for n, x in enumerate(tensors):
        if x.device.type != "cpu":
            kinds.setdefault((x.device, x.dtype), []).append(n)
    for own in kinds.values():
        numbers = torch.cat([tensors[n].flatten() for n in own]).cpu()
        for n, part in zip(own, numbers.split([tensors[n].numel() for n in own]), strict=True):
            found[n] = part.view(tensors[n].shape).clone()  # each in memory of its own
    return found


def columns_of(x: torch.Tensor, columns: Sequence[int] | None) -> torch.Tensor:
    """`x[..., columns]`, or x itself for None, without waiting for the device, as a list for an index would."""
    return x if columns is None else x.index_select(-1, to_index(columns, x.device))


class Copies:
    """Tensors that are copied to the CPU all at once: the host waits for a device once, not for each."""

    def __init__(self) -> None:
        self._kinds: dict[Any, list[tuple[np.ndarray, torch.Tensor]]] = {}

    def into(self, array: np.ndarray, x: torch.Tensor) -> None:
        """Into all of this array, or of this view of one, when it is `done`."""
        x = x.float().clone() if x.dtype.is_floating_point else x.clone()  # no view, which would keep more in memory
        self._kinds.setdefault((x.device, x.dtype), []).append((array, x))

    def of(self, x: torch.Tensor) -> np.ndarray:
        """An array of the same shape, which has the numbers when it is `done`."""
        kind = np.float32 if x.dtype.is_floating_point else np.bool_ if x.dtype == torch.bool else np.int64
        array: np.ndarray = np.empty(tuple(x.shape), kind)
        self.into(array, x)
        return array

    def done(self) -> None:
        for pairs in self._kinds.values():
            numbers = torch.cat([x.flatten() for _, x in pairs]).cpu().numpy()
            ends = np.cumsum([array.size for array, _ in pairs])
            for (array, _), part in zip(pairs, np.split(numbers, ends), strict=False):
                array[...] = part.reshape(array.shape)
        self._kinds.clear()
