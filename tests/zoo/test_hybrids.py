"""Tools on models whose layers are not all alike."""

import copy

import numpy as np
import pytest
import torch
from conformance import CORRUPT, IDS, model

import labkit as lk
from labkit.activations.hooks import hooked

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("name", ["jamba", "qwen3_next", "gemma4_text", "deepseek_v2"])
def test_patterns_and_views_know_which_layers_have_attention(name):
    lm = model(name, 32, None)
    patterns = lk.attention(lm, IDS)
    small = patterns.thumbnails(8)
    assert small.shape == (lm.n_layers, patterns.n_heads, 6, 6)  # 12 tokens, two a row
    assert [bool(layer.any()) for layer in small] == [n in patterns.layers for n in range(lm.n_layers)]
    without = [n for n in range(lm.n_layers) if n not in patterns.layers]
    for layer in without:
        with pytest.raises(ValueError, match=f"has no pattern in layer {layer}"):
            patterns.pattern(layer)
    view = lk.AttentionView(lm, "hello there", background=False)
    assert view.selection[0] in patterns.layers


@pytest.mark.parametrize("site", ["z", "head_out", "resid_pre", "attn_out"])
def test_grids_cover_the_layers_that_have_the_site(site):
    lm = model("jamba", 32, None)
    grid = lk.patch(lm, IDS, CORRUPT, 9, 10, site=site)
    assert grid.index[0] == [n for n in range(lm.n_layers) if n in grid.index[0]]
    assert not np.isnan(grid.values).any()
    if site == "z":
        assert len(grid.index[0]) < lm.n_layers


def test_layers_may_share_a_module():
    """What passes there belongs to the layer that runs; an embedding, to every pass of a generation."""
    hf = copy.deepcopy(model("llama", 32, None).hf)
    hf.model.layers[1].mlp = hf.model.layers[0].mlp
    lm = lk.wrap(hf, model("llama", 32, None).tokenizer)
    assert lm.anatomy.shared
    run = lm.run(IDS, read=["mlp_out", "resid_mid", "resid_post"])
    for layer in (0, 1):
        added = run[f"resid_post.{layer}"] - run[f"resid_mid.{layer}"]
        assert torch.allclose(run[f"mlp_out.{layer}"], added, atol=1e-5)
    seen = []
    with hooked(lm, set(), {("embed", 0): lambda x: seen.append(x.shape[1]) or x}):
        lm.generate(IDS, max_new_tokens=3)
    assert seen == [IDS.shape[1], 1, 1]
