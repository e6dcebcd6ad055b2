"""The peers on the same model object, one patched run a cell, on a sample of the cells of a `resid_pre` grid."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from gpu_rows import Device, random_pair
from timed_table import Row, Table

import labkit as lk


def peers(table: Table, at: Device, lm: lk.LanguageModel, ours: float, *, length: int, sample: int) -> None:
    """One row a peer that can be imported; `ours` is the seconds of labkit's grid on the same prompts."""
    for name, module, cells in (
        ("nnsight", "nnsight", nnsight_cells),
        ("TransformerLens", "transformer_lens", transformer_lens_cells),
    ):
        if find_spec(module) is None:
            table.add(Row(lm.name, f"{name} on the same grid", f"not measured: {name} is not installed"))
            continue

        def measured(name: str = name, cells: Callable[..., Iterator[Callable]] = cells) -> Row:
            clean, corrupt = (ids.to(lm.device) for ids in random_pair(length))
            places = [(n % lm.n_layers, (7 * n) % length) for n in range(sample)]
            with torch.no_grad():
                runs = list(cells(lm, clean, corrupt, places))
                runs[0]()
                each = statistics.median(at.seconds(run) for run in runs)
            total = each * lm.n_layers * length
            beside = f"{name} {each * 1e3:.1f} ms a cell, {total:.1f} s extrapolated"
            numbers = {"each": each, "seconds": total, "labkit seconds": ours}
            quote = f"the same grid {total / ours:.0f} times as fast as {name}'s loop over cells"
            return Row(lm.name, "", f"{ours:.2f} s", beside, f"{total / ours:.1f}x", "", None, numbers, quote)

        table.measure(lm.name, f"{name} on the same grid", 30, measured)


Places = list[tuple[int, int]]


def nnsight_cells(lm: lk.LanguageModel, clean: torch.Tensor, corrupt: torch.Tensor, places: Places) -> Iterator:
    import nnsight
    from nnsight import TransformersModel

    model = TransformersModel(lm.hf, tokenizer=lm.tokenizer, task="text-generation")
    layers = model.model.layers
    with model.trace(clean):
        saved = nnsight.save([layer.input for layer in layers])
    for at_layer, position in places:

        def run(layer: int = at_layer, position: int = position) -> None:
            with model.trace(corrupt):
                layers[layer].input[:, position, :] = saved[layer][:, position, :]
                logits = model.lm_head.output[0, -1].save()
            float(logits[0])

        yield run


def transformer_lens_cells(
    lm: lk.LanguageModel, clean: torch.Tensor, corrupt: torch.Tensor, places: Places
) -> Iterator:
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        lm.hf.config.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        model = TransformerBridge.boot_transformers(
            folder, hf_model=lm.hf, tokenizer=lm.tokenizer, dtype=lm.dtype, device=str(lm.device)
        )
    _, cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_resid_pre"))
    for layer, position in places:
        name = f"blocks.{layer}.hook_resid_pre"

        def put(x: torch.Tensor, hook: object, name: str = name, position: int = position) -> torch.Tensor:
            x[:, position] = cache[name][:, position]
            return x

        yield lambda name=name, put=put: float(model.run_with_hooks(corrupt, fwd_hooks=[(name, put)])[0, -1, 0])
