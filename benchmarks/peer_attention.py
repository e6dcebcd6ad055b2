"""BertViz and CircuitsVis on the attention of a whole model, as their users call them.

Usage: python peer_attention.py FOLDER IDS.json OUT.json
"""

import json
import resource
import sys
import time

import torch
from bertviz import model_view
from circuitsvis.attention import attention_heads
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, ids_file, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
with open(ids_file) as file:
    ids = torch.tensor([json.load(file)])
tokens = tokenizer.convert_ids_to_tokens(ids[0])


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attentions() -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return model(ids, output_attentions=True, use_cache=False).attentions


with torch.no_grad():
    model(ids[:, :8])  # warm
results = {}
begin = time.perf_counter()
pages = [str(attention_heads(attention=layer[0], tokens=tokens)) for layer in attentions()]
results["CircuitsVis"] = {
    "seconds": time.perf_counter() - begin, "bytes": sum(len(page.encode()) for page in pages), "peak": peak(),
}  # fmt: skip
del pages
begin = time.perf_counter()
page = model_view(attentions(), tokens, html_action="return").data
results["BertViz"] = {"seconds": time.perf_counter() - begin, "bytes": len(page.encode()), "peak": peak()}
with open(out, "w") as file:
    json.dump(results, file)
