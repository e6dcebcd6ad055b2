"""Patterns on every architecture that has them, held against what transformers' own eager attention gives."""

import pytest
import torch
from conformance import IDS, model
from test_zoo import zoo

import labkit as lk
from labkit.activations.sites import layers_with

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
# eager attention gives these before it takes the sink's share off the output; ours are what reaches the values
BEFORE_THE_SINK = ("granite_swa", "granitemoe_swa")


def eager(lm):
    """The patterns that transformers itself gives; a linear layer's state, which it gives as one, is none."""
    before = lm.hf.config._attn_implementation
    try:
        lm.hf.set_attn_implementation("eager")
        with torch.no_grad():
            found = lm.hf(IDS, output_attentions=True, use_cache=False).attentions
    finally:
        lm.hf.set_attn_implementation(before)
    return [one[0] for one in found if one is not None and one.ndim == 4 and one.shape[-2] == IDS.shape[1]]


@pytest.mark.parametrize("name", zoo())
def test_patterns_equal_those_of_eager_attention(name):
    lm = model(name, 32, None)
    if not layers_with(lm, "pattern"):
        with pytest.raises(ValueError, match="has no pattern"):
            lk.attention(lm, IDS)
        return
    patterns, theirs = lk.attention(lm, IDS), eager(lm)
    assert len(theirs) == len(patterns.layers)
    for layer, pattern in zip(patterns.layers, theirs, strict=True):
        ours = torch.tensor(patterns.pattern(layer))
        if name in BEFORE_THE_SINK:
            ours = ours / ours.sum(-1, keepdim=True)
        assert ours.shape == pattern.shape
        assert float((ours - pattern).abs().max()) <= 1e-5, layer


@pytest.mark.parametrize("name", zoo())
def test_all_that_is_said_of_heads_can_be_said_or_is_refused_in_words(name):
    """Scores, thumbnails, weights and contributions: right numbers, or a ValueError that says why there are none."""
    lm = model(name, 32, None)
    if not (layers := layers_with(lm, "pattern")):
        return
    patterns = lk.attention(lm, IDS)
    assert patterns.survey(size=4).shape[:2] == (lm.n_layers, patterns.n_heads)
    for layer in layers:
        row = patterns.pattern(layer)
        expected = row[:, 1:, 0].mean(-1)
        assert patterns.grid("first_token")[layer, : len(row)] == pytest.approx(expected, abs=1e-4)
        try:
            weighed = patterns.value_weighted(layer)
        except ValueError as error:
            assert any(words in str(error) for words in ("output projection", "has no head_out"))  # noqa: PT017
            continue
        run = lm.run(IDS, read=[f"head_out.{layer}"])
        first = run[f"head_out.{layer}"][0, 0]  # the first token sees itself alone
        if weighed.shape[-1] == IDS.shape[1]:
            assert weighed[:, 0, 0] == pytest.approx(first.norm(dim=-1).numpy(), rel=1e-3, abs=1e-5)
    try:
        direct = lk.direct_logit_attribution(lm, IDS, 9, 10)
    except ValueError as error:
        with pytest.raises(ValueError, match="has no direct attribution"):
            patterns.contribution(9, 10)
        assert "has no direct attribution" in str(error)  # noqa: PT017
        return
    found = patterns.contribution(9, 10).heads
    known = ~torch.tensor(found).isnan()
    torch.testing.assert_close(
        torch.tensor(found)[known], torch.tensor(direct.heads[:, : found.shape[1]])[known], rtol=1e-2, atol=1e-3
    )
