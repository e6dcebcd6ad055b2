"""One model for a class: what a call costs beside a model here, small reads per second, and who waits longest.

    python benchmarks/shared_model.py [MODEL] [--bits 4] [--students 20] [--times 20] [--out FOLDER]

It starts a real `labkit serve` on this machine, and students who are threads with a connection of their own. Prompts
differ, so that no answer is taken from an equal call, except where the row says that the whole class asks the same.
The model beside it is in this process, and idle while the server works. The table is written to results/.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch
from machine import describe, keep

import labkit as lk
from labkit.server.tokens import make_tokens

HERE = Path(__file__).parent
SITE = "resid_pre@-1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--students", type=int, default=20)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    here = lk.load(*filter(None, [options.model]), bits=options.bits, progress=False)
    with served(options.model, options.bits, options.students) as (url, tokens):
        about, threads = describe(), torch.get_num_threads()
        one = lk.connect(url, token=tokens[0])
        rows, record = overhead(here, one, options.times)
        class_rows, class_record = together([lk.connect(url, token=token) for token in tokens], options.times)
    lines = [
        f"{date.today()}: {here.name} in {here.bits} bits, server and students on one machine, {about['cpu']}, "
        f"{threads} threads",
        "",
        "| one student | here | served | ratio |",
        "|---" * 4 + "|",
        *rows,
        "",
        f"| {options.students} students at once | median | slowest | slowest / median | calls/s |",
        "|---" * 5 + "|",
        *class_rows,
    ]
    keep(options.out, "shared_model", lines, {"model": here.name, "one": record, "together": class_record})


@contextmanager
def served(model: str | None, bits: int, students: int) -> Iterator[tuple[str, list[str]]]:
    """A server's address, and a token for each student."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_tokens(Path(folder, "class.txt"), students)
        words = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
        command = [sys.executable, "-m", "labkit.cli", "serve", *filter(None, [model]), "--bits", str(bits)]
        command += ["--tokens", str(path), "--port", "0", "--keep", str(Path(folder, "queue"))]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            printed = ""
            while not (found := re.search(r"The teacher's page: (\S+)/teacher", printed)):
                line = server.stdout.readline()
                if not line:
                    raise SystemExit(f"labkit serve ended before it began: {printed}")
                printed += line
            yield found[1], [word[1] for word in words if len(word) == 2]
        finally:
            server.terminate()
            server.wait(60)


def works(lm: lk.LanguageModel, times: int, *, first: int = 0) -> dict[str, list[Callable[[], object]]]:
    """By name, the same kind of call on so many prompts."""
    pairs = lk.task("indirect object").pairs(lm, times, seed=first)
    reads = [lambda n=n: lm.run(f"{first + n} and one more", read=[SITE], logits="last") for n in range(times)]
    grids = [lambda pair=pair: lk.patch(lm, *pair, progress=False) for pair in pairs]
    return {f"reading `{SITE}` of every layer": reads, "a grid of `resid_pre`": grids}


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def overhead(here: lk.LanguageModel, there: lk.LanguageModel, times: int) -> tuple[list[str], dict]:
    """Each call here and there, in turn; medians, and the median of the ratios of neighbours."""
    rows, record = [], {}
    theirs = works(there, times)
    for name, ours in works(here, times).items():
        timed(ours[0]), timed(theirs[name][0])
        both = [(timed(a), timed(b)) for a, b in zip(ours[1:], theirs[name][1:], strict=True)]
        a, b = (statistics.median(side) for side in zip(*both, strict=True))
        ratio = statistics.median(one / other for other, one in both)
        rows.append(f"| {name} | {a * 1000:.1f} ms | {b * 1000:.1f} ms | {ratio:.2f} |")
        record[name] = {"here": a, "served": b, "ratio": ratio}
    return rows, record


def together(students: Sequence[lk.LanguageModel], times: int) -> tuple[list[str], dict]:
    """Everybody begins at once; how long each takes for their part."""
    calls = [works(lm, times, first=1000 * n) for n, lm in enumerate(students, 1)]
    reads, grids = calls[0]
    same = [works(lm, 1, first=77)[grids][0] for lm in students]
    classes = {
        f"{times} times {reads}": ([one[reads] for one in calls], times),
        f"{grids} each, their own pairs": ([one[grids][:1] for one in calls], 1),
        f"{grids} each, all the same pair": ([[one] for one in same], 1),
    }
    rows, record = [], {}
    for name, (parts, count) in classes.items():
        start = threading.Barrier(len(parts))

        def do(part: Sequence[Callable[[], object]], start: threading.Barrier = start) -> float:
            start.wait()
            return timed(lambda: [work() for work in part])

        with ThreadPoolExecutor(len(parts)) as pool:
            each = list(pool.map(do, parts))
        median, slowest = statistics.median(each), max(each)
        rate = count * len(parts) / slowest
        rows.append(f"| {name} | {median:.2f} s | {slowest:.2f} s | {slowest / median:.2f} | {rate:.1f} |")
        record[name] = {"seconds": each, "median": median, "slowest": slowest, "calls per second": rate}
    return rows, record


if __name__ == "__main__":
    main()
