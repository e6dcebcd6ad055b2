"""TransformerLens's own `resid_pre` grid, as its users run it. Usage: python peer_transformerlens.py FOLDER OUT"""

import json
import sys
import time

import torch
from prompts import ANSWER, FOIL, PAIRS
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
model = TransformerBridge.boot_transformers(folder, hf_model=hf, tokenizer=tokenizer, dtype=torch.float32, device="cpu")
answer, foil = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in (ANSWER, FOIL))


def logit_diff(logits: torch.Tensor) -> torch.Tensor:
    return logits[0, -1, answer] - logits[0, -1, foil]


results = {}
with torch.no_grad():
    model(tokenizer("warm up", return_tensors="pt").input_ids)
    for name, texts in PAIRS.items():
        clean, corrupt = (tokenizer(text, return_tensors="pt").input_ids for text in texts)
        begin = time.perf_counter()
        _, cache = model.run_with_cache(clean)
        grid = patching.get_act_patch_resid_pre(model, corrupt, cache, logit_diff)
        results[name] = {"seconds": time.perf_counter() - begin, "grid": grid.tolist()}
with open(out, "w") as file:
    json.dump(results, file)
