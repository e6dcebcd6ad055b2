"""What a token costs, from a configuration alone: as published, and as a real model of that kind has it."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
from shrink import tiny

from labkit.models import catalog as rooms
from labkit.models.per_token import active_parameters, cache_bytes, has_windows

CONFIGS = {model.id: model.config for model in rooms.models()}
KINDS = {config["model_type"] for config in CONFIGS.values()} & set(CONFIG_MAPPING)
UNCOUNTED = {"deepseek_v32", "deepseek_v4", "gemma4_text", "qwen3_5_moe_text"}


@pytest.mark.parametrize(
    ("id", "kilobytes"),
    # Zhao et al. 2025 (arXiv:2505.09343), table 1, in 16 bits
    [
        ("deepseek-ai/DeepSeek-V3", 70.272),
        ("Qwen/Qwen2.5-72B-Instruct", 327.680),
        ("meta-llama/Llama-3.1-405B", 516.096),
    ],
)
def test_the_cache_is_the_published_one(id, kilobytes):
    assert cache_bytes(CONFIGS[id], 1) == kilobytes * 1000


@pytest.mark.parametrize("kind", sorted(KINDS - UNCOUNTED - {"deepseek_v2", "deepseek_v3"}))
def test_the_cache_is_what_a_small_model_of_that_kind_keeps(kind):
    hf = tiny(kind)
    with torch.no_grad():
        layers = hf(torch.arange(3, 8)[None], use_cache=True).past_key_values.layers
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert cache_bytes(hf.config.to_dict(), 5, each=4) == real


@pytest.mark.parametrize("kind", sorted(KINDS & UNCOUNTED))
def test_a_cache_that_is_not_only_keys_and_values_is_not_counted(kind):
    config = next(config for config in CONFIGS.values() if config["model_type"] == kind)
    with pytest.raises(ValueError, match=f"labkit does not know what {kind} keeps for each token: it has"):
        cache_bytes(config, 1)


@pytest.mark.parametrize(
    ("id", "billions"),
    [
        ("deepseek-ai/DeepSeek-V2", 21),
        ("deepseek-ai/DeepSeek-V3", 37),
        ("mistralai/Mixtral-8x7B-v0.1", 12.9),
        ("Qwen/Qwen3-30B-A3B", 3.3),
        ("Qwen/Qwen3-235B-A22B", 22),
        ("meta-llama/Llama-4-Maverick-17B-128E", 17),
        ("allenai/OLMoE-1B-7B-0924", 1.3),
    ],
)
def test_active_parameters_are_those_published(id, billions):
    assert active_parameters(CONFIGS[id]) == pytest.approx(billions, rel=0.03)


def test_without_experts_all_parameters_are_active():
    model = rooms.known("meta-llama/Llama-2-7b-hf")
    assert active_parameters(model.config) == pytest.approx(model.parameters, rel=1e-4)


def test_layers_that_look_at_the_last_tokens_only_are_known():
    assert [has_windows(CONFIGS[id]) for id in ("google/gemma-2-2b", "meta-llama/Llama-2-7b-hf")] == [True, False]
