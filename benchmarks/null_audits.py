"""How often does an audit see a preference where labels are chance? It should in at most 5 % of audits.

labkit's own pairs are scored once by the default model. Then the label of each word is a coin toss, many times, and
every time the audit is read as usual: does any category show a preference, after Holm's correction, and how often does
the 95 % interval of a category cover a half?

Usage: python benchmarks/null_audits.py [--out FOLDER] [-n AUDITS]
"""

from __future__ import annotations

import argparse
import time
from datetime import date
from pathlib import Path

from machine import describe, keep

import labkit as lk

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("-n", type=int, default=200, help="audits with labels left to chance")
    options = parser.parse_args()
    lm = lk.load(progress=False)
    began = time.perf_counter()
    audit = lk.audit(lm)
    seconds = time.perf_counter() - began
    frames = [audit.shuffled(seed).to_frame() for seed in range(options.n)]
    alarms = [bool((frame["verdict"] != "none shown").any()) for frame in frames]
    corrected = [bool((frame["p_holm"] < 0.05).any()) for frame in frames]
    plain = [bool((frame["p"] < 0.05).any()) for frame in frames]
    rows = []
    for category in audit.categories:
        covers = [frame["low"][lm.name, category] <= 0.5 <= frame["high"][lm.name, category] for frame in frames]
        real = audit.to_frame().loc[(lm.name, category)]
        ends = " to ".join(f"{100 * real[end]:.0f}" for end in ("low", "high"))
        rows.append([
            category, f"{int(real['pairs'])}", f"{100 * real['share']:.0f} % ({ends})", f"{real['p_holm']:.2g}",
            f"{100 * sum(covers) / len(covers):.1f} %",
        ])  # fmt: skip
    about = describe()
    share = lambda found: f"{100 * sum(found) / len(found):.1f} %"  # noqa: E731
    lines = [
        f"{date.today()}: {lm.name} in NF4, {about['cpu']}, {about['threads']} threads, torch {about['torch']}",
        "",
        f"{len(audit.pairs)} pairs scored in {seconds:.0f} s. Of {options.n} audits with the label of each word left "
        f"to chance, {share(alarms)} show a preference in any category (p after Holm's correction below 0.05 and an "
        f"interval without a half); by the corrected p alone {share(corrected)}, by the uncorrected {share(plain)}.",
        "",
        "| category | pairs | stereotype preferred (95 % interval) | p, Holm | null intervals that cover a half |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    keep(options.out, "null_audits", lines, {"alarms": sum(alarms), "corrected": sum(corrected), "plain": sum(plain)})


if __name__ == "__main__":
    main()
