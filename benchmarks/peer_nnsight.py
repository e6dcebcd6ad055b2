"""nnsight's `resid_pre` grid, a trace a cell and a trace with many invokes. Usage: python peer_nnsight.py FOLDER OUT"""

import json
import sys
import time

import nnsight
import torch
from nnsight import TransformersModel
from prompts import ANSWER, FOIL, PAIRS
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
model = TransformersModel(hf, tokenizer=tokenizer, task="text-generation")
layers = model.model.layers
answer, foil = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in (ANSWER, FOIL))


def residuals(ids: torch.Tensor) -> list[torch.Tensor]:
    with model.trace(ids):
        saved = nnsight.save([layer.input for layer in layers])
    return saved  # noqa: RET504 - a trace hands out only what was assigned in it


def by_cell(clean: list[torch.Tensor], corrupt: torch.Tensor) -> list[list[float]]:
    grid = []
    for n, layer in enumerate(layers):
        grid.append([])
        for position in range(corrupt.shape[1]):
            with model.trace(corrupt):
                layer.input[:, position, :] = clean[n][:, position, :]
                logits = model.lm_head.output[0, -1].save()
            grid[-1].append(float(logits[answer] - logits[foil]))
    return grid


def batched(clean: list[torch.Tensor], corrupt: torch.Tensor) -> list[list[float]]:
    """One trace a layer, one invoke a position: the batching that its documentation shows."""
    grid = []
    for n, layer in enumerate(layers):
        with model.trace() as tracer:
            saved = nnsight.save([])
            for position in range(corrupt.shape[1]):
                with tracer.invoke(corrupt):
                    layer.input[:, position, :] = clean[n][:, position, :]
                    saved.append(model.lm_head.output[:, -1])
        grid.append([float(row[0, answer] - row[0, foil]) for row in saved])
    return grid


results: dict[str, dict] = {}
with torch.no_grad():
    residuals(tokenizer("warm up", return_tensors="pt").input_ids)
    for name, texts in PAIRS.items():
        clean, corrupt = (tokenizer(text, return_tensors="pt").input_ids for text in texts)
        for way, function in (("per cell", by_cell), ("batched", batched)):
            if way == "per cell" and name == "long":
                continue  # minutes, for a figure that adds nothing to the short pair's
            begin = time.perf_counter()
            grid = function(residuals(clean), corrupt)
            results[f"{name} {way}"] = {"seconds": time.perf_counter() - begin, "grid": grid}
with open(out, "w") as file:
    json.dump(results, file)
