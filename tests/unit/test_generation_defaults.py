"""A checkpoint's own generation defaults: of them only the tokens that end a text are used."""

import copy

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, WatermarkingConfig

import labkit as lk

PROMPT = "The cat sat on"


@pytest.fixture(scope="module")
def small(lm4):
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    hf = LlamaForCausalLM(LlamaConfig(vocab_size=len(lm4.tokenizer), initializer_range=0.3, **sizes))
    hf.generation_config.eos_token_id = None
    return lk.wrap(hf, lm4.tokenizer)


@pytest.fixture(scope="module")
def plain(small):
    """What the likeliest token is, step by step, and its probability."""
    ids, shares = small.encode(PROMPT), []
    for _ in range(6):
        share = small.run(ids).logits[0, -1].softmax(-1)
        ids = torch.cat([ids, share.argmax().view(1, 1)], 1)
        shares.append(float(share.max()))
    return ids[0, -6:].tolist(), shares


def settings(first: int, second: int) -> list[dict]:
    """What a generation config can hold; `first` and `second` are the tokens that the model writes."""
    return [
        {"suppress_tokens": [first, second]},
        {"begin_suppress_tokens": [first]},
        {"bad_words_ids": [[first], [first, second]]},
        {"sequence_bias": [[[first], -50.0]]},
        {"forced_bos_token_id": 5, "forced_eos_token_id": 7},
        {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0},
        {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.0},
        {"num_return_sequences": 2, "num_beams": 2},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "high"},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_early_exit": 1, "num_assistant_tokens": 2},
        {"no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1},
        {"repetition_penalty": 3.0, "encoder_repetition_penalty": 0.3},
        {"do_sample": True, "temperature": 9.0, "typical_p": 0.2, "epsilon_cutoff": 0.3, "eta_cutoff": 0.3},
        {"top_h": 0.4, "min_p": 0.5, "top_p": 0.1},
        {"guidance_scale": 3.0},
        {"watermarking_config": WatermarkingConfig(bias=40.0)},
        {"min_length": 40, "max_length": 7},
        {"min_new_tokens": 20, "max_new_tokens": 2},
        {"exponential_decay_length_penalty": (1, 9.0), "eos_token_id": first + 1},
        {"renormalize_logits": True, "remove_invalid_values": True},
        {"max_time": 1e-9},
        {"stop_strings": ["a", "e", "i"]},
        {"cache_implementation": "static", "use_cache": False},
        {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True},
        {"token_healing": True},
        {"a_field_of_next_year": 1},
    ]


def held(hf, fields: dict) -> None:
    """Give a model a generation config as a file would hold it, whatever it says."""
    hf.generation_config = GenerationConfig()
    for name, value in fields.items():
        setattr(hf.generation_config, name, value)


def test_no_default_of_a_checkpoint_changes_the_text_or_its_probabilities(small, plain):
    ids, shares = plain
    for fields in settings(*ids[:2]):
        held(small.hf, fields)
        before = copy.deepcopy(vars(small.hf.generation_config))
        theirs = small.hf.generation_config
        generation = small.generate(PROMPT, max_new_tokens=6)
        assert generation.record.ids == ids, fields
        assert [t.probability for t in generation.tokens] == pytest.approx(shares, rel=1e-4), fields
        assert [t.rank for t in generation.tokens] == [1] * 6, fields
        assert small.hf.generation_config is theirs, fields
        assert str(vars(theirs)) == str(before), fields


def test_sampling_draws_by_the_callers_settings_alone(small):
    held(small.hf, {})
    asked = {"temperature": 1.5, "top_p": 0.9, "seed": 5, "max_new_tokens": 12}
    usual = small.generate(PROMPT, **asked)
    held(
        small.hf, {"top_k": 1, "temperature": 0.01, "typical_p": 0.1, "min_p": 0.9, "suppress_tokens": usual.record.ids}
    )
    assert small.generate(PROMPT, **asked).record.ids == usual.record.ids


def test_a_tree_branches_under_the_same_rule(small, plain):
    held(small.hf, {"suppress_tokens": plain[0], "num_beams": 2})
    tree = small.tree(PROMPT, max_new_tokens=4)
    assert tree.root.record.ids == plain[0][:4]
    branch = tree.branch("A", 1, plain[0][0])
    assert len(branch) == 4


@pytest.mark.parametrize("kind", [int, list, tuple, torch.tensor])
def test_the_tokens_that_end_a_text_are_the_models_in_whatever_form_it_names_them(small, plain, kind):
    last = plain[0][2]
    held(small.hf, {"eos_token_id": last if kind is int else kind([last, 1])})
    generation = small.generate(PROMPT, max_new_tokens=6)
    assert generation.record.ids == plain[0][: plain[0].index(last) + 1]
    assert generation.finish == "eos"


@pytest.mark.parametrize("ends", [None, [], -1])
def test_a_model_that_names_no_end_writes_as_much_as_it_is_asked_for(small, ends, monkeypatch):
    held(small.hf, {"eos_token_id": ends})
    monkeypatch.setattr(small, "tokenizer", copy.deepcopy(small.tokenizer))
    small.tokenizer.pad_token = small.tokenizer.eos_token = small.tokenizer.bos_token = None
    generation = small.generate(PROMPT, max_new_tokens=6)
    assert (len(generation.tokens), generation.finish) == (6, "length")


def test_old_settings_in_the_models_own_config_do_not_matter_either(small, plain, monkeypatch):
    held(small.hf, {})
    monkeypatch.setattr(small.hf.config, "num_beams", 4, raising=False)
    monkeypatch.setattr(small.hf.config, "use_cache", False)
    assert small.generate(PROMPT, max_new_tokens=6).record.ids == plain[0]
