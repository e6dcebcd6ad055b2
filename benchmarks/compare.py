"""labkit beside its peers on the same work, in one run; prints one table and writes it to benchmarks/results/.

The default model in fp32, the same prompts, the same threads. Peers run in an environment of their own (`--peers`),
one after another, never beside labkit. Usage: python benchmarks/compare.py [--peers PYTHON] [--out FOLDER]

`make bench-avx2` does the same as on a processor with AVX2 and without AVX-512, and writes `compare-avx2.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from endless import endless
from machine import describe, least_work, matmul_rate, onednn
from prompts import ANSWER, FOIL, PAIRS

import labkit as lk
from labkit.datasets.tasks import TASKS
from labkit.models.bf16_matmul import has_bfloat16

HERE = Path(__file__).parent


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def side_by_side(ours: Callable[[], object], theirs: Callable[[], object], *, times: int) -> tuple[float, float, float]:
    """Medians of both in turn, A B A B ..., and the median of the ratios of neighbours: drift cancels."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(times)]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    return a, b, statistics.median(x / y for x, y in pairs)


def grids(lm: lk.LanguageModel, *, times: dict[str, int]) -> dict[str, dict]:
    """Median seconds of each pair's `resid_pre` grid, after one that warms up, the grid, and the rate of matmuls then.

    The rate, PyTorch's own and oneDNN's, is looked at before and after each grid: a machine that is shared does not
    always run at the same clock.
    """
    results = {}
    for name, (clean, corrupt) in PAIRS.items():
        patch = lambda c=clean, k=corrupt: lk.patch(lm, c, k, ANSWER, FOIL, progress=False)  # noqa: E731
        if name == "short":
            patch()
        taken, seen = [], [rates(lm)]
        for _ in range(times[name]):
            begin = time.perf_counter()
            grid = patch()
            taken.append(time.perf_counter() - begin)
            seen.append(rates(lm))
        around = [[statistics.mean(two) for two in pairwise(column)] for column in zip(*seen, strict=True)]
        results[name] = {
            "seconds": statistics.median(taken),
            "all": taken,
            "grid": grid.values,
            "rates": [statistics.median(column) for column in around],
        }
    return results


def rates(lm: lk.LanguageModel) -> tuple[float, float]:
    """FLOP/s of matmuls of the model's sizes, PyTorch's own and oneDNN's, in the dtype that it multiplies in."""
    dtype = torch.float32 if lm.dtype == torch.bfloat16 and not has_bfloat16() else lm.dtype
    sizes = {"d_model": lm.d_model, "d_mlp": lm.config.intermediate_size, "seconds": 0.5}
    return matmul_rate(dtype, **sizes), matmul_rate(dtype, **sizes, product=onednn)


def site_grid(lm: lk.LanguageModel, site: str, pair: Sequence[str]) -> tuple[lk.PatchGrid, list[float]]:
    """A pair's grid of a site and the seconds of five runs, after one that warms up."""
    patch = lambda: lk.patch(lm, *pair, site=site, progress=False)  # noqa: E731
    grid = patch()
    return grid, [seconds(patch) for _ in range(5)]


def first_picture(lm: lk.LanguageModel) -> tuple[float, float, float]:
    """Median seconds of the short pair's gradient estimate, of a plain forward, and of a plain backward pass."""
    ids = lm.encode(PAIRS["short"][1])
    estimate = lambda: lk.patch(lm, *PAIRS["short"], ANSWER, FOIL, method="attribution", progress=False)  # noqa: E731

    def forward() -> None:
        with torch.no_grad():
            lm.hf(ids, use_cache=False)

    def backward() -> float:
        x = lm.hf.get_input_embeddings()(ids).detach().requires_grad_(True)
        value = lm.hf(inputs_embeds=x, use_cache=False).logits[0, -1, :2].sum()
        return seconds(lambda: torch.autograd.grad(value, x))

    estimate()
    times = [(seconds(estimate), seconds(forward), backward()) for _ in range(9)]
    a, b, c = (statistics.median(column) for column in zip(*times, strict=True))
    return a, b, c


def peer(python: str, script: str, folder: str) -> dict[str, dict]:
    """A peer's results; {} where its environment is not there."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        done = subprocess.run([python, script, folder, out.name], cwd=HERE, capture_output=True, text=True)
        if done.returncode:
            print(f"{script} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
            return {}
        return json.loads(Path(out.name).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=str(HERE.parent / ".venv-peers/bin/python"), help="the peers' Python")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="compare", help="what the files are called")
    options = parser.parse_args()
    rows: list[tuple[str, str, str, str, str]] = []
    show = lambda what, ours, peer, ratio, asked="": rows.append((what, ours, peer, ratio, asked))  # noqa: E731

    load_script = (
        "import time, torch, transformers, labkit as lk; begin = time.perf_counter(); lm = lk.load(progress=False);"
        "print(time.perf_counter() - begin, lm.memory().total)"
    )
    subprocess.run([sys.executable, "-c", load_script], check=True, capture_output=True)
    loads = [subprocess.check_output([sys.executable, "-c", load_script], text=True).split() for _ in range(3)]
    load_time, memory = statistics.median(float(s) for s, _ in loads), int(loads[0][1])
    show("load the default model again, beyond importing torch and transformers", f"{load_time:.2f} s", "", "", "< 4 s")
    show("weights in memory, NF4", f"{memory / 1e6:.0f} MB", "", "", "<= 130 MB")

    lm32, lm4 = lk.load(bits=32, progress=False), lk.load(progress=False)
    for parameter in lm32.hf.parameters():
        parameter.requires_grad_(False)  # a backward pass to the activations alone, as the estimate's is
    estimate, forward, backward = first_picture(lm32)
    show(
        "first picture: gradient estimate of the short resid_pre grid, fp32",
        f"{estimate * 1e3:.0f} ms",
        f"forward {forward * 1e3:.0f} ms, backward {backward * 1e3:.0f} ms",
        f"{(estimate - backward) / forward:.1f} forwards + 1 backward",
        "<= 5 + 1",
    )
    ours32 = grids(lm32, times={"short": 7, "long": 3})
    ours4 = grids(lm4, times={"short": 7, "long": 5})

    for lm in (lm32, lm4):
        label = "fp32" if lm.bits == 32 else "NF4"
        ids = lm.encode(PAIRS["short"][0])
        with torch.no_grad():
            a, b, ratio = side_by_side(lambda: lm.run(ids), lambda: lm.hf(ids, use_cache=False), times=60)  # noqa: B023
        show(
            f"forward that reads nothing, {label}",
            f"{a * 1e3:.1f} ms",
            f"transformers {b * 1e3:.1f} ms",
            f"{ratio:.3f}",
            "<= 1.03",
        )
        kinds = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "pattern", "z"]
        with torch.no_grad():
            a, b, ratio = side_by_side(lambda: lm.run(ids, read=kinds), lambda: lm.hf(ids, use_cache=False), times=10)  # noqa: B023
        show(
            f"forward that reads every site, {label}",
            f"{a * 1e3:.1f} ms",
            f"transformers {b * 1e3:.1f} ms",
            f"{ratio:.2f}",
            "",
        )

        def theirs(lm: lk.LanguageModel = lm, ids: torch.Tensor = ids) -> None:
            with torch.no_grad():
                lm.hf.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=64,
                    do_sample=False,
                    pad_token_id=2,
                )

        def mine_(lm: lk.LanguageModel = lm, ids: torch.Tensor = ids) -> None:
            lm.generate(ids, max_new_tokens=64)

        with endless(lm):
            a, b, ratio = side_by_side(mine_, theirs, times=9)
        show(
            f"generation of 64 tokens, {label}",
            f"{64 / a:.1f} /s",
            f"transformers {64 / b:.1f} /s",
            f"{ratio:.3f}",
            "<= 1.03",
        )

    lm16 = lk.load(bits=16, progress=False)
    for what, work in (
        ("forward of 14 tokens", lambda lm: lm.run(PAIRS["short"][0], logits="last")),
        ("generation of 64 tokens, the first included", lambda lm: lm.generate(PAIRS["short"][0], max_new_tokens=64)),
    ):
        with endless(lm4), endless(lm16):
            a, b, ratio = side_by_side(lambda: work(lm4), lambda: work(lm16), times=9)  # noqa: B023
        show(f"{what}, NF4", f"{a * 1e3:.0f} ms", f"16 bits {b * 1e3:.0f} ms", f"{ratio:.3f}", "<= 1.11")

    # one pair of each task, the first that the model does
    done = {task.name: task.verify(lm32, task.pairs(lm32, n=8)).done for task in TASKS}
    tasks = {name: list(pairs[0]) for name, pairs in done.items() if pairs}
    short = [*PAIRS["short"], ANSWER, FOIL]
    of_sites = [(f"short {site}", site, short) for site in ("z", "attn_out", "mlp_out", "q", "k", "v", "pattern")]
    of_sites += [(f"{task} z", "z", pair) for task, pair in tasks.items()]
    before = {name: site_grid(lm32, site, pair)[1] for name, site, pair in of_sites}

    with tempfile.TemporaryDirectory() as folder:
        lm32.hf.save_pretrained(folder)
        lm32.tokenizer.save_pretrained(folder)
        (Path(folder) / "tasks.json").write_text(json.dumps(tasks))
        print("TransformerLens ...", file=sys.stderr)
        lens = peer(options.peers, "peer_transformerlens.py", folder)
        print("nnsight ...", file=sys.stderr)
        sight = peer(options.peers, "peer_nnsight.py", folder)

    asked = {
        ("TransformerLens", "short"): ">= 80",
        ("TransformerLens", "long"): ">= 12",
        ("nnsight batched", "short"): ">= 20",
    }
    differences = {}
    for name, site, pair in of_sites:
        grid, after = site_grid(lm32, site, pair)
        mine = statistics.median(before[name] + after)  # before the peers and after them: clocks drift
        theirs = lens.get(name, {})
        what = f"{' x '.join(map(str, grid.values.shape))} {site} grid, fp32"
        if pair is not short:
            clean, corrupt = (lm32.encode(text)[0] for text in pair[:2])
            own = len(clean) - int((clean != corrupt).nonzero()[0])
            what += f", {name.removesuffix(' z')}: {len(clean)} tokens, the last {own} from the first difference on"
        if "seconds" in theirs:
            ratio = theirs["seconds"] / mine
            other = np.array(theirs["grid"])
            asked_of = ">= 40" if name == "short z" else ""
            show(what, f"{mine:.2f} s", f"TransformerLens {theirs['seconds']:.1f} s", f"{ratio:.1f}x", asked_of)
            differences[f"{name}, TransformerLens"] = float(np.abs(other - grid.values).max())
        else:
            show(what, f"{mine:.2f} s", f"TransformerLens: {theirs.get('failed', 'not there')}", "")
    for name, (clean, _) in PAIRS.items():
        size = f"{lm32.n_layers} x {lm32.encode(clean).shape[1]} resid_pre grid, fp32"
        mine = ours32[name]["seconds"]
        theirs = {
            "TransformerLens": lens.get(name),
            "nnsight per cell": sight.get(f"{name} per cell"),
            "nnsight batched": sight.get(f"{name} batched"),
        }
        for who, result in theirs.items():
            if result:
                ratio = result["seconds"] / mine
                show(
                    size,
                    f"{mine:.2f} s",
                    f"{who} {result['seconds']:.1f} s",
                    f"{ratio:.1f}x",
                    asked.get((who, name), ""),
                )
                differences[f"{name}, {who}"] = float(np.abs(np.array(result["grid"]) - ours32[name]["grid"]).max())
        ratio = mine / ours4[name]["seconds"]
        show(
            size.replace("fp32", "NF4"),
            f"{ours4[name]['seconds']:.2f} s",
            f"labkit fp32 {mine:.2f} s",
            f"{ratio:.2f}x",
            ">= 1.4",
        )
    for what, value in differences.items():
        show(f"largest difference of the fp32 grids: {what}", f"{value:.1e}", "", "", "< 1e-4")

    clean, corrupt = (lm32.encode(text)[0] for text in PAIRS["long"])
    blocks = sum(p.numel() for block in lm32.anatomy.blocks[:1] for p in block.module.parameters() if p.ndim == 2)
    first = int((clean != corrupt).nonzero()[0])
    work = least_work(n_layers=lm32.n_layers, length=len(clean), first=first, parameters_per_block=blocks)
    show("least work of the long grid", f"{work / 1e12:.2f} TFLOP", "", "")
    for label, result, which, target in (
        ("fp32, of PyTorch's own (MKL)", ours32, 0, ">= 65%"),
        ("fp32, of oneDNN's", ours32, 1, ""),
        ("NF4, of bf16's (PyTorch's own is oneDNN)", ours4, 0, ">= 50%"),
    ):
        reached, rate = work / result["long"]["seconds"], result["long"]["rates"][which]
        share = f"{reached / rate:.0%}"
        show(
            f"matmul rate reached on the least work, {label}",
            f"{reached / 1e9:.0f} GFLOP/s",
            f"{rate / 1e9:.0f}",
            share,
            target,
        )

    about = describe()
    lines = ["| what | labkit | beside it | ratio | asked |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    head = f"{date.today()}: {about['cpu']}, {about['instructions']}, {about['threads']} threads, " + ", ".join(
        f"{name} {about[name]}" for name in ("torch", "transformers", "bitsandbytes", "labkit")
    )
    table = "\n".join([head, "", *lines, ""])
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.name}.md").write_text(table)
    record = {"machine": about, "date": str(date.today()), "rows": rows, "differences": differences}
    (options.out / f"{options.name}.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
