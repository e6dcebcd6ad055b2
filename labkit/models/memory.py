"""Whether a model fits, and where its bytes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.models.anatomy import Anatomy
from labkit.models.container import memory_left, memory_limit
from labkit.models.packed_experts import fused
from labkit.models.quantisation import USUAL, Packing, kept_by, kept_layers

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel


NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight in NF4 with double quantisation: half a byte, an 8-bit scale for 64 weights, and a float32 for 256
of those scales (Dettmers et al. 2023, section 3)."""

SINGLE_BYTES = 0.5 + 4 / 64
"""The same without double quantisation: a float32 scale for 64 weights."""


def in_words(size: float) -> str:
    """`110.2 MB`, `4.1 GB`: decimal units, as disks and GPUs are sold."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of a model's weights by part, quantisation scales and tables included; shared tensors count once.

    `away` are those of them that wait on the CPU or on disk until needed. `unpacked` are extra bytes: 4-bit weights
    that are also kept unpacked, for speed, while memory allows.
    """

    parts: dict[str, int]
    away: int = 0
    unpacked: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def to_frame(self) -> pd.DataFrame:
        """One row per part: bytes and share of the whole."""
        import pandas as pd

        rows = [(name, size, size / self.total) for name, size in self.parts.items()]
        return pd.DataFrame(rows, columns=["part", "bytes", "share"]).set_index("part")

    def __repr__(self) -> str:
        width = max(map(len, self.parts))
        lines = [f"{name:<{width}}  {in_words(size):>9}  {size / self.total:4.0%}" for name, size in self.parts.items()]
        lines.append(f"{'total':<{width}}  {in_words(self.total):>9}")
        if self.away:
            lines.append(f"{in_words(self.away)} of it on the CPU or on disk, moved in as each layer runs")
        if self.unpacked:
            lines.append(f"{in_words(self.unpacked)} more for weights kept unpacked while memory allows")
        return "\n".join(lines)


def measure(hf: Any, anatomy: Anatomy, *, kept: int = 0) -> MemoryReport:
    """Where the bytes of a model are; `kept` are the bytes of weights that are also kept unpacked."""
    owners: dict[nn.Module, str] = {}
    for block in anatomy.blocks:
        owners |= dict.fromkeys(block.module.modules(), "norms and the rest")
        for part, name in ((block.attention, "attention"), (block.mlp, "MLP")):
            owners |= dict.fromkeys(part.modules() if part is not None else (), name)
    owners |= {hf.get_input_embeddings(): "embedding", hf.get_output_embeddings(): "unembedding"}
    parts = dict.fromkeys(["embedding", "attention", "MLP", "norms and the rest", "unembedding"], 0)
    seen: set[int] = set()
    away = 0
    config = hf.config.get_text_config(decoder=True)
    tied = hf.get_output_embeddings() if getattr(config, "tie_word_embeddings", False) else None
    for module in hf.modules():
        for tensor in tensors_of(module):
            meta = tensor.device.type == "meta"
            address = id(tensor) if meta else tensor.untyped_storage().data_ptr()
            if address in seen or (meta and module is tied):
                continue
            seen.add(address)
            size = tensor.untyped_storage().nbytes()
            parts[owners.get(module, "norms and the rest")] += size
            away += size if meta else 0
    if not parts["unembedding"]:
        del parts["unembedding"]
        parts = {"embedding (and unembedding, shared)" if k == "embedding" else k: v for k, v in parts.items()}
    return MemoryReport(parts, away, kept)


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """A module's own parameters and buffers, with what bitsandbytes keeps for a packed weight."""
    weight = getattr(module, "weight", None)
    state = getattr(weight, "quant_state", None)
    scales = ("absmax", "code", "offset")
    parts = ((state, scales), (getattr(state, "state2", None), scales), (weight, ("CB", "SCB")))
    kept = [getattr(part, name, None) for part, names in parts for name in names]
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return own + [tensor for tensor in kept if isinstance(tensor, torch.Tensor)]


def empty_model(config: Any, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model of this configuration without weights, on the meta device."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import meta_device_safe_creation_ops, no_init_weights

    # not accelerate's init_empty_weights: it makes each tensor before it empties it, 30 GB for one layer of DeepSeek-V3
    with torch.device("meta"), meta_device_safe_creation_ops(), no_init_weights():
        hf = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    hf.tie_weights()
    return hf


def predict(skeleton: PreTrainedModel, *, bits: int, dtype: torch.dtype, packing: Packing = USUAL) -> int:
    """Bytes of weights that a model will take, from one without weights (`empty_model`)."""
    size = torch.finfo(dtype).bits / 8
    head = skeleton.get_output_embeddings()
    table = min(size, 2) if bits < 16 else size  # bytes per weight of an embedding
    left = [*kept_layers(skeleton), *kept_by(skeleton, packing.keep)]
    kept = {skeleton.get_submodule(name) for name in left} | {head}
    four = NF4_BYTES if packing.double_quant else SINGLE_BYTES
    experts = {id(getattr(module, name)) for module, name, _ in fused(skeleton)}
    total, seen = 0.0, set()
    for module in skeleton.modules():
        linear = (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and module not in kept
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            each = table if isinstance(module, nn.Embedding) or module is head else size
            if linear and parameter.ndim == 2:
                each = {4: four, 8: 1 + 4 / parameter.shape[-1]}.get(bits, size)
            elif bits == 4 and id(parameter) in experts:
                each = NF4_BYTES
            total += parameter.numel() * each
    return int(total)


def available(device: torch.device) -> int:
    """Bytes still free on a device: on the CPU, also within the limits of a container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    free, left = int(psutil.virtual_memory().available), memory_left()
    return free if left is None else min(free, left)


def installed() -> int:
    """All the memory that this process could use: the machine's, or the limit of its container."""
    import psutil

    total, limit = int(psutil.virtual_memory().total), memory_limit()
    return total if limit is None else min(total, limit)
