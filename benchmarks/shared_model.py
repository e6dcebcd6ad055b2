"""One model for a class: what a call costs beside a model here, small reads per second, and who waits longest.

    python benchmarks/shared_model.py [--students 20] [--times 20] [--out FOLDER] [MODEL ...]

For the default model in 4 bits, whose passes take most of the time, and for a tiny one in fp32, where the way does.
It starts a real `labkit serve` on this machine, and students who are threads with a connection of their own. Prompts
differ, so that no answer is taken from an equal call, except where the row says that the whole class asks the same.
The model beside it is in this process, and idle while the server works. CPU times are those of the process with the
model, of the server that receives the calls, and of all students. The tables are written to results/.
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

import psutil
import torch
from machine import describe, keep

import labkit as lk
from labkit.server.tokens import make_tokens

HERE = Path(__file__).parent
TINY = HERE.parent / "tests/files/small_llama"
SITE = "resid_pre@-1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models", nargs="*", default=["", str(TINY)], help="a folder is loaded in fp32, others in 4 bits"
    )
    parser.add_argument("--students", type=int, default=20)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    about, cores = describe(), len(psutil.Process().cpu_affinity())
    lines = [f"{date.today()}: server and {options.students} students on {cores} cores of one machine, {about['cpu']}, "
             f"the model with {torch.get_num_threads()} threads"]  # fmt: skip
    records = []
    for model in options.models:
        bits = 32 if Path(model or " ").is_dir() else 4
        more, record = measured(model, bits, options.students, options.times * (1 if bits == 4 else 5))
        lines += more
        records.append(record)
    keep(options.out, "shared_model", lines, {"machine": about, "cores": cores, "models": records})


def measured(model: str, bits: int, students: int, times: int) -> tuple[list[str], dict]:
    """The tables of one model, and their numbers."""
    here = lk.load(*filter(None, [model]), bits=bits, progress=False)
    with served(model, bits, students) as (url, tokens):
        rows, record = overhead(here, lk.connect(url, token=tokens[0]), 20)
        class_rows, class_record = together([lk.connect(url, token=token) for token in tokens], times)
    name = f"{Path(here.name).name} in {here.bits} bits"
    lines = [
        "",
        f"| {name}, one student | here | served | ratio |",
        "|---" * 4 + "|",
        *rows,
        "",
        f"| {name}, {students} students at once | median | slowest | slowest / median | calls/s "
        "| CPU per call: model, server, students |",
        "|---" * 6 + "|",
        *class_rows,
    ]
    return lines, {"model": name, "one": record, "together": class_record}


@contextmanager
def served(model: str, bits: int, students: int) -> Iterator[tuple[str, list[str]]]:
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
        start, before = threading.Barrier(len(parts)), cpu()

        def do(part: Sequence[Callable[[], object]], start: threading.Barrier = start) -> float:
            start.wait()
            return timed(lambda: [work() for work in part])

        with ThreadPoolExecutor(len(parts)) as pool:
            each = list(pool.map(do, parts))
        median, slowest = statistics.median(each), max(each)
        rate = count * len(parts) / slowest
        used = {who: (after - before[who]) / (count * len(parts)) for who, after in cpu().items()}
        took = ", ".join(f"{1000 * seconds:.1f}" for seconds in used.values())
        rows.append(f"| {name} | {median:.2f} s | {slowest:.2f} s | {slowest / median:.2f} | {rate:.1f} | {took} ms |")
        record[name] = {"seconds": each, "median": median, "slowest": slowest, "calls per second": rate, "cpu": used}
    return rows, record


def cpu() -> dict[str, float]:
    """Seconds of a processor that the model's process, the server and the students have used."""
    used = dict.fromkeys(("model", "server", "students"), 0.0)
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        words, times = " ".join(process.cmdline()), process.cpu_times()
        who = "students" if process == me else "model" if "spawn_main" in words else "server"
        used[who] += times.user + times.system
    return used


if __name__ == "__main__":
    main()
