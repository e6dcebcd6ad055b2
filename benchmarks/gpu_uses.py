"""What people do with one model besides grids of one pair: a long prompt's attention, reading while it writes, several
pairs at once, the block loop's other ways, and memory that runs out.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from endless import endless
from gpu_rows import ANSWER, FOIL, Device, job, random_pair
from timed_table import Row, Table

import labkit as lk
from labkit.engine.block_loop import block_loop
from labkit.models.memory import in_words
from labkit.patching.patch import PatchJob


def attention_view(table: Table, at: Device, lm: lk.LanguageModel, *, length: int) -> None:
    """What AttentionView asks of a model: all heads small, then one head after another large."""

    def view() -> Row:
        ids = random_pair(length)[0]
        before = torch.cuda.memory_allocated(at.device) if at.cuda else 0
        shown: list[lk.AttentionPatterns] = []

        def first() -> None:
            shown.append(lk.attention(lm, ids))
            shown[0].thumbnails()
            shown[0].pattern(lm.n_layers // 2, 0)

        seconds: list[float] = []
        peak = at.peak(lambda: seconds.append(at.seconds(first)))
        switch = [at.seconds(lambda n=n: shown[0].pattern(lm.n_layers // 2, n)) for n in range(1, 4)]
        every = 4 * lm.n_layers * lm.n_heads * length**2
        numbers = {"seconds": seconds[0], "switch": sorted(switch)[1], "peak": peak, "every pattern": every}
        said = f"{seconds[0]:.2f} s, another head {sorted(switch)[1] * 1e3:.0f} ms"
        beside = f"all patterns in float32 are {in_words(every)}"
        if peak is not None:
            said += f", {in_words(peak - before)} beyond the weights"
        quote = f"attention of every head over {length:,} tokens in {seconds[0]:.1f} s"
        return Row(lm.name, "", said, beside, "", "", None, numbers, quote)

    table.measure(lm.name, f"attention view of {length:,} tokens", 20, view)


def reading(table: Table, at: Device, lm: lk.LanguageModel, *, length: int, tokens: int) -> None:
    """Generation that reads every layer at every token, beside the same that reads nothing."""
    ids = random_pair(length)[0].to(lm.device)

    def read() -> Row:
        ours = lambda: lm.generate(ids, max_new_tokens=tokens, read=["resid_post"])  # noqa: E731
        with endless(lm):
            a, b, ratio = at.side_by_side(ours, lambda: lm.generate(ids, max_new_tokens=tokens), times=3)
        beside, numbers = f"reading nothing {tokens / b:.1f} /s", {"reading": tokens / a, "nothing": tokens / b}
        return Row(lm.name, "", f"{tokens / a:.1f} tokens/s", beside, f"{ratio:.3f}", "", None, numbers)

    table.measure(lm.name, f"generation of {tokens} tokens, reading every resid_post", 30, read)


def several_pairs(table: Table, at: Device, lm: lk.LanguageModel, *, length: int, pairs: int) -> None:
    """A sweep over several pairs, which share each pass up the blocks, beside one grid after another."""

    def swept() -> Row:
        clean = torch.randint(8, 128, (pairs, length), generator=torch.Generator().manual_seed(2))
        asked = [(row[None], row[None] + 100, ANSWER, FOIL) for row in clean]
        found: list[lk.Sweep] = []
        single: list[lk.PatchGrid] = []
        lk.sweep(lm, asked, progress=False)  # once, so that every kernel is chosen
        ours = at.seconds(lambda: found.append(lk.sweep(lm, asked, shard=pairs, progress=False)))
        theirs = at.seconds(lambda: single.extend(lk.patch(lm, *pair, progress=False) for pair in asked))
        grids = [found[0].grids[n] for n in range(pairs)]
        worst = max(float(np.abs(a.values - b.values).max()) for a, b in zip(grids, single, strict=True))
        scale = max(1.0, *(abs(grid.clean) for grid in single), *(abs(grid.corrupt) for grid in single))
        numbers = {"together": ours, "one by one": theirs, "worst": worst, "scale": scale}
        said, beside = f"{ours:.2f} s, off by {worst:.1e} at most", f"one after another {theirs:.2f} s"
        kept = worst <= 0.02 * scale
        return Row(lm.name, "", said, beside, f"{theirs / ours:.1f}x", "off by at most 2% of the metric", kept, numbers)

    table.measure(lm.name, f"exact resid_pre grids of {pairs} pairs of {length} tokens together", 30, swept)


def other_block_loops(table: Table, at: Device, lm: lk.LanguageModel, *, length: int) -> None:
    """The resid_pre grid with compiled blocks, and with attention of all packed rows in one call, beside the usual."""
    backend = "inductor" if at.cuda else "eager"  # here only that it runs; a CPU may have no compiler

    def way(how: dict[str, bool]) -> Row:
        usual = job(lm, "resid_pre", length=length)
        with block_loop(backend=backend, **how):
            begin = time.perf_counter()
            found = job(lm, "resid_pre", length=length)  # compiles
            first = time.perf_counter() - begin

        def other() -> None:
            with block_loop(backend=backend, **how):
                job(lm, "resid_pre", length=length)

        a, b, ratio = at.side_by_side(other, lambda: job(lm, "resid_pre", length=length), times=3)
        peak = at.peak(other)
        worst = float(np.abs(found.grid.values - usual.grid.values).max())
        scale = max(1.0, abs(usual.grid.clean), abs(usual.grid.corrupt))
        kept = worst <= 0.02 * scale and found.engine == "wavefront"
        numbers = {"seconds": a, "usual": b, "first": first, "worst": worst, "peak": peak, "backend": backend}
        said = f"{a:.2f} s ({first:.0f} s the first time), off by {worst:.1e} at most"
        said += "" if peak is None else f", {in_words(peak)} at most"
        return Row(
            lm.name, "", said, f"as usual {b:.2f} s", f"{ratio:.3f}", "off by at most 2% of the metric", kept, numbers
        )

    for what, how in (
        ("compiled blocks", {"compiled": True}),
        ("one call of attention a layer", {"flex": True}),
        ("both", {"compiled": True, "flex": True}),
    ):
        label = f"exact resid_pre grid, {length} tokens, switched on: {what} ({backend})"
        table.measure(lm.name, label, 60, lambda how=how: way(how))


def long_prompt(table: Table, at: Device, lm: lk.LanguageModel, *, length: int) -> None:
    """One layer's pattern of a long prompt: far from every layer's patterns in memory together."""

    def read() -> Row:
        ids = random_pair(length)[0]
        before = torch.cuda.memory_allocated(at.device)
        peak = at.peak(lambda: lm.run(ids, read=["pattern.0"])["pattern.0"].shape)
        assert peak is not None
        every = 4 * lm.n_layers * lm.n_heads * length**2
        numbers = {"beyond weights": peak - before, "every pattern": every}
        said, beside = f"{in_words(peak - before)} beyond the weights", f"all patterns in float32 {in_words(every)}"
        return Row(lm.name, "", said, beside, f"{every / (peak - before):.1f}x", "", None, numbers)

    if at.cuda:
        table.measure(lm.name, f"memory to read one layer's pattern at {length} tokens", 15, read)


def out_of_memory(table: Table, at: Device, lm: lk.LanguageModel, *, length: int) -> None:
    """A grid on a GPU that has been left with too little memory for it: smaller chunks, the same numbers."""

    def squeezed() -> Row:
        from labkit.engine import batching

        clean, corrupt = random_pair(length)
        usual = PatchJob(lm, clean, corrupt, ANSWER, FOIL)
        list(usual.steps())
        failures: list[str] = []
        real = batching.give_back
        batching.give_back = lambda: (failures.append("once"), real())[1]
        # the budget is asked of the whole card, and the limit does not show there: so the first chunk is too large
        whole = torch.cuda.get_device_properties(at.device).total_memory
        width = 2 * (8 * lm.d_model + 3 * lm.config.intermediate_size)
        room = 0.3 * min(2.5e9, usual.total * length * width / 2)
        at.clear()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / whole, at.device)
        try:
            job = PatchJob(lm, clean, corrupt, ANSWER, FOIL)
            list(job.steps())
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, at.device)
            batching.give_back = real
        worst = float(abs(job.grid.values - usual.grid.values).max())
        scale = max(1.0, abs(usual.grid.clean), abs(usual.grid.corrupt))
        said = f"{job.done} of {job.total} cells after {len(failures)} real failures, off by {worst:.1e}"
        kept = bool(failures) and job.done == job.total and worst <= 0.05 * scale
        return Row(lm.name, "", said, "", "", "goes on by itself", kept, {"failures": len(failures), "worst": worst})

    if at.cuda:
        table.measure(lm.name, "resid_pre grid with too little memory left on purpose", 30, squeezed)
