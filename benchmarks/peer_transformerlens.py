"""TransformerLens's own grids, as its users run them. Usage: python peer_transformerlens.py FOLDER OUT"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from prompts import ANSWER, FOIL, PAIRS
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
model = TransformerBridge.boot_transformers(folder, hf_model=hf, tokenizer=tokenizer, dtype=torch.float32, device="cpu")

GRIDS = {
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
    "z": patching.get_act_patch_attn_head_out_all_pos,
    "q": patching.get_act_patch_attn_head_q_all_pos,
    "k": patching.get_act_patch_attn_head_k_all_pos,
    "v": patching.get_act_patch_attn_head_v_all_pos,
    "pattern": patching.get_act_patch_attn_head_pattern_all_pos,
}


def timed(grid_of: Callable, texts: Sequence[str], words: Sequence[str] = (ANSWER, FOIL)) -> dict:
    answer, foil = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in words)

    def logit_diff(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, answer] - logits[0, -1, foil]

    clean, corrupt = (tokenizer(text, return_tensors="pt").input_ids for text in texts)
    begin = time.perf_counter()
    _, cache = model.run_with_cache(clean)
    grid = grid_of(model, corrupt, cache, logit_diff)
    return {"seconds": time.perf_counter() - begin, "grid": grid.tolist()}


results = {}
with torch.no_grad():
    model(tokenizer("warm up", return_tensors="pt").input_ids)
    for name, texts in PAIRS.items():
        results[name] = timed(patching.get_act_patch_resid_pre, texts)
    for site, grid_of in GRIDS.items():
        try:
            results[f"short {site}"] = timed(grid_of, PAIRS["short"])
        except Exception as error:  # grouped queries have fewer key and value heads than it counts
            results[f"short {site}"] = {"failed": f"{type(error).__name__}: {error}"[:200]}
    for task, (*texts, answer, foil) in json.loads((Path(folder) / "tasks.json").read_text()).items():
        results[f"{task} z"] = timed(GRIDS["z"], texts, (answer, foil))
with open(out, "w") as file:
    json.dump(results, file)
