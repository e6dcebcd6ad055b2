"""Tools on models whose layers are not all alike."""

import numpy as np
import pytest
from conformance import CORRUPT, IDS, model

import labkit as lk

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
