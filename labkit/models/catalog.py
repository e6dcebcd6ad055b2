"""Open models that the kit knows: sizes and licences, for suggestions and for `labkit models`.

Facts are from each model's card on the hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from labkit.models.memory import NF4_BYTES


@dataclass(frozen=True)
class OpenModel:
    """One model: hub id, parameters in billions, licence, and whether its licence has to be accepted first."""

    id: str
    parameters: float
    licence: str
    gated: bool = False

    def weights(self, bits: int) -> float:
        """Bytes of weights, roughly; embeddings stay in 16 bits, about a tenth of a small model."""
        packed = {4: NF4_BYTES, 8: 1.0, 16: 2.0, 32: 4.0}[bits]
        return self.parameters * 1e9 * (0.9 * packed + 0.1 * max(2.0, packed))


MODELS = (
    OpenModel("HuggingFaceTB/SmolLM2-135M-Instruct", 0.135, "Apache-2.0"),
    OpenModel("HuggingFaceTB/SmolLM2-360M-Instruct", 0.362, "Apache-2.0"),
    OpenModel("EleutherAI/pythia-410m", 0.405, "Apache-2.0"),
    OpenModel("Qwen/Qwen2.5-0.5B-Instruct", 0.494, "Apache-2.0"),
    OpenModel("Qwen/Qwen3-0.6B", 0.596, "Apache-2.0"),
    OpenModel("meta-llama/Llama-3.2-1B", 1.24, "Llama 3.2 Community", gated=True),
    OpenModel("allenai/OLMo-2-0425-1B", 1.48, "Apache-2.0"),
    OpenModel("Qwen/Qwen2.5-1.5B-Instruct", 1.54, "Apache-2.0"),
    OpenModel("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.71, "Apache-2.0"),
    OpenModel("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1.78, "MIT"),
    OpenModel("google/gemma-2-2b", 2.61, "Gemma", gated=True),
    OpenModel("meta-llama/Llama-2-7b-hf", 6.74, "Llama 2 Community", gated=True),
    OpenModel("meta-llama/Llama-2-7b-chat-hf", 6.74, "Llama 2 Community", gated=True),
    OpenModel("deepseek-ai/deepseek-llm-7b-base", 6.91, "DeepSeek"),
    OpenModel("mistralai/Mistral-7B-v0.3", 7.25, "Apache-2.0"),
    OpenModel("allenai/OLMo-2-1124-7B", 7.30, "Apache-2.0"),
    OpenModel("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7.62, "MIT"),
    OpenModel("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8.03, "MIT"),
    OpenModel("meta-llama/Llama-3.1-8B", 8.03, "Llama 3.1 Community", gated=True),
    OpenModel("meta-llama/Llama-2-13b-hf", 13.0, "Llama 2 Community", gated=True),
    OpenModel("deepseek-ai/DeepSeek-V2-Lite", 15.7, "DeepSeek"),
)


def nearest(name: str) -> list[str]:
    """Up to three known ids that look like a name, with or without the maker's part."""
    by_key = {key: model.id for model in MODELS for key in (model.id.lower(), model.id.split("/")[1].lower())}
    keys = [key for part in (name, name.split("/")[-1]) for key in get_close_matches(part.lower(), by_key, 3, 0.6)]
    return list(dict.fromkeys(by_key[key] for key in keys))[:3]


def that_fit(size: float, *, bits: int) -> list[OpenModel]:
    """Known models whose weights fit into so many bytes, largest first."""
    return sorted((m for m in MODELS if m.weights(bits) <= size), key=lambda m: -m.parameters)
