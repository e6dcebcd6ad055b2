"""Where a module computes, and how things get there: models larger than one device, as accelerate spreads them.

Each part runs on one device, to which accelerate moves what comes in. Weights that found no room on a GPU lie on the
CPU or on disk, are put in place as their module runs, and are taken away after it: in between the module holds tensors
on the meta device, which have a shape and no numbers. So where a module runs is asked here, not of its weights, and who
wants to read a weight puts it in place first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

_OF_ACCELERATE = {"_hf_hook", "forward", "_old_forward"}


def runs_on(module: nn.Module) -> torch.device:
    """The device on which a module computes, wherever its weights lie meanwhile."""
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
    """Do weights of a module lie elsewhere than in it?"""
    return any(p.device.type == "meta" for p in (*module.parameters(), *module.buffers()))


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Have a module's weights in it for as long as the block runs, those of its parts included."""
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
    index = torch.as_tensor(numbers, dtype=torch.long)
    if device.type == "cuda":  # only from pinned memory does a copy to a GPU go on by itself
        index = index.pin_memory()
    return index.to(device, non_blocking=True)
