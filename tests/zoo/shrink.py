"""Tiny random models of every decoder-only type that transformers can load, made from its own config classes.

One generic shrinker: every number in a type's default configuration is made small by the meaning of its name. What does
not follow from names is in `OVERRIDES`, with the reason.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MOST = 10_000_000  # parameters
VOCAB, LAYERS, HEADS, KV_HEADS, HEAD, WIDTH, MLP = 256, 2, 4, 2, 16, 64, 96


def _all(why: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), why)


LEFT_OUT = {
    **_all(
        "an encoder",
        "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
        "roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xmod",
    ),
    **_all(
        "the decoder of an encoder-decoder",
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet",
    ),
    **_all("speech or vision", "whisper trocr musicgen musicgen_melody moshi moss_transcribe_diarize"),
    **_all(
        "a vision or audio wrapper; its text part is a type of its own or not a plain decoder",
        "aria_text emu3 fuyu git got_ocr2 gemma3 gemma3n gemma4 gemma4_unified llama4 mllama phi4_multimodal qwen3_5 "
        "qwen3_5_moe qwen4_exp cohere_compass_text gemma4_assistant gemma4_unified_assistant dots3_note",
    ),
    "xlnet": "permutation language model: not causal",
    "reformer": "reversible layers over hashed buckets",
    "cpmant": "its forward takes prompts in another form",
    "blt": "bytes in latent patches: an encoder, a global and a local decoder, not one stack of blocks",
    "gpt-sw3": "the same class as gpt2",
}
TYPES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(LEFT_OUT))
# models of one type that differ in what matters here
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama (Llama 2)": ("llama", {"vocab_size": 32000, "num_key_value_heads": HEADS}),
}
ZOO = [*TYPES, *VARIANTS]

# name -> small value; the first pattern that matches the whole field name counts
_SMALL: list[tuple[str, Any]] = [
    (r"vocab_size.*|.*_vocab_size", VOCAB),
    (r"pad_token_id|bos_token_id|eos_token_id|.*_token_id|.*_token_index", 1),
    (r"num_hidden_layers|n_layers?|num_layers|num_blocks", LAYERS),
    (r"num_key_value_heads|num_kv_heads|multi_query_group_num|.*num_key_value_heads", KV_HEADS),
    (r"num_attention_heads|n_heads?|.*num_attention_heads|index_n_heads", HEADS),
    (r"qk_head_dim", 2 * HEAD),  # with and without rotation, side by side
    (r"head_dim|attention_head_dim|kv_channels|index_head_dim|.*_head_dim", HEAD),
    (r"rotary_dim", 8),
    (r"(mamba_)?chunk_size", 8),
    (r"first_k_dense_replace|num_dense_layers|attn_layer_offset|expert_layer_offset", 1),
    (r"attn_layer_period|expert_layer_period", 2),
    (r"hidden_size|n_embd|d_model|dim_model|word_embed_proj_dim|embed_dim|attention_hidden_size|lru_width", WIDTH),
    (r".*intermediate_size|ffn_dim|n_inner|d_ff|.*ffn_hidden_size|ffn_hidden_dim", MLP),
    (r"n_routed_experts|num_experts|num_local_experts|n_experts|moe_num_experts|.*num_experts", 4),
    (r"num_experts_per_tok|num_experts_per_token|moe_top_?k|moe_k|top_k_experts|.*experts_per_tok", 2),
    (r"zero_expert_num", 2),
    (r"index_topk", 4),  # fewer than a test prompt's tokens
    (r"n_group|topk_group|n_groups|mamba_n_groups|num_expert_group", 1),
    (r".*lora_rank|.*_rank", 16),
    (r"max_position_embeddings|n_positions|n_ctx|seq_length|max_seq_len|context_length|max_sequence_length", 128),
    (r"sliding_window|attention_window_size|window_size|attention_chunk_size", 8),
    (r".*state_size|.*d_state|ssm_.*state.*", 8),
    (r".*dropout.*|.*_pdrop", 0.0),
]
_PER_LAYER = re.compile(r"(layer_types|.*_layer_types|layers_block_type|block_types|.*_pattern)$")

OVERRIDES: dict[str, dict[str, Any]] = {
    # the class computes head_dim ** -0.5 from a field that is None by default
    **{name: {"head_dim": HEAD} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "bamba": {"attn_layer_indices": [1]},  # None by default
    "granitemoehybrid": {"layers_block_type": ["mamba", "attention"]},  # None by default
    "xlstm": {"qk_dim_factor": 1.0},  # with 0.5 its own cache has the wrong shape in transformers 5.23
    "nemotron": {"num_key_value_heads": KV_HEADS},  # None by default, and divided by
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},  # one entry a layer, in a form of its own
    "mamba2": {"num_heads": 8, "head_dim": HEAD, "hidden_size": WIDTH},  # heads x head_dim = 2 x width
    "deepseek_v2": {"num_experts_per_tok": 2},  # None by default
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},  # None by default
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 2 * HEAD},  # sizes of its own for some layers
    "zaya": {"num_experts_per_tok": 1},  # takes no other
    "qwen4_exp_text": {  # None by default
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "gemma3n_text": {  # the last layers take keys and values from earlier ones of the same kind
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": [MLP] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        "hidden_size_per_layer_input": HEAD,
    },
    # attention is shared by several layers, and twice as wide as the rest
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 2 * HEAD,
        "num_key_value_heads": HEADS,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 2 * HEAD,
        "num_key_value_heads": HEADS,
        "n_mamba_heads": 8,
        "mamba_headdim": HEAD,
    },
    "dbrx": {  # its sizes are in two configurations of their own
        "attn_config": {"kv_n_heads": KV_HEADS, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": MLP, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},  # None by default
}


def small_config(name: str) -> Any:
    """The own configuration of a type or variant with every size made small."""
    model_type, special = VARIANTS.get(name, (name, {}))
    default = CONFIG_MAPPING[model_type]()
    fields = {k: v for k, v in default.to_dict().items() if not k.startswith("_")}
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, bool) or value is None:
            if name == "pad_token_id":
                small[name] = 0
            continue
        if _PER_LAYER.fullmatch(name) and isinstance(value, list):
            kinds = list(dict.fromkeys(value))
            small[name] = (kinds * LAYERS)[: max(LAYERS, len(kinds))]
            continue
        if isinstance(value, int | float):
            for pattern, to in _SMALL:
                if re.fullmatch(pattern, name):
                    small[name] = to
                    break
    longest = max([LAYERS, *(len(v) for k, v in small.items() if isinstance(v, list))])
    for name, value in small.items():
        if isinstance(value, list):
            small[name] = (value * longest)[:longest]
        elif re.fullmatch(_SMALL[2][0], name):
            small[name] = longest
    if "kv_lora_rank" in fields:  # latent attention: every head has keys and values of its own
        small |= {name: HEADS for name in small if re.fullmatch(_SMALL[3][0], name)}
    small |= OVERRIDES.get(model_type, {}) | special
    return CONFIG_MAPPING[model_type](**small)


def tiny(model_type: str) -> PreTrainedModel:
    """A tiny random model of a type, float32, in eval mode; the same weights every time."""
    config = small_config(model_type)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST:
        raise ValueError(f"{model_type} is not tiny: {size / 1e6:.0f}M parameters")
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if not bool(parameter.any()):  # biases and gates that begin at zero would hide what they do
                parameter.normal_(std=0.1)
    return hf
