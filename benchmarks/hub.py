"""A class of six on one machine: grids per second of all kernels together, against one alone; and their memory.

    python benchmarks/hub.py [STUDENTS]

It starts a real JupyterHub from docs/jupyterhub_config.py, as tests/unit/test_hub.py does, with the one copy of the
weights that `labkit pull --shared` makes. Each kernel repeats the grid of the README for some seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))

from hub import hub, memory

from labkit.models.cache import cache_folder
from labkit.models.sources.pinned import checkpoint

SECONDS = 15
LOAD = """
import json, os, time
import labkit as lk
lm = lk.load(progress=False)
def grid():
    return lk.patch(
        lm, "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to", " Mary", " John", progress=False)
grid()
print(json.dumps(os.getpid()))
"""
REPEAT = f"""
begin = time.perf_counter()
count = 0
while time.perf_counter() - begin < {SECONDS}:
    grid()
    count += 1
print(json.dumps(count / (time.perf_counter() - begin)))
"""


def main(students: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        (cache / "models").mkdir(parents=True)
        (cache / checkpoint(4)).symlink_to(cache_folder() / checkpoint(4), target_is_directory=True)
        environment = os.environ | {"LABKIT_CACHE": str(cache)}
        subprocess.run([sys.executable, "-m", "labkit.cli", "pull", "--shared"], env=environment, check=True)
        with hub(Path(folder), cache) as running, ThreadPoolExecutor(students) as pool:
            kernels = running.kernels(students)
            pids = list(pool.map(lambda kernel: kernel.run(LOAD), kernels))
            alone = kernels[0].run(REPEAT)
            each = list(pool.map(lambda kernel: kernel.run(REPEAT), kernels))
            sizes = [memory(pid) for pid in pids]
    print(f"one alone    {alone:.2f} grids/s")
    print(f"{students} together   {sum(each):.2f} grids/s, {sum(each) / alone:.0%} of one alone")
    print(f"memory       {sum(sizes):.0f} MB (PSS) of {students} kernels: {', '.join(f'{size:.0f}' for size in sizes)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 6)
