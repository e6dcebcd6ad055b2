"""The transformers model inside of whatever was put around it: `torch.compile`, parallel wrappers, PEFT's adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from labkit.models.compiled import HIDDEN, original, uncompiled

MERGE = "merge the adapter first: model = model.merge_and_unload()"


def unwrapped(model: Any) -> Any:
    """The transformers model that does the work.

    Adapters in its layers stay in place and active.

    Raises:
        TypeError: there is no transformers model in it.
        ValueError: an adapter changes more than the model's layers (prompt tuning, gates that look at the prompt).
    """
    from transformers import PreTrainedModel

    given, adapted = model, False
    while True:
        if original(model) is not model:
            model = original(model)
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif callable(getattr(model, "get_base_model", None)) and hasattr(model, "peft_config"):
            _check_adapter(model)
            adapted, model = True, model.get_base_model()
        else:
            break
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"lk.wrap takes a transformers model; got a {type(model).__name__}. {HIDDEN}")
    if adapted and not _same(given, model):
        raise ValueError(f"{type(given).__name__} changes more than the layers of the model it wraps; {MERGE}")
    return model


def adapters_of(hf: nn.Module) -> list[str]:
    """The names of the adapters that are at work in a model's layers."""
    names: dict[str, None] = {}
    for module in hf.modules():
        adapted = isinstance(getattr(module, "base_layer", None), nn.Module)
        if adapted and not getattr(module, "disable_adapters", False):
            active = getattr(module, "active_adapters", None) or ["adapter"]
            names |= dict.fromkeys(map(str, active if isinstance(active, list) else ["adapter"]))
    return list(names)


def _check_adapter(model: Any) -> None:
    for name, config in model.peft_config.items():
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(
                f"the adapter {name!r} puts {config.peft_type.value.lower().replace('_', ' ')} vectors before the "
                "prompt instead of changing layers; labkit does not support that"
            )
        if getattr(config, "alora_invocation_tokens", None):
            raise ValueError(f"the adapter {name!r} starts at its invocation tokens, so it is not part of a layer")


def _same(given: nn.Module, model: nn.Module) -> bool:
    """Do both give the same logits for a few tokens?"""
    training = {module: module.training for module in given.modules()}
    try:
        given.eval()
        ids = torch.arange(4, device=next(model.parameters()).device)[None]
        with torch.no_grad(), uncompiled():
            ours, theirs = (m(input_ids=ids, use_cache=False).logits.float() for m in (model, given))
    finally:
        for module, mode in training.items():
            module.training = mode
    return float((ours - theirs).norm()) <= 1e-3 * float(theirs.norm())
