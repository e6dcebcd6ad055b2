"""Grids of answers of several tokens, of unequal prompts and of noise, beside TransformerLens's way of doing the same.

TransformerLens has no function for these, so its users write a loop over cells: a forward pass with hooks for each
cell, or for each cell and text. The same ids, the same noise, the same threads. Where a loop takes minutes it does some
of the cells, evenly spread, and its time is scaled to all of them; the table says so.

Usage: python benchmarks/answers.py [--peers PYTHON] [--out FOLDER] [--times N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import peer, seconds
from machine import describe, keep
from prompts import ANSWER, FOIL, PAIRS

import labkit as lk
from labkit.engine.cells import layers_of
from labkit.patching.patch import PatchJob

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Asked:
    """One grid: what `lk.patch` is given, every how many-th cell the loop does, and what ratio is asked."""

    what: str
    given: dict[str, Any]
    step: int = 1
    window: int = 1
    site: str = "resid_pre"
    asked: str = ""

    def job(self, lm: lk.LanguageModel) -> PatchJob:
        return PatchJob(lm, site=self.site, window=self.window, **self.given)


SHORT = dict(zip(("clean", "corrupt"), PAIRS["short"], strict=True))
LONGER = PAIRS["short"][1].replace("the store", "the old grocery store")
GRIDS = {
    "texts": Asked(
        "answer and foil of 3 tokens", SHORT | {"answer": " Mary, who", "foil": " John, who"}, asked=">= 20"
    ),
    "unequal": Asked(
        "14 tokens into 16, along the spans that are equal",
        SHORT | {"corrupt": LONGER, "answer": ANSWER, "foil": FOIL},
        asked=">= 20",
    ),
    "both": Asked(
        "14 tokens into 16, answer and foil of 3 tokens",
        SHORT | {"corrupt": LONGER, "answer": " Mary, who", "foil": " John, who"},
        asked=">= 20",
    ),
    "noise": Asked(
        "causal tracing, 10 draws of noise",
        {"clean": SHORT["clean"], "answer": ANSWER, "foil": FOIL, "by": lk.Noise((1, 3))},
        step=7,
    ),
    "window": Asked(
        "causal tracing, 10 draws of noise, windows of 10 layers",
        {"clean": SHORT["clean"], "answer": ANSWER, "foil": FOIL, "by": lk.Noise((1, 3))},
        step=7,
        window=10,
        site="mlp_out",
    ),
}


def ready(lm: lk.LanguageModel, asked: Asked) -> tuple[dict[str, Any], list[int]]:
    """What the peer is told, as JSON, and the numbers of the cells that it does."""
    job = asked.job(lm)
    pair, partners = job.pair, job.pair.partners
    length = pair.ids["corrupt"].shape[1]
    texts = (pair.several.answer[0], pair.several.foil[0]) if pair.several else ([pair.answer], [pair.foil])
    paired = [n for n, lone in enumerate(job.grid.unpaired.flatten()) if not lone]
    chosen = paired[:: asked.step]
    told = {
        "site": asked.site,
        "clean": pair.ids["clean"][0].tolist(),
        "corrupt": pair.ids["corrupt"][0].tolist(),
        "answer": list(texts[0]),
        "foil": list(texts[1]),
        "partners": list(range(length)) if partners is None else partners["corrupt"],
        "cells": [
            (list(layers_of(cell, asked.window, lm.n_layers)), cell.position) for cell in (job.cells[n] for n in chosen)
        ],
    }
    if pair.draws:
        embeddings = lm.run(pair.ids["clean"], read=["embed"])["embed"]
        told["noised"] = [draw.edits["embed", 0](embeddings)[0].tolist() for draw in pair.draws]
    return told, chosen


def timed(lm: lk.LanguageModel, asked: Asked, *, times: int) -> tuple[np.ndarray, list[float]]:
    """A grid's values and the seconds of some runs, after one that warms up."""
    grids = []

    def patch() -> None:
        grids.append(lk.patch(lm, site=asked.site, window=asked.window, progress=False, **asked.given).values)

    patch()
    taken = [seconds(patch) for _ in range(times if asked.step == 1 else 1)]  # what is sampled is long
    return grids[-1], taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=str(HERE.parent / ".venv-peers/bin/python"), help="the peers' Python")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--times", type=int, default=3, help="runs of labkit before its peer, and as many after it")
    options = parser.parse_args()
    lm32, lm4 = lk.load(bits=32, progress=False), lk.load(progress=False)
    asked = {name: ready(lm32, grid) for name, grid in GRIDS.items()}
    before = {name: timed(lm32, grid, times=options.times)[1] for name, grid in GRIDS.items()}
    with tempfile.TemporaryDirectory() as folder:
        lm32.hf.save_pretrained(folder)
        lm32.tokenizer.save_pretrained(folder)
        (Path(folder) / "answers.json").write_text(json.dumps({name: told for name, (told, _) in asked.items()}))
        print("TransformerLens ...", file=sys.stderr)
        lens = peer(options.peers, "peer_answers.py", folder)
    rows, record = [], {}
    for name, grid in GRIDS.items():
        values, after = timed(lm32, grid, times=options.times)
        _, taken4 = timed(lm4, grid, times=options.times)
        mine, mine4 = statistics.median(before[name] + after), statistics.median(taken4)
        told, chosen = asked[name]
        paired = int((~np.isnan(values)).sum())
        what = f"{' x '.join(map(str, values.shape))} {grid.site} grid, {grid.what}"
        record[name] = {"seconds": mine, "seconds NF4": mine4, "cells": paired}
        for way in ("", ", in one batch"):
            if f"{name}{way}" not in lens:
                continue
            theirs = lens[f"{name}{way}"]
            scaled = theirs["seconds"] * paired / len(chosen)
            each = "a pass per cell" + (" and text" if len(told["answer"]) > 1 and not way else "")
            each += ", both texts in one batch" if way else ", draws in one batch" if "noised" in told else ""
            part = f", scaled from {len(chosen)} of {paired} cells" if len(chosen) < paired else ""
            off = float(np.abs(np.array(theirs["values"]) - values.flatten()[chosen]).max())
            beside = f"TransformerLens, {each}: {scaled:.1f} s{part}"
            rows.append((f"{what}, fp32", f"{mine:.2f} s", beside, f"{scaled / mine:.1f}x", grid.asked, f"{off:.1e}"))
            record[name][f"TransformerLens{way}"] = {"seconds": scaled, "cells": len(chosen), "difference": off}
        rows.append((f"{what}, NF4", f"{mine4:.2f} s", f"labkit fp32 {mine:.2f} s", f"{mine / mine4:.2f}x", "", ""))
    about = describe()
    head = f"{date.today()}: SmolLM2-135M-Instruct, {about['cpu']}, {about['instructions']}, " + ", ".join(
        [f"threads {about['threads']} for each side"]
        + [f"{name} {about[name]}" for name in ("torch", "transformers", "bitsandbytes", "labkit")]
    )
    lines = ["| what | labkit | beside it | ratio | asked | largest difference |", "|---" * 6 + "|"]
    keep(options.out, "answers", [head, "", *lines, *(f"| {' | '.join(row)} |" for row in rows)], record)


if __name__ == "__main__":
    with torch.no_grad():
        main()
