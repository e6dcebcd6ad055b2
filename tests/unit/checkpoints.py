"""Small checkpoints in folders of their own, and ways to spoil them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 128}


def checkpoint(folder: Path, tokenizer, kind: str = "llama", **fields) -> torch.nn.Module:
    """A model of random numbers and a tokenizer, saved; returns the model."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **SIZES | fields)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return hf


def without(folder: Path, *parts: str) -> list[str]:
    """Take tensors whose names hold one of these parts out of a checkpoint; returns their names."""
    tensors = load_file(folder / "model.safetensors")
    gone = [name for name in tensors if any(part in name for part in parts)]
    assert gone
    write(folder, {name: tensor for name, tensor in tensors.items() if name not in gone})
    return gone


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **fields) -> None:
    """Change fields of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
