"""A model spread over several devices, or partly on the CPU or disk, gives what the same model gives in one place."""

import sys
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
from conformance import ANSWER, CORRUPT, FOIL, IDS, conformance, passes, tokenizer
from shrink import tiny

import labkit as lk
from labkit.patching.patch import PatchJob

TYPES = ("llama", "gpt2", "gpt_neox", "mixtral", "deepseek_v2")  # sequential, (in, out) weights, parallel, mixtures
SITES = ("resid_pre", "mlp_out", "z", "head_out")


class Moved(ModelHook):
    """What a second device does to what comes in: another tensor with the same numbers takes its place."""

    def pre_forward(self, module, *args, **kwargs):
        clone = lambda x: x.clone() if isinstance(x, torch.Tensor) else x  # noqa: E731
        return send_to_device_by(clone, args), send_to_device_by(clone, kwargs)


def send_to_device_by(change, value):
    if isinstance(value, tuple | list):
        return type(value)(send_to_device_by(change, item) for item in value)
    if isinstance(value, dict):
        return {name: send_to_device_by(change, item) for name, item in value.items()}
    return change(value)


def spread(hf, way, folder):
    """The model with some of it elsewhere; `disk` and `cpu` leave tensors without numbers in it."""
    blocks = lk.wrap(hf, tokenizer()).anatomy.blocks
    if way == "other device":
        for block in blocks[1:]:
            add_hook_to_module(block.module, Moved())
        return hf
    if way == "cpu":  # all of it on the CPU until a layer runs, as beside a GPU that has room for one layer
        return cpu_offload(hf, execution_device=torch.device("cpu"))
    name_of = {module: name for name, module in hf.named_modules()}
    places = {name_of[block.module]: "disk" for block in blocks[1:]}
    places |= {name_of[hf.get_input_embeddings()]: "disk", name_of[hf.get_output_embeddings()]: "disk"}
    for name, _ in [*hf.named_parameters(), *hf.named_buffers()]:
        if not any(name.startswith(f"{place}.") for place in places):
            places[name.rsplit(".", 1)[0]] = "cpu"
    return dispatch_model(hf, places, main_device="cpu", offload_dir=folder)


@pytest.fixture(scope="module", params=[(name, way) for name in TYPES for way in ("disk", "cpu", "other device")])
def pair(request, tmp_path_factory):
    name, way = request.param
    whole = lk.LanguageModel(tiny(name), tokenizer(), name=name)
    return (
        whole,
        lk.LanguageModel(spread(tiny(name), way, tmp_path_factory.mktemp("away")), tokenizer(), name=name),
        way,
    )


def parts(lm):
    """Its anatomy, by name."""
    name_of = {module: name for name, module in lm.hf.named_modules()}
    return [[name_of.get(value) for value in vars(block).values()] for block in lm.anatomy.blocks]


def test_nothing_is_found_in_another_place(pair):
    whole, away, way = pair
    assert parts(away) == parts(whole)
    assert (away.device, away.dtype, away.devices) == (whole.device, whole.dtype, whole.devices)
    assert away.memory().parts == whole.memory().parts
    assert (away.memory().away > 0) == (way != "other device")
    assert away.sites().to_string() == whole.sites().to_string()


def test_reads_and_writes_are_those_of_the_whole_model(pair):
    whole, away, _ = pair
    sites = ["embed", "resid_pre", "resid_post", "attn_out", "mlp_out", "z", "pattern", "head_out"]
    ours, its = away.run(IDS, read=sites), whole.run(IDS, read=sites)
    assert torch.equal(ours.logits, its.logits)
    assert all(torch.equal(value, its.activations[place]) for place, value in ours.activations.items())
    write = {"resid_mid.1": 0.5} if "resid_mid" in dict(its.activations) else {"z.1.2": 0.5, "mlp_out.0": 1.0}
    write = {site: torch.tensor(value) for site, value in write.items()}
    assert torch.equal(away.run(IDS, write=write).logits, whole.run(IDS, write=write).logits)


@pytest.mark.parametrize("site", SITES)
def test_grids_are_those_of_the_whole_model_and_made_the_fast_way(pair, site):
    whole, away, _ = pair
    for method in ("exact", "attribution"):
        jobs = [PatchJob(lm, IDS, CORRUPT, ANSWER, FOIL, site=site, method=method) for lm in (whole, away)]
        for job in jobs:
            list(job.steps())
        assert jobs[1].engine == jobs[0].engine == "wavefront"
        assert torch.allclose(*(torch.tensor(job.grid.values) for job in jobs), rtol=0, atol=1e-5)


def test_weights_can_be_read_and_attributed(pair):
    whole, away, _ = pair
    found, expected = (lk.direct_logit_attribution(lm, IDS, ANSWER, FOIL) for lm in (away, whole))
    assert abs(found.total - expected.total) < 1e-4
    assert abs(found.heads - expected.heads).max() < 1e-4
    name = "mlp.experts.down_proj" if whole.name in ("mixtral", "deepseek_v2") else "attn.c_proj"
    name = {"llama": "down_proj", "gpt_neox": "dense_h_to_4h"}.get(whole.name, name)
    assert torch.equal(away.weight(name, 1), whole.weight(name, 1))


def test_what_is_away_is_away_again_afterwards(pair):
    _, away, way = pair
    meta = [n for n, p in away.hf.named_parameters() if p.device.type == "meta"]
    away.run(IDS, read=["head_out"])
    away.weight(next(n for n in ("o_proj", "attn.c_proj", "dense") if n in str(parts(away))), 1)
    assert [n for n, p in away.hf.named_parameters() if p.device.type == "meta"] == meta
    assert bool(meta) == (way != "other device")


def test_every_promise_holds_on_a_model_that_lies_on_disk(tmp_path):
    row = conformance(lk.LanguageModel(spread(tiny("llama"), "disk", tmp_path), tokenizer(), name="llama"))
    assert passes(row), row


def test_auto_puts_what_memory_has_no_room_for_on_disk(tmp_path, monkeypatch):
    from labkit.models import load

    hf = tiny("llama")
    hf.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    size = sum(p.numel() * 4 for p in hf.parameters())
    monkeypatch.setattr(load, "room", lambda bits: {"cpu": size // 2})
    lm = lk.load(tmp_path / "model", bits=32, device="auto", progress=False)
    assert 0 < lm.memory().away < lm.memory().total
    whole = lk.load(tmp_path / "model", bits=32, device="cpu", progress=False)
    assert torch.equal(lm.run(IDS).logits, whole.run(IDS).logits)
    grids = [lk.patch(m, IDS, CORRUPT, ANSWER, FOIL, progress=False).values for m in (lm, whole)]
    assert abs(grids[0] - grids[1]).max() <= 1e-5


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("bits", [4, 16])
def test_auto_on_a_machine_without_a_gpu_is_the_cpu_where_it_has_room(bits, tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    lm = lk.load(tmp_path, bits=bits, device="auto", progress=False)
    assert lm.memory().away == 0
    assert lm.device == torch.device("cpu")
