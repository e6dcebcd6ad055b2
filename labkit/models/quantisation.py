"""What is quantised, and how: bitsandbytes' settings, and which layers are left alone."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.models.narrow_embeddings import narrow
from labkit.models.packed_experts import PackedExperts, fused, register

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_READS = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device))")
_ROUTER = re.compile(r"Router|Gate$|Gating$")


def quantisation_config(bits: int, dtype: torch.dtype, skeleton: PreTrainedModel) -> Any:
    """The configuration that makes transformers quantise a model as it reads it.

    Args:
        bits: 4 (NF4 with double quantisation, the experts of a mixture too) or 8 (LLM.int8).
        dtype: what to compute in.
        skeleton: the model without weights.
    """
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = kept_layers(skeleton)
    settings: dict[str, Any] = {"llm_int8_skip_modules": [*get_keys_to_not_convert(skeleton), *kept] if kept else None}
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, **settings)
    return (register() if has_experts(skeleton) else BitsAndBytesConfig)(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        **settings,
    )


def has_experts(skeleton: nn.Module) -> bool:
    """Does a model keep the experts of a mixture as tensors of their own, packed or not?"""
    return any(isinstance(module, PackedExperts) for module in skeleton.modules()) or any(fused(skeleton))


def kept_layers(skeleton: nn.Module) -> list[str]:
    """Linear layers that are not quantised.

    They are routers, those whose weight their parent reads without calling them, and those called `..._weight`, whose
    packed weights transformers cannot tell apart when it reads them back.
    """
    kept = []
    for parent_name, parent in skeleton.named_modules():
        for name, child in parent.named_children():
            kind: Any = type(parent)
            if not isinstance(child, nn.Linear):
                continue
            if _ROUTER.search(kind.__name__) or name in _read_by(kind) or name.endswith("weight"):
                kept.append(f"{parent_name}.{name}" if parent_name else name)
    return kept


@cache
def _read_by(kind: Any) -> frozenset[str]:
    """The children whose weight the code of a module class reads itself."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        try:
            names |= set(_READS.findall(inspect.getsource(base)))
        except (OSError, TypeError):  # no source to look into: all its layers are called, as layers are
            continue
    return frozenset(names)


def stored_dtype(bits: int, dtype: torch.dtype) -> torch.dtype:
    """What the embeddings of a model are kept in: in 4 and 8 bits a 16-bit dtype, whatever the compute dtype."""
    return torch.bfloat16 if bits < 16 and dtype == torch.float32 else dtype


def finish(hf: Any, bits: int, dtype: torch.dtype) -> None:
    """Make a quantised model compute in a dtype, also one that was saved on other hardware, with kernels that can."""
    stored = hf.get_input_embeddings().weight.dtype  # transformers leaves a quantised checkpoint in its own
    small = stored_dtype(bits, dtype)
    tables = narrow(hf, dtype) if small != dtype else set()
    for module in hf.modules():
        for parameter in module.parameters(recurse=False):
            wanted = small if parameter in tables else dtype
            if parameter.dtype in (stored, small) and parameter.dtype != wanted:
                parameter.data = parameter.data.to(wanted)
        if isinstance(module, PackedExperts):
            module.dtype = dtype
        elif hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype
            _choose_kernel(module, dtype)


def _choose_kernel(layer: Any, dtype: torch.dtype) -> None:
    """Keep bitsandbytes from repacking a 4-bit layer for its AVX512-BF16 kernel where that fails or costs precision.

    The kernel takes outputs in multiples of 32 and inputs in whole blocks, and computes in bfloat16.
    """
    state = getattr(layer.weight, "quant_state", None)
    whole = layer.out_features % 32 == 0 and layer.in_features % getattr(state, "blocksize", 64) == 0
    if hasattr(layer, "support_avx512bf16_for_cpu") and (dtype != torch.bfloat16 or not whole):
        layer.support_avx512bf16_for_cpu = False
