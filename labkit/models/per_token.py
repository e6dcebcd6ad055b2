"""What a token costs, from a configuration alone: parameters that compute it, and the cache that remembers it.

A mixture of experts uses a few of its experts for each token (Shazeer et al. 2017, arXiv:1701.06538), so it computes
with fewer parameters than memory has to hold. And layers keep the keys and values of earlier tokens; multi-head latent
attention keeps one compressed vector in their place (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labkit.models.memory import empty_model
from labkit.models.packed_experts import fused


def active_parameters(config: Mapping[str, Any]) -> float:
    """Parameters that compute one token, in billions, embeddings included: of a mixture, those of the experts chosen.

    Makers count differently: some leave the embeddings out.
    """
    from transformers import AutoConfig

    asked = AutoConfig.for_model(**config)
    skeleton = empty_model(asked)
    count = float(sum(parameter.numel() for parameter in skeleton.parameters()))
    text = asked.get_text_config(decoder=True)
    for module, name, (experts, *_) in fused(skeleton):
        chosen = getattr(text, "num_experts_per_tok", None) or text.top_k_experts
        count -= getattr(module, name).numel() * (1 - chosen / experts)
    return count / 1e9


def cache_bytes(config: Mapping[str, Any], tokens: int, *, each: int = 2) -> int:
    """Bytes of keys and values that are kept for one text, at most.

    Args:
        config: with its `model_type`.
        tokens: the length of the text.
        each: bytes of a number, 2 for 16 bits.

    All layers are taken to keep all tokens; those with a window need less where the text is longer than it. Of latent
    attention the compressed vector and the rotated key are counted, which is what has to be kept; code that keeps the
    keys and values of every head in their place takes many times as much.

    Raises:
        ValueError: a layer keeps something else, or a number of heads of its own, that is not counted here.
    """
    text = _text_config(config)
    kinds = _kinds(text) - {"full_attention", "sliding_attention", "chunked_attention"}
    own = [name for name in ("index_head_dim", "global_head_dim") if config.get(name) or getattr(text, name, None)]
    if odd := sorted(kinds) + own:
        raise ValueError(f"labkit does not know what {config['model_type']} keeps for each token: it has {odd[0]}")
    if rank := getattr(text, "kv_lora_rank", None):
        kept = rank + text.qk_rope_head_dim  # numbers per token and layer
    else:
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        kept = 2 * width * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    return int(text.num_hidden_layers * kept * tokens * each)


def has_windows(config: Mapping[str, Any]) -> bool:
    """Whether some layers look at the last tokens only, so that `cache_bytes` is more than they keep of a long text."""
    return bool({"sliding_attention", "chunked_attention"} & _kinds(_text_config(config)))


def _text_config(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**config).get_text_config(decoder=True)


def _kinds(text: Any) -> set[str]:
    """The kinds of attention of a configuration's layers; none where it does not tell them apart."""
    return set(getattr(text, "layer_types", None) or ())
