"""What reading and writing cost while the default model writes 256 tokens; prints a table and writes it to results/.

Each row is beside the same generation with nothing asked, in turn (A B A B ...), with the median of the ratios of
neighbours; the first row is that generation beside the loop alone, which knows nothing of sites.

Usage: python benchmarks/generation.py [--bits 4 32] [--times N] [--tokens N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from compare import side_by_side
from endless import endless
from machine import describe, keep
from prompts import PAIRS

import labkit as lk
from labkit.generation.loop import extend_record
from labkit.generation.sampling import Sampling
from labkit.generation.token_table import Record

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, nargs="*", default=[4, 32])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    rows, record = [], {}
    for bits in options.bits:
        lm = lk.load(bits=bits, progress=False)
        with endless(lm), tempfile.TemporaryDirectory() as folder:
            for what, asked, limit in sides(lm, folder):
                ours, theirs = works(lm, asked, options.tokens)
                a, b, ratio = side_by_side(ours, theirs, times=options.times)
                kept = "" if limit is None else "yes" if ratio <= limit else "no"
                speeds = (f"{options.tokens / a:.1f} /s", f"{options.tokens / b:.1f} /s")
                rows.append([f"{what}, {bits} bits", *speeds, f"{ratio:.3f}", f"<= {limit}" if limit else "", kept])
                record[rows[-1][0]] = {"seconds": a, "beside": b, "ratio": ratio, "asked": limit}
                print(*rows[-1], flush=True)
    about = describe()
    lines = [
        f"{date.today()}: SmolLM2-135M-Instruct writes {options.tokens} tokens after a prompt of 14, {about['cpu']}, "
        f"{torch.get_num_threads()} threads",
        "",
        "| what | labkit | beside it | ratio | asked | kept |",
        "|---" * 6 + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    keep(options.out, "generation", lines, {"rows": record})


def sides(lm: lk.LanguageModel, folder: str) -> list[tuple[str, dict | None, float | None]]:
    """What is measured: its name, what is asked of `generate` (None: nothing, beside the loop alone), its limit."""
    return [
        ("nothing asked, beside the loop alone", None, 1.01),
        ("reading every resid_post", {"read": ["resid_post"]}, 1.15),
        ("the same, kept on disk", {"read": ["resid_post"], "store": folder}, 1.15),
        ("reading every pattern", {"read": ["pattern"]}, None),
        ("writing every resid_post, by a function", {"write": {"resid_post": lambda x: x}}, None),
    ]


def works(lm: lk.LanguageModel, asked: dict | None, tokens: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The work that is measured, and the work beside it."""
    prompt = PAIRS["short"][0]
    plain = lambda: lm.generate(prompt, max_new_tokens=tokens)  # noqa: E731
    if asked is None:
        return plain, lambda: extend_record(lm, lm.encode(prompt), Record(10), Sampling(tokens))
    return lambda: lm.generate(prompt, max_new_tokens=tokens, **asked), plain


if __name__ == "__main__":
    main()
