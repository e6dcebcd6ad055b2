"""A model with adapters in its layers is looked into as if they were merged: LoRA and others of its kind."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
from conformance import ANSWER, CORRUPT, FOIL, IDS, conformance, passes, tokenizer
from shrink import tiny

import labkit as lk
from labkit.activations.sites import layers_with
from labkit.models.weights import bias_of, weight_of

TARGETS = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "gemma2": ("o_proj", "down_proj"),
}


class Added(nn.Module):
    """A layer and a product of two small matrices beside it, with names of its own."""

    def __init__(self, plain, rank=3):
        super().__init__()
        wide_in, wide_out = width(plain)
        self.small, self.large = nn.Linear(wide_in, rank, bias=False), nn.Linear(rank, wide_out, bias=False)
        self.plain = plain
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.plain(x) + 0.7 * self.large(self.small(self.dropout(x)))


class Scaled(nn.Module):
    """A layer whose input and output are scaled, number by number, and shifted."""

    def __init__(self, base_layer):
        super().__init__()
        wide_in, wide_out = width(base_layer)
        self.base_layer = base_layer
        self.before = nn.Parameter(torch.rand(wide_in) + 0.5)
        self.after = nn.Parameter(torch.rand(wide_out) + 0.5)
        self.bias = nn.Parameter(torch.randn(wide_out) * 0.1)

    def forward(self, x):
        return self.base_layer(x * self.before) * self.after + self.bias


class Gated(Added):
    """What is added depends on the input in another way than a linear one: it cannot be merged."""

    def __init__(self, plain):
        super().__init__(plain)
        self.base_layer = plain

    def forward(self, x):
        return self.plain(x) + torch.tanh(self.small(x)) @ self.large.weight.T * 3


def width(layer):
    rows, columns = layer.weight.shape
    return (rows, columns) if type(layer).__name__ == "Conv1D" else (columns, rows)


def adapted(name, wrap):
    """A tiny model with something around its linear layers."""
    hf = tiny(name)
    torch.manual_seed(1)
    for module in list(hf.modules()):
        for child_name, child in list(module.named_children()):
            if child_name in TARGETS[name] and not isinstance(module, Added | Scaled):
                setattr(module, child_name, wrap(child))
    return hf.eval()


def merged(hf):
    """The same with one plain linear layer in the place of each adapted one."""
    hf = copy.deepcopy(hf)
    for module in list(hf.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Added | Scaled):
                wide_in, wide_out = width(child.plain if isinstance(child, Added) else child.base_layer)
                layer = nn.Linear(wide_in, wide_out)
                with torch.no_grad():
                    layer.bias.copy_(child(torch.zeros(1, wide_in))[0])
                    layer.weight.copy_((child(torch.eye(wide_in)) - layer.bias).T)
                setattr(module, name, layer)
    return hf


def looks(lm):
    asked = ["head_out", "mlp_act", "attn_out", "pattern.1", "z.0", "attn_in", "mlp_in", "final_norm"]
    asked += [kind for kind in ("q_pre", "k_pre", "mlp_gate", "mlp_up", "mlp_pre") if layers_with(lm, kind)]
    run = lm.run(IDS, read=asked)
    found = {site: run[site] for site in asked}
    direct = lk.direct_logit_attribution(lm, IDS, ANSWER, FOIL)
    found |= {"heads": torch.tensor(direct.heads), "mlp": torch.tensor(direct.mlp), "logits": run.logits}
    found["bias of heads"] = torch.tensor(direct.attn_bias)
    found["neurons"] = torch.tensor(
        lk.patch(lm, IDS, CORRUPT, ANSWER, FOIL, site="mlp_act", over=("layer", "neuron"), progress=False).values
    )
    found["paths"] = torch.tensor(lk.path_patch(lm, IDS, CORRUPT, ANSWER, FOIL, progress=False).values)
    try:
        edges = lk.edge_attribution(lm, IDS, CORRUPT, ANSWER, FOIL, progress=False)
    except ValueError as error:
        found["no edges"] = str(error)
    else:
        found["edges"] = torch.tensor(edges.values)
        # in the metric's unit: on the scale of the gap, which is small here, rounding would be as large
        found["circuit"] = torch.tensor(
            edges.circuit(n_edges=30).faithfulness(lm, [(IDS, CORRUPT, ANSWER, FOIL)]).circuit
        )
    return found


def same(found, expected, atol=2e-4):
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        if isinstance(value, str):
            assert found[place] == value
        else:
            assert torch.allclose(found[place], value, atol=atol, equal_nan=True), place


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("wrap", [Added, Scaled])
def test_an_adapted_model_gives_the_numbers_of_the_merged_one(name, wrap):
    hf = adapted(name, wrap)
    same(looks(lk.wrap(hf, tokenizer())), looks(lk.wrap(merged(hf), tokenizer())))


@pytest.mark.parametrize("wrap", [Added, Scaled])
def test_an_adapted_model_keeps_every_promise(wrap):
    row = conformance(lk.wrap(adapted("llama", wrap), tokenizer()))
    assert passes(row), row
    assert "-" not in [row[name] for name in ("head_out", "direct", "fast = naive")]


def test_a_weight_is_the_merged_one_by_its_own_name():
    hf = adapted("llama", Added)
    plain, lm = merged(hf), lk.wrap(hf, tokenizer())
    for name in ("q_proj", "mlp.down_proj"):
        part = plain.model.layers[1].get_submodule(name if "." in name else f"self_attn.{name}")
        assert torch.allclose(lm.weight(name, 1), part.weight, atol=1e-5)
    with pytest.raises(ValueError, match="down_proj") as error:
        lm.weight("down", 1)
    assert "small" not in str(error.value)


def test_a_layer_s_weight_and_bias_are_those_that_it_computes_with_in_16_bits_too():
    plain = nn.Linear(32, 24).bfloat16()
    layer = Scaled(plain).bfloat16()
    x = torch.randn(5, 32).bfloat16()
    ours = x.float() @ weight_of(layer, dtype=torch.float32).T + bias_of(layer).float()
    assert float((ours - layer(x).detach().float()).norm()) <= 0.02 * float(ours.norm())


def test_an_adapter_that_is_no_linear_map_is_named_as_the_reason():
    lm = lk.wrap(adapted("llama", Gated), tokenizer())
    for site in ("mlp_act.0", "head_out.1"):
        with pytest.raises(ValueError, match=r"adapter that is not a linear map.*merge the adapter first"):
            lm.run(IDS, read=[site])
    with pytest.raises(ValueError, match="merge the adapter first"):
        lk.edge_attribution(lm, IDS, CORRUPT, ANSWER, FOIL, progress=False)
    assert lm.run(IDS, read=["resid_post", "attn_out"])["resid_post"].isfinite().all()


# -- those of PEFT ---------------------------------------------------------------------------------------------------


def with_peft(kind, name="llama", **settings):
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    return peft.get_peft_model(tiny(name), getattr(peft, kind)(**settings)).eval()


LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
IA3 = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
OF_PEFT = {
    "lora": ("LoraConfig", LORA),
    "lora with dropout": ("LoraConfig", {**LORA, "lora_dropout": 0.5}),
    "dora": ("LoraConfig", {**LORA, "use_dora": True}),
    "unembedding": ("LoraConfig", {**LORA, "target_modules": ["o_proj", "lm_head", "embed_tokens"]}),
    "saved modules": ("LoraConfig", {**LORA, "modules_to_save": ["lm_head", "norm"]}),
    "ia3": ("IA3Config", {**IA3, "init_ia3_weights": False}),
    "loha": ("LoHaConfig", {"r": 4, "target_modules": ["o_proj", "down_proj"], "init_weights": False}),
    "oft": ("OFTConfig", {"oft_block_size": 4, "target_modules": ["o_proj", "down_proj"], "init_weights": False}),
}


@pytest.mark.parametrize("which", OF_PEFT)
def test_an_adapter_of_peft_gives_the_numbers_of_the_merged_model(which):
    kind, settings = OF_PEFT[which]
    model = with_peft(kind, **settings)
    lm = lk.wrap(model, tokenizer())
    same(looks(lm), looks(lk.wrap(copy.deepcopy(model).merge_and_unload(), tokenizer())))
    assert lm.name.endswith(" + default")
    assert lm.memory().total > 0


def test_several_adapters_switched_on_off_and_merged_are_followed():
    peft = pytest.importorskip("peft")
    model = with_peft("LoraConfig", **LORA)
    model.add_adapter("other", peft.LoraConfig(**{**LORA, "r": 2}))
    lm = lk.wrap(model, tokenizer())
    read = lambda: (lm.run(IDS, read=["head_out"])["head_out"], lm.weight("down_proj", 0))  # noqa: E731
    seen = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        seen[name] = read()
    with model.disable_adapter():
        seen["none"] = read()
    model.base_model.set_adapter(["default", "other"])
    seen["both"] = read()
    model.merge_adapter()
    assert torch.allclose(read()[0], seen["both"][0], atol=1e-4)
    model.unmerge_adapter()
    change = {name: found[1] - seen["none"][1] for name, found in seen.items()}
    assert torch.allclose(change["both"], change["default"] + change["other"], atol=1e-5)
    assert not torch.allclose(seen["default"][0], seen["other"][0], atol=1e-3)
    assert torch.equal(seen["none"][1], tiny("llama").model.layers[0].mlp.down_proj.weight)


def test_an_adapter_that_was_put_into_the_model_itself_is_followed():
    peft = pytest.importorskip("peft")
    hf = tiny("llama")
    torch.manual_seed(3)
    hf.add_adapter(peft.LoraConfig(**{**LORA, "target_modules": ["o_proj", "down_proj"]}), adapter_name="mine")
    lm = lk.wrap(hf, tokenizer())
    assert lm.name == "LlamaForCausalLM + mine"
    run = lm.run(IDS, read=["head_out", "attn_out"])
    assert torch.allclose(run["head_out"].sum(-2), run["attn_out"], atol=1e-4)


def test_a_compiled_model_with_an_adapter_is_both():
    model = with_peft("LoraConfig", **LORA)
    expected = looks(lk.wrap(model, tokenizer()))["head_out"]
    assert torch.equal(looks(lk.wrap(torch.compile(model, backend="eager"), tokenizer()))["head_out"], expected)


def test_prompt_tuning_is_refused():
    peft = pytest.importorskip("peft")
    for config in (
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ):
        model = peft.get_peft_model(tiny("llama"), config)
        with pytest.raises(ValueError, match="vectors before the prompt instead of changing layers"):
            lk.wrap(model, tokenizer())


def test_an_adapter_on_4_bit_weights_is_the_sum_of_both(tmp_path):
    peft = pytest.importorskip("peft")
    hf = tiny("llama")
    hf.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    base = lk.load(tmp_path, bits=4, dtype=torch.float32, device="cpu", progress=False)
    before = base.weight("down_proj", 1, dtype=torch.float32)
    torch.manual_seed(4)
    model = peft.get_peft_model(base.hf, peft.LoraConfig(**LORA)).eval()
    lm = lk.wrap(model, tokenizer())
    assert lm.bits == 4
    layer = lm.hf.model.layers[1].mlp.down_proj
    delta = layer.get_delta_weight("default")
    assert torch.allclose(lm.weight("down_proj", 1, dtype=torch.float32), before + delta, atol=1e-3)
    row = conformance(lm, ["logits", "head_out", "direct", "fast = naive"])
    assert passes(row), row


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "z"])
def test_activations_are_put_from_the_tuned_model_into_the_plain_one(site, direction):
    """An adapter on and off: the two runs of a grid are the two models' own."""
    plain, tuned = lk.wrap(tiny("llama"), tokenizer()), lk.wrap(adapted("llama", Added), tokenizer())
    asked = {"answer": ANSWER, "foil": FOIL, "site": site, "direction": direction, "progress": False}
    grid = lk.patch(plain, IDS, source=tuned, **asked)
    assert abs(grid.clean - grid.corrupt) > 1e-3
    given, base = (tuned, plain) if direction == "denoise" else (plain, tuned)
    for row, layer in enumerate(grid.index[0]):
        for column, number in enumerate(grid.index[1]):
            place = f"{site}.{layer}" + (f".{number}" if site == "z" else f"@{number}")
            logits = base.run(IDS, write={place: given.run(IDS, read=[place])[place]}).logits[0, -1]
            assert float(logits[ANSWER] - logits[FOIL]) == pytest.approx(grid.values[row, column], abs=1e-4)
    assert np.ptp(grid.values) > 1e-3
