"""What is quantised, and how: bitsandbytes' settings, and which layers are left alone."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.models.narrow_embeddings import narrow
from labkit.models.packed_experts import PackedExperts, fused, register

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_READS = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device))")
_IN_A_BLOCK = re.compile(r"(?:.*?\.)?(?:\w+)\.(?P<layer>\d+)\.(?P<name>.+)$")
_ROUTER = re.compile(r"Router|Gate$|Gating$")


@dataclass(frozen=True)
class Packing:
    """How 4-bit weights are packed, and which weights are not.

    Attributes:
        quant_type: `nf4`, quantiles of a normal distribution, or `fp4`, a 4-bit float (Dettmers et al. 2023).
        double_quant: quantise the scales of the blocks, too, which saves 0.4 bits per weight.
        keep: the matrices that stay in 16 bits, as `kept_by` takes them.
    """

    quant_type: str = "nf4"
    double_quant: bool = True
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.quant_type not in QUANT_TYPES:
            raise ValueError(f"quant_type must be one of {', '.join(QUANT_TYPES)}; got {self.quant_type!r}")


QUANT_TYPES = ("nf4", "fp4")
USUAL = Packing()


def import_bitsandbytes() -> None:
    """Import it, on a machine without an accelerator with torch.compile off.

    It compiles its kernels for devices that have none of their own. A CPU has, and torch._inductor, which compiling
    brings in, takes 2 s and 40 MB in every kernel of a class.
    """
    switch = "TORCHDYNAMO_DISABLE"
    if "bitsandbytes" in sys.modules or switch in os.environ or torch.accelerator.is_available():
        return
    os.environ[switch] = "1"
    try:
        with suppress(Exception):  # transformers says what is wrong with it
            import bitsandbytes  # noqa: F401
    finally:
        os.environ.pop(switch, None)


def quantisation_config(bits: int, dtype: torch.dtype, skeleton: PreTrainedModel, packing: Packing = USUAL) -> Any:
    """The configuration that makes transformers quantise a model as it reads it.

    Args:
        bits: 4 (the experts of a mixture too) or 8 (LLM.int8).
        dtype: what to compute in.
        skeleton: the model without weights.
        packing: how, in 4 bits, and what is left out.

    Raises:
        ValueError: the experts of a mixture, which are packed in one way only, or a name that matches nothing.
    """
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.base import get_keys_to_not_convert

    if has_experts(skeleton) and replace(packing, keep=()) != USUAL:
        raise ValueError(
            "the experts of a mixture are packed in NF4 with double quantisation only; leave quant_type and "
            "double_quant out"
        )
    kept = [*kept_layers(skeleton), *kept_by(skeleton, packing.keep)]
    settings: dict[str, Any] = {"llm_int8_skip_modules": [*get_keys_to_not_convert(skeleton), *kept] if kept else None}
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, **settings)
    return (register() if has_experts(skeleton) else BitsAndBytesConfig)(
        load_in_4bit=True,
        bnb_4bit_quant_type=packing.quant_type,
        bnb_4bit_use_double_quant=packing.double_quant,
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


def matrices(skeleton: nn.Module) -> dict[str, tuple[str, int]]:
    """The linear layers of the blocks by their full names: the name within the block, and the layer's number."""
    found = {}
    for full, module in skeleton.named_modules():
        if (at := _IN_A_BLOCK.match(full)) and isinstance(module, nn.Linear):
            found[full] = at["name"], int(at["layer"])
    return found


def kept_by(skeleton: nn.Module, names: Sequence[str]) -> list[str]:
    """The full names of the linear layers that are meant by names such as `o_proj.23`, `mlp.0` or `down_proj`.

    Args:
        skeleton: the model, with or without weights.
        names: a part of a block by its name, or a part of that name, with or without a layer's number.

    Raises:
        ValueError: a name that matches no linear layer; the message lists those that there are.
    """
    known, chosen = matrices(skeleton), []
    for asked in names:
        name, _, number = str(asked).rpartition(".")
        if not number.isdigit():
            name, number = str(asked), ""
        found = [
            full
            for full, (own, layer) in known.items()
            if f".{name}." in f".{own}." and (not number or layer == int(number))
        ]
        if not found:
            layers = max((layer for _, layer in known.values()), default=-1) + 1
            owns = ", ".join(dict.fromkeys(own for own, _ in known.values()))
            raise ValueError(
                f"keep={asked!r} matches no linear layer; there are {owns}, in layers 0 to {layers - 1}. Write "
                "'o_proj.23' for one layer's, 'mlp.0' for all in a part of it, 'down_proj' for that of every layer"
            )
        chosen += [full for full in found if full not in chosen]
    return chosen


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
