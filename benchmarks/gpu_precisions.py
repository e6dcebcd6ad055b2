"""One shape in 4 and in 16 bits side by side, and what is the other's in each cell of a grid."""

from __future__ import annotations

from typing import Any

import conformance
import shapes
from endless import endless
from gpu_rows import ANSWER, FOIL, Device, job, one_forward_a_cell, random_pair
from timed_table import Row, Table

import labkit as lk
from labkit.models.memory import available, empty_model, in_words, predict
from labkit.patching.patch import PatchJob


def side_by_side(
    table: Table, at: Device, lm: lk.LanguageModel, config: Any, *, length: int, tokens: int, sample: int
) -> None:
    """The same weights before they were quantised, beside the model in NF4: bytes, speed, and grids across."""
    made: list[lk.LanguageModel] = []

    def build() -> Row:
        needed = predict(empty_model(config), bits=16, dtype=lm.dtype)
        if at.cuda and available(at.device) < 1.3 * needed:
            return Row("", "", f"not measured: {in_words(needed)} do not fit beside it")
        made.append(
            shapes.build(
                config, conformance.tokenizer(), name=f"{lm.name}, 16 bits", device=at.device, dtype=lm.dtype, bits=16
            )
        )
        mine, theirs = lm.memory().total, made[0].memory().total
        beside, numbers = f"16 bits {in_words(theirs)}", {"4 bits": mine, "16 bits": theirs}
        quote = f"{in_words(mine)} in 4 bits, {in_words(theirs)} in 16"
        return Row("", "", in_words(mine), beside, f"{mine / theirs:.3f}", "", None, numbers, quote)

    if not table.measure(lm.name, "weights, 4 bits beside 16", 40, build) or not made:
        return
    sixteen, clean = made[0], random_pair(length)[0]

    def forward() -> Row:
        a, b, ratio = at.side_by_side(lambda: lm.run(clean), lambda: sixteen.run(clean), times=5)
        numbers = {"4 bits": a, "16 bits": b}
        return Row("", "", f"{a * 1e3:.1f} ms", f"16 bits {b * 1e3:.1f} ms", f"{ratio:.3f}", "", None, numbers)

    def writing() -> Row:
        ours, theirs = (lambda one=one: one.generate(clean, max_new_tokens=tokens) for one in (lm, sixteen))
        with endless(lm), endless(sixteen):
            a, b, ratio = at.side_by_side(ours, theirs, times=3)
        numbers = {"4 bits": tokens / a, "16 bits": tokens / b}
        return Row(
            "", "", f"{tokens / a:.1f} tokens/s", f"16 bits {tokens / b:.1f} /s", f"{ratio:.3f}", "", None, numbers
        )

    def grids() -> Row:
        ours, theirs = (lambda one=one: job(one, "resid_pre", length=length) for one in (lm, sixteen))
        a, b, ratio = at.side_by_side(ours, theirs, times=1)
        return Row("", "", f"{a:.2f} s", f"16 bits {b:.2f} s", f"{ratio:.3f}", "", None, {"4 bits": a, "16 bits": b})

    def across() -> Row:
        """What 16 bits say at each place, put into the run in 4 bits; checked by whole runs."""
        jobs: list[PatchJob] = []

        def work() -> None:
            jobs.append(PatchJob(lm, clean, None, ANSWER, FOIL, source=sixteen))
            list(jobs[-1].steps())

        work()
        seconds = at.seconds(work)
        row = one_forward_a_cell(at, lm, clean, clean, jobs[-1], seconds, sample=sample, asked=None, source=sixteen)
        row.labkit = f"{seconds:.2f} s, {row.labkit}"
        row.quote = (
            f"a grid that puts 16 bits' residual stream into the run in 4 bits, cell by cell, in {seconds:.2f} s"
        )
        return row

    table.measure(lm.name, f"forward of {length} tokens, 4 bits beside 16", 10, forward)
    table.measure(lm.name, f"generation of {tokens} tokens, 4 bits beside 16", 20, writing)
    table.measure(lm.name, f"exact resid_pre grid, {length} tokens, 4 bits beside 16", 30, grids)
    table.measure(lm.name, "exact resid_pre grid across precisions, beside one forward a cell", 30, across)
