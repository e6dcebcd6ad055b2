"""4-bit weights in other ways than the usual one, and matrices that are kept out of them."""

import pytest
import torch
from pair import CLEAN

import labkit as lk
from labkit.models.sources.default_model import default_checkpoint


def linear(lm: lk.LanguageModel, name: str, layer: int) -> torch.nn.Module:
    return lm.hf.model.layers[layer].get_submodule(name)


@pytest.fixture(scope="module")
def kept() -> lk.LanguageModel:
    return lk.load(keep=["o_proj.23", "mlp.0", "k_proj"], progress=False)


def bytes_per_weight(layer: torch.nn.Module) -> float:
    """Half a byte and the scale of a block of 64; bitsandbytes' kernel for some CPUs has its scales in 16 bits."""
    state = layer.weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        return 0.5 + 2 / 64
    return 0.5 + (1 + 4 / 256 if state.nested else 4) / 64


def test_what_is_kept_has_sixteen_bits_and_its_own_numbers(kept, lm4, lm32):
    for name, layer in (("self_attn.o_proj", 23), ("mlp.gate_proj", 0), ("mlp.down_proj", 0), ("self_attn.k_proj", 17)):
        own = linear(kept, name, layer).weight
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.float(), linear(lm32, name, layer).weight, rtol=2**-8, atol=0)
    for name, layer in (("self_attn.o_proj", 22), ("mlp.gate_proj", 1), ("self_attn.q_proj", 17)):
        assert linear(kept, name, layer).weight.quant_type == "nf4"
        short = name.split(".")[-1]
        torch.testing.assert_close(
            kept.weight(short, layer, dtype=torch.float32), lm4.weight(short, layer, dtype=torch.float32), rtol=0.01,
            atol=1e-3,
        )  # fmt: skip


def test_it_costs_the_bytes_that_it_says(kept, lm4):
    weights = 576 * 576 + 3 * 576 * 1536 + 30 * 576 * 192
    packed = bytes_per_weight(linear(lm4, "mlp.up_proj", 3))
    assert kept.memory().total - lm4.memory().total == pytest.approx(weights * (2 - packed), rel=0.01)


def test_the_code_loads_it_again(kept):
    assert kept.code() == "import labkit as lk\n\nlm = lk.load(bits=4, keep=['o_proj.23', 'mlp.0', 'k_proj'])\n"


def test_fp4_and_single_quantisation(lm4, lm32):
    fp4 = lk.load(quant_type="fp4", progress=False)
    single = lk.load(double_quant=False, progress=False)
    assert linear(fp4, "mlp.up_proj", 3).weight.quant_type == "fp4"
    assert fp4.code().endswith("lk.load(bits=4, quant_type='fp4')\n")
    true = lm32.weight("up_proj", 3)
    error = {
        name: float((lm.weight("up_proj", 3, dtype=torch.float32) - true).norm() / true.norm())
        for name, lm in (("nf4", lm4), ("fp4", fp4), ("single", single))
    }
    assert error["single"] <= error["nf4"] * 1.01 < error["fp4"]
    each = [bytes_per_weight(linear(lm, "mlp.up_proj", 3)) for lm in (single, lm4)]
    weights = sum(m.out_features * m.in_features for m in lm4.hf.modules() if type(m).__name__ == "Linear4bit")
    more = single.memory().total - lm4.memory().total  # less the tables of each layer, about a kilobyte
    assert more == pytest.approx(weights * (each[0] - each[1]), rel=0.06, abs=2000)
    for lm in (fp4, single):
        packed = linear(lm, "mlp.up_proj", 3)
        x = torch.randn(5, 576, generator=torch.Generator().manual_seed(0)).bfloat16()
        torch.testing.assert_close(packed(x), x @ lm.weight("up_proj", 3).T, rtol=0.02, atol=0.02)
        assert lm.run(CLEAN).logits[0, -1].argmax() == lm32.run(CLEAN).logits[0, -1].argmax()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep": ["o_proj.30"]}, r"keep='o_proj.30' matches no linear layer; .*self_attn.o_proj.* layers 0 to 29"),
        ({"keep": "gate"}, "keep='gate' matches no linear layer"),
        ({"keep": ["mlp.0"], "bits": 16}, "with bits=16 none is quantised"),
        ({"quant_type": "nf3"}, "quant_type must be one of nf4, fp4; got 'nf3'"),
        ({"double_quant": False, "bits": 8}, "quant_type and double_quant are for bits=4; got bits=8"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(settings, said):
    with pytest.raises(ValueError, match=said):
        lk.load(**settings, progress=False)


def test_a_checkpoint_that_is_quantised_already_has_nothing_to_keep():
    folder = default_checkpoint(bits=4, progress=False)
    with pytest.raises(
        ValueError, match=r"is already quantised \(bitsandbytes\); keep, .* need the weights from before"
    ):
        lk.load(folder, keep=["mlp.0"], progress=False)
