"""Direct logit attribution and weights by name, on the default model in 32 and 4 bits."""

import numpy as np
import pytest
import torch
from pair import CLEAN
from torch.profiler import ProfilerActivity, profile

import labkit as lk


@pytest.fixture(scope="module")
def full():
    return lk.load(bits=32, progress=False)


@pytest.fixture(scope="module")
def packed():
    return lk.load(dtype=torch.float32, progress=False)


@pytest.fixture(params=["full", "packed"])
def lm(request):
    return request.getfixturevalue(request.param)


def test_the_parts_add_up_to_the_logit_difference(lm):
    found = lk.direct_logit_attribution(lm, CLEAN, " Mary", " John")
    logits = lm.run(CLEAN).logits[0, -1]
    mary, john = (lm.tokenizer(name).input_ids[0] for name in (" Mary", " John"))
    assert found.total == pytest.approx(float(logits[mary] - logits[john]), abs=1e-4)
    parts = found.embed + found.attn.sum() + found.mlp.sum() + found.bias
    assert parts == pytest.approx(found.total, abs=1e-4)
    assert abs(found.rest) < 1e-4
    np.testing.assert_allclose(found.heads.sum(1), found.attn, atol=1e-4)


def test_shares_are_those_of_the_formula(full):
    """Written out for Llama: the norm's scale held, x * weight / rms, on to the two rows of the unembedding."""
    run = full.run(CLEAN, read=["head_out", "mlp_out", "resid_post"])
    mary, john = (full.tokenizer(name).input_ids[0] for name in (" Mary", " John"))
    rows = full.hf.lm_head.weight[mary] - full.hf.lm_head.weight[john]
    final = run["resid_post.29@-1"][0]
    norm = full.hf.model.norm
    way = rows * norm.weight / (final.pow(2).mean() + norm.variance_epsilon).sqrt()
    found = lk.direct_logit_attribution(full, CLEAN, " Mary", " John")
    heads = run["head_out"][:, 0, -1] @ way
    torch.testing.assert_close(torch.tensor(found.heads), heads.detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(found.mlp), (run["mlp_out"][:, 0, -1] @ way).detach(), atol=1e-4, rtol=0)


def test_without_a_foil_it_is_the_logit_itself(full):
    found = lk.direct_logit_attribution(full, CLEAN, " Mary")
    mary = full.tokenizer(" Mary").input_ids[0]
    assert found.total == pytest.approx(float(full.run(CLEAN).logits[0, -1, mary]), abs=1e-4)
    assert abs(found.rest) < 1e-3


def test_its_code_does_the_same_again(packed):
    lm = lk.load(progress=False)
    found = lk.direct_logit_attribution(lm, CLEAN, " Mary", " John")
    scope: dict = {}
    exec(found.code(), scope)
    np.testing.assert_array_equal(scope["found"].heads, found.heads)
    frame = found.to_frame()
    assert len(frame) == 3 + lm.n_layers * (2 + lm.n_heads)
    assert repr(found).startswith("DirectAttribution(' Mary' - ' John'")
    assert len(found.figure().data) == 2


def test_on_four_bit_weights_it_holds_no_more_than_one_layer_in_full(packed):
    """The highest of all allocations, above what was there before, against one layer in float32."""
    call = lambda: lk.direct_logit_attribution(packed, CLEAN, " Mary", " John")  # noqa: E731
    call()
    assert _peak(call) <= 4 * sum(p.numel() for p in lk.load(bits=32, progress=False).hf.model.layers[0].parameters())


def _peak(call) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(held.max())


@pytest.mark.parametrize(("answer", "says"), [("", "empty"), ("antidisestablishment", "it must be one")])
def test_a_bad_answer_is_named(full, answer, says):
    with pytest.raises(ValueError, match=says):
        lk.direct_logit_attribution(full, CLEAN, answer)


# -- weights by name --------------------------------------------------------------------------------------------------


def test_a_weight_is_what_the_layer_does(lm):
    layer = lm.hf.model.layers[3]
    x = torch.randn(5, lm.d_model)
    with torch.no_grad():
        torch.testing.assert_close(x @ lm.weight("o_proj", 3).T, layer.self_attn.o_proj(x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(x @ lm.weight("mlp.up_proj", -27).T, layer.mlp.up_proj(x), atol=1e-4, rtol=1e-4)


def test_a_weight_is_a_copy(full):
    before = full.run(CLEAN).logits
    full.weight("o_proj", 3).zero_()
    assert torch.equal(full.run(CLEAN).logits, before)


@pytest.mark.parametrize(
    ("name", "layer", "settings", "says"),
    [
        ("o_prj", 3, {}, "Did you mean 'o_proj'"),
        ("weight", 3, {}, "it has self_attn.q_proj"),
        ("o_proj", 30, {}, "layers 0 to 29"),
        ("o_proj", 3, {"expert": 1}, "leave expert out"),
    ],
)
def test_a_wrong_name_is_told_the_right_ones(full, name, layer, settings, says):
    with pytest.raises(ValueError, match=says):
        full.weight(name, layer, **settings)
