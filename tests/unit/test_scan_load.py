"""`lk.load` always runs the cheap part of a scan: what is plainly hostile is refused before it is used."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time

import pytest
from checkpoints import checkpoint, configure
from hostile import ENDLESS, ESCAPES, HOSTILE
from suspects import LLAMA_3, QWEN_3, TOUCHED, gguf

import labkit as lk
from labkit.models.errors import LoadError, UnsafeCheckpoint
from labkit.models.scan.loading import check_templates
from labkit.models.sources.tensors import open_files


@pytest.fixture(scope="module")
def kept(lm4, tmp_path_factory):
    """A small model, saved in two files."""
    folder = tmp_path_factory.mktemp("kept")
    hf = checkpoint(folder, lm4.tokenizer)
    (folder / "model.safetensors").unlink()
    hf.save_pretrained(folder, max_shard_size="6MB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


@pytest.fixture
def llama(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "llama")


def load(folder):
    return lk.load(folder, bits=32, progress=False)


def test_what_is_saved_by_transformers_is_clean_and_loads(llama):
    scan = lk.scan(llama)
    assert (scan.safe, scan.of("warning")) == (True, ())
    assert load(llama).n_layers == 2


@pytest.mark.parametrize("template", [ESCAPES["__class__"], ESCAPES["format as a value"], ENDLESS["range(10**9)"]])
def test_a_template_that_reaches_beyond_its_sandbox_is_refused_and_not_run(llama, template):
    (llama / "chat_template.jinja").write_text(LLAMA_3 + template.replace("TOUCHED", str(llama / TOUCHED)))
    line = LLAMA_3.count("\n") + 1
    with pytest.raises(UnsafeCheckpoint, match=rf"chat template is not safe .*line {line}.*lk\.scan\(.*\) tells more"):
        load(llama)
    assert not (llama / TOUCHED).exists()


def test_the_second_of_several_templates_is_looked_at_too(llama):
    (llama / "chat_template.jinja").write_text(LLAMA_3)
    (llama / "additional_chat_templates").mkdir()
    (llama / "additional_chat_templates" / "rag.jinja").write_text(ESCAPES["lipsum"])
    with pytest.raises(UnsafeCheckpoint, match=r"rag, line 1: a call of lipsum\(\)"):
        load(llama)


@pytest.mark.parametrize("template", [LLAMA_3, QWEN_3, "{% for %}", ""])
def test_templates_in_use_and_broken_ones_are_not_refused(llama, template):
    (llama / "chat_template.jinja").write_text(template)
    assert load(llama).n_layers == 2


@pytest.mark.parametrize("place", ["../../secret.safetensors", "/etc/passwd", "..\\secret.safetensors"])
def test_an_index_that_leaves_the_folder_is_refused(llama, place):
    file = llama / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["lm_head.weight"] = place
    file.write_text(json.dumps(index))
    with pytest.raises(UnsafeCheckpoint, match=r"index\.json of .*llama names .*, outside the model's folder"):
        load(llama)


def test_a_configuration_that_names_weights_elsewhere_is_refused(llama):
    configure(llama, transformers_weights="../model.safetensors")
    with pytest.raises(UnsafeCheckpoint, match=r"config\.json of .*llama names \.\./model\.safetensors"):
        load(llama)


@pytest.mark.parametrize("name", sorted(name for name, (_, rule, _) in HOSTILE.items() if rule == "safetensors-header"))
def test_a_header_that_does_not_fit_its_file_is_refused_with_a_sentence(name, tmp_path):
    HOSTILE[name][0](tmp_path)
    with pytest.raises(LoadError, match=r"model\.safetensors (is damaged|is cut short|does not fit the file)"):
        open_files([tmp_path / "model.safetensors"])


@pytest.mark.parametrize("name", sorted(name for name, (_, rule, _) in HOSTILE.items() if rule == "gguf-header"))
def test_a_gguf_that_lies_is_refused_with_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    HOSTILE[name][0](tmp_path)
    with pytest.raises(LoadError, match=r"model\.gguf is cut short or damaged: .*lk\.scan\(.*\) tells more"):
        lk.load(tmp_path / "model.gguf", progress=False)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_code_of_its_own_that_is_not_trusted_is_refused_and_not_run(llama):
    configure(llama, model_type="nobody-knows-it", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    (llama / "evil.py").write_text(f"import os\nos.system('touch {llama / TOUCHED}')\n")
    with pytest.raises(LoadError, match=r"its own Python code, .* lk\.scan\(.*\) names the files"):
        load(llama)
    assert not (llama / TOUCHED).exists()
    assert [one.rule for one in lk.scan(llama).of("danger")] == ["remote-code-acts"]


@pytest.mark.skipif(os.name == "nt", reason="not everyone may make links here")
def test_weights_that_are_linked_from_elsewhere_load_as_before(llama, tmp_path):
    for file in llama.glob("*.safetensors"):
        file.rename(tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
    assert load(llama).n_layers == 2
    assert {one.rule for one in lk.scan(llama).findings} >= {"link-to-weights"}
    assert lk.scan(llama).safe


def test_it_costs_a_few_milliseconds():
    class Tokenizer:
        chat_template = {"default": LLAMA_3, "tool_use": QWEN_3}  # noqa: RUF012

    took = []
    for _ in range(10):
        began = time.process_time()
        check_templates(Tokenizer(), "a model")
        took.append(time.process_time() - began)
    assert statistics.median(took) < 0.05


def test_a_true_gguf_header_passes(tmp_path):
    from labkit.models.sources.gguf import _check_header

    gguf(tmp_path / "a.gguf")
    _check_header(tmp_path / "a.gguf")
