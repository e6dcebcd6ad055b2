"""4-bit layers that compute with weights dequantised once: the same numbers, and nothing of it left behind."""

import numpy as np
import pytest
import torch
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.analysis.patching import PatchJob
from labkit.models import dense
from labkit.models.dense import TILES, DenseLayers
from labkit.models.weights import weight_of

MANY = 10**6
ROWS = 2 * TILES[0] + TILES[1] + TILES[-1] + 5  # every size of tile, and some left over


@pytest.fixture
def layers(lm4):
    lm4.run(CLEAN)  # bitsandbytes repacks weights at the first forward
    return DenseLayers(lm4, tokens=MANY)


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
    layers.drop()
    assert not layers._weights
    assert not layers._places


def test_only_where_it_pays(lm4, lm32, layers, monkeypatch):
    assert len(layers) == 7 * lm4.n_layers
    assert not len(DenseLayers(lm4, tokens=100))
    assert not len(DenseLayers(lm32, tokens=MANY))
    monkeypatch.setattr(dense, "installed", lambda: 10**9)  # a machine of 1 GB: an eighth does not hold 212 MB
    assert not len(DenseLayers(lm4, tokens=MANY))
    monkeypatch.setattr(dense, "installed", lambda: 10**12)
    monkeypatch.setattr(dense, "available", lambda device: 300_000_000)
    assert not len(DenseLayers(lm4, tokens=MANY))


def test_a_grid_is_the_same_within_rounding_and_gives_its_memory_back(lm4, monkeypatch):
    filler = " and thought about what they would need for the evening, because friends were coming over"
    clean, corrupt = (text.replace(" gave", f" looked around{filler}, and gave") for text in (CLEAN, CORRUPT))
    settings = (lm4, clean, corrupt, " Mary", " John")
    job = PatchJob(*settings)
    for _ in job.steps():
        pass
    assert len(job._wavefront.dense) == 7 * lm4.n_layers
    assert not job._wavefront.dense._weights
    again = lk.patch(*settings, progress=False)
    assert np.array_equal(again.values, job.grid.values)  # to the last digit
    monkeypatch.setattr(dense, "installed", lambda: 0)
    kernel = lk.patch(*settings, progress=False)
    off = np.abs(kernel.values - job.grid.values)
    assert off.max() <= 0.5
    assert np.sqrt((off**2).mean()) <= 0.1  # bf16 logits of this size have steps of 1/8
