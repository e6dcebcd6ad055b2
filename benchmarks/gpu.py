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
from typing import Any

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
    from gpu_rows import Device, Limits
    from machine import describe
    from timed_table import Row, Table

    at = Device(torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    reduced = options.reduced or not at.cuda
    size = size_of(options, reduced=reduced)
    card = torch.cuda.get_device_name(at.device) if at.cuda else "cpu"
    about = describe() | {"device": card}
    if at.cuda:
        about["memory"] = f"{torch.cuda.get_device_properties(at.device).total_memory / 1e9:.0f} GB"
    slug = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-") + ("-reduced" if reduced else "")
    what = "models made small: shows that it runs, nothing of a GPU's speed" if reduced else "models at full width"
    title = f"labkit in 4 bits on {card}, {what}. Shapes have random weights. Ratios are of times, or as said."
    table = Table(options.out / f"gpu-{slug}", about, title=title, seconds=seconds)

    asked = Limits(weights=4.3e9, seconds=60, faster=15, peak=12e9, rate=0.5, generation=1.03)
    wanted = [n for n in SHAPES if options.only is None or any(part.lower() in n.lower() for part in options.only)]
    for position, name in enumerate(wanted):
        limits = asked if "Llama-2-7b" in name and not reduced else Limits()
        lm, config = gpu_sections.shape(table, at, name, SHAPES[name], limits, reduced=reduced)
        grid = lm and what_matters(table, at, lm, limits, size)
        if position == 0:
            gpu_sections.default_model(table, at, gguf, given=options.model is not None)
            if lm is not None:
                what_people_do(table, at, lm, config, size)
        if lm is not None:
            the_rest(table, at, lm, grid, size, peers=position < 2)
        if position == 0:  # before the other shapes, which matter less if time runs out
            tiny_models(table, at)
        del lm, grid
        gc.collect()
        at.clear()
    if not wanted:
        gpu_sections.default_model(table, at, gguf, given=options.model is not None)
        tiny_models(table, at)
    kept = [row for row in table.rows if row.kept is not None]
    table.add(Row("all", "rows with something asked, kept", f"{sum(bool(row.kept) for row in kept)} of {len(kept)}"))
    print(f"\n{table.markdown()}\nwritten to {table.place}.md and .json")
    return 1 if table.failed else 0


def size_of(options: argparse.Namespace, *, reduced: bool) -> argparse.Namespace:
    """How much is measured."""
    return argparse.Namespace(
        length=options.length or (16 if reduced else 64),  # tokens of a prompt
        sample=options.sample or (6 if reduced else 24),  # cells that are also run one by one
        tokens=8 if reduced else 32,  # written
        times=3 if reduced else 10,
        view=256 if reduced else 2048,  # tokens of a long text
        pairs=4 if reduced else 16,
    )


def what_matters(table: Any, at: Any, lm: Any, limits: Any, size: argparse.Namespace) -> Any:
    """What is asked of a model: its grid, in time and in memory, and that it writes as fast as transformers."""
    import gpu_rows

    grid = gpu_rows.exact_grid(table, at, lm, limits, site="resid_pre", length=size.length, sample=size.sample)
    if grid is not None and not any(block.router is not None for block in lm.anatomy.blocks):
        gpu_rows.share_of_the_rate(table, at, lm, grid, limits)
    gpu_rows.generation(table, at, lm, limits, length=size.length, tokens=size.tokens)
    return grid


def what_people_do(table: Any, at: Any, lm: Any, config: Any, size: argparse.Namespace) -> None:
    """4 bits beside 16 and across them, a long text's attention, reading while writing, several pairs."""
    import gpu_precisions
    import gpu_uses

    how = {"length": size.length, "tokens": size.tokens}
    gpu_precisions.side_by_side(table, at, lm, config, sample=size.sample, **how)
    at.clear()
    gpu_uses.attention_view(table, at, lm, length=size.view)
    gpu_uses.reading(table, at, lm, **how)
    gpu_uses.several_pairs(table, at, lm, length=max(4, size.length // 4), pairs=size.pairs)
    gpu_uses.other_block_loops(table, at, lm, length=size.length)
    gpu_uses.long_prompt(table, at, lm, length=size.view)
    gpu_uses.out_of_memory(table, at, lm, length=size.length)


def the_rest(table: Any, at: Any, lm: Any, grid: Any, size: argparse.Namespace, *, peers: bool) -> None:
    """Forward passes, the grid of z, gradient estimates, and at the end the peers."""
    import gpu_rows
    from gpu_peers import peers as beside

    gpu_rows.forwards(table, at, lm, length=size.length, times=size.times)
    nothing = gpu_rows.Limits()
    gpu_rows.exact_grid(table, at, lm, nothing, site="z", length=size.length, sample=size.sample)
    for site in ("resid_pre", "z"):
        gpu_rows.attribution(table, at, lm, site=site, length=size.length)
    if peers and grid is not None:  # last: what they put into the model stays there, and labkit could not read it then
        beside(table, at, lm, grid.seconds, length=size.length, sample=size.sample)


def tiny_models(table: Any, at: Any) -> None:
    """The promises in fp32, and a model larger than its device."""
    import gpu_sections

    gpu_sections.promises(table, at, PROMISED)
    gpu_sections.offloaded(table, at)


if __name__ == "__main__":
    raise SystemExit(main())
