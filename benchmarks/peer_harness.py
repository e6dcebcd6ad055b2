"""lm-evaluation-harness on local copies of BLiMP and CrowS-Pairs. Usage: python peer_harness.py MODEL OUT TASKS

TASKS is a JSON file: by task of the harness, the file with its items. The tasks are the harness's own; only where their
items come from is changed. OUT gets, by task, the metrics and the log-probabilities of each item's choices.
"""

import json
import os
import sys
import time

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM

folder, out, tasks = sys.argv[1:]
with open(tasks) as file:
    files = json.load(file)
model = HFLM(pretrained=folder, dtype=torch.float32, device="cpu", batch_size=16)
begin = time.perf_counter()
asked = [
    {
        "task": name,
        "dataset_path": "csv" if path.endswith(".csv") else "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test" if path.endswith(".csv") else "train": path}},
    }
    for name, path in files.items()
]
found = lm_eval.simple_evaluate(model=model, tasks=asked, bootstrap_iters=0, log_samples=True)
taken = time.perf_counter() - begin
results = {
    name: {
        "metrics": {key.partition(",")[0]: value for key, value in found["results"][name].items()},
        "logprobs": [
            [float(response[0]) for response in sample["filtered_resps"]]
            for sample in sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        ],
    }
    for name in files
}
with open(out, "w") as file:
    json.dump({"version": lm_eval.__version__, "seconds": taken, "tasks": results}, file, default=str)
