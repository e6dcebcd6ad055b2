"""In 16 bits what a metric reads is not rounded to 16 bits: the last product is in float32, however it is read."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
from conformance import ANSWER, CORRUPT, FOIL, IDS, tokenizer
from shrink import tiny

import labkit as lk
from labkit.activations.unembedding import measured_logits, unembedded
from labkit.patching.patch import PatchJob

ENDS = {  # what each does to the product with its unembedding
    "llama": lambda x, config: x,
    "gpt2": lambda x, config: x,
    "cohere": lambda x, config: x * config.logit_scale,
    "granite": lambda x, config: x / config.logits_scaling,
    "gemma2": lambda x, config: torch.tanh(x / config.final_logit_softcapping) * config.final_logit_softcapping,
}


@pytest.fixture(scope="module", params=[(name, torch.bfloat16) for name in ENDS] + [("llama", torch.float16)])
def lm(request):
    name, dtype = request.param
    hf = tiny(name)
    if name == "cohere":
        hf.logit_scale = hf.config.logit_scale = 0.3
    if name == "gemma2":  # as labkit loads it: fused attention of older transformers leaves its cap of scores out
        hf.config._attn_implementation = "eager"
    if name == "granite":
        hf.config.logits_scaling = 4.0
        hf = type(hf)(hf.config)
    with torch.no_grad():  # logits of the size of a real model's, so that rounding them shows
        hf.get_output_embeddings().weight.mul_(40)
    model = lk.wrap(hf.to(dtype).eval(), tokenizer())
    model.end = lambda x: ENDS[name](x, hf.config)
    return model


def expected(lm, ids):
    """Logits (vocab,) from the model's own last hidden state, in float32."""
    with torch.no_grad():
        hidden = lm.hf.base_model(input_ids=ids).last_hidden_state[0, -1]
        return lm.end(hidden.float() @ lm.hf.get_output_embeddings().weight.float().T)


def difference(logits):
    return float(logits[ANSWER] - logits[FOIL])


def test_the_measured_logits_are_the_product_of_the_model_s_own_hidden_state(lm):
    with lm.busy():
        found = measured_logits(lm, torch.cat([IDS, CORRUPT]))
        some = measured_logits(lm, IDS, [FOIL, ANSWER])
    for ours, ids in zip(found, (IDS, CORRUPT), strict=True):
        assert torch.allclose(ours, expected(lm, ids), rtol=2e-3, atol=2e-2)
    assert torch.allclose(some[0], expected(lm, IDS)[[FOIL, ANSWER]], atol=1e-4)


def test_both_runs_of_every_result_are_read_in_float32(lm):
    clean, corrupt = (difference(expected(lm, ids)) for ids in (IDS, CORRUPT))
    pair = (lm, IDS, CORRUPT, ANSWER, FOIL)
    found = {
        "exact": lk.patch(*pair, progress=False),
        "attribution": lk.patch(*pair, method="attribution", progress=False),
        "paths": lk.path_patch(*pair, progress=False),
    }
    tolerance = 3e-3 * max(1.0, abs(clean), abs(corrupt))
    for name, grid in found.items():
        assert abs(grid.clean - clean) <= tolerance, name
        assert abs(grid.corrupt - corrupt) <= tolerance, name
    swept = lk.sweep(lm, [(IDS, CORRUPT, ANSWER, FOIL)], progress=False)
    assert abs(swept.clean - clean) <= tolerance
    if not getattr(lm.config, "final_logit_softcapping", None):
        assert abs(lk.direct_logit_attribution(lm, IDS, ANSWER, FOIL).total - clean) <= tolerance


def test_cells_are_no_multiples_of_the_steps_of_16_bits_and_those_of_running_the_model_whole(lm):
    job = PatchJob(lm, IDS, CORRUPT, ANSWER, FOIL, site="mlp_out")
    list(job.steps())
    values = job.grid.values.ravel()
    open_cells = [n for n in range(len(values)) if values[n] != job.grid.corrupt]
    own = lm.run(IDS).logits[0, -1, [ANSWER, FOIL]].float()
    step = float(torch.finfo(lm.dtype).eps * 2.0 ** torch.floor(torch.log2(own.abs().min())))
    assert np.mean(np.isclose(values[open_cells] / step % 1, 0, atol=1e-4)) < 0.5
    whole = np.array([job._whole(job.cells[n]) for n in open_cells])
    gap = abs(job.grid.clean - job.grid.corrupt)
    assert np.abs(whole - values[open_cells]).mean() <= 0.02 * max(gap, 1.0)


@pytest.mark.parametrize("metric", ["logprob", "kl", lambda logits: logits[:, 3] - logits.mean(-1)])
def test_metrics_of_all_columns_are_read_in_float32_too(lm, metric):
    clean, corrupt = (expected(lm, ids).log_softmax(-1) for ids in (IDS, CORRUPT))
    shift = [expected(lm, ids) for ids in (IDS, CORRUPT)]
    right = {
        "logprob": (clean[ANSWER], corrupt[ANSWER]),
        "kl": (torch.tensor(0.0), (clean.exp() * (clean - corrupt)).sum()),
    }.get(metric if isinstance(metric, str) else "", [x[3] - x.mean() for x in shift])
    for method in ("exact", "attribution"):
        grid = lk.patch(lm, IDS, CORRUPT, ANSWER, metric=metric, method=method, progress=False)
        for ours, its in zip((grid.clean, grid.corrupt), right, strict=True):
            assert abs(ours - float(its)) <= 3e-3 * max(1.0, abs(float(its)))


def test_the_logits_of_a_run_stay_the_model_s_own(lm):
    with torch.no_grad():
        plain = lm.hf(input_ids=IDS).logits
    run = lm.run(IDS)
    assert run.logits.dtype == plain.dtype
    assert torch.equal(run.logits, plain)


def test_an_estimate_has_the_gradient_of_the_product_in_float32():
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 5000, bias=True).bfloat16()
    x = torch.randn(3, 24).bfloat16().requires_grad_(True)
    weights = torch.randn(3, 5000)
    (ours,) = torch.autograd.grad((unembedded(layer, x) * weights).sum(), x)
    made = torch.nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float())
    (its,) = torch.autograd.grad((made * weights).sum(), x)
    assert torch.allclose(unembedded(layer, x), made, atol=1e-5)
    assert torch.allclose(unembedded(layer, x, [7, 4999]), made[:, [7, 4999]], atol=1e-5)
    assert torch.allclose(ours.float(), its.float(), rtol=0.01)


def test_the_real_model_in_4_bits_reads_its_metric_so(lm4):
    clean, corrupt = (f"When Mary and John went to the store, {name} gave a drink to" for name in ("John", "Mary"))
    grid = lk.patch(lm4, clean, corrupt, " Mary", " John", layers=[5, 20], progress=False)
    mary, john = (lm4.tokenizer(word).input_ids[0] for word in (" Mary", " John"))
    for prompt, value in ((clean, grid.clean), (corrupt, grid.corrupt)):
        with lm4.busy(), lm4.for_patching():
            hidden = lm4.hf.model(lm4.encode(prompt)).last_hidden_state[0, -1].float()
        row = lm4.hf.lm_head.weight[[mary, john]].detach().float()
        assert abs(float(hidden @ (row[0] - row[1])) - value) < 0.1  # of re-batching, less than a step of bfloat16
