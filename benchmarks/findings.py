"""Which findings survive 4 bits? The default model in NF4 beside 32 bits, finding by finding and task by task.

For each task a few pairs that the model does in 32 bits. `lk.compare_findings` says how the columns are made: the rank
correlation and the overlap of the ten strongest places between the precisions, the same for rounding alone in NF4, and
for two pairs of the task in 32 bits. The packaged model is itself stored in Q4_1, so this is what NF4 costs on top.

Usage: python benchmarks/findings.py [--out FOLDER] [-n N]
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

from machine import describe, keep

import labkit as lk

TASKS = ("indirect object", "greater than", "subject-verb agreement")
FINDINGS = ("resid_pre", "attn_out", "mlp_out", "z", "direct attribution", "steering")
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("-n", type=int, default=4, help="pairs per task")
    options = parser.parse_args()
    lm, full = lk.load(progress=False), lk.load(bits=32, progress=False)
    rows, record = [], {}
    for name in TASKS:
        task = lk.task(name)
        pairs = task.verify(full, task.pairs(full, n=3 * options.n)).done[: options.n]
        found = lk.compare_findings(lm, full, pairs, findings=FINDINGS)
        record[name] = {"pairs": len(pairs), "findings": found.to_frame().to_dict("index")}
        for finding, row in found.to_frame().iterrows():
            numbers = (
                f"{row[f'correlation{of}']:.2f} ({row[f'overlap{of}']:.2f})" for of in ("", "_rounding", "_pairs")
            )
            rows.append([name, str(finding), *numbers, f"{row.sign_changes:.2f}", row.verdict])
    about = describe()
    head = (
        f"{date.today()}: {lm.name} in NF4 and fp32, {about['cpu']}, {about['threads']} threads, torch {about['torch']}"
    )
    says = (
        "Rank correlation over the places with an effect, in brackets the share of the ten strongest that are the "
        f"same; means over {options.n} pairs per task. Sign changes: of the ten strongest in 32 bits."
    )
    columns = ["task", "finding", "NF4 and fp32", "rounding alone", "two pairs", "sign changes", "verdict"]
    lines = [head, "", says, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    keep(options.out, "findings", lines, {"tasks": record})


if __name__ == "__main__":
    main()
