"""What this machine is and how fast it multiplies matrices."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import labkit


def describe() -> dict[str, str]:
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "cpu": cpu or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "bitsandbytes")},
        "labkit": labkit.__version__,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def onednn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The same product as `torch.nn.functional.linear`, by oneDNN whatever the dtype."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def matmul_rate(
    dtype: torch.dtype,
    *,
    d_model: int,
    d_mlp: int,
    tokens: int = 2048,
    seconds: float = 2.0,
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.nn.functional.linear,
    device: torch.device | str = "cpu",
) -> float:
    """FLOP/s of a (tokens, d_model) x (d_model, d_mlp) product, two for each multiply-add: the best of many."""
    a, b = (torch.randn(n, d_model).to(device, dtype) for n in (tokens, d_mlp))
    wait = torch.cuda.synchronize if a.is_cuda else lambda: None
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        wait()
        begin = time.perf_counter()
        product(a, b)
        wait()
        best = min(best, time.perf_counter() - begin)
    return 2 * tokens * d_model * d_mlp / best


def least_work(*, n_layers: int, length: int, first: int, parameters_per_block: int) -> int:
    """FLOP that an exact `resid_pre` grid cannot do without: each cell's own tokens through the blocks above it.

    Linear layers only. A patch at layer L and position p changes positions p.. from block L on, and nothing else.
    """
    cells = ((n_layers - layer) * (length - p) for layer in range(n_layers) for p in range(first, length))
    return 2 * parameters_per_block * sum(cells)


def keep(folder: Path, name: str, lines: Sequence[str], record: Mapping[str, Any]) -> None:
    """Print a table, and write it and its numbers to `name.md` and `name.json` in a folder."""
    table = "\n".join([*lines, ""])
    print(table)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(table)
    (folder / f"{name}.json").write_text(json.dumps({"machine": describe(), **record}, indent=1))
