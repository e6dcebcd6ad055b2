"""Every promise on every architecture, held against the table in docs/architectures.md."""

import re
from pathlib import Path

import pytest
import table
import torch
from conformance import IDS, model, tokenizer
from shrink import LEFT_OUT, TYPES, ZOO, tiny
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import labkit as lk
from labkit.activations.sites import absent
from labkit.engine.readout import readout_of
from labkit.engine.recorded_run import Unsupported, record, record_together, several_alike
from labkit.engine.wavefront import RESTARTS, Lane, Wavefront
from labkit.models.packed_experts import PackedExperts, fused

# One of each way to be different; the others are the long tail, left out of `make test-quick`.
CORE = ("llama", "gpt2", "gemma2", "mixtral", "deepseek_v2", "deepseek_v4", "gpt_oss", "bloom", "jamba", "qwen3_next")

# What a layer of these is handed for several prompts cannot be told apart.
ONE_BY_ONE = ("bloom", "mpt")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def zoo(names=ZOO):
    return [pytest.param(name, marks=[] if name in CORE else pytest.mark.long) for name in names]


@pytest.mark.promises
@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("name", zoo())
def test_promises_are_kept_as_the_table_says(name, bits, capsys):
    row = table.results(name, bits)
    assert table.cells(row) == table.written()[name, bits], row


@pytest.mark.parametrize("name", zoo())
def test_prompts_recorded_together_are_each_recorded_as_alone(name, tmp_path):
    lm = model(name, 32, tmp_path)
    ids = torch.cat([IDS, IDS.flip(1), IDS])
    try:
        each = [record(lm, row[None], sites=["resid_pre"]) for row in ids]
    except Unsupported:
        with pytest.raises(Unsupported):
            record_together(lm, ids)
        return
    for _ in range(2):  # the first time is the one that is looked at
        for (ours, found), (alone, read) in zip(record_together(lm, ids, sites=["resid_pre"]), each, strict=True):
            pairs = [*zip(ours.resid, alone.resid, strict=True), (ours.logits, alone.logits)]
            pairs += [(found["resid_pre"][layer], x) for layer, x in read["resid_pre"].items()]
            pairs += [(call.k, alone.attention[layer].k) for layer, call in ours.attention.items()]
            for a, b in pairs:
                assert a.shape == b.shape
                assert float((a - b).norm()) <= 1e-4 * float(b.norm())
            for again in (readout_of, lambda base: Wavefront([Lane(base, {}, 0)], site="resid_pre")):
                try:  # each layer once more, as it was called
                    again(alone)
                except Unsupported:
                    continue
                RESTARTS[lm].clear()
                again(ours)
    assert several_alike(lm) is (name not in ONE_BY_ONE)


def test_the_table_has_every_decoder_that_transformers_loads_and_as_many_keep_every_promise_as_the_readme_says():
    rows = table.written()
    assert {name for name, _ in rows} == set(ZOO)
    assert set(TYPES) | set(LEFT_OUT) >= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    good = [name for name in TYPES if all("no" not in rows[name, bits] for bits in (32, 4))]
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text("utf-8").split())
    said = re.search(r"each of the (\d+) decoder-only types that transformers [\d.]+ loads.*?: all (\d+) keep", readme)
    assert said is not None
    assert [int(number) for number in said.groups()] == [len(TYPES), len(good)]


@pytest.mark.long
def test_compressed_keys_and_values_are_found_wherever_a_configuration_declares_them():
    declared, found = [], []
    for name in TYPES:
        hf = tiny(name)
        if getattr(hf.config.get_text_config(decoder=True), "kv_lora_rank", None):
            declared.append(name)
            if absent(lk.wrap(hf, tokenizer()), "latent") is None:
                found.append(name)
    assert len(declared) >= 8
    assert found == declared


# -- mixtures of experts in 4 bits ------------------------------------------------------------------------------------

MIXTURES = [
    "afmoe",
    "axk1",
    "axk2",
    "bailing_hybrid",
    "beam",
    "cohere2_moe",
    "dbrx",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "dots1",
    "dots3_note_text",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt_oss",
    "granitemoe",
    "granitemoe_swa",
    "granitemoehybrid",
    "granitemoeshared",
    "hunyuan_v1_moe",
    "hy_v3",
    "hy_v4",
    "inkling2_text",
    "inkling_text",
    "jamba",
    "jetmoe",
    "kimi_linear",
    "kolibri1",
    "laguna",
    "lfm2_moe",
    "llama4_text",
    "longcat_flash",
    "mellum",
    "mimo_v2_flash",
    "minimax",
    "minimax_m2",
    "minimax_m3_vl_text",
    "mixtral",
    "nemotron_h",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_5_moe_text",
    "qwen3_moe",
    "qwen3_next",
    "qwen4_exp_text",
    "solar_open",
    "zaya",
]


def test_no_kind_of_mixture_is_missing_from_the_list():
    assert [name for name in TYPES if any(True for _ in fused(tiny(name)))] == MIXTURES


@pytest.mark.parametrize("name", zoo(MIXTURES))
def test_experts_take_four_bits_and_compute_as_if_dequantised(name, tmp_path):
    lm = model(name, 4, tmp_path / "made")
    stacks = [m for m in lm.hf.modules() if isinstance(m, PackedExperts)]
    weights = sum(stack.shape.numel() for stack in stacks)
    size = sum(b.untyped_storage().nbytes() for stack in stacks for b in stack.buffers())
    assert not list(fused(lm.hf)), "some experts are not packed"
    assert size / weights <= 0.6

    logits = lm.run(IDS).logits
    reopened = lk.load(_saved(lm, tmp_path / "saved"), dtype=torch.float32, device="cpu", progress=False)
    assert torch.allclose(reopened.run(IDS).logits, logits, rtol=0, atol=1e-6)  # where weights lie changes the rounding

    for module in list(lm.hf.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, PackedExperts):
                delattr(module, child_name)
                dense = child.dense()
                module.register_parameter(child_name, torch.nn.Parameter(_as_it_was(module, dense)))
    assert float((lm.run(IDS).logits - logits).abs().max()) <= 1e-4


def _saved(lm, folder):
    lm.hf.save_pretrained(folder, save_original_format=False)
    tokenizer().save_pretrained(folder)
    return folder


def _as_it_was(module, dense):
    """DBRX keeps its experts end to end, as one matrix."""
    return dense.flatten(0, 1) if hasattr(module, "moe_num_experts") else dense
