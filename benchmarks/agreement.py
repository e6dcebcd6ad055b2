"""How well does the gradient estimate rank the cells of a grid? Rank correlation with exact patching, task by task.

The default model in NF4, as people use it. For each task a few pairs that the model does; for each pair and site
Spearman's rank correlation over the cells that either finds an effect in, and how many of the ten strongest cells are
among the estimate's ten. The table has means over the pairs.

Usage: python benchmarks/agreement.py [--out FOLDER] [-n N]
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import numpy as np
from machine import describe, keep

import labkit as lk
from labkit.datasets.tasks import TASKS
from labkit.results.bootstrap import rank_correlation

SITES = ("resid_pre", "attn_out", "mlp_out", "z")
HERE = Path(__file__).parent


def agreement(lm: lk.LanguageModel, pair: lk.PromptPair) -> dict[str, tuple[float, int]]:
    """For each site: rank correlation, and how many of the ten strongest cells the estimate has among its own ten."""
    guesses = lk.attribution_patch(lm, *pair, sites=SITES)
    found = {}
    for site in SITES:
        grid = lk.patch(lm, *pair, site=site, progress=False)
        exact, guess = ((g.values - grid.corrupt).ravel() for g in (grid, guesses[site]))
        felt = (exact != 0) | (guess != 0)
        top = [set(np.argsort(-np.abs(values), kind="stable")[:10].tolist()) for values in (exact, guess)]
        found[site] = rank_correlation(exact[felt], guess[felt]), len(top[0] & top[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("-n", type=int, default=4, help="pairs a task")
    options = parser.parse_args()
    lm = lk.load(progress=False)
    rows, record = [], {}
    for task in TASKS:
        pairs = task.verify(lm, task.pairs(lm, n=2 * options.n)).done[: options.n]
        found = [agreement(lm, pair) for pair in pairs]
        means = {site: np.mean([each[site] for each in found], axis=0).tolist() for site in SITES}
        record[task.name] = {"pairs": len(pairs), **means}
        rows.append([task.name, str(len(pairs)), *(f"{rho:.2f} ({top:.1f})" for rho, top in means.values())])
    about = describe()
    head = f"{date.today()}: {lm.name} in NF4, {about['cpu']}, {about['threads']} threads, torch {about['torch']}"
    says = (
        "Rank correlation of the gradient estimate with exact patching over the cells with an effect, mean over the "
        "pairs; in brackets how many of the ten strongest cells are among the estimate's ten."
    )
    lines = [head, "", says, "", f"| task | pairs | {' | '.join(SITES)} |", "|---" * (2 + len(SITES)) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    keep(options.out, "agreement", lines, {"tasks": record})


if __name__ == "__main__":
    main()
