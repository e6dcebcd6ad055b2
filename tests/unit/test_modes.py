"""The modes that a caller is in, of PyTorch and of the model: no number depends on them, and they are left as found."""

import copy
import pickle

import numpy as np
import pytest
import torch
from pair import CLEAN, CORRUPT
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import labkit as lk

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(tokenizer):
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **SIZES))


@pytest.fixture(scope="module")
def hf(lm4):
    return llama(lm4.tokenizer)


def same(found, usual):
    np.testing.assert_allclose(found, usual, atol=1e-5)


PAIR = (CLEAN, CORRUPT, " Mary", " John")


LOOKS = {
    "kl": lambda lm: lk.patch(lm, *PAIR, metric="kl", method="attribution", site="attn_out", progress=False).values,
    "paths": lambda lm: lk.path_patch(lm, *PAIR, receiver="k.1.0", progress=False).values,
    "direct": lambda lm: lk.direct_logit_attribution(lm, CLEAN, " Mary").mlp,
    "contribution": lambda lm: lk.attention(lm, CLEAN).contribution(" Mary", " John").values,
    "edges": lambda lm: lk.edge_attribution(lm, *PAIR, steps=2, progress=False).values,
    "circuit": lambda lm: _circuit(lm),
    "steered": lambda lm: _steered(lm),
    "ids": lambda lm: (
        lk.attribution_patch(lm, torch.tensor([[5, 6, 7]]), torch.tensor([[5, 8, 7]]), 9, 10, sites=["resid_pre"])[
            "resid_pre"
        ].values
    ),
}


def _circuit(lm):
    edges = lk.edge_attribution(lm, *PAIR, steps=1, progress=False)
    return np.array([edges.circuit(n).faithfulness(lm, [PAIR]).circuit[0] for n in (5, 20)])


def _steered(lm):
    vector = lk.steering_vector(lm, ["I love it"], ["I hate it"], layer=0)
    with lm.steer(vector, 2.0):
        return lk.patch(lm, *PAIR, method="attribution", site="z", progress=False).values


@pytest.mark.parametrize("name", LOOKS)
def test_inference_mode_changes_no_number(hf, lm4, name):
    usual = LOOKS[name](lk.wrap(hf, lm4.tokenizer))
    with torch.inference_mode():
        lm = lk.wrap(hf, lm4.tokenizer)
        same(LOOKS[name](lm), usual)
        assert torch.is_inference_mode_enabled()
    same(LOOKS[name](lm), usual)  # nothing that was kept in between is of use in that mode alone
    assert torch.is_grad_enabled()


def test_a_model_loaded_in_inference_mode_has_gradients_afterwards(lm4):
    with torch.inference_mode():
        lm = lk.load(progress=False)
        inside = lk.attribution_patch(lm, *PAIR, sites=["z"])["z"].values
    same(inside, lk.attribution_patch(lm4, *PAIR, sites=["z"])["z"].values)


def test_a_model_that_cannot_have_gradients_is_told_so(lm4):
    with torch.inference_mode():
        lm = lk.wrap(llama(lm4.tokenizer), lm4.tokenizer)
    assert lk.patch(lm, *PAIR, progress=False).values.any()  # what takes no gradient works
    with pytest.raises(RuntimeError, match=r"leave torch\.inference_mode"):
        lk.edge_attribution(lm, *PAIR, progress=False)
    with pytest.raises(RuntimeError, match=r"leave torch\.inference_mode"):
        lk.patch(lm, *PAIR, method="attribution", progress=False)


def test_a_metric_of_ones_own_with_a_tensor_of_inference_mode_is_told_so(hf, lm4):
    lm = lk.wrap(hf, lm4.tokenizer)
    with torch.inference_mode():
        target = lm.run(CLEAN).logits[0, -1].softmax(-1) * 1
    with pytest.raises(RuntimeError, match=r"leave torch\.inference_mode"):
        lk.patch(lm, *PAIR, method="attribution", metric=lambda x: x.softmax(-1) @ target, progress=False)


def test_a_model_in_training_is_looked_at_in_eval_mode_and_stays_in_training(lm4):
    torch.manual_seed(2)
    config = GPT2Config(vocab_size=len(lm4.tokenizer), n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5, embd_pdrop=0.5)
    hf = GPT2LMHeadModel(config).eval()
    usual = lk.wrap(hf, lm4.tokenizer)
    expected = usual.run(CLEAN).logits, usual.generate(CLEAN, max_new_tokens=5).record.ids
    usual_effects = lk.patch(usual, *PAIR, method="attribution", progress=False).values
    hf.train()
    hf.transformer.h[1].eval()
    hf.transformer.h[1].mlp.dropout.train()
    modes = [module.training for module in hf.modules()]
    lm = lk.wrap(hf, lm4.tokenizer)
    assert torch.equal(lm.run(CLEAN).logits, expected[0])
    assert lm.generate(CLEAN, max_new_tokens=5).record.ids == expected[1]
    effects = lk.patch(lm, *PAIR, method="attribution", progress=False).values
    same(effects, usual_effects)
    assert [module.training for module in hf.modules()] == modes
    with pytest.raises(ZeroDivisionError):
        lm.run(CLEAN, write={"resid_pre.1": lambda x: 1 / 0})
    assert [module.training for module in hf.modules()] == modes


@pytest.mark.parametrize("mode", [False, True])
def test_a_copy_of_a_model_is_a_model_of_its_own(lm4, mode):
    with torch.inference_mode(mode):
        lm = copy.deepcopy(lm4)
    assert lm.lock is not lm4.lock
    logits = lm4.run(CLEAN).logits
    assert torch.equal(lm.run(CLEAN).logits, logits)
    same(lk.direct_logit_attribution(lm, CLEAN, " Mary").heads, lk.direct_logit_attribution(lm4, CLEAN, " Mary").heads)
    lm.hf.get_input_embeddings().weight.data.zero_()
    assert torch.equal(lm4.run(CLEAN).logits, logits)
    with lm4.lock:
        copy.deepcopy(lk.wrap(llama(lm4.tokenizer), lm4.tokenizer))


def test_a_model_is_not_pickled_and_says_what_to_do(lm4):
    with pytest.raises(TypeError, match=r"lk\.load\(bits=4\)"):
        pickle.dumps(lm4)
