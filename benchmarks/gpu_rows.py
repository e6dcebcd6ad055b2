"""What is measured of one model on one device: speed beside plain transformers, and grids beside one forward a cell."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timed_table import Row, Table

import labkit as lk
from labkit.activations.sites import Site
from labkit.models.memory import in_words
from labkit.patching.patch import PatchJob

EVERYTHING = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "pattern", "z")
ANSWER, FOIL = 5, 6


@dataclass(frozen=True)
class Device:
    """Where it is measured, and how to wait for it and ask what it had in use."""

    device: torch.device

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        self.wait()
        begin = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begin

    def side_by_side(self, ours: Callable[[], object], theirs: Callable[[], object], *, times: int) -> tuple:
        """Medians of both in turn, and the median of the ratios of neighbours: drift cancels."""
        ours(), theirs()
        pairs = [(self.seconds(ours), self.seconds(theirs)) for _ in range(times)]
        a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
        return a, b, statistics.median(x / y for x, y in pairs)

    def peak(self, work: Callable[[], object]) -> int | None:
        """Most bytes allocated on a GPU while it works, weights included; not known on a CPU."""
        if not self.cuda:
            work()
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device)

    def clear(self) -> None:
        if self.cuda:
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Limits:
    """What is asked of one model's rows; None where nothing is."""

    weights: float | None = None  # bytes
    seconds: float | None = None  # of the resid_pre grid
    faster: float | None = None  # than one forward a cell
    peak: float | None = None  # bytes


def random_pair(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts (1, length) that differ at every position, so that every cell of a grid takes work."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(8, 128, (1, length), generator=generator)
    return clean, clean + 100


def speed(table: Table, at: Device, lm: lk.LanguageModel, *, length: int, tokens: int, times: int) -> None:
    """Forward passes and generation beside plain transformers on the same model."""
    name, ids = lm.name, random_pair(length)[0].to(lm.device)

    def forward(what: str, prompt: torch.Tensor, read: tuple[str, ...], asked: float | None) -> Row:
        with torch.no_grad():
            plain = lambda: lm.hf(prompt, use_cache=False)  # noqa: E731
            a, b, ratio = at.side_by_side(lambda: lm.run(prompt, read=read), plain, times=times)
        asked = asked if at.cuda else None
        kept = None if asked is None else ratio <= asked
        rate = f"{a * 1e3:.1f} ms, {prompt.shape[1] / a:,.0f} tokens/s"
        beside, numbers = f"transformers {b * 1e3:.1f} ms", {"labkit": a, "transformers": b}
        return Row(name, what, rate, beside, f"{ratio:.3f}", f"<= {asked}" if asked else "", kept, numbers)

    def long() -> torch.Tensor:
        return random_pair(8 * length)[0].to(lm.device)

    def generation() -> Row:
        ends, lm.hf.generation_config.eos_token_id = lm.hf.generation_config.eos_token_id, None
        settings = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        plain = lambda: lm.hf.generate(ids, attention_mask=torch.ones_like(ids), **settings)  # noqa: E731
        try:
            a, b, ratio = at.side_by_side(lambda: lm.generate(ids, max_new_tokens=tokens), plain, times=3)
        finally:
            lm.hf.generation_config.eos_token_id = ends
        beside, numbers = f"transformers {tokens / b:.1f} /s", {"labkit": tokens / a, "transformers": tokens / b}
        return Row(name, "", f"{tokens / a:.1f} tokens/s", beside, f"{ratio:.3f}", "", None, numbers)

    read = tuple(kind for kind in EVERYTHING if kind not in lk_missing(lm))
    reads_nothing, reads_all = f"forward of {length} tokens that reads nothing", "forward that reads every site"
    table.measure(name, reads_nothing, 15, lambda: forward("", ids, (), 1.05))
    table.measure(name, f"prompt of {8 * length} tokens", 15, lambda: forward("", long(), (), None))
    table.measure(name, f"{reads_all}, {length} tokens", 15, lambda: forward("", ids, read, None))
    table.measure(name, f"generation of {tokens} tokens, ten alternatives kept", 30, generation)


def lk_missing(lm: lk.LanguageModel) -> set[str]:
    from labkit.activations.sites import layers_with

    return {kind for kind in EVERYTHING if not layers_with(lm, kind)}


def grids(table: Table, at: Device, lm: lk.LanguageModel, limits: Limits, *, length: int, sample: int) -> None:
    """Exact and attribution grids of resid_pre and z, beside one forward a cell on a sample of the same cells."""
    clean, corrupt = random_pair(length)

    def job(site: str, method: str) -> PatchJob:
        made = PatchJob(lm, clean, corrupt, ANSWER, FOIL, site=site, method=method)
        list(made.steps())
        return made

    for site in ("resid_pre", "z"):
        asked = limits if site == "resid_pre" else Limits()
        exact: list[tuple[PatchJob, float]] = []

        def grid(site: str = site, asked: Limits = asked, exact: list = exact) -> Row:
            job(site, "exact")  # kernels are chosen, and the engine held against whole runs, once per model
            found: list[PatchJob] = []
            peak = at.peak(lambda: found.append(job(site, "exact")))
            taken = [at.seconds(lambda: found.append(job(site, "exact"))) for _ in range(2)]
            done, seconds = found[-1], min(taken)
            exact.append((done, seconds))
            memory = "" if peak is None else f", {in_words(peak)} at most"
            kept = None
            if asked.seconds is not None and asked.peak is not None and peak is not None:
                kept = done.engine == "wavefront" and seconds < asked.seconds and peak < asked.peak
            wanted = f"< {asked.seconds:g} s, < {in_words(asked.peak)}" if asked.seconds and asked.peak else ""
            size = " x ".join(map(str, done.grid.values.shape))
            numbers = {"seconds": taken, "peak": peak, "cells": done.total, "engine": done.engine}
            return Row(lm.name, f"exact {site} grid, {size}", f"{seconds:.2f} s{memory}", "", "", wanted, kept, numbers)

        if not table.measure(lm.name, f"exact {site} grid, {length} tokens", 45, grid):
            continue

        def naive(site: str = site, asked: Limits = asked, exact: list = exact) -> Row:
            return one_forward_a_cell(at, lm, clean, corrupt, *exact[0], site=site, sample=sample, asked=asked.faster)

        table.measure(lm.name, f"exact {site} grid, one forward a cell", 20, naive)

        def attribution(site: str = site) -> Row:
            job(site, "attribution")
            peak = at.peak(lambda: job(site, "attribution"))
            seconds = min(at.seconds(lambda: job(site, "attribution")) for _ in range(2))
            memory = "" if peak is None else f", {in_words(peak)} at most"
            return Row(lm.name, "", f"{seconds:.2f} s{memory}", numbers={"seconds": seconds, "peak": peak})

        table.measure(lm.name, f"attribution {site} grid, {length} tokens", 20, attribution)


def one_forward_a_cell(
    at: Device,
    lm: lk.LanguageModel,
    clean: torch.Tensor,
    corrupt: torch.Tensor,
    done: PatchJob,
    seconds: float,
    *,
    site: str,
    sample: int,
    asked: float | None,
) -> Row:
    """A sample of a grid's cells, each by a whole forward pass with its patch, and the same again in a batch of 8.

    What a batch does to one and the same patched run is the noise that the fast grid is held to.
    """
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randperm(done.total, generator=generator)[:sample].tolist()
    source = lm.run(clean, read=[site])
    # a metric of two columns, as the grid's
    metric = lambda logits: (logits[:, -1, ANSWER] - logits[:, -1, FOIL]).float()  # noqa: E731
    alone, noise, taken, fast = [], 0.0, [], done.grid.values.reshape(-1)[chosen]
    for index in chosen:
        cell = done.cells[index]
        place = Site(site, cell.layer, cell.head, cell.position)
        write = {place: source[place]}
        found: list[torch.Tensor] = []
        taken.append(at.seconds(lambda w=write, f=found: f.append(metric(lm.run(corrupt, write=w).logits))))
        alone.append(float(found[0][0]))
        together = metric(lm.run(corrupt.repeat(8, 1), write=write).logits)
        noise = max(noise, float((together - found[0]).abs().max()))
    difference = max(abs(float(a) - float(b)) for a, b in zip(fast, alone, strict=True))
    each = statistics.median(taken)
    ratio = each * done.total / seconds
    scale = max(1.0, abs(done.grid.clean), abs(done.grid.corrupt))
    agrees = difference <= max(4 * noise, 0.02 * scale)
    kept = agrees if asked is None or not at.cuda else agrees and ratio >= asked
    wanted = "off by at most 4x the noise or 2% of the metric" + ("" if asked is None else f", >= {asked:g}x")
    said = f"off by {difference:.1e} at most on {len(chosen)} cells; noise of a batch {noise:.1e}"
    beside = f"{each * 1e3:.1f} ms each, {each * done.total:.1f} s extrapolated to {done.total} cells"
    numbers = {"difference": difference, "noise": noise, "each": each, "naive seconds": each * done.total}
    numbers |= {"labkit seconds": seconds, "ratio": ratio}
    return Row(lm.name, "", said, beside, f"{ratio:.1f}x", wanted, kept, numbers)


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
