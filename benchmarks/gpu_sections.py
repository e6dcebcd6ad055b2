"""The parts of the GPU benchmark that make or load a model: shapes, the default model, promises, offload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import conformance
import shapes
import torch
from accelerate import cpu_offload
from gpu_rows import Device, Limits
from prompts import ANSWER, FOIL, PAIRS
from shrink import tiny
from timed_table import Row, Table

import labkit as lk
from labkit.models.load import compute_dtype
from labkit.models.memory import in_words
from labkit.models.sources.default_model import default_is_ready


def shape(
    table: Table, at: Device, name: str, layers: int | None, limits: Limits, *, reduced: bool
) -> tuple[lk.LanguageModel | None, Any]:
    """A model of a catalogued shape, with the row of its loading, and its configuration; None where there was no time
    for it.
    """
    config = shapes.config_of(name, layers=layers, reduced=reduced)
    label = f"{name.split('/')[-1]}-shaped" + (f", {config.num_hidden_layers} layers" if layers or reduced else "")
    found: list[lk.LanguageModel] = []

    def build() -> Row:
        dtype = compute_dtype(at.device.type, 4)
        tokenizer = conformance.tokenizer()
        make = lambda: found.append(  # noqa: E731
            shapes.build(config, tokenizer, name=label, device=at.device, dtype=dtype)
        )
        seconds: list[float] = []
        peak = at.peak(lambda: seconds.append(at.seconds(make)))
        memory = found[0].memory()
        most = "" if peak is None else f", {in_words(peak)} at most while it is made"
        parts = ", ".join(f"{part} {in_words(size)}" for part, size in memory.parts.items())
        kept = None if limits.weights is None else memory.total <= limits.weights
        asked = "" if limits.weights is None else f"<= {in_words(limits.weights)}"
        said = f"{in_words(memory.total)} in {seconds[0]:.1f} s{most}"
        numbers = {"bytes": memory.total, "seconds": seconds[0], "peak": peak, "parts": memory.parts}
        quote = f"{in_words(memory.total)} of weights in NF4"
        return Row(label, f"weights in NF4 ({parts})", said, "", "", asked, kept, numbers, quote)

    return (found[0] if table.measure(label, "weights in NF4", 40, build) else None), config


def default_model(table: Table, at: Device, gguf: str | None, *, given: bool) -> None:
    """The real default model: its NF4 grid here and on the CPU, with the noise that rounding to 16 bits makes."""
    label = "default model"
    if gguf is None and not given and not default_is_ready():
        table.add(Row(label, "NF4 grid", "not measured: its file was not given (--model)"))
        return
    clean, corrupt = PAIRS["short"]

    def grid(lm: lk.LanguageModel) -> lk.PatchGrid:
        return lk.patch(lm, clean, corrupt, ANSWER, FOIL, progress=False)

    def compare() -> Row:
        load = lambda device, dtype: lk.load(gguf, device=device, dtype=dtype, progress=False)  # noqa: E731
        found: list[lk.LanguageModel] = []
        load_time = at.seconds(lambda: found.append(load(at.device, torch.bfloat16)))
        lm = found[0]
        here = grid(lm)
        seconds = at.seconds(lambda: grid(lm))
        on_cpu = lm if not at.cuda else load("cpu", torch.bfloat16)
        exact, exact_cpu = (grid(load(device, torch.float32)) for device in (at.device, "cpu"))
        cpu = grid(on_cpu)
        worst = float(abs(here.values - cpu.values).max())
        worst32 = float(abs(exact.values - exact_cpu.values).max())
        noise = float(max(abs(here.values - exact.values).max(), abs(cpu.values - exact_cpu.values).max()))
        size = " x ".join(map(str, here.values.shape))
        said = f"{seconds:.2f} s; loads in {load_time:.1f} s, {in_words(lm.memory().total)}"
        beside = f"the CPU's: off by {worst:.1e} in bf16, {worst32:.1e} in fp32; rounding to bf16 alone {noise:.1e}"
        if not at.cuda:
            beside = f"no GPU to hold against the CPU; rounding to bf16 alone {noise:.1e}"
        numbers = {"seconds": seconds, "load": load_time, "off": worst, "off fp32": worst32, "noise": noise}
        kept = worst <= 2 * noise and worst32 <= 0.01 if at.cuda else None
        asked = "in bf16 within 2x that noise, in fp32 within 0.01" if at.cuda else ""
        quote = f"the NF4 grid of a GPU within {worst:.1e} of the CPU's; rounding alone {noise:.1e}" if at.cuda else ""
        return Row(label, f"exact resid_pre grid in NF4, {size}", said, beside, "", asked, kept, numbers, quote)

    table.measure(label, "exact resid_pre grid in NF4", 60, compare)


def promises(table: Table, at: Device, names: Sequence[str]) -> None:
    """The promises of tests/zoo in fp32, on this device."""
    for name in names:

        def keeps(name: str = name) -> Row:
            return _conformance(at, lk.LanguageModel(tiny(name).to(at.device), conformance.tokenizer(), name=name))

        table.measure(f"{name}, tiny", "promises in fp32", 15, keeps)


def offloaded(table: Table, at: Device) -> None:
    """The same promises on a model whose weights lie on the CPU and go to the device layer by layer."""

    def keeps() -> Row:
        hf = cpu_offload(tiny("llama"), execution_device=at.device)
        return _conformance(at, lk.LanguageModel(hf, conformance.tokenizer(), name="llama"))

    table.measure("llama, tiny", "promises in fp32 with its weights on the CPU until they are needed", 20, keeps)


def _conformance(at: Device, lm: lk.LanguageModel) -> Row:
    kept_ids = conformance.IDS, conformance.CORRUPT
    conformance.IDS, conformance.CORRUPT = (ids.to(at.device) for ids in kept_ids)
    try:
        row = conformance.conformance(lm)
    finally:
        conformance.IDS, conformance.CORRUPT = kept_ids
    wrong = [f"{promise} ({value})" for promise, value in row.items() if value.startswith("no") or value == "slow"]
    said = f"{sum(value == 'yes' for value in row.values())} kept"
    said += f", not: {'; '.join(wrong)}" if wrong else ""
    return Row(lm.name, "", said, "", "", "all", not wrong, {"promises": row})
