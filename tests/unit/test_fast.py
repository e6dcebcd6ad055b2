"""Layers that compute faster: with the same weights, within rounding, and nothing of it left behind."""

import copy
import gc
import threading

import pytest
import torch
from pair import CLEAN, CORRUPT
from transformers import MixtralConfig, MixtralForCausalLM

import labkit as lk
from labkit.models import load
from labkit.models import unpacked_layers as fast
from labkit.models.bf16_matmul import FEW, has_bfloat16, linear
from labkit.models.unpacked_layers import mkl_is_slow
from labkit.models.weights import weight_of

MANY = 300  # tokens: more than any kernel for few of them takes
UNPACKED = 106168320 * 2  # bytes of the default model's linear layers in 16 bits


@pytest.fixture
def fresh(lm4):
    """The default model, with nothing kept from other tests."""
    lm4.fast.drop()
    yield lm4
    lm4.fast.drop()


def projection(lm, layer=3):
    return lm.anatomy.blocks[layer].module.mlp.down_proj


def inputs(layer, rows=MANY):
    return torch.randn(1, rows, layer.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()


def off(out, exact):
    return float((out.double() - exact).abs().max() / exact.abs().max())


def test_weights_are_those_that_the_layer_computes_with(fresh):
    layer = projection(fresh)
    x = inputs(layer)
    with torch.no_grad():
        theirs = layer(x)
        identity = layer(torch.eye(layer.in_features, dtype=torch.bfloat16)).T
    assert torch.equal(weight_of(layer, dtype=torch.bfloat16), identity)
    with fresh.busy():
        ours = layer(x)
        assert layer.__dict__["unpacked"]() is not None
        assert torch.equal(weight_of(layer, dtype=torch.bfloat16), identity)
    exact = x.double() @ identity.double().T
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert max(off(ours, exact), off(theirs, exact)) <= 2**-8  # half a step of bfloat16 at the largest


def test_weights_are_kept_for_the_next_pass_and_given_back(fresh):
    assert fresh.fast.size == 0
    many = torch.arange(100, 200)[None]
    first = fresh.run(many).logits
    assert fresh.fast.size == UNPACKED
    report = fresh.memory()
    assert report.unpacked == UNPACKED
    assert report.total < 116e6  # they are no part of the model
    assert "212.3 MB more for weights kept unpacked" in repr(report)
    kept = [way.kept for way in fresh.fast._ways.values()]
    assert torch.equal(fresh.run(many).logits, first)
    assert all(a is way.kept for a, way in zip(kept, fresh.fast._ways.values(), strict=True))
    assert fast.kept_unpacked() >= UNPACKED
    fast.give_back()
    assert fresh.fast.size == 0
    assert fresh.memory().unpacked == 0
    assert torch.equal(fresh.run(many).logits, first)


def test_nothing_is_left_behind_even_after_an_error(fresh):
    before = [dict(m.__dict__) for m in fresh.hf.modules()]

    def interrupted():
        with fresh.busy():
            assert "forward" in projection(fresh).__dict__
            fresh.run(CORRUPT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [m.__dict__.keys() for m in fresh.hf.modules()] == [d.keys() for d in before]


def test_another_thread_waits_for_layers_in_use(fresh):
    found = []
    ask = threading.Thread(target=lambda: found.append(fresh.run(CLEAN)))
    with fresh.busy():
        ask.start()
        ask.join(0.2)
        assert not found
    ask.join(60)
    assert found
    assert "forward" not in projection(fresh).__dict__


def test_what_somebody_else_put_on_a_layer_stays(fresh):
    layer, seen = projection(fresh), []
    layer.forward = lambda x: seen.append(x.shape) or type(layer).forward(layer, x)
    try:
        fresh.run(CLEAN)
        assert "forward" in layer.__dict__
    finally:
        del layer.forward
    assert seen


def test_biases_are_added(fresh):
    layer = fresh.anatomy.blocks[0].module.self_attn.q_proj
    layer.bias = torch.nn.Parameter(torch.arange(576).bfloat16(), requires_grad=False)
    try:
        with fresh.busy():
            out = layer(torch.zeros(MANY, 576, dtype=torch.bfloat16))
    finally:
        layer.bias = None
    assert torch.equal(out, torch.arange(576).bfloat16().expand(MANY, -1))


def test_a_weight_that_was_exchanged_is_not_the_one_that_was_kept(fresh):
    many, layer = torch.arange(100, 200)[None], projection(fresh)
    before = fresh.run(many).logits
    weight = layer.weight
    try:
        layer.weight = projection(fresh, 4).weight
        other = fresh.run(many).logits
        assert not torch.equal(other, before)
        with fresh.busy():
            kept = weight_of(layer, dtype=torch.bfloat16)
        assert torch.equal(kept, weight_of(projection(fresh, 4), dtype=torch.bfloat16))
    finally:
        layer.weight = weight
    assert torch.equal(fresh.run(many).logits, before)


def test_without_room_nothing_is_kept(fresh, monkeypatch):
    many = torch.arange(100, 200)[None]
    kept = fresh.run(many).logits
    for name, value in (("installed", lambda: 800_000_000), ("available", lambda device: 400_000_000)):
        with monkeypatch.context() as patch, _slow_or_not(fresh):
            fresh.fast.drop()
            patch.setattr(fast, name, value)
            packed = fresh.run(many).logits
            assert fresh.fast.size == 0
        # logits of about 20, in bfloat16, 30 layers up; 1.45 at most was seen, on a processor with AMX
        assert float((packed - kept).abs().max()) <= 2
        assert float((packed - kept).float().abs().mean()) <= 0.2


def _slow_or_not(lm):
    from bitsandbytes.functional import has_avx512bf16

    lm.fast._warned = False
    if has_avx512bf16():
        return _nothing()
    return pytest.warns(UserWarning, match="no room to keep the weights unpacked")


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_what_is_kept_goes_when_memory_runs_short_and_before_a_model_is_refused(fresh, monkeypatch):
    many = torch.arange(100, 200)[None]
    fresh.run(many)
    with monkeypatch.context() as patch:
        patch.setattr(fast, "available", lambda device: 0)
        fresh.fast._looked = 0
        with fresh.busy():
            assert fresh.fast.size == 0
    fresh.run(many)
    assert fresh.fast.size == UNPACKED
    monkeypatch.setattr(load, "available", lambda device: 100e6 + UNPACKED - fast.kept_unpacked())
    again = lk.load(progress=False)  # 113 MB
    assert fresh.fast.size == 0
    assert again.memory().total < 116e6


def test_a_model_takes_what_is_kept_of_it_along_when_it_goes(fresh):
    def kept():
        lm = lk.load(progress=False)
        lm.run(torch.arange(100, 200)[None])
        return fast.kept_unpacked()

    gc.collect()
    before = fast.kept_unpacked()
    assert kept() == before + UNPACKED
    gc.collect()
    assert fast.kept_unpacked() == before


def test_a_copy_of_what_makes_layers_fast_keeps_nothing(fresh):
    fresh.run(torch.arange(100, 200)[None])
    assert copy.deepcopy(fresh.fast).size == 0


def test_gradients_go_through_kept_weights(fresh):
    """The estimate of a patch is the same whether weights are kept or not."""
    pair = (fresh, CLEAN, CORRUPT, " Mary", " John")
    packed = lk.patch(*pair, method="attribution", progress=False).values
    fresh.run(torch.arange(100, 200)[None])
    kept = lk.patch(*pair, method="attribution", progress=False).values
    assert abs(kept - packed).max() <= 0.05 * abs(packed).max()


# -- the matmul itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 40])
def test_a_bfloat16_matmul_is_rounded_once(rows, units, monkeypatch):
    monkeypatch.setattr("labkit.models.bf16_matmul.has_bfloat16", lambda: units)
    monkeypatch.setattr("labkit.models.bf16_matmul.CHUNK", 10_000)  # in many parts
    make = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 192, generator=make).bfloat16() for n in (rows, 333))
    bias = torch.randn(333, generator=make).bfloat16()
    out = linear(x[None], weight, bias)
    exact = x[None].double() @ weight.double().T + bias.double()
    assert out.shape == (1, rows, 333)
    assert out.dtype == torch.bfloat16
    assert float(((out.double() - exact).abs() / exact.abs().clamp(min=0.1)).max()) <= 2**-8 + 1e-4
    x.requires_grad_(True)
    linear(x, weight, bias).float().sum().backward()
    whole = weight.double().sum(0)
    assert off(x.grad[0], whole) <= 2**-8


def test_a_float32_input_meets_a_16_bit_weight_in_float32():
    make = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 64, generator=make), torch.randn(70, 64, generator=make).bfloat16()
    out = linear(x, weight)
    assert out.dtype == torch.float32
    assert torch.allclose(out, x @ weight.float().T, atol=1e-5)


def test_layers_in_16_bits_are_multiplied_in_float32_where_there_are_no_units(monkeypatch):
    lm = lk.load(bits=16, progress=False)
    plain = lm.run(CLEAN).logits
    for module in ("bf16_matmul", "unpacked_layers"):
        monkeypatch.setattr(f"labkit.models.{module}.has_bfloat16", lambda: False)
    lm.fast._layers = None
    with lm.busy():
        assert "forward" in lm.hf.lm_head.__dict__
        assert sum("forward" in m.__dict__ for m in lm.hf.modules()) == 7 * lm.n_layers + 1
    other = lm.run(CLEAN).logits
    assert "forward" not in lm.hf.lm_head.__dict__
    assert int(other[0, -1].argmax()) == int(plain[0, -1].argmax())
    assert float((other - plain).abs().max()) <= 1  # logits of about 20, in bfloat16, 30 layers up


def test_the_experts_of_a_mixture_are_multiplied_in_float32_as_well(lm4, tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=lm4.n_vocab, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=2,
    )  # fmt: skip
    MixtralForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    lm4.tokenizer.save_pretrained(tmp_path)
    lm = lk.load(tmp_path, progress=False, device="cpu")
    ids, seen = torch.arange(100, 120)[None], []
    plain = lm.run(ids).logits
    for module in ("bf16_matmul", "unpacked_layers"):
        monkeypatch.setattr(f"labkit.models.{module}.has_bfloat16", lambda: False)
    monkeypatch.setattr(fast, "linear", lambda *args: seen.append(tuple(args[1].shape)) or linear(*args))
    lm.fast._layers = None
    other = lm.run(ids).logits
    assert {(192, 64), (64, 96)} <= set(seen)  # the two matrices of an expert
    assert float((other - plain).abs().max()) <= 0.03 * float(plain.abs().max())


@pytest.mark.parametrize("slow", [True, False])
def test_float32_layers_go_through_onednn_where_mkl_is_slow(lm32, monkeypatch, slow):
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(fast, "mkl_is_slow", lambda: slow)
    layer = projection(lm32)
    x = torch.randn(2, 150, layer.in_features, generator=torch.Generator().manual_seed(0))
    exact = x.double() @ layer.weight.detach().double().T
    with lm32.busy(), lm32.for_patching():
        assert ("forward" in layer.__dict__) is slow
        out = layer(x)
        assert layer(x[:0]).shape == (0, 150, 576)
    assert "forward" not in layer.__dict__
    assert float((out.double() - exact).abs().max()) <= 1e-5 * float(exact.abs().max())
    with lm32.for_patching():  # with gradients it does what it always does
        x.requires_grad_(True)
        layer(x).sum().backward()
    assert torch.allclose(x.grad[0, 0], layer.weight.sum(0), atol=1e-5)


def test_which_processors_have_a_slow_mkl_is_known():
    text = fast.Path("/proc/cpuinfo").read_text() if fast.Path("/proc/cpuinfo").exists() else ""
    if "GenuineIntel" in text or torch.backends.cpu.get_cpu_capability() != "AVX512":
        assert not mkl_is_slow()
    elif "AuthenticAMD" in text and torch.backends.mkl.is_available():
        assert mkl_is_slow() is torch.backends.mkldnn.is_available()


def test_units_for_bfloat16_are_asked_of_what_multiplies():
    if torch.backends.mkldnn.is_available():
        assert has_bfloat16() is bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    else:
        assert not has_bfloat16()
