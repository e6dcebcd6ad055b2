"""The gradient of a metric at any site, by `lm.run(..., grad=[...])`."""

import numpy as np
import pytest
import torch
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud
from pair import CLEAN, CORRUPT, PAIR

import labkit as lk
from labkit.activations.site_kinds import KINDS
from labkit.activations.sites import layers_with

ASKED = {"of": "logit_diff", "answer": " Mary", "foil": " John"}
TINY = {"answer": ANSWER, "foil": FOIL}
SMALL = 2e-3
FAMILIES = ("llama", "gpt2", "phi3", "mixtral", "deepseek_v3", "gemma2", "gpt_oss", "bloom")


def value(run):
    return float(run.logits[0, -1, ANSWER] - run.logits[0, -1, FOIL])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gradient_is_the_slope_that_small_writes_find(name):
    """At every site that can be written, in the last layer that has it."""
    lm = loud(name)
    kinds = [kind for kind in KINDS if KINDS[kind].writable and layers_with(lm, kind)]
    if name == "mixtral":  # a small step there makes it choose another expert
        kinds.remove("embed")
    sites = [f"{kind}.{layers_with(lm, kind)[-1]}" for kind in kinds]
    run = lm.run(IDS, read=sites, grad=sites, **TINY)
    assert float(run.measured[0]) == pytest.approx(value(run), rel=1e-5)
    for site in sites:
        x, slope = run[site], run.gradient(site)
        assert slope.shape == x.shape
        step = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        if site.startswith("router"):  # another choice is a jump
            step = step * (x != 0)
        up, down = (value(lm.run(IDS, write={site: x + sign * SMALL * step})) for sign in (1, -1))
        seen = torch.isfinite(x)
        expected = float((slope * step)[seen].sum())
        assert abs(expected) > 5e-3, f"{site} has no effect"
        assert (up - down) / (2 * SMALL) == pytest.approx(expected, rel=2e-2, abs=1e-3), site


def test_the_gradient_at_the_embeddings_is_plain_autograd(lm32):
    run = lm32.run(CLEAN, grad=["embed"], **ASKED)
    ids = lm32.encode(CLEAN)
    x = lm32.hf.get_input_embeddings()(ids).detach().requires_grad_(True)
    answer, foil = (lm32.tokenizer(word).input_ids[0] for word in (" Mary", " John"))
    logits = lm32.hf(inputs_embeds=x, use_cache=False).logits[0, -1]
    (slope,) = torch.autograd.grad(logits[answer] - logits[foil], x)
    torch.testing.assert_close(run.gradient("embed"), slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))


def test_a_gradient_does_not_depend_on_what_else_is_asked_for(lm32):
    sites = ["resid_pre.5", "attn_in.5", "z.5", "resid_mid.5", "scores.6", "head_out.7", "mlp_gate.8", "resid_post.9"]
    together = lm32.run(CLEAN, grad=[*sites, "embed"], **ASKED)
    for site in sites:
        alone = lm32.run(CLEAN, grad=[site], **ASKED).gradient(site)
        size = float(alone.abs().max())
        assert size > 0
        torch.testing.assert_close(together.gradient(site), alone, rtol=1e-3, atol=1e-4 * size)


@pytest.mark.parametrize("site", ["resid_pre", "z", "pattern", "mlp_act", "q_pre", "scores"])
def test_attribution_patching_uses_these_gradients(lm, site):
    estimate = lk.patch(lm, *PAIR, site=site, method="attribution", direction="denoise", progress=False)
    clean, run = lm.run(CLEAN, read=[site]), lm.run(CORRUPT, read=[site], grad=[site], **ASKED)
    product = (run.gradient(site).float() * (clean[site] - run[site]).float()).nan_to_num(0.0)
    if KINDS[site].unit == "head":
        heads = 2 if KINDS[site].by_query else 3
        found = product.movedim(heads, 1).flatten(2).sum(-1)
    else:
        found = product[:, 0].sum(-1)
    expected = estimate.values - estimate.corrupt
    if lm.bits == 4:  # attribution runs both prompts together, which rounds otherwise
        assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.98
        return
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3 * np.abs(expected).max())


def test_each_row_of_a_padded_batch_has_its_own_gradient(lm32):
    texts = [CLEAN, "John gave a drink to"]
    sites = ["resid_pre.3", "z.10.2@-1", "resid_post.20@0"]
    both = lm32.run(texts, grad=sites, **ASKED)
    for row, text in enumerate(texts):
        alone = lm32.run(text, grad=sites, **ASKED)
        assert float(both.measured[row]) == pytest.approx(float(alone.measured[0]), abs=1e-3)
        n = alone.ids.shape[1]
        for site in sites:
            mine, own = both.gradient(site)[row], alone.gradient(site)[0]
            mine = mine[-n:] if site == sites[0] else mine
            torch.testing.assert_close(mine, own, rtol=1e-2, atol=2e-3 * float(own.abs().max()))
    assert float(both.gradient(sites[0])[1, : len(both.mask[1]) - n].abs().max()) < 1e-5


def test_the_metric_is_read_where_it_is_asked_for(lm32):
    asked = {"grad": ["resid_pre.20"], "of": "logprob", "answer": " went", "at": 4}
    run = lm32.run(CLEAN, **asked, logits=[4, -1])
    expected = run.logits_at(4).log_softmax(-1)[0, lm32.tokenizer(" went").input_ids[0]]
    assert float(run.measured[0]) == pytest.approx(float(expected), abs=1e-4)
    slope = run.gradient("resid_pre.20")[0]
    assert float(slope[5:].abs().max()) == 0
    assert float(slope[4].abs().max()) > 0
    assert torch.equal(lm32.run(CLEAN).logits, lm32.run(CLEAN, **asked).logits)
    # of other numbers of rows the last matmul may round otherwise (AVX2)
    torch.testing.assert_close(lm32.run(CLEAN, logits=[4, -1]).logits, run.logits, rtol=1e-5, atol=1e-3)


def test_a_gradient_is_taken_at_what_is_written(lm32):
    zero = {"z.5": lambda x: x * 0}
    run = lm32.run(CLEAN, read=["z.5"], write=zero, grad=["z.5", "resid_pre.5"], **ASKED)
    assert float(run["z.5"].abs().max()) == 0
    again = lm32.run(CLEAN, write={"z.5": torch.zeros_like(run["z.5"])}, grad=["z.5"], **ASKED)
    torch.testing.assert_close(run.gradient("z.5"), again.gradient("z.5"), rtol=1e-3, atol=1e-4)
    assert torch.equal(run.logits, lm32.run(CLEAN, write=zero).logits)
    plain = lm32.run(CLEAN, grad=["z.5"], **ASKED).gradient("z.5")
    assert not torch.allclose(run.gradient("z.5"), plain, rtol=1e-2)


def test_your_own_metric_has_a_gradient(lm4):
    def entropy(logits):
        return torch.distributions.Categorical(logits=logits).entropy()

    run = lm4.run(CLEAN, grad=["resid_post.29", "final_norm@-1"], of=entropy, logits="none")
    assert run.gradient("resid_post.29").dtype == lm4.dtype
    assert float(run.gradient("resid_post.29")[0, -1].float().norm()) > 0
    assert float(run.gradient("resid_post.29")[0, :-1].float().norm()) == 0
    assert run.logits.shape[1] == 0


def test_four_bit_weights_let_gradients_through_and_only_what_was_asked_is_kept(lm4):
    run = lm4.run(CLEAN, grad=["resid_pre.0@-1", "z.3.2"], **ASKED)
    assert sum(x.untyped_storage().nbytes() for x in run.gradients.values()) == (576 + 14 * 64) * lm4.dtype.itemsize
    assert not run.activations
    slope = run.gradient("resid_pre.0@-1").float()
    # along the slope the metric rises about as the slope says
    x = lm4.run(CLEAN, read=["resid_pre.0@-1"])["resid_pre.0@-1"]
    step = slope / slope.norm() * 0.02 * x.float().norm()
    values = [
        lm4.run(CLEAN, write={"resid_pre.0@-1": (x.float() + sign * step).to(x.dtype)}, grad=["final_norm"], **ASKED)
        for sign in (-1, 1)
    ]
    rise = float(values[1].measured[0] - values[0].measured[0])
    assert 0.3 < rise / (2 * float((slope * step).sum())) < 3


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_mode_does_not_matter_and_the_model_is_left_as_it_was(mode):
    lm = loud("llama")
    for n, parameter in enumerate(lm.hf.parameters()):
        parameter.requires_grad_(n % 2 == 0)
    flags = [parameter.requires_grad for parameter in lm.hf.parameters()]
    plain = lm.run(IDS, grad=["resid_pre.1", "resid_mid.1"], **TINY)
    with mode():
        inside = lm.run(IDS.clone(), grad=["resid_pre.1", "resid_mid.1"], **TINY)
    for site in ("resid_pre.1", "resid_mid.1"):
        assert torch.equal(inside.gradient(site), plain.gradient(site))
        assert not inside.gradient(site).requires_grad
    assert not inside.logits.requires_grad
    assert [parameter.requires_grad for parameter in lm.hf.parameters()] == flags
    assert all(parameter.grad is None for parameter in lm.hf.parameters())


def test_what_lies_below_the_first_site_is_run_without_a_graph(lm32):
    seen = []
    hook = lm32.hf.model.layers[9].register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    try:
        lm32.run(CLEAN, grad=["resid_pre.10"], **ASKED)
        lm32.run(CLEAN, grad=["resid_pre.9"], **ASKED)
    finally:
        hook.remove()
    assert seen == [False, True]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"grad": ["resid_prex.3"]}, "did you mean 'resid_pre'"),
        ({"grad": ["z.3.9"]}, "head 9 is out of range"),
        ({"grad": ["resid_pre.30"]}, "layer 30 is out of range"),
        ({"grad": ["experts.1"]}, "has no experts"),
        ({"of": "rank"}, "rank has no gradient"),
        ({"of": "kl"}, "kl compares with a clean run"),
        ({"of": "loss"}, "there is no metric 'loss'"),
        ({"answer": " Maryanne"}, "is 2 tokens"),
        ({"answer": None}, "needs an answer"),
        ({"foil": None}, "needs a foil"),
        ({"at": 14}, "metric's position 14 is out of range"),
        ({"grad": ()}, r"of= says what a gradient is of, but none is asked for; name sites in grad"),
    ],
)
def test_wrong_input_is_refused_before_the_model_runs(lm4, change, says):
    lm4.sites()  # what a model has is looked at once, with passes of its own
    hook = lm4.hf.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    try:
        with pytest.raises(ValueError, match=says):
            lm4.run(CLEAN, **{"grad": ["resid_pre.3"], **ASKED, **change})
    finally:
        hook.remove()


def test_numbers_of_experts_and_metrics_that_step_have_no_gradient():
    lm = loud("mixtral")
    with pytest.raises(ValueError, match=r"experts.1 has no gradient: it can only be read; take that of router"):
        lm.run(IDS, grad=["experts.1"], **TINY)
    with pytest.raises(ValueError, match="no gradient reaches this metric"):
        lm.run(IDS, grad=["resid_pre.1"], of=lambda logits: logits.argmax(-1).float())
    assert not [hook for m in lm.hf.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)]


def test_a_gradient_that_was_not_asked_for_is_told(lm4):
    run = lm4.run(CLEAN, read=["resid_pre.4"], grad=["resid_pre.3@-1"], **ASKED)
    for site in ("resid_pre.4", "resid_pre.3"):
        with pytest.raises(KeyError, match=rf"no gradient at {site} \(it has resid_pre.3@-1\); add it to grad="):
            run.gradient(site)
    assert lm4.run(CORRUPT_IDS).measured is None
