"""What is measured of one model on one device: speed beside plain transformers, and grids beside one forward a cell."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from endless import endless
from machine import least_work, matmul_rate
from timed_table import Row, Table
from torch import nn

import labkit as lk
from labkit.activations.sites import Site, layers_with
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
    rate: float | None = None  # share of the device's matmul rate, on the least work of the resid_pre grid
    generation: float | None = None  # times as long as transformers


def random_pair(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts (1, length) that differ at every position, so that every cell of a grid takes work."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(8, 128, (1, length), generator=generator)
    return clean, clean + 100


def generation(table: Table, at: Device, lm: lk.LanguageModel, limits: Limits, *, length: int, tokens: int) -> None:
    """Generation beside transformers' own, on the same model."""
    ids = random_pair(length)[0].to(lm.device)

    def beside() -> Row:
        settings = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        plain = lambda: lm.hf.generate(ids, attention_mask=torch.ones_like(ids), **settings)  # noqa: E731
        with endless(lm):
            a, b, ratio = at.side_by_side(lambda: lm.generate(ids, max_new_tokens=tokens), plain, times=5)
        theirs, numbers = f"transformers {tokens / b:.1f} /s", {"labkit": tokens / a, "transformers": tokens / b}
        asked = limits.generation
        kept = None if asked is None else ratio <= asked
        quote = f"writes {tokens / a:.1f} tokens/s, {ratio:.2f} times as long as transformers"
        wanted = f"<= {asked}" if asked else ""
        return Row(lm.name, "", f"{tokens / a:.1f} tokens/s", theirs, f"{ratio:.3f}", wanted, kept, numbers, quote)

    table.measure(lm.name, f"generation of {tokens} tokens, ten alternatives kept", 30, beside)


def forwards(table: Table, at: Device, lm: lk.LanguageModel, *, length: int, times: int) -> None:
    """Forward passes beside plain transformers on the same model."""
    name, ids = lm.name, random_pair(length)[0].to(lm.device)

    def forward(prompt: torch.Tensor, read: tuple[str, ...], asked: float | None) -> Row:
        with torch.no_grad():
            plain = lambda: lm.hf(prompt, use_cache=False)  # noqa: E731
            a, b, ratio = at.side_by_side(lambda: lm.run(prompt, read=read), plain, times=times)
        asked = asked if at.cuda else None
        kept = None if asked is None else ratio <= asked
        rate = f"{a * 1e3:.1f} ms, {prompt.shape[1] / a:,.0f} tokens/s"
        beside, numbers = f"transformers {b * 1e3:.1f} ms", {"labkit": a, "transformers": b}
        return Row(name, "", rate, beside, f"{ratio:.3f}", f"<= {asked}" if asked else "", kept, numbers)

    def long() -> torch.Tensor:
        return random_pair(8 * length)[0].to(lm.device)

    read = tuple(kind for kind in EVERYTHING if layers_with(lm, kind))
    table.measure(name, f"forward of {length} tokens that reads nothing", 15, lambda: forward(ids, (), 1.05))
    table.measure(name, f"prompt of {8 * length} tokens", 15, lambda: forward(long(), (), None))
    table.measure(name, f"forward that reads every site, {length} tokens", 15, lambda: forward(ids, read, None))


@dataclass(frozen=True)
class Grid:
    """A grid that was measured: its job, and the seconds of the faster of two."""

    job: PatchJob
    seconds: float


def exact_grid(
    table: Table, at: Device, lm: lk.LanguageModel, limits: Limits, *, site: str, length: int, sample: int
) -> Grid | None:
    """The exact grid of a site, its peak memory, and one forward a cell on a sample of the same cells."""
    clean, corrupt = random_pair(length)
    found: list[Grid] = []
    peaks: list[int | None] = []

    def grid() -> Row:
        job(lm, site)  # kernels are chosen, and the engine held against whole runs, once per model
        jobs: list[PatchJob] = []
        peaks.append(at.peak(lambda: jobs.append(job(lm, site, length=length))))
        taken = [at.seconds(lambda: jobs.append(job(lm, site, length=length))) for _ in range(2)]
        done, seconds = jobs[-1], min(taken)
        found.append(Grid(done, seconds))
        asked = limits.seconds
        kept = None if asked is None else done.engine == "wavefront" and seconds < asked
        size = " x ".join(map(str, done.grid.values.shape))
        numbers = {"seconds": taken, "cells": done.total, "engine": done.engine}
        what, wanted = f"exact {site} grid, {size}", "" if asked is None else f"< {asked:g} s"
        quote = f"every cell of an exact {site} grid, {size}, in {seconds:.2f} s" if site == "resid_pre" else ""
        return Row(lm.name, what, f"{seconds:.2f} s", "", "", wanted, kept, numbers, quote)

    def memory() -> Row:
        peak, asked = peaks[0], limits.peak
        said = "known on a GPU only" if peak is None else f"{in_words(peak)}, weights included"
        kept = None if asked is None or peak is None else peak < asked
        quote = "" if peak is None else f"at most {said} on the GPU during that grid"
        wanted = "" if asked is None else f"< {in_words(asked)}"
        return Row(lm.name, "", said, "", "", wanted, kept, {"peak": peak}, quote)

    if not table.measure(lm.name, f"exact {site} grid, {length} tokens", 45, grid):
        return None
    if site == "resid_pre":
        table.measure(lm.name, f"exact {site} grid, peak memory", 0, memory)

    def naive() -> Row:
        done, seconds = found[0].job, found[0].seconds
        return one_forward_a_cell(at, lm, clean, corrupt, done, seconds, sample=sample, asked=limits.faster)

    table.measure(lm.name, f"exact {site} grid, one forward a cell", 20, naive)
    return found[0]


def job(lm: lk.LanguageModel, site: str, method: str = "exact", *, length: int = 16) -> PatchJob:
    """A grid of random prompts, done."""
    made = PatchJob(lm, *random_pair(length), ANSWER, FOIL, site=site, method=method)
    list(made.steps())
    return made


def attribution(table: Table, at: Device, lm: lk.LanguageModel, *, site: str, length: int) -> None:
    """The gradient estimate of the grid of a site."""

    def estimate() -> Row:
        job(lm, site, "attribution", length=length)
        peak = at.peak(lambda: job(lm, site, "attribution", length=length))
        seconds = min(at.seconds(lambda: job(lm, site, "attribution", length=length)) for _ in range(2))
        memory = "" if peak is None else f", {in_words(peak)} at most"
        return Row(lm.name, "", f"{seconds:.2f} s{memory}", numbers={"seconds": seconds, "peak": peak})

    table.measure(lm.name, f"attribution {site} grid, {length} tokens", 20, estimate)


def share_of_the_rate(table: Table, at: Device, lm: lk.LanguageModel, done: Grid, limits: Limits) -> None:
    """The rate at which a resid_pre grid does the least work that it can do, and the device's on one matmul."""

    def share() -> Row:
        linear = [m for m in lm.anatomy.blocks[0].module.modules() if isinstance(m, nn.Linear)]
        widest = max(linear, key=lambda m: m.in_features * m.out_features)
        size = sum(m.in_features * m.out_features for m in linear)
        length = done.job.grid.values.shape[1]
        work = least_work(n_layers=lm.n_layers, length=length, first=0, parameters_per_block=size)
        rate = matmul_rate(
            lm.dtype, d_model=widest.in_features, d_mlp=widest.out_features, tokens=16384 if at.cuda else 2048,
            seconds=2 if at.cuda else 0.5, device=at.device,
        )  # fmt: skip
        reached = work / done.seconds
        kept = None if limits.rate is None else reached / rate >= limits.rate
        dtype = str(lm.dtype).removeprefix("torch.")
        said = f"{work / 1e12:.3g} TFLOP, {reached / 1e12:.3g} TFLOP/s"
        beside = f"one matmul in {dtype}: {rate / 1e12:.3g} TFLOP/s"
        numbers = {"work": work, "reached": reached, "rate": rate, "dtype": dtype}
        quote = f"that grid's least work at {reached / rate:.0%} of this device's {dtype} matmul rate"
        wanted = "" if limits.rate is None else f">= {limits.rate:.0%}"
        return Row(lm.name, "", said, beside, f"{reached / rate:.1%}", wanted, kept, numbers, quote)

    table.measure(lm.name, "least work of the resid_pre grid, of the matmul rate", 5, share)


def one_forward_a_cell(
    at: Device,
    lm: lk.LanguageModel,
    clean: torch.Tensor,
    corrupt: torch.Tensor,
    done: PatchJob,
    seconds: float,
    *,
    sample: int,
    asked: float | None,
    source: lk.LanguageModel | None = None,
) -> Row:
    """A sample of a grid's cells, each by a whole forward pass with its patch, and the same again in a batch of 8.

    What a batch does to one and the same patched run is the noise that the fast grid is held to. What is put in comes
    from the clean run of the same model or of another one, `source`.
    """
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randperm(done.total, generator=generator)[:sample].tolist()
    put_in = (source or lm).run(clean, read=[done.site])
    # a metric of two columns, as the grid's
    metric = lambda logits: (logits[:, -1, ANSWER] - logits[:, -1, FOIL]).float()  # noqa: E731
    alone, noise, taken, fast = [], 0.0, [], done.grid.values.reshape(-1)[chosen]
    for index in chosen:
        cell = done.cells[index]
        place = Site(done.site, cell.layer, cell.head, cell.position)
        write = {place: put_in[place]}
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
    kept = agrees if asked is None else agrees and ratio >= asked
    wanted = "off by at most 4x the noise or 2% of the metric" + ("" if asked is None else f", >= {asked:g}x")
    said = f"off by {difference:.1e} at most on {len(chosen)} cells; noise of a batch {noise:.1e}"
    beside = f"{each * 1e3:.1f} ms each, {each * done.total:.1f} s extrapolated to {done.total} cells"
    numbers = {"difference": difference, "noise": noise, "each": each, "naive seconds": each * done.total}
    numbers |= {"labkit seconds": seconds, "ratio": ratio}
    quote = f"that grid {ratio:.0f} times as fast as one forward pass per cell" if done.site == "resid_pre" else ""
    return Row(lm.name, "", said, beside, f"{ratio:.1f}x", wanted, kept, numbers, "" if source else quote)
