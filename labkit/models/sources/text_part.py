"""The language model inside one that takes images or sound as well.

The text part of most is a model that transformers has by itself (Mistral in Mistral Small 3, Llama in LLaVA), that of a
few is one of those under another name: with text alone, the positions of Qwen2.5-VL along time, height and width are
one and the same, and what remains is Qwen2. Its weights are found in the checkpoint by their names and shapes; those of
the other parts are never read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labkit.models.errors import LoadError, NotADecoder
from labkit.models.sources.tensors import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAME = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_5_omni_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_omni_moe_text": "qwen3_moe",
}
"""Text parts that are, with text alone, a language model of another type."""
# what the whole fixes that the language model's configuration may say otherwise
_FIXED: dict[str, dict[str, Any]] = {
    "qwen3_vl_moe": {"norm_topk_prob": True},
    "aya_vision": {"logit_scale": 1.0},
    "cohere2_vision": {"logit_scale": 1.0},
}
# read with attention in both directions, or in a way of its own, also where there is text alone
_OTHERWISE = {"paligemma", "diffusion_gemma"}
_OF_IMAGES = re.compile(r"^mrope_|^interleaved$")


def config_of(config: Any, label: str) -> Any | None:
    """The configuration of the language model inside one that takes more than text; None for a language model.

    Raises:
        NotADecoder: it takes more than text and transformers has no language model that is its text part.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(config, "auto_map") or config.is_encoder_decoder:
        return None
    whole, config = config, _thinker(config)
    text = text_of(config)
    if text is config and not getattr(config, "sub_configs", None):
        return None
    kind = SAME.get(text.model_type, text.model_type)
    known = kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in MODEL_FOR_CAUSAL_LM_MAPPING
    if text is config or not known or config.model_type in _OTHERWISE or text.is_encoder_decoder:
        raise NotADecoder(
            f"{label} takes {_takes(whole)} as well as text ({whole.model_type}), and transformers has no language "
            f"model for its text part alone ({text.model_type}). Use a text-only model of the same family: labkit "
            "models lists some"
        )
    fields = {
        name: value for name, value in text.to_dict().items() if name not in ("model_type", "transformers_version")
    }
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := fields.get(name), dict):
            fields[name] = {n: v for n, v in rope.items() if not _OF_IMAGES.search(n)}
            for field in ("rope_type", "type"):
                if fields[name].get(field) == "mrope":
                    fields[name][field] = "default"
    # whether the unembedding is the embedding is for the whole to say
    fields["tie_word_embeddings"] = bool(getattr(whole, "tie_word_embeddings", fields.get("tie_word_embeddings")))
    found = CONFIG_MAPPING[kind](**fields | _FIXED.get(config.model_type, {}))
    for name in ("_commit_hash", "quantization_config"):
        if (value := getattr(whole, name, None)) is not None and getattr(found, name, None) is None:
            setattr(found, name, value)
    return found


def text_of(config: Any) -> Any:
    """The part of a configuration that is about text; all of it where that is not one part."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError:  # several are
        return config


def _thinker(config: Any) -> Any:
    """The configuration that has the text part: in models that also speak one level down."""
    return getattr(config, "thinker_config", config)


def _takes(config: Any) -> str:
    parts = " ".join(getattr(_thinker(config), "sub_configs", None) or ())
    found = [what for word, what in (("vision", "images"), ("image", "images"), ("audio", "sound")) if word in parts]
    return " and ".join(dict.fromkeys(found)) or "images or sound"


def tensors_of(tensors: Mapping[str, Tensor], skeleton: PreTrainedModel, label: str) -> dict[str, Tensor]:
    """The tensors of the text part of a checkpoint, under the names of the language model.

    Raises:
        LoadError: they cannot be identified.
    """
    names = _renamed({name: tensor.shape for name, tensor in tensors.items()}, skeleton)
    if names is None:
        raise LoadError(
            f"{label} takes more than text, and the weights of its text part ({skeleton.config.model_type}) were not "
            "found by name. It may be incomplete; fetch it again, or use a text-only model"
        )
    return {new: tensors[old] for old, new in names.items()}


def _renamed(shapes: Mapping[str, tuple[int, ...]], skeleton: PreTrainedModel) -> dict[str, str] | None:
    """From a name in the whole to one in the text part: by the prefix under which most names and shapes agree."""
    base = f"{skeleton.base_model_prefix}."
    wanted = {name.removeprefix(base): tuple(p.shape) for name, p in skeleton.state_dict().items() if base in name}
    first = {name.split(".")[0] for name in wanted}
    agree: Counter[str] = Counter()
    for name, shape in shapes.items():
        for at in (0, *(found.end() for found in re.finditer(r"\.", name))):
            agree[name[:at]] += wanted.get(name[at:]) == tuple(shape)
    prefix, count = max(agree.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    if not count:
        return None
    found = {}
    for name in shapes:
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest.split(".")[0] in first:
            found[name] = base + rest
    heads = [name for name, module in skeleton.named_modules() if module is skeleton.get_output_embeddings()]
    for head in heads:
        for name in shapes:
            around = name.rpartition(f"{head}.")[0]
            other = any(word in around for word in ("vision", "visual", "audio", "talker", "tower"))
            if name not in found and (name.startswith(f"{head}.") or f".{head}." in name) and not other:
                found[name] = head + name[len(around) + len(head) :]
    return found


def of_model(hf: PreTrainedModel, name: str) -> PreTrainedModel:
    """The text part of a model in memory, which shares its weights; the model itself where it is for text alone.

    Raises:
        NotADecoder: transformers has no language model that is its text part.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    if (config := config_of(hf.config, name)) is None:
        return hf
    with init_empty_weights(include_buffers=False):
        part = AutoModelForCausalLM.from_config(config)
    shapes = {key: tuple(value.shape) for key, value in hf.state_dict().items()}
    names = _renamed(shapes, part) or {}
    modules = dict(hf.named_modules())
    kept = set(part.state_dict())
    places = {new.rpartition(".")[0]: old.rpartition(".")[0] for old, new in names.items()}
    for place, module in list(part.named_modules()):
        own = [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]
        own = [key for key in own if f"{place}.{key}" in kept]
        if not own or place not in places:
            continue
        source = modules[places[place]]
        if not list(module.children()) and not type(source).__name__.endswith(("Experts", "Router", "Gate")):
            part.set_submodule(place, source)
            continue
        for key in own:
            value = getattr(source, key, None)
            if value is None:
                continue
            if isinstance(value, nn.Module):  # packed experts stand where a tensor stood
                delattr(module, key)
            if isinstance(value, nn.Module | nn.Parameter):
                setattr(module, key, value)
            else:
                module.register_buffer(key, value)
    if config.tie_word_embeddings:
        part.get_output_embeddings().weight = part.get_input_embeddings().weight
    away = [key for key, value in part.state_dict().items() if value.device.type == "meta"]
    if away:
        raise NotADecoder(
            f"{name} takes {_takes(hf.config)} as well as text, and its text part cannot be extracted: {away[0]} is "
            "missing. Load its text part with lk.load"
        )
    where = hf.get_input_embeddings().weight.device
    for module in part.modules():
        for own, buffer in module.named_buffers(recurse=False):
            if buffer.device != where:
                module.register_buffer(own, buffer.to(where), persistent=own not in module._non_persistent_buffers_set)
    part.generation_config = hf.generation_config
    part.config._attn_implementation = text_of(hf.config)._attn_implementation
    part.train(hf.training)
    if not hf.training:
        _check_same(hf, part, name)
    return part


def _check_same(hf: PreTrainedModel, part: PreTrainedModel, name: str) -> None:
    """See that the text part computes what the whole does with a text of three tokens."""
    ids = torch.tensor([[1, 2, 3]], device=hf.get_input_embeddings().weight.device)
    with torch.no_grad():
        whole, alone = hf(input_ids=ids).logits.float(), part(input_ids=ids).logits.float()
    if not bool((whole - alone).abs().max() <= 0.02 * whole.abs().max()):
        raise NotADecoder(
            f"{name} takes {_takes(hf.config)} as well as text, and on text alone it differs from transformers' "
            f"{type(part).__name__}. Use a text-only model"
        )
