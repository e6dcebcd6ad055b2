"""A compiled model is looked into as it is without compiling; what hides its layers in another way is refused."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
from conformance import ANSWER, CORRUPT, FOIL, IDS, tokenizer
from shrink import tiny

import labkit as lk
from labkit.activations.sites import layers_with


def whole(hf):
    return torch.compile(hf, backend="eager")


def in_place(hf):
    hf.compile(backend="eager")
    return hf


def forward(hf):
    hf.forward = torch.compile(hf.forward, backend="eager")
    return hf


def blocks_in_place(hf):
    for block in stack(hf):
        block.compile(backend="eager")
    return hf


def blocks_replaced(hf):
    layers = stack(hf)
    for n, block in enumerate(layers):
        layers[n] = torch.compile(block, backend="eager")
    return hf


def parts_replaced(hf):
    for block in stack(hf):
        for name in ("self_attn", "attn", "mlp"):
            if hasattr(block, name):
                setattr(block, name, torch.compile(getattr(block, name), backend="eager"))
    return hf


def stack(hf):
    return hf.model.layers if hasattr(hf, "model") else hf.transformer.h


def looks(lm):
    """What people look at, with other sites than the last layer's."""
    asked = ["pattern.0", "mlp_act.1", "head_out.1", "attn_in.1", "mlp_in.0", "scores.1", "final_norm"]
    asked += [f"{kind}.1" for kind in ("q_pre", "k_pre", "mlp_gate", "mlp_up", "mlp_pre") if layers_with(lm, kind)]
    run = lm.run(IDS, read=["resid_mid.0", *asked], write={"z.0.1": lambda z: z * 0})
    found = {"logits": run.logits} | {site: run[site].masked_fill(run[site] == -torch.inf, 0) for site in asked}
    found["slope"] = lm.run(IDS, grad=["resid_pre.0"], answer=ANSWER).gradient("resid_pre.0")
    for site in ("resid_mid", "z"):
        found[site] = torch.tensor(lk.patch(lm, IDS, CORRUPT, ANSWER, FOIL, site=site, progress=False).values)
    found["direct"] = torch.tensor(lk.direct_logit_attribution(lm, IDS, ANSWER, FOIL).heads)
    with lm.steer(torch.ones(lm.d_model), layer=0):
        found["steered"] = lm.run(IDS).logits
        found["written"] = torch.tensor([t.id for t in lm.generate(IDS, max_new_tokens=3).tokens])
    return found


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def usual(request):
    return request.param, looks(lk.wrap(tiny(request.param), tokenizer()))


WAYS = [whole, in_place, forward, blocks_in_place, blocks_replaced, parts_replaced]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_compiled_model_gives_the_numbers_of_the_uncompiled_one(usual, way):
    name, expected = usual
    compiled = way(tiny(name))
    with torch.no_grad():
        compiled(input_ids=IDS)
    for place, value in looks(lk.wrap(compiled, tokenizer())).items():
        assert torch.allclose(value, expected[place], atol=1e-4), place


def test_a_model_that_is_compiled_while_it_is_looked_into_goes_on_as_before(usual):
    name, expected = usual
    lm = lk.wrap(tiny(name), tokenizer())
    looks(lm)
    lm.hf.compile(backend="eager")
    with torch.no_grad():
        lm.hf(input_ids=IDS)
    assert torch.allclose(looks(lm)["logits"], expected["logits"], atol=1e-4)


def test_compiled_code_runs_again_after_a_look():
    lm = lk.wrap(tiny("llama"), tokenizer())
    ran = []

    def backend(graph, inputs):
        return lambda *args: ran.append(1) or graph.forward(*args)

    lm.hf.compile(backend=backend)
    lm.run(IDS, write={"resid_pre.1": lambda x: x * 0})
    assert not ran
    with torch.no_grad():
        lm.hf(input_ids=IDS)
    assert ran


def hidden(hf):
    """A forward that does the whole work without calling a layer, as a traced, exported or captured one does."""
    answers = {}
    plain = hf.forward

    def forward(input_ids=None, **kwargs):
        key = tuple(input_ids.flatten().tolist())
        if key not in answers:
            answers[key] = plain(input_ids=input_ids, **kwargs)
        return answers[key]

    hf.forward = forward
    return hf


def test_a_write_that_is_never_reached_is_an_error():
    lm = lk.wrap(tiny("llama"), tokenizer())
    lm.run(IDS, read=["pattern"])
    hidden(lm.hf)
    lm.run(IDS)
    for site in ("embed", "resid_pre.1", "mlp_out.0", "z.1.2", "head_out.0"):
        with pytest.raises(
            RuntimeError,
            match=rf"never reached {site.split('.')[0]}.*nothing was written there. A model that was compiled",
        ):
            lm.run(IDS, write={site: lambda x: x * 0})
    with pytest.raises(RuntimeError, match="nothing was read there"):
        lm.run(IDS, read=["resid_pre"])
    with pytest.raises(RuntimeError, match="never reached"):
        lk.knock_out(lm, IDS, heads=[(0, 1)])
    with pytest.raises(RuntimeError, match="never reached"):
        lk.attention(lm, IDS).pattern(0)


def test_steering_that_is_never_reached_is_an_error_and_steering_without_a_run_is_none():
    lm = lk.wrap(tiny("llama"), tokenizer())
    plain = lm.run(IDS).logits
    with lm.steer(torch.ones(lm.d_model), layer=1):
        pass
    with lm.steer(torch.ones(lm.d_model), layer=1), lm.steer(torch.ones(lm.d_model), layer=0):
        assert not torch.equal(lm.run(IDS).logits, plain)
    hidden(lm.hf)
    lm.run(IDS)
    with pytest.raises(RuntimeError, match=r"never reached resid_post.1"), lm.steer(torch.ones(lm.d_model), layer=1):
        lm.run(IDS)
    del lm.hf.forward
    assert torch.equal(lm.run(IDS).logits, plain)


def test_a_model_whose_layers_are_hidden_from_the_start_is_refused():
    hf = hidden(tiny("llama"))
    with torch.no_grad():
        hf(input_ids=torch.arange(3)[None])
    with pytest.raises(ValueError, match=r"reaches none of its layers.*compiled"):
        lk.wrap(hf, tokenizer()).run(IDS, read=["resid_pre"])


def test_what_is_no_transformers_model_is_refused_by_name():
    traced = torch.jit.trace(torch.nn.Linear(3, 3), torch.ones(1, 3))
    exported = torch.export.export(torch.nn.Linear(3, 3), (torch.ones(1, 3),)).module()
    for other in (traced, exported, torch.nn.Linear(3, 3)):
        with pytest.raises(TypeError, match=r"takes a transformers model; got a \w+. A model that was compiled"):
            lk.wrap(other, tokenizer())
