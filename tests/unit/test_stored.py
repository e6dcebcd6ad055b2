"""Checkpoints stored in few bits: FP8 and MXFP4 load in any number of bits, every other format says what it needs."""

import json

import pytest
import torch
from checkpoints import checkpoint, configure, write
from safetensors.torch import load_file
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

import labkit as lk
from labkit.models import load as loading
from labkit.models.errors import LoadError, NotEnoughMemory
from labkit.models.memory import empty_model, predict
from labkit.models.packed_experts import PackedExperts
from labkit.models.sources import stored

TEXT = "The cat sat on the"
E4M3 = 448  # its largest number


@pytest.fixture(scope="module")
def tokenizer(lm4):
    return lm4.tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("llama")
    checkpoint(folder, tokenizer)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))


def load(folder, bits=None, **more):
    return lk.load(folder, bits=bits, progress=False, **more)


def logits(lm):
    return lm.run(TEXT).logits.float()


def quantised(tensors, shrink, names=("_proj.weight",)):
    """Tensors, those of some names replaced by what `shrink` makes of them, and the numbers that these stand for."""
    packed, exact = {}, {}
    for name, tensor in tensors.items():
        if name.endswith(names):
            parts, exact[name] = shrink(name, tensor.float())
            packed |= parts
        else:
            packed[name] = exact[name] = tensor
    return packed, exact


def blocks(name, weight, size=(32, 48)):
    """A scale for each block, the last ones cut: 64 and 128 are no multiples of 48."""
    rows, columns = (-(-n // of) for n, of in zip(weight.shape, size, strict=True))
    scale = torch.empty(rows, columns)
    out, exact = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
    for r in range(rows):
        for c in range(columns):
            part = slice(r * size[0], (r + 1) * size[0]), slice(c * size[1], (c + 1) * size[1])
            scale[r, c] = weight[part].abs().max() / E4M3
            out[part] = (weight[part] / scale[r, c]).to(out.dtype)
            exact[part] = out[part].float() * scale[r, c]
    return {name: out, f"{name}_scale_inv": scale}, exact


def by_row(name, weight):
    scale = weight.abs().amax(1, keepdim=True) / E4M3
    out = (weight / scale).to(torch.float8_e4m3fn)
    return {name: out, f"{name}_scale": scale}, out.float() * scale


def by_tensor(name, weight):
    scale = weight.abs().max() / E4M3
    out = (weight / scale).to(torch.float8_e4m3fn)
    parts = {name: out, f"{name}_scale": scale.reshape(1)}
    return parts | {name.replace("weight", "input_scale"): torch.ones(1)}, out.float() * scale


def whole_number(name, weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    out = (weight / scale).round().to(torch.int8)
    return {name: out, f"{name}_scale": scale.bfloat16()}, out.float() * scale.bfloat16().float()


def exponents(name, weight):
    """MXFP8: an exponent of two, in a byte, for 32 numbers of a row."""
    groups = weight.unflatten(1, (-1, 32))
    power = (groups.abs().amax(-1) / E4M3).log2().ceil().clamp(-127, 127)
    out = (groups / power.exp2()[..., None]).flatten(1).to(torch.float8_e4m3fn)
    exact = (out.float().unflatten(1, (-1, 32)) * power.exp2()[..., None]).flatten(1)
    return {name: out, f"{name}_scale_inv": (power + 127).to(torch.uint8)}, exact


def compressed(kind, strategy):
    weights = {"num_bits": 8, "type": kind, "strategy": strategy, "symmetric": True, "actorder": None}
    return {
        "quant_method": "compressed-tensors",
        "format": f"{kind}-quantized",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
    }


FORMATS = {
    "blocks": (blocks, {"quant_method": "fp8", "weight_block_size": [32, 48], "activation_scheme": "dynamic"}),
    "rows": (by_row, compressed("float", "channel")),
    "tensors": (by_tensor, compressed("float", "tensor")),
    "fbgemm": (by_row, {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}),
    "modelopt": (by_tensor, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "int8": (whole_number, compressed("int", "channel")),
    "mxfp8": (exponents, {"quant_method": "mxfp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"}),
}


@pytest.mark.parametrize("form", FORMATS)
def test_eight_bits_with_scales_load_with_the_numbers_of_the_file_and_in_any_bits(form, tmp_path, tokenizer):
    shrink, settings = FORMATS[form]
    plain, small = tmp_path / "plain", tmp_path / "small"
    checkpoint(plain, tokenizer)
    checkpoint(small, tokenizer)
    packed, exact = quantised(load_file(plain / "model.safetensors"), shrink)
    write(plain, exact)
    write(small, packed)
    configure(small, quantization_config=settings)
    torch.testing.assert_close(logits(load(small, 32)), logits(load(plain, 32)), atol=1e-4, rtol=0)
    if form not in ("blocks", "int8"):  # they are read in one way
        return
    as_it_is = load(small)
    assert as_it_is.bits == 16
    torch.testing.assert_close(logits(as_it_is), logits(load(plain, 16)), atol=2e-3, rtol=0)
    four = load(small, 4)
    torch.testing.assert_close(logits(four), logits(load(plain, 4)), atol=1e-2, rtol=0)
    assert four.memory().total == pytest.approx(load(plain, 4).memory().total, rel=0.01)


def test_the_nf4_weights_of_such_a_checkpoint_are_made_once(tmp_path, tokenizer, monkeypatch):
    checkpoint(tmp_path / "m", tokenizer)
    write(tmp_path / "m", quantised(load_file(tmp_path / "m" / "model.safetensors"), blocks)[0])
    configure(tmp_path / "m", quantization_config=FORMATS["blocks"][1])
    first = logits(load(tmp_path / "m", 4))
    exact = load(tmp_path / "m", 4, dtype=torch.float32)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(logits(exact), first, atol=5e-2, rtol=0)
    monkeypatch.setattr("labkit.models.sources.read._from_tensors", lambda *_: pytest.fail("it was made again"))
    assert torch.equal(first, logits(load(tmp_path / "m", 4)))
    assert [p.name[:2] for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()] == ["m-"]


def test_where_the_cache_cannot_be_written_it_is_loaded_all_the_same(tmp_path, tokenizer, monkeypatch, capsys):
    checkpoint(tmp_path / "m", tokenizer)
    write(tmp_path / "m", quantised(load_file(tmp_path / "m" / "model.safetensors"), blocks)[0])
    configure(tmp_path / "m", quantization_config=FORMATS["blocks"][1])
    (tmp_path / "file").write_text("")
    first = logits(load(tmp_path / "m", 4))
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file"))
    assert torch.equal(first, logits(load(tmp_path / "m", 4)))
    assert "was not cached" in capsys.readouterr().err


MIXTURE = {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}


def mxfp4(folder, tokenizer):
    """A small gpt-oss with its experts in MXFP4; returns their numbers by name."""
    checkpoint(folder, tokenizer, "gpt_oss", **MIXTURE)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    packed, exact = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = exact[name] = tensor.bfloat16()
            continue
        groups = tensor.transpose(1, 2).unflatten(2, (-1, 32))  # (expert, out, groups, 32)
        power = (groups.abs().amax(-1, keepdim=True) / 6).log2().ceil()
        nearest = (groups[..., None] / power.exp2()[..., None] - values).abs().argmin(-1)
        packed[f"{name}_blocks"] = (nearest[..., 0::2] | nearest[..., 1::2] << 4).to(torch.uint8)
        packed[f"{name}_scales"] = (power[..., 0] + 127).to(torch.uint8)
        exact[name] = (values[nearest] * power.exp2()).flatten(2).transpose(1, 2).bfloat16()
    write(folder, packed)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn", "router", "lm_head", "embed_tokens"]}
    configure(folder, quantization_config=settings)
    return exact


def test_mxfp4_experts_load_with_their_numbers_and_in_four_bits_at_the_predicted_size(tmp_path, tokenizer):
    plain, small = tmp_path / "plain", tmp_path / "small"
    exact = mxfp4(small, tokenizer)
    checkpoint(plain, tokenizer, "gpt_oss", **MIXTURE)
    write(plain, exact)
    assert torch.equal(logits(load(small, 32)), logits(load(plain, 32)))
    assert torch.equal(logits(load(small)), logits(load(plain, 16)))
    four = load(small, 4)
    assert four.bits == 4
    assert sum(isinstance(module, PackedExperts) for module in four.hf.modules()) == 4
    torch.testing.assert_close(logits(four), logits(load(plain, 4)), atol=1e-2, rtol=0)
    expected = predict(empty_model(four.hf.config), bits=4, dtype=four.dtype)
    assert four.memory().total == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("gone", ["_scales", "_blocks"])
def test_half_of_a_quantised_tensor_is_missed(gone, tmp_path, tokenizer):
    mxfp4(tmp_path, tokenizer)
    tensors = load_file(tmp_path / "model.safetensors")
    write(tmp_path, {k: v for k, v in tensors.items() if not k.endswith(f"layers.1.mlp.experts.down_proj{gone}")})
    for bits in (16, 4):
        with pytest.raises(LoadError, match=r"layers\.1\.mlp\.experts\.down_proj"):
            load(tmp_path, bits)


def test_a_missing_scale_and_a_missing_layer_are_missed(tmp_path, tokenizer):
    checkpoint(tmp_path, tokenizer)
    packed, _ = quantised(load_file(tmp_path / "model.safetensors"), blocks)
    configure(tmp_path, quantization_config=FORMATS["blocks"][1])
    for part, says in (("layers.0.mlp.up_proj.weight_scale_inv", "no scale for it"), ("layers.1.", "are missing")):
        write(tmp_path, {k: v for k, v in packed.items() if part not in k})
        for bits in (16, 4):
            with pytest.raises(LoadError, match=says):
                load(tmp_path, bits)


def test_bits_that_are_advised_are_bits_that_load(tmp_path, tokenizer, monkeypatch):
    checkpoint(tmp_path, tokenizer, num_hidden_layers=8, intermediate_size=8192, tie_word_embeddings=True)
    write(tmp_path, quantised(load_file(tmp_path / "model.safetensors"), blocks)[0])
    configure(tmp_path, quantization_config=FORMATS["blocks"][1])
    full = predict(empty_model(load(tmp_path, 16).hf.config), bits=16, dtype=torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "available", lambda device: full)  # a little is kept free
        with pytest.raises(NotEnoughMemory) as error:
            load(tmp_path)
    advised = int(str(error.value).split("It would fit with bits=")[1].split(".")[0])
    assert load(tmp_path, advised).bits == advised


def test_what_is_stored_in_four_bits_is_advised_no_others(tmp_path, tokenizer, monkeypatch):
    checkpoint(tmp_path / "a", tokenizer)
    lm = load(tmp_path / "a", 8)
    lm.hf.save_pretrained(tmp_path / "b")
    lm.tokenizer.save_pretrained(tmp_path / "b")
    monkeypatch.setattr(loading, "available", lambda device: 1e6)
    with pytest.raises(NotEnoughMemory) as error:
        load(tmp_path / "b")
    assert "bits=4" not in str(error.value)


# -- all other formats ------------------------------------------------------------------------------------------------

OURS = {"bitsandbytes_4bit", "bitsandbytes_8bit", "labkit_nf4", "fp8", "mxfp8", "fbgemm_fp8", "mxfp4", "gguf"}
OURS |= {"metal"}  # transformers dequantises it by itself where there is no Apple GPU
NEED_NOTHING = {
    "bitnet",
    "fouroversix",
    "gemma",
    "sinq",
}  # what these make of the weights is looked at once they are read
OTHERS = sorted({*set(AUTO_QUANTIZER_MAPPING) - OURS, "exl3", "modelopt", "something_new"})


@pytest.mark.parametrize("method", OTHERS)
def test_other_formats_are_named_with_what_to_do(method, llama, monkeypatch):
    """Their packages are not installed here."""
    name, given, was_read = stored._NAMES.get(method, method), loading.read, []
    monkeypatch.setattr(loading, "read", lambda *args: (was_read.append(method), given(*args))[1])
    for settings, bits in (({}, None), ({"bits": 4, "group_size": 32}, 4), ({"weights": "int8"}, 16)):
        configure(llama, quantization_config={"quant_method": method} | settings)
        with pytest.raises((LoadError, ValueError)) as raised:
            load(llama, bits)
        assert isinstance(raised.value, LoadError) or bits
        text = str(raised.value)
        assert name.lower() in text.lower()
        assert "unquantised original" in text
        assert "stored in 16 bits" not in text
    assert not was_read or method in NEED_NOTHING


def test_mlx_and_a_format_without_a_name_are_told(tmp_path, tokenizer):
    checkpoint(tmp_path, tokenizer)
    configure(tmp_path, quantization={"group_size": 64, "bits": 4})
    with pytest.raises(LoadError, match="is stored as MLX, which neither labkit nor transformers reads"):
        load(tmp_path)
    configure(tmp_path, quantization=None, quantization_config={"scheme": "x"})
    with pytest.raises(LoadError, match=r"a format that config\.json does not name"):
        load(tmp_path)


def test_packed_four_bits_of_compressed_tensors_are_left_to_the_package(tmp_path, tokenizer):
    checkpoint(tmp_path, tokenizer)
    settings = compressed("int", "group")
    settings["format"] = "pack-quantized"
    settings["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    configure(tmp_path, quantization_config=settings)
    for bits in (None, 4):
        with pytest.raises(LoadError, match="is stored as compressed-tensors"):
            load(tmp_path, bits)
    with pytest.raises(ValueError, match="in 4 bits, which cannot be converted to bits=16"):
        load(tmp_path, 16)


@pytest.mark.long  # it is compiled
def test_a_format_that_loads_is_read_right_or_refused(tmp_path, tokenizer):
    """BitNet needs no package: ternary weights, four in a byte, and a scale."""
    checkpoint(tmp_path, tokenizer)
    packed, ternary = {}, {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            packed[name] = tensor.bfloat16()
            continue
        three = (tensor / tensor.abs().mean()).round().clamp(-1, 1)
        ternary[name] = three
        quarter = (three + 1).to(torch.uint8).unflatten(0, (4, -1))
        packed[name] = quarter[0] | quarter[1] << 2 | quarter[2] << 4 | quarter[3] << 6
        packed[name.replace("weight", "weight_scale")] = torch.tensor([2.0]).bfloat16()
    write(tmp_path, packed)
    configure(tmp_path, quantization_config={"quant_method": "bitnet", "linear_class": "bitlinear"})
    lm, refused = None, ""
    try:
        lm = load(tmp_path)
    except LoadError as error:
        refused = str(error)
    if lm is None:  # its layers are compiled, which gives NaN or nothing where a processor is told to have no AVX-512
        assert "is stored as BitNet" in refused
        assert "Load the unquantised original" in refused
        return
    run = lm.run(TEXT, read=["head_out", "attn_out"])
    both = run["head_out"].float().sum(-2), run["attn_out"].float()
    torch.testing.assert_close(*both, atol=0.05 * float(both[1].abs().max()), rtol=0)


def test_the_settings_of_a_checkpoint_say_how_it_is_stored():
    for settings, bits, way in (
        ({"quant_method": "gptq", "bits": 3}, 3, "package"),
        ({"quant_method": "quanto", "weights": "int2"}, 2, "package"),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}}, 4, "package"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8, "as it is"),
        ({"quant_method": "mxfp4"}, 4, "expanded"),
        (compressed("float", "block"), 8, "expanded"),
    ):
        config = json.loads(json.dumps(settings))
        found = stored.of(
            type("Config", (), {"quantization_config": config, "get_text_config": lambda self, **_: self})()
        )
        assert (found.bits, found.way) == (bits, way)
