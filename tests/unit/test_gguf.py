"""GGUF files of other architectures than the default model's: written here, from tiny models, with gguf itself."""

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, Qwen3MoeConfig

import labkit as lk
from labkit.models.errors import LoadError, NotEnoughMemory
from labkit.models.packed_experts import PackedExperts

IDS = torch.tensor([[11, 42, 7, 99, 3, 58, 120, 64]])
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
SIZES |= {"intermediate_size": 128, "vocab_size": 257, "max_position_embeddings": 64}


def qwen3_moe():
    mixture = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 768,
    }  # transformers takes its default
    config = Qwen3MoeConfig(**SIZES, **mixture, norm_topk_prob=True, tie_word_embeddings=False)
    return (
        config,
        gguf.MODEL_ARCH.QWEN3MOE,
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 768},
    )


def gemma2():
    config = Gemma2Config(**SIZES, sliding_window=8)
    more = {"attention.sliding_window": 8, "attention.value_length": 32}
    return config, gguf.MODEL_ARCH.GEMMA2, more


def gpt2():
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=1024, vocab_size=257, tie_word_embeddings=False)
    return config, gguf.MODEL_ARCH.GPT2, {}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=[qwen3_moe, gemma2, gpt2], ids=lambda make: make.__name__)
def made(request, tmp_path):
    """A model, and the GGUF file that it was written to."""
    config, arch, more = request.param()
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path / f"tiny-{request.param.__name__}.gguf"
    write(hf, path, arch, more)
    return hf, path


def write(hf, path, arch, more):
    config = hf.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(64)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 256))
    writer.add_vocab_size(257)
    if hasattr(config, "num_key_value_heads"):
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    else:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    for name, value in more.items():
        writer.add_uint32(f"{gguf.MODEL_ARCH_NAMES[arch]}.{name}", value)
    writer.add_tokenizer_model("gpt2")
    # Two merges, and scores: older versions of transformers read a list of one as its element, and Gemma's by scores.
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet())[:-1], "th", "he"])
    writer.add_token_merges(["t h", "h e"])
    writer.add_token_scores([-float(i) for i in range(257)])
    writer.add_token_types([gguf.TokenType.NORMAL] * 257)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(arch, 2)
    for name, value in hf.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for part, tensor in parts(hf, name, value):
            place = names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert place is not None, part
            writer.add_tensor(place, np.ascontiguousarray(tensor.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def parts(hf, name, value):
    """A tensor as GGUF keeps it: gate and up of experts apart, Gemma's norms with their one, GPT-2's as (out, in)."""
    if name.endswith("experts.gate_up_proj"):
        gate, up = value.chunk(2, 1)
        stem = name.removesuffix("gate_up_proj")
        return [(f"{stem}gate_proj.weight", gate), (f"{stem}up_proj.weight", up)]
    if name.endswith("experts.down_proj"):
        return [(f"{name}.weight", value)]
    if hf.config.model_type == "gemma2" and name.endswith("norm.weight"):
        return [(name, value + 1)]
    if hf.config.model_type == "gpt2" and value.ndim == 2 and ".h." in name:
        return [(name, value.T)]
    return [(name, value)]


def test_a_gguf_of_any_architecture_gives_the_logits_of_the_model_it_was_made_from(made):
    hf, path = made
    lm = lk.load(path, bits=32, progress=False)
    with torch.no_grad():
        torch.testing.assert_close(lm.run(IDS).logits, hf(IDS).logits, atol=1e-5, rtol=0)


def test_in_four_bits_its_experts_are_packed_and_heads_are_read(made):
    hf, path = made
    lm = lk.load(path, dtype=torch.float32, progress=False)
    stacks = [m for m in lm.hf.modules() if isinstance(m, PackedExperts)]
    assert bool(stacks) == (hf.config.model_type == "qwen3_moe")
    with torch.no_grad():
        worst = float((lm.run(IDS).logits - hf(IDS).logits).abs().max())
        assert 0 < worst < 0.3 * float(hf(IDS).logits.abs().max())
    run = lm.run(IDS, read=["pattern", "z", "head_out"])
    torch.testing.assert_close(run["pattern"].sum(-1), torch.ones_like(run["pattern"][..., 0]), atol=1e-5, rtol=0)
    assert repr(lk.load(path, dtype=torch.float32, progress=False)) == repr(lm)


def test_converting_shows_its_progress(made, capsys):
    lk.load(made[1])
    shown = capsys.readouterr().err
    assert "converting" in shown
    assert "4 bits" in shown


def test_one_too_large_to_convert_is_told_before_it_is_read(made, monkeypatch):
    monkeypatch.setattr("labkit.models.sources.default_model.available", lambda device: 1e5)
    with pytest.raises(NotEnoughMemory, match="for its conversion"):
        lk.load(made[1], progress=False)


# -- files that are not whole ------------------------------------------------------------------------------------------


@pytest.fixture
def one(tmp_path):
    """A model, and the GGUF file that it was written to."""
    config, arch, more = gemma2()
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config).eval()
    write(hf, tmp_path / "tiny.gguf", arch, more)
    return hf, tmp_path / "tiny.gguf"


def rewrite(source, target, keep, part=None, parts=1, total=0):
    """Copy a GGUF file with the tensors that `keep` says, as one part of several."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")) and not part:
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    if part is not None:
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", total)
    for tensor in reader.tensors:
        if keep(tensor.name):
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def split(source, folder):
    """The file in three parts: the embedding and the first block, the second, and what is left."""
    names = [tensor.name for tensor in gguf.GGUFReader(source).tensors]
    of = lambda name: 1 if name.startswith("blk.1.") else 2 if "output" in name and "blk" not in name else 0  # noqa: E731
    files = [folder / f"big-{n + 1:05d}-of-00003.gguf" for n in range(3)]
    for n, file in enumerate(files):
        rewrite(source, file, lambda name, n=n: of(name) == n, part=n, parts=3, total=len(names))
    return files


def test_all_parts_of_a_split_file_are_read_from_any_of_them(one, tmp_path):
    hf, path = one
    files = split(path, tmp_path)
    for file in (files[0], files[2]):
        lm = lk.load(file, bits=32, progress=False)
        with torch.no_grad():
            torch.testing.assert_close(lm.run(IDS).logits, hf(IDS).logits, atol=1e-5, rtol=0)
    assert len([p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()]) == 1


def refused(path, tmp_path, says):
    """The first time and the second, in full precision and in 4 bits, and nothing is kept."""
    for bits in (32, 4, 32):
        with pytest.raises(LoadError, match=says):
            lk.load(path, bits=bits, progress=False)
    models = tmp_path / "cache" / "models"
    assert not models.exists() or not [p for p in models.iterdir() if p.is_dir()]


def test_a_part_that_is_missing_or_of_another_name_is_told(one, tmp_path):
    files = split(one[1], tmp_path)
    renamed = files[0].rename(tmp_path / "renamed.gguf")
    refused(renamed, tmp_path, "is one of 3 parts of a model that was split")
    renamed.rename(files[0])
    files[1].unlink()
    refused(files[0], tmp_path, r"is one of 3 parts of a model, and big-00002-of-00003\.gguf is not in")
    files[2].rename(files[1])
    refused(files[0], tmp_path, r"big-00003-of-00003\.gguf is not in")


def test_parts_of_two_models_are_told(one, tmp_path):
    files = split(one[1], tmp_path)
    rewrite(files[1], tmp_path / "x", lambda name: "attn_q" not in name, part=1, parts=3)
    (tmp_path / "x").rename(files[1])
    refused(files[0], tmp_path, "they do not match")


@pytest.mark.parametrize("part", ["blk.0.", "blk.1.", "blk.1.ffn_down", "output_norm", "token_embd"])
def test_a_file_that_lacks_tensors_is_refused_and_not_kept(part, one, tmp_path):
    rewrite(one[1], tmp_path / "less.gguf", lambda name: not name.startswith(part))
    refused(tmp_path / "less.gguf", tmp_path, r"is incomplete|cannot read")


@pytest.mark.parametrize("left", [0.02, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_refused_and_not_kept(left, one, tmp_path):
    whole = one[1].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(left * len(whole))])
    refused(tmp_path / "cut.gguf", tmp_path, r"cut\.gguf is cut short or damaged")


def test_without_progress_nothing_is_drawn(made, capsys):
    lk.load(made[1], progress=False)
    assert capsys.readouterr().err == ""


def test_a_pointer_in_the_place_of_a_file_is_called_one(tmp_path):
    (tmp_path / "a.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    with pytest.raises(LoadError, match=r"a\.gguf is a Git LFS pointer"):
        lk.load(tmp_path / "a.gguf", progress=False)
