"""Tiny models whose weights are large enough that heads and MLPs matter, so that a wrong number shows."""

import sys
from pathlib import Path

import torch

import labkit as lk

sys.path.insert(0, str(Path(__file__).parent / "zoo"))
from conformance import ANSWER, FOIL, IDS, model, tokenizer
from conformance import CORRUPT as CORRUPT_IDS
from shrink import tiny

__all__ = ["ANSWER", "CORRUPT_IDS", "FOIL", "IDS", "loud", "model", "tokenizer"]


def loud(model_type: str) -> lk.LanguageModel:
    hf = tiny(model_type)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim >= 2:
                parameter *= 6
    return lk.wrap(hf, tokenizer())
