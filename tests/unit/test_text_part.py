"""The text part of models that take images or sound as well: the logits of the whole for a text."""

import warnings

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING

import labkit as lk
from labkit.models.errors import NotADecoder
from labkit.models.sources import text_part

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
CLIP = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
QWEN = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
EARLY = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
WHOLE = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", ROPE, EARLY),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", ROPE, QWEN | {"deepstack_visual_indexes": [0]}),
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", ROPE | EXPERTS, QWEN | {"deepstack_visual_indexes": [0]}),
    "llava": ("LlavaForConditionalGeneration", {"model_type": "llama"}, CLIP | {"model_type": "clip_vision_model"}),
    "idefics3": ("Idefics3ForConditionalGeneration", {"model_type": "llama"}, CLIP),
    "cohere2_vision": ("Cohere2VisionForConditionalGeneration", {"model_type": "cohere2"}, CLIP),
    "gemma3": ("Gemma3ForConditionalGeneration", {}, CLIP | {"image_size": 28, "patch_size": 14}),
    "llama4": (
        "Llama4ForConditionalGeneration",
        {"intermediate_size_mlp": 96, "num_local_experts": 2},
        CLIP | {"image_size": 28, "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32,
                "projector_output_dim": 32},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(lm4):
    return lm4.tokenizer


def whole(kind, tokenizer, *, tied=False):
    name, text, vision = WHOLE[kind]
    text = TEXT | {"vocab_size": len(tokenizer) + 8, "tie_word_embeddings": tied} | text
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](text_config=text, vision_config=vision, tie_word_embeddings=tied)
    return getattr(transformers, name)(config).eval()


@pytest.mark.parametrize("kind", WHOLE)
def test_the_text_part_has_the_logits_of_the_whole(kind, tokenizer, tmp_path):
    hf = whole(kind, tokenizer, tied=kind == "qwen2_vl")
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer("The cat sat on the mat", return_tensors="pt").input_ids
    with torch.no_grad():
        usual = hf(input_ids=ids).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = lk.load(tmp_path, bits=32, progress=False)
    torch.testing.assert_close(lm.run(ids).logits, usual, atol=1e-4, rtol=0)
    lm = lk.load(tmp_path, bits=4, progress=False)
    alike = torch.corrcoef(torch.stack([lm.run(ids).logits.float().flatten(), usual.flatten()]))[0, 1]
    assert alike > 0.9
    lm = lk.wrap(hf, tokenizer)
    torch.testing.assert_close(lm.run(ids).logits, usual, atol=1e-4, rtol=0)
    assert lm.hf.get_input_embeddings().weight is hf.get_input_embeddings().weight
    assert lm.run(ids, read=["resid_post", "pattern"])["pattern"].isfinite().all()
    with torch.no_grad():
        assert torch.equal(hf(input_ids=ids).logits, usual)  # and the whole is as it was


def test_weights_of_other_parts_are_not_read(tokenizer, tmp_path, monkeypatch):
    hf = whole("qwen3_vl", tokenizer)
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    seen = []
    from labkit.models.sources import read

    given = read.open_files

    def watched(files):
        from dataclasses import replace

        def reader(name, tensor):
            return lambda: (seen.append(name), tensor.read())[1]

        return {name: replace(tensor, read=reader(name, tensor)) for name, tensor in given(files).items()}

    monkeypatch.setattr(read, "open_files", watched)
    lk.load(tmp_path, bits=32, progress=False)
    assert seen
    assert not [name for name in seen if "visual" in name]


def test_one_without_a_language_model_of_its_own_says_what_it_takes(tokenizer, tmp_path):
    config = CONFIG_MAPPING["glm4v"]()
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(NotADecoder, match=r"takes images as well as text \(glm4v\).*its text part alone"):
        lk.load(tmp_path, progress=False)
    config = CONFIG_MAPPING["voxtral_realtime"]()
    with pytest.raises(NotADecoder, match="takes sound as well as text"):
        text_part.config_of(config, "x")


def test_a_language_model_has_no_text_part():
    for kind in ("llama", "gpt2", "gemma3", "t5", "bert", "whisper"):
        assert text_part.config_of(CONFIG_MAPPING[kind](), "x") is None
