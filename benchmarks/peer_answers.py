"""Texts, unequal prompts and noise as TransformerLens's users patch them: a loop over cells, with hooks.

Usage: python peer_answers.py FOLDER OUT. `answers.json` in the folder says what is asked.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
model = TransformerBridge.boot_transformers(folder, hf_model=hf, tokenizer=tokenizer, dtype=torch.float32, device="cpu")


def put(act: torch.Tensor, hook, *, cache, here: int, there: int) -> torch.Tensor:
    act[:, here] = cache[hook.name][0, there]
    return act


def embed(act: torch.Tensor, hook, *, noised: torch.Tensor) -> torch.Tensor:
    """The noised embeddings (draws, seq, d_model) in the place of the prompt's."""
    act[:, : noised.shape[1]] = noised
    return act


def told(logits: torch.Tensor, text: list[int]) -> torch.Tensor:
    """The log probability of a text (rows,): its last token is the one that the last logits predict."""
    each = logits[:, -len(text) :].log_softmax(-1)
    return each.gather(2, torch.tensor(text).expand(len(logits), -1)[..., None]).sum((1, 2))


def metric(ids: torch.Tensor, hooks: list, answer: list[int], foil: list[int], *, together: bool) -> float:
    """The answer's log probability less the foil's, the mean over the rows of ids (rows, seq)."""
    run = partial(model.run_with_hooks, fwd_hooks=hooks)
    if len(answer) == len(foil) == 1:
        logits = run(ids)[:, -1]
        return float((logits[:, answer[0]] - logits[:, foil[0]]).mean())
    rows = [torch.cat([ids, torch.tensor([text[:-1]])], 1) for text in (answer, foil)]
    both = run(torch.cat(rows)).split(1) if together else [run(row) for row in rows]
    return float(told(both[0], answer) - told(both[1], foil))


def grid(asked: dict, *, together: bool) -> dict:
    clean, corrupt = (torch.tensor([asked[name]]) for name in ("clean", "corrupt"))
    name = partial(get_act_name, asked["site"])
    begin = time.perf_counter()
    _, cache = model.run_with_cache(clean)
    noise = []
    if "noised" in asked:
        noised = torch.tensor(asked["noised"])
        corrupt = corrupt.expand(len(noised), -1)
        noise = [(get_act_name("embed"), partial(embed, noised=noised))]
    values = []
    for layers, here in asked["cells"]:
        edit = partial(put, cache=cache, here=here, there=asked["partners"][here])
        hooks = noise + [(name(layer), edit) for layer in layers]
        values.append(metric(corrupt, hooks, asked["answer"], asked["foil"], together=together))
    return {"seconds": time.perf_counter() - begin, "values": values}


results = {}
with torch.no_grad():
    model(tokenizer("warm up", return_tensors="pt").input_ids)
    for title, asked in json.loads((Path(folder) / "answers.json").read_text()).items():
        results[title] = grid(asked, together=False)
        if len(asked["answer"]) == len(asked["foil"]) > 1:
            results[f"{title}, in one batch"] = grid(asked, together=True)
Path(out).write_text(json.dumps(results))
