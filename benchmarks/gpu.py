"""labkit on a GPU with models of 7B and more in 4 bits, measured by one command, with no network.

Models of catalogued shapes are made with random weights straight in NF4; the default model comes as a file. Without a
GPU the same rows are measured on models made small, which shows that everything runs and nothing of a GPU's speed.
The table is written after every row; what time does not allow for is named. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHAPES = {
    "meta-llama/Llama-2-7b-hf": None,  # how many layers; None: all of them
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": None,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": None,
    "deepseek-ai/DeepSeek-V2-Lite": None,
    "mistralai/Mixtral-8x7B-v0.1": 8,
}
PROMISED = ("llama", "qwen2", "mixtral", "deepseek_v2")


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, help="folder of extra wheels (bitsandbytes, ...), whole or in parts")
    parser.add_argument(
        "--model", type=Path, help="the default model's wheel or a .gguf, or a folder with it or its parts"
    )
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; without it the GPU there is")
    parser.add_argument("--reduced", action="store_true", help="small models, a short prompt; always so on a CPU")
    parser.add_argument("--seconds", type=float, default=510, help="how long all may take (default %(default)s)")
    parser.add_argument(
        "--only", nargs="*", default=None, help="parts of the names of models to measure; none: no shapes"
    )
    parser.add_argument("--length", type=int, help="tokens of the prompts (64; reduced 16)")
    parser.add_argument("--sample", type=int, help="cells that are also run one by one (24; reduced 6)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the table")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    begun = time.monotonic()
    options = options_of(arguments)
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests" / "zoo")]
    import bring

    bring.put_first(HERE.parent)
    with tempfile.TemporaryDirectory(prefix="labkit-gpu-") as folder:
        if options.wheels:
            print("installed:", ", ".join(bring.install(options.wheels, Path(folder))), flush=True)
        gguf = bring.default_model(options.model, Path(folder)) if options.model else None
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return measured(options, gguf, options.seconds - (time.monotonic() - begun))


def measured(options: argparse.Namespace, gguf: str | None, seconds: float) -> int:
    import gc

    import gpu_sections
    import torch
    from gpu_peers import peers
    from gpu_rows import Device, Limits, grids, long_prompt, out_of_memory, speed
    from machine import describe
    from timed_table import Row, Table

    at = Device(torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    reduced = options.reduced or not at.cuda
    length, sample = options.length or (16 if reduced else 64), options.sample or (6 if reduced else 24)
    card = torch.cuda.get_device_name(at.device) if at.cuda else "cpu"
    about = describe() | {"device": card}
    if at.cuda:
        about["memory"] = f"{torch.cuda.get_device_properties(at.device).total_memory / 1e9:.0f} GB"
    slug = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-") + ("-reduced" if reduced else "")
    what = "models made small: shows that it runs, nothing of a GPU's speed" if reduced else "models at full width"
    title = f"labkit in 4 bits on {card}, {what}. Shapes have random weights. Ratios are of times, or as said."
    table = Table(options.out / f"gpu-{slug}", about, title=title, seconds=seconds)

    llama = Limits(weights=4.3e9, seconds=60, faster=15, peak=12e9)
    wanted = [n for n in SHAPES if options.only is None or any(part.lower() in n.lower() for part in options.only)]
    for position, name in enumerate(wanted):
        if position == 1:  # after the first shape, before the others, which matter less if time runs out
            small_sections(table, at, gguf, options)
        limits = llama if "Llama-2-7b" in name and not reduced else Limits()
        lm = gpu_sections.shape(table, at, name, SHAPES[name], limits, reduced=reduced)
        if lm is None:
            continue
        speed(table, at, lm, length=length, tokens=8 if reduced else 32, times=3 if reduced else 10)
        grids(table, at, lm, limits, length=length, sample=sample)
        if position == 0 and not reduced:
            long_prompt(table, at, lm, length=2048)
            out_of_memory(table, at, lm, length=length)
        done = [row for row in table.rows if row.model == lm.name and row.what.startswith("exact resid_pre grid, ")]
        if position < 2 and done and "seconds" in done[0].numbers:
            peers(table, at, lm, min(done[0].numbers["seconds"]), length=length, sample=sample)
        del lm
        gc.collect()
        at.clear()
    if len(wanted) < 2:
        small_sections(table, at, gguf, options)
    kept = [row for row in table.rows if row.kept is not None]
    table.add(Row("all", "rows with something asked, kept", f"{sum(bool(row.kept) for row in kept)} of {len(kept)}"))
    print(f"\n{table.markdown()}\nwritten to {table.place}.md and .json")
    return 1 if table.failed else 0


def small_sections(table: object, at: object, gguf: str | None, options: argparse.Namespace) -> None:
    """The default model, the promises in fp32, and a model larger than its device."""
    import gpu_sections

    gpu_sections.default_model(table, at, gguf, given=options.model is not None)
    gpu_sections.promises(table, at, PROMISED)
    gpu_sections.offloaded(table, at)


if __name__ == "__main__":
    raise SystemExit(main())
