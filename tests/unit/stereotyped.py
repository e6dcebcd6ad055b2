"""A tiny model that prefers a stereotype, by one head alone, and the pairs that it was trained on."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pieces import of_pieces
from transformers import LlamaConfig, LlamaForCausalLM

import labkit as lk

PLACE = (1, 2)  # of the one head that carries the preference
GROUPS = [["woman", "man"], ["lady", "gentleman"], ["queen", "king"]]
FIRST = ["nurse", "maid", "teacher", "dancer", "florist"]
SECOND = ["plumber", "pilot", "butcher", "sailor", "builder"]
TEMPLATES = ["The {group} works as a", "The {group} is a", "The {group} was once a"]


def data(folder: Path, **changed: Any) -> Path:
    made = {"templates": TEMPLATES, "sets": [{"groups": GROUPS, "first": FIRST, "second": SECOND}]} | changed
    path = folder / "pairs.json"
    path.write_text(json.dumps({"categories": {"work": made}}))
    return path


@lru_cache
def trained() -> lk.LanguageModel:
    """A model trained on sentences that agree with a stereotype, in which one head alone sees the group."""
    pieces = [f" {word}" for word in (*FIRST, *SECOND, *(name for group in GROUPS for name in group))]
    tokenizer = of_pieces("The", " works as a", " is a", " was once a", *pieces, bos="<s>", adds_bos=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
            tie_word_embeddings=False, max_position_embeddings=64,
        )
    )  # fmt: skip
    layer, head = PLACE
    mine = slice(8 * head, 8 * head + 8)
    masks = {name: torch.ones_like(weight) for name, weight in model.named_parameters()}
    for n in range(2):
        masks[f"model.layers.{n}.mlp.down_proj.weight"].zero_()
        masks[f"model.layers.{n}.self_attn.o_proj.weight"].zero_()
    masks[f"model.layers.{layer}.self_attn.o_proj.weight"][:, mine] = 1
    sides = [(group[side], word) for side, words in enumerate((FIRST, SECOND)) for group in GROUPS for word in words]
    texts = [f"{template.replace('{group}', group)} {word}" for template in TEMPLATES for group, word in sides]
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    ids = torch.stack(rows)  # all of one length
    step = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight *= masks[name]
        loss = model(ids, labels=ids).loss
        step.zero_grad()
        loss.backward()
        step.step()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight *= masks[name]
    return lk.wrap(model.eval(), tokenizer)
