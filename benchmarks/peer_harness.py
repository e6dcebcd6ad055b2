"""lm-evaluation-harness on local copies of BLiMP and CrowS-Pairs. Usage: python peer_harness.py MODEL OUT TASKS

TASKS is a JSON file: by task of the harness, the file with its items. The tasks are the harness's own; only where their
items come from is changed. OUT gets, by task, the metrics and the log-probabilities of each item's choices.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM

folder, out, tasks = sys.argv[1:]
with open(tasks) as file:
    files = json.load(file)
model = HFLM(pretrained=folder, dtype=torch.float32, device="cpu", batch_size=16)
own = Path(lm_eval.__file__).parent / "tasks"
asked = []
for name, path in files.items():
    split = "test" if path.endswith(".csv") else "train"
    change = {
        "include": str(own / ("crows_pairs" if split == "test" else "blimp") / f"{name.removeprefix('blimp_')}.yaml"),
        "dataset_path": "csv" if split == "test" else "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: path}},
    }
    asked.append(str(Path(path).with_suffix(".yaml")))
    Path(asked[-1]).write_text(json.dumps(change | {"task": name}))  # JSON is YAML
found = lm_eval.simple_evaluate(model=model, tasks=asked, bootstrap_iters=0, log_samples=True)
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
    json.dump({"version": lm_eval.__version__, "tasks": results}, file, default=str)
