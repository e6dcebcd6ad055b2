"""Embeddings that stay in 16 bits where the model computes in 32: small, and the numbers of float32."""

import copy

import pytest
import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, OPTConfig, OPTForCausalLM

import labkit as lk
from labkit.models.memory import empty_model, predict

VOCABULARY, WIDTH = 262_144, 64


@pytest.fixture(scope="module")
def gemma(tmp_path_factory, lm4):
    """A folder with a model that is nearly all embedding, tied and scaled as Gemma's is."""
    folder = tmp_path_factory.mktemp("gemma")
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    hf = Gemma3ForCausalLM(config).bfloat16()
    hf.save_pretrained(folder)
    lm4.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_an_embedding_takes_two_bytes_a_weight_whatever_is_computed_in(gemma, bits, dtype):
    lm = lk.load(gemma, bits=bits, dtype=dtype, device="cpu", progress=False)
    report = lm.memory()
    table = next(size for name, size in report.parts.items() if name.startswith("embedding"))
    assert table / (VOCABULARY * WIDTH) <= 2.1
    assert report.total / (VOCABULARY * WIDTH) <= 2.1
    assert predict(empty_model(lm.hf.config), bits=bits, dtype=lm.dtype) == pytest.approx(report.total, rel=0.02)
    assert lm.dtype == (torch.float32 if dtype else torch.bfloat16)
    assert lm.hf.get_input_embeddings().weight is lm.hf.get_output_embeddings().weight


def test_numbers_are_those_of_float32(gemma):
    """Against the same model in 32 bits, with the weights of its layers put in: rows, scale, logits."""
    lm = lk.load(gemma, dtype="float32", device="cpu", progress=False)
    whole = Gemma3ForCausalLM.from_pretrained(gemma, dtype=torch.float32)
    for block, other in zip(lm.anatomy.blocks, whole.model.layers, strict=True):
        layers = {name: m for name, m in block.module.named_modules() if hasattr(m, "in_features")}
        for name, layer in layers.items():
            weight = lm.weight(name, lm.anatomy.blocks.index(block), dtype=torch.float32)
            other.get_submodule(name).weight.data = weight
            assert layer.in_features == weight.shape[1]
    ids = torch.tensor([[5, 262_143, 17, 5]])
    run = lm.run(ids, read=["embed"])
    with torch.no_grad():
        embedded, logits = whole.get_input_embeddings()(ids), whole(ids).logits
    assert torch.equal(run["embed"], embedded)
    assert run.logits.dtype == torch.float32
    assert float((run.logits - logits).abs().max()) <= 1e-5 * float(logits.abs().max())
    assert lm.generate(ids, max_new_tokens=3).text
    assert torch.equal(lk.LanguageModel(copy.deepcopy(lm.hf), lm.tokenizer, name="copy").run(ids).logits, run.logits)


def test_gradients_go_through(gemma):
    lm = lk.load(gemma, dtype="float32", device="cpu", progress=False)
    pair = (torch.tensor([[5, 6, 17]]), torch.tensor([[5, 9, 17]]))
    estimate = lk.patch(lm, *pair, answer=3, foil=4, method="attribution", progress=False)
    assert abs(estimate.values).max() > 0


def test_a_model_saved_again_is_stored_in_16_bits(gemma, tmp_path):
    lm = lk.load(gemma, dtype="float32", device="cpu", progress=False)
    lm.hf.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(gemma).save_pretrained(tmp_path)
    again = lk.load(tmp_path, device="cpu", progress=False)
    assert again.dtype == torch.bfloat16
    assert again.memory().total == pytest.approx(lm.memory().total, rel=0.01)
    ids = torch.tensor([[5, 7, 17]])
    assert torch.allclose(again.run(ids).logits.float(), lm.run(ids).logits, atol=0.05)


def test_embeddings_that_do_more_than_look_up_are_left_alone(tmp_path, lm4):
    """OPT's positions are an embedding with an offset and a signature of its own."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=lm4.n_vocab, hidden_size=64, ffn_dim=128, num_hidden_layers=1, num_attention_heads=2,
        word_embed_proj_dim=64, max_position_embeddings=32,
    )  # fmt: skip
    OPTForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    lm4.tokenizer.save_pretrained(tmp_path)
    lm = lk.load(tmp_path, dtype="float32", device="cpu", progress=False)
    decoder = lm.hf.model.decoder
    assert decoder.embed_tokens.weight.dtype == torch.bfloat16
    assert decoder.embed_positions.weight.dtype == torch.float32
    assert lm.run("hello there").logits.dtype == torch.float32
