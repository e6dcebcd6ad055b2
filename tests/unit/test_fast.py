"""Layers that compute faster: with the same weights, within rounding, and nothing of it left behind."""

import threading

import numpy as np
import pytest
import torch
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.analysis.patching import PatchJob
from labkit.models import fast
from labkit.models.fast import FastLayers, mkl_is_slow
from labkit.models.weights import weight_of

MANY = 10**6
ROWS = 300


@pytest.fixture
def layers(lm4):
    lm4.run(CLEAN)  # bitsandbytes repacks weights at the first forward
    return FastLayers(lm4, tokens=MANY)


def test_weights_are_those_that_the_kernel_computes_with(lm4, layers):
    projection = lm4.anatomy.blocks[3].module.mlp.down_proj
    weight = weight_of(projection, dtype=torch.float32)
    x = torch.randn(ROWS, projection.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    with lm4.busy(), layers.used():
        assert torch.equal(weight_of(projection, dtype=torch.float32), weight)
        ours = projection(x[None])
    with lm4.busy():
        kernel = projection(x[None])
    exact = x.double() @ weight.double().T
    off = lambda out: float((out[0].double() - exact).abs().max() / exact.abs().max())  # noqa: E731
    assert ours.shape == kernel.shape
    assert ours.dtype == kernel.dtype
    assert max(off(ours), off(kernel)) <= 2**-8  # half a step of bfloat16 at the largest


def test_biases_are_added(lm4, layers):
    projection = lm4.anatomy.blocks[0].module.self_attn.q_proj
    bias = torch.arange(576).bfloat16()
    projection.bias = torch.nn.Parameter(bias, requires_grad=False)
    try:
        with lm4.busy(), layers.used():
            out = projection(torch.zeros(ROWS, 576, dtype=torch.bfloat16))
    finally:
        projection.bias = None
    assert torch.equal(out, bias.expand(ROWS, -1))


def test_nothing_is_left_behind_even_after_an_error(lm4, layers):
    before = [dict(m.__dict__) for m in lm4.hf.modules()]

    def interrupted():
        with lm4.busy(), layers.used():
            lm4.run(CORRUPT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [m.__dict__.keys() for m in lm4.hf.modules()] == [d.keys() for d in before]
    assert layers._weights
    layers.drop()
    assert not layers._weights


def test_layers_in_use_by_another_thread_are_waited_for(lm4, layers):
    found = []
    ask = threading.Thread(target=lambda: found.append(len(FastLayers(lm4, tokens=MANY))))
    with lm4.busy(), layers.used():
        ask.start()
        ask.join(0.2)
        assert not found
    ask.join(10)
    assert found == [7 * lm4.n_layers]


def test_only_where_it_pays(lm4, layers, monkeypatch):
    assert len(layers) == 7 * lm4.n_layers
    assert not len(FastLayers(lm4, tokens=100))
    monkeypatch.setattr(fast, "installed", lambda: 10**9)  # a machine of 1 GB: an eighth does not hold 212 MB
    assert not len(FastLayers(lm4, tokens=MANY))
    monkeypatch.setattr(fast, "installed", lambda: 10**12)
    monkeypatch.setattr(fast, "available", lambda device: 300_000_000)
    assert not len(FastLayers(lm4, tokens=MANY))


@pytest.mark.parametrize("slow", [True, False])
def test_float32_layers_go_through_onednn_where_mkl_is_slow(lm32, monkeypatch, slow):
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(fast, "mkl_is_slow", lambda: slow)
    layers = FastLayers(lm32)
    assert len(layers) == (7 * lm32.n_layers if slow else 0)
    projection = lm32.anatomy.blocks[3].module.mlp.down_proj
    x = torch.randn(2, 150, projection.in_features, generator=torch.Generator().manual_seed(0))
    exact = x.double() @ projection.weight.double().T
    with lm32.busy(), layers.used():
        assert ("forward" in projection.__dict__) is slow
        out = projection(x)
        assert projection(x[:0]).shape == (0, 150, 576)
    assert "forward" not in projection.__dict__
    assert float((out.double() - exact).abs().max()) <= 1e-5 * float(exact.abs().max())
    with layers.used():  # with gradients it does what it always does
        x.requires_grad_(True)
        projection(x).sum().backward()
    assert torch.allclose(x.grad[0, 0], projection.weight.sum(0), atol=1e-5)


def test_which_processors_have_a_slow_mkl_is_known():
    text = fast.Path("/proc/cpuinfo").read_text() if fast.Path("/proc/cpuinfo").exists() else ""
    if "GenuineIntel" in text or "avx512f" not in text:
        assert not mkl_is_slow()
    elif "AuthenticAMD" in text and torch.backends.mkl.is_available():
        assert mkl_is_slow() is torch.backends.mkldnn.is_available()


def test_a_grid_is_the_same_within_rounding_and_gives_its_memory_back(lm4, monkeypatch):
    filler = " and thought about what they would need for the evening, because friends were coming over"
    clean, corrupt = (text.replace(" gave", f" looked around{filler}, and gave") for text in (CLEAN, CORRUPT))
    settings = (lm4, clean, corrupt, " Mary", " John")
    job = PatchJob(*settings)
    for _ in job.steps():
        pass
    assert len(job._wavefront.layers) == 7 * lm4.n_layers
    assert not job._wavefront.layers._weights
    again = lk.patch(*settings, progress=False)
    assert np.array_equal(again.values, job.grid.values)  # to the last digit
    monkeypatch.setattr(fast, "installed", lambda: 0)
    kernel = lk.patch(*settings, progress=False)
    off = np.abs(kernel.values - job.grid.values)
    assert off.max() <= 0.5
    assert np.sqrt((off**2).mean()) <= 0.1  # bf16 logits of this size have steps of 1/8
