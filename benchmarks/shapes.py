"""Models of a known shape with random weights, made in NF4 on a device without ever being there in 16 bits; or in 16.

The configuration of a catalogued model is built without weights; then each linear layer is drawn and quantised by
itself, and each expert of a mixture likewise, so that the most that is there in 16 bits is one matrix, the embedding
and the unembedding. What is quantised and what is kept is decided as `lk.load` decides it.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import AutoConfig
from transformers.quantizers.base import get_keys_to_not_convert

import labkit as lk
from labkit.models.catalog import DATA
from labkit.models.memory import empty_model
from labkit.models.packed_experts import PackedExperts, fused
from labkit.models.quantisation import finish, kept_layers

SPREAD = 0.02  # of random weights, as configurations have it by default

# What becomes of each size in a reduced model: small, and still a whole number of quantisation blocks.
_REDUCED = {
    "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_hidden_layers": 4, "vocab_size": 1024, "n_routed_experts": 8, "num_local_experts": 4,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}  # fmt: skip


def config_of(name: str, *, layers: int | None = None, reduced: bool = False) -> Any:
    """The configuration of a catalogued model, with fewer layers or with every size made small if asked."""
    families = json.loads(DATA.read_text())["families"]
    found = next(model["config"] for family in families for model in family["models"] if model["id"] == name)
    fields = dict(found)
    if layers is not None:
        fields["num_hidden_layers"] = layers
    if reduced:
        grouped = fields["num_key_value_heads"] < fields["num_attention_heads"]
        fields |= {key: value for key, value in _REDUCED.items() if fields.get(key) is not None}
        fields["num_key_value_heads"] = 2 if grouped else 4
    return AutoConfig.for_model(**fields)


def build(
    config: Any, tokenizer: Any, *, name: str, device: torch.device, dtype: torch.dtype, bits: int = 4
) -> lk.LanguageModel:
    """A model of a configuration in NF4 with double quantisation, its weights drawn anew, the same ones every time.

    With `bits=16` the very weights that are quantised otherwise; of models without experts.
    """
    config.dtype = dtype
    hf: Any = empty_model(config)
    kept = {*kept_layers(hf), *get_keys_to_not_convert(hf)}
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(std=SPREAD, generator=generator)

    for path, module in list(hf.named_modules()):
        if isinstance(module, nn.Linear) and path not in kept:
            hf.set_submodule(path, _linear(module, drawn, dtype) if bits == 4 else _plain(module, drawn))
    for module, own, shape in list(fused(hf)):
        stack = PackedExperts(shape, dtype, device)
        for n in range(shape[0]):
            stack.put(n, drawn(*shape[1:]))
        delattr(module, own)
        module.add_module(own, stack)
        module._is_hf_initialized = True
    for module in hf.modules():
        for own, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.device.type == "meta":
                place = module._parameters if own in module._parameters else module._buffers
                new = torch.empty_like(tensor, device=device)
                place[own] = nn.Parameter(new, requires_grad=False) if place is module._parameters else new
    hf.tie_weights()
    torch.manual_seed(0)
    with torch.no_grad():
        hf.initialize_weights()  # norms, embeddings, routers, biases, rotary tables; what is quantised says it is done
        for path, parameter in hf.named_parameters():
            if path.endswith("bias") and parameter.dtype.is_floating_point:
                parameter.copy_(drawn(*parameter.shape))
    if hasattr(config, "_experts_implementation"):
        hf.set_experts_implementation("eager")  # one expert after another, as lk.load has it
    if bits == 4:
        finish(hf, 4, dtype)
    return lk.LanguageModel(hf, tokenizer, name=name, bits=bits)


def _plain(empty: nn.Linear, drawn: Any) -> nn.Linear:
    layer = nn.Linear(empty.in_features, empty.out_features, empty.bias is not None, device="meta")
    layer.weight = nn.Parameter(drawn(empty.out_features, empty.in_features), requires_grad=False)
    if empty.bias is not None:
        layer.bias = nn.Parameter(drawn(empty.out_features), requires_grad=False)
    layer._is_hf_initialized = True  # type: ignore[assignment]
    return layer


def _linear(plain: nn.Linear, drawn: Any, dtype: torch.dtype) -> Linear4bit:
    has_bias = plain.bias is not None
    layer = Linear4bit(
        plain.in_features, plain.out_features, has_bias, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    packed, state = quantize_4bit(
        drawn(plain.out_features, plain.in_features), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    layer.weight = Params4bit(
        packed, requires_grad=False, quant_state=state, quant_type="nf4", module=layer, bnb_quantized=True
    )
    layer.quant_state = state
    if has_bias:
        layer.bias = nn.Parameter(drawn(plain.out_features), requires_grad=False)
    layer._is_hf_initialized = True
    return layer
