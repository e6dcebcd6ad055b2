"""A checkpoint that is not whole is refused, whatever is missing, and says what; a whole one loads."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from checkpoints import checkpoint, configure, without, write
from safetensors.torch import load_file

import labkit as lk
from labkit.models.errors import LoadError, ModelNotFound
from labkit.models.sources.tensors import open_files

KINDS = {
    "qwen3": ({"head_dim": 16, "tie_word_embeddings": True}, "layers.0.self_attn.q_norm"),
    "gpt_neox": ({}, "layers.1.attention.query_key_value"),
    "mixtral": ({"num_local_experts": 4, "num_experts_per_tok": 2}, "layers.1.block_sparse_moe.experts.2.w3"),
    "deepseek_v3": (
        {
            "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
            "moe_intermediate_size": 32, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16, "v_head_dim": 16, "n_group": 1, "topk_group": 1,
        },
        "mlp.gate.e_score_correction_bias",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(lm4):
    return lm4.tokenizer


@pytest.fixture
def llama(tmp_path, tokenizer):
    checkpoint(tmp_path, tokenizer)
    return tmp_path


def load(folder, bits=32):
    return lk.load(folder, bits=bits, progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_checkpoint_loads_and_one_that_lacks_a_tensor_is_refused_by_name(kind, tmp_path, tokenizer):
    fields, part = KINDS[kind]
    checkpoint(tmp_path, tokenizer, kind, **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path)
    gone = without(tmp_path, part)
    for bits in (32, 4):
        with pytest.raises(LoadError, match=r"is incomplete: \d+ of its \d+ tensors are missing") as error:
            load(tmp_path, bits)
        assert gone[0].split(".weight")[0].split("block_sparse_moe.")[-1] in str(error.value)


def test_an_embedding_or_an_unembedding_that_is_not_tied_is_missed(tmp_path, tokenizer):
    for n, (tied, part) in enumerate(((False, "lm_head"), (True, "embed_tokens"))):
        folder = tmp_path / str(n)
        checkpoint(folder, tokenizer, tie_word_embeddings=tied)
        without(folder, part)
        with pytest.raises(LoadError, match=f"are missing: .*{part}"):
            load(folder)


def test_weights_of_another_shape_or_number_of_layers_are_refused(llama):
    configure(llama, intermediate_size=160)
    with pytest.raises(LoadError, match=r"with shape \(\d+, \d+\), but its config.json asks for"):
        load(llama)
    configure(llama, intermediate_size=128, num_hidden_layers=3)
    with pytest.raises(LoadError, match=r"are missing: model\.layers\.2"):
        load(llama)
    configure(llama, num_hidden_layers=1)
    for bits in (16, 4):
        with pytest.raises(LoadError, match=r"weights for layers that its config.json does not have: model\.layers\.1"):
            load(llama, bits)


def test_a_layer_that_predicts_several_tokens_ahead_is_left_out_without_a_word(tmp_path, tokenizer, caplog):
    checkpoint(tmp_path, tokenizer, "deepseek_v3", **KINDS["deepseek_v3"][0])
    configure(tmp_path, num_nextn_predict_layers=1)  # as the real one has it
    tensors = load_file(tmp_path / "model.safetensors")
    ahead = {k.replace("layers.1.", "layers.2."): v.clone() for k, v in tensors.items() if "layers.1." in k}
    write(tmp_path, tensors | ahead | {"model.layers.2.eh_proj.weight": torch.ones(64, 128)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path)
    assert not [record for record in caplog.records if "REPORT" in record.getMessage()]


def test_tensors_that_the_model_has_no_place_for_are_warned_about(llama):
    tensors = load_file(llama / "model.safetensors")
    write(llama, tensors | {f"model.layers.{n}.self_attn.q_norm.weight": torch.ones(16) for n in range(2)})
    with pytest.warns(UserWarning, match=r"its model does not use: model\.layers\.0\.self_attn\.q_norm\.weight"):
        load(llama)


def test_scales_without_a_word_in_the_configuration_are_refused(llama):
    tensors = load_file(llama / "model.safetensors")
    write(llama, tensors | {"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1, 1)})
    with pytest.raises(LoadError, match="lacks quantization_config"):
        load(llama)


def test_half_a_checkpoint_in_four_bits_is_refused_too(llama, tmp_path_factory):
    small = tmp_path_factory.mktemp("nf4")
    lm = load(llama, 4)
    lm.hf.save_pretrained(small)
    lm.tokenizer.save_pretrained(small)
    assert lk.load(small, progress=False).bits == 4
    without(small, "layers.1.mlp.down_proj")
    with pytest.raises(LoadError, match=r"are missing: model\.layers\.1\.mlp\.down_proj"):
        lk.load(small, progress=False)


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path, tokenizer):
    hf = checkpoint(tmp_path, tokenizer)
    (tmp_path / "model.safetensors").unlink()
    hf.save_pretrained(tmp_path, max_shard_size="1MB")
    return tmp_path


def test_a_file_of_weights_that_is_missing_is_named(sharded):
    load(sharded)
    first = min(sharded.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(LoadError, match=rf"lacks {first.name}: 1 of the \d+ weight files"):
        load(sharded)
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(LoadError, match=r"no model\.safetensors\.index\.json, which says what is in which file"):
        load(sharded)


def test_an_index_that_is_damaged_or_of_another_model_is_named(sharded):
    index = sharded / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    whole["weight_map"]["model.layers.7.mlp.up_proj.weight"] = next(iter(whole["weight_map"].values()))
    index.write_text(json.dumps(whole))
    with pytest.raises(LoadError, match=r"names 1 tensors that no file has: model\.layers\.7"):
        load(sharded)
    for text in ("{", "[]", '{"metadata": {}}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        with pytest.raises(LoadError, match=r"index\.json is damaged"):
            load(sharded)


@pytest.mark.parametrize("left", [0, 5, 60, 5_000, -1])
def test_a_file_that_is_cut_short_is_named(llama, left):
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    for bits in (32, 4):
        with pytest.raises(LoadError, match=r"^model\.safetensors is (cut short|damaged)"):
            load(llama, bits)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_in_the_place_of_a_file_is_called_one(llama, name):
    (llama / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 1234\n")
    with pytest.raises(LoadError, match=rf"^{name} is a Git LFS pointer"):
        load(llama)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_damaged_file_beside_the_weights_is_named(llama, name):
    (llama / name).write_text((llama / name).read_text()[:-100])
    with pytest.raises(LoadError, match=rf"^{name} is damaged: it is not valid JSON"):
        load(llama)


def test_folders_without_a_model_or_a_tokenizer_say_so(llama, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ModelNotFound, match="it is empty"):
        load(empty)
    for file in llama.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(LoadError, match=r"has no tokenizer \(tokenizer\.json or the like\)"):
        load(llama)
    (llama / "model.safetensors").rename(llama / "weights.safetensors")
    (llama / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadError, match=r"the tokenizer of .* cannot be read"):
        load(llama)


def test_a_file_of_weights_under_another_name_is_told(llama):
    (llama / "model.safetensors").rename(llama / "weights.safetensors")
    with pytest.raises(LoadError, match=r"has weights\.safetensors, but no model\.safetensors"):
        load(llama)
    (llama / "weights.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"has no \.safetensors file"):
        load(llama)


@pytest.mark.parametrize("with_config", [False, True])
def test_a_folder_with_an_adapter_alone_is_called_that(tmp_path, tokenizer, llama, with_config):
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen3-0.6B"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    if with_config:
        shutil.copy(llama / "config.json", folder)
    with pytest.raises(ModelNotFound, match=r"is a LoRA adapter of Qwen/Qwen3-0\.6B, not a whole model\. Merge"):
        load(folder)


def test_headers_are_enough_to_see_it(llama):
    tensors = open_files([llama / "model.safetensors"])
    whole = load_file(llama / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {k: tuple(v.shape) for k, v in whole.items()}
    assert all(torch.equal(tensors[name][...], tensor) for name, tensor in whole.items())


# -- the hub --------------------------------------------------------------------------------------------------------


def test_models_of_the_hub_are_looked_through_as_folders_are(sharded, tmp_path_factory):
    """For real, from a cache of the hub as a download leaves it, without a network."""
    home = tmp_path_factory.mktemp("hub")
    code = (
        "import sys, labkit as lk\n"
        "from labkit.models.errors import LoadError\n"
        "for name in ('me/whole', 'me/shard', 'me/half', 'me/adapter'):\n"
        "    try:\n        print(name, lk.load(name, bits=16, progress=False).revision)\n"
        "    except LoadError as error:\n        print(name, type(error).__name__, error)\n"
    )
    for name in ("whole", "shard", "half", "adapter"):
        place = home / "hub" / f"models--me--{name}"
        snapshot = place / "snapshots" / ("c" * 40)
        shutil.copytree(sharded, snapshot)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("c" * 40)
        if name == "shard":
            min(snapshot.glob("*.safetensors")).unlink()
        if name == "half":
            file = max(snapshot.glob("*.safetensors"))
            tensors = dict(sorted(load_file(file).items())[1:])
            from safetensors.torch import save_file

            save_file(tensors, file, metadata={"format": "pt"})
        if name == "adapter":
            (snapshot / "config.json").unlink()
            (snapshot / "adapter_config.json").write_text(
                '{"peft_type": "LORA", "base_model_name_or_path": "me/whole"}'
            )
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(lk.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    whole, shard, half, adapter = done.stdout.splitlines()
    assert whole == f"me/whole {'c' * 40}"
    assert "lacks model-00001-of" in shard, shard
    assert "names 1 tensors that no file has" in half
    assert "is a LoRA adapter of me/whole" in adapter
