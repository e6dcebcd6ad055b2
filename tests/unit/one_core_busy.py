"""What a model does when one of its two processors is taken: run by itself by test_busy_machine.py.

Prints, for a forward pass, a grid and a few tokens, with how many threads the layers computed and the median seconds:
on the machine as it is, and with a program on one of the two processors that never pauses.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

TWO = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, TWO)  # before torch starts its threads
os.environ.pop("OMP_NUM_THREADS", None)

import torch  # noqa: E402

import labkit as lk  # noqa: E402

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"


def main() -> None:
    assert torch.get_num_threads() == 2
    lm = lk.load(bits=32, progress=False)
    work: dict[str, Callable[[], object]] = {
        "forward": lambda: lm.run(CLEAN),
        "grid": lambda: lk.patch(lm, CLEAN, CORRUPT, " Mary", " John", progress=False),
        "tokens": lambda: lm.generate(CLEAN, max_new_tokens=8),
    }
    threads: set[int] = set()
    lm.anatomy.blocks[0].module.register_forward_pre_hook(lambda *_: threads.add(torch.get_num_threads()))
    for call in work.values():  # what happens once happens here
        call()
    found = {"quiet": measured(work, threads)}
    hog = subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, [{TWO[0]}])\nwhile True: pass"])
    try:
        time.sleep(0.5)
        found["busy"] = measured(work, threads)
    finally:
        hog.kill()
        hog.wait()
    assert torch.get_num_threads() == 2  # as before
    print(json.dumps(found))


def measured(work: dict[str, Callable[[], object]], threads: set[int]) -> dict[str, tuple[list[int], float]]:
    found = {}
    for name, call in work.items():
        threads.clear()
        median = statistics.median(seconds(call) for _ in range(3))
        found[name] = sorted(threads), median
    return found


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
