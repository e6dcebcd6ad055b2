"""lm-evaluation-harness and `lk.benchmark` on the same items and weights: are the numbers the same?

The default model in fp32, stored as a checkpoint for the harness. Of each paradigm of BLiMP the first `-n` pairs, and
all of CrowS-Pairs (or the first `--crows`), from a folder with copies of both; `lk.benchmark` says where to get them.

Usage: python benchmarks/harness.py DATA [-n N] [--crows N] [--peers PYTHON] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
from machine import describe, keep

import labkit as lk
from labkit.datasets.items import read_table
from labkit.datasets.published import NAMES, find_copy

HERE = Path(__file__).parent
CLOSE = 1e-3  # of each share, and of the log-probability of each sentence in nats
METRICS = {"blimp": "acc", "crows_pairs": "pct_stereotype"}  # what the harness calls them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with copies of alexwarstadt/blimp and nyu-mll/crows-pairs")
    parser.add_argument("-n", type=int, default=20, help="pairs per paradigm of BLiMP")
    parser.add_argument("--crows", type=int, help="pairs of CrowS-Pairs; all by default")
    parser.add_argument("--peers", default=str(HERE.parent / ".venv-peers/bin/python"), help="the peers' Python")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    sets = [name for name in NAMES if name != "mini"]
    copies = {name: find_copy(name, data_dir=options.data) for name in sets}  # what is missing is named at once
    lm = lk.load(bits=32, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        files = _cut(copies, Path(folder), options.n, options.crows)
        ours = {}
        for place in (Path(folder, "blimp"), files["crows_pairs_english"]):
            found = lk.benchmark(lm, place, progress=False)
            paradigms = found.data.labels_by("paradigm" if place.is_dir() else "")
            for paradigm in dict.fromkeys(paradigms):
                some = np.array([one == paradigm for one in paradigms])
                task = f"blimp_{paradigm}" if paradigm else "crows_pairs_english"
                ours[task] = found.right()[some], found.logprobs[some]
        lm.hf.save_pretrained(f"{folder}/model")
        lm.tokenizer.save_pretrained(f"{folder}/model")
        (tasks := Path(folder, "tasks.json")).write_text(json.dumps({task: str(path) for task, path in files.items()}))
        command = [options.peers, "peer_harness.py", f"{folder}/model", f"{folder}/out.json", str(tasks)]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"peer_harness.py failed:\n{done.stderr[-2000:]}")
        theirs = json.loads(Path(folder, "out.json").read_text())
    rows, record = [], {}
    for name, title in (("blimp", "BLiMP"), ("crows_pairs", "CrowS-Pairs")):
        shares, apart, items = {}, {}, 0
        for task, (right, logprobs) in ours.items():
            if task.startswith(name):
                its = theirs["tasks"][task]
                shares[task] = float(right.mean()), float(its["metrics"][METRICS[name]])
                apart[task] = float(np.abs(logprobs - np.array(its["logprobs"])).max())
                items += len(right)
        mine, other = (float(np.mean(column)) for column in zip(*shares.values(), strict=True))
        worst = max(abs(a - b) for a, b in shares.values())
        off = max(apart.values())
        same = "yes" if worst <= CLOSE and off <= CLOSE else "NO"
        numbers = (f"{mine:.4f}", f"{other:.4f}", f"{worst:.1e}", f"{off:.1e}")
        rows.append([title, str(items), str(len(shares)), *numbers, same])
        record[name] = {
            task: {"labkit": a, "harness": b, "logprobs apart": apart[task]} for task, (a, b) in shares.items()
        }
    about = describe()
    lines = [
        f"{date.today()}: {lm.name} in fp32, lm_eval {theirs['version']}, {about['cpu']}, {about['threads']} threads",
        "",
        "The same items and weights in both. Shares (of pairs in which the acceptable, or the more stereotypical, "
        "sentence is the likelier) are means over tasks; `apart` is the largest difference in any task, of the share "
        "and of the log-probability of a sentence, in nats.",
        "",
        "| set | items | tasks | labkit | harness | shares apart | log-probabilities apart | within 1e-3 |",
        "|---" * 8 + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    keep(options.out, "harness", lines, {"tasks": record})
    sys.exit(any(row[-1] == "NO" for row in rows))


def _cut(copies: dict[str, list[Path]], folder: Path, n: int, crows: int | None) -> dict[str, Path]:
    """Files with the items that are asked, by the name of their task in the harness."""
    files = {}
    (folder / "blimp").mkdir()
    for source in copies["blimp"]:
        frame = read_table(source)[:n]
        path = folder / "blimp" / f"{frame.UID[0]}.jsonl"
        frame.to_json(path, orient="records", lines=True)
        files[f"blimp_{frame.UID[0]}"] = path
    path = folder / "crows_pairs.csv"
    read_table(copies["crows_pairs"][0])[:crows].to_csv(path, index=False)
    return files | {"crows_pairs_english": path}


if __name__ == "__main__":
    main()
