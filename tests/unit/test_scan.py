"""`lk.scan` and `labkit scan` flag hostile checkpoints for the right reason, clean ones not, and run nothing."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hostile import HOSTILE, NOT_ON_WINDOWS
from hypothesis import given
from hypothesis import strategies as st
from suspects import (
    CLEAN,
    TOUCHED,
    gguf,
    header,
    hub_cache,
    made,
    plain,
    safetensors,
    sharded,
    torch_zip,
    touching,
)

import labkit as lk
from labkit.cli import main
from labkit.models.errors import ModelNotFound
from labkit.models.scan import contents, tensor_headers
from labkit.models.scan.places import File
from labkit.models.scan.rules import RULES, inert

DANGERS = {name for name, (_, rule, _) in HOSTILE.items() if RULES[rule].severity == "danger"}


# -- what is flagged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_checkpoint_is_flagged_for_the_right_reason_and_not_run(name, tmp_path):
    make, rule, says = HOSTILE[name]
    if os.name == "nt" and rule in NOT_ON_WINDOWS:
        pytest.skip("not to be made here")
    scan = lk.scan(made(make, tmp_path))
    assert [one for one in scan.findings if one.rule == rule and re.search(says, one.what)], scan
    if name in DANGERS:
        assert not scan.safe
        assert scan.verdict.startswith("Do not open ")
    assert not list(tmp_path.rglob(TOUCHED))


def test_there_are_hostile_checkpoints_for_every_danger():
    assert len(HOSTILE) >= 100
    untested = {rule.name for rule in RULES.values() if rule.severity == "danger"} - {r for _, r, _ in HOSTILE.values()}
    assert untested == set()


@pytest.mark.parametrize("name", sorted(CLEAN.keys() - ({"hub cache"} if os.name == "nt" else set())))
def test_a_clean_checkpoint_is_not_flagged(name, tmp_path):
    scan = lk.scan(made(CLEAN[name], tmp_path))
    assert scan.safe
    assert scan.of("warning") == ()
    assert scan.verdict.startswith("No danger was found in the ")


def test_the_default_model_is_clean(lm4):
    scan = lk.scan(lm4.name)
    assert scan.safe
    assert scan.of("warning") == ()
    assert scan.files > 3


def test_a_checkpoint_that_transformers_saves_is_clean():
    scan = lk.scan(Path(__file__).parents[1] / "files" / "small_llama")
    assert scan.safe
    assert scan.of("warning") == ()


@pytest.mark.skipif(os.name == "nt", reason="it is made with a shell's touch")
def test_what_would_be_run_would_leave_a_file(tmp_path):
    """The other tests look for this file: here it is seen to come, if a pickle and a template are run after all."""
    (tmp_path / "a").mkdir()
    pickle.loads(pickle.dumps(touching(tmp_path / "a")))
    assert (tmp_path / "a" / TOUCHED).exists()


def test_nothing_is_imported_compiled_or_unpickled(tmp_path, monkeypatch):
    """While a scan looks at all that a hostile checkpoint can hold, none of the ways to run it is taken."""
    import jinja2

    def refused(*_, **__):
        raise AssertionError("a scan tried to run something")

    for number, (make, rule, _) in enumerate(HOSTILE.values()):
        if os.name == "nt" and rule in NOT_ON_WINDOWS:
            continue
        (folder := tmp_path / str(number)).mkdir()
        made(make, folder)
    lk.scan(tmp_path)  # what it imports itself is imported now
    for module, name in (
        (pickle, "Unpickler"), (pickle, "load"), (pickle, "loads"), (os, "system"), (subprocess, "Popen"),
        (builtins, "eval"), (builtins, "exec"), (jinja2.Environment, "compile"), (jinja2.Template, "render"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, refused)
    before = set(sys.modules)
    scan = lk.scan(tmp_path)
    assert len(scan.of("danger")) > 80
    assert {name for name in set(sys.modules) - before if not name.startswith("labkit")} == set()


# -- the result ------------------------------------------------------------------------------------------------------


def test_the_worst_comes_first_in_words_in_a_table_and_in_json(tmp_path):
    torch_zip(sharded(tmp_path) / "pytorch_model.bin", pickle.dumps(touching(tmp_path), 2))
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "run.sh").write_text("#!/bin/sh")
    scan = lk.scan(tmp_path)
    assert [one.severity for one in scan.findings] == ["danger", "warning", "note", "note"]
    assert scan.verdict.startswith(f"Do not open {tmp_path}: pytorch_model.bin: archive/data.pkl in it imports ")
    assert repr(scan).startswith(scan.verdict)
    frame = scan.to_frame()
    assert list(frame.columns) == ["severity", "file", "what", "why", "advice", "rule"]
    assert list(frame["file"]) == ["pytorch_model.bin", "torch.py", "run.sh", "torch.py"]
    held = json.loads(scan.to_json())
    assert held["safe"] is False
    assert [one["rule"] for one in held["findings"]] == ["pickle-runs-code", "shadows", "script", "python"]
    assert pickle.loads(pickle.dumps(scan)) == scan


@pytest.mark.skipif(os.name == "nt", reason="such names cannot be given here")
def test_hostile_names_are_shown_inert(tmp_path):
    names = ["<script>alert(1)<", "\x1b[2Jclear.so", "a\u202eexe.so", "b\nc.so", "<img src=x onerror=alert(1)>.so"]
    for name in names:
        (plain(tmp_path) / name.replace("/", "")).write_text("#!x")
    if sys.platform == "linux":  # where a name need not be text
        os.mkdir(os.fsencode(tmp_path) + b"/bad\xff")
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")) / "x.so").write_text("x")
    scan = lk.scan(tmp_path)
    assert len(scan.of("warning")) >= 5
    for text in (repr(scan), scan.verdict, scan._repr_html_(), scan.to_json(), scan.to_frame().to_string()):
        assert all(c.isprintable() or c == "\n" for c in text)
    assert "b\\nc.so" in repr(scan)
    assert "a\\u202eexe.so" in repr(scan)
    assert "<script" not in scan._repr_html_()
    tags: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.add(tag)  # type: ignore[method-assign]
    parser.feed(scan._repr_html_())
    assert tags == {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}


@given(st.text())
def test_inert_text_is_short_and_printable(text):
    assert inert(text).isprintable()
    assert len(inert(text)) <= 160


def test_every_rule_says_why_and_what_to_do_in_whole_sentences():
    for rule in RULES.values():
        for text in (rule.why, rule.advice):
            assert text[0].isupper() or text.startswith("labkit")
            assert not text.endswith(".")  # the report adds it


def test_what_cannot_be_read_is_not_called_safe(tmp_path, monkeypatch):
    plain(tmp_path)
    before = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: (_ for _ in ()).throw(PermissionError("no permission"))
        if self.name == "model.safetensors" else before(self, *a, **k),
    )  # fmt: skip
    scan = lk.scan(tmp_path)
    assert not scan.safe
    assert scan.verdict.startswith(f"Cannot tell about {tmp_path}: model.safetensors: it cannot be read: no permission")
    assert main(["scan", str(tmp_path)]) == 2


def test_weights_that_are_not_there_are_not_called_safe(tmp_path):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"
    (plain(tmp_path) / "picture.png").write_text(text)
    assert lk.scan(tmp_path).safe
    (tmp_path / "model.safetensors").write_text(text)
    assert lk.scan(tmp_path).verdict.startswith(f"Cannot tell about {tmp_path}: model.safetensors: a Git LFS pointer")


def test_many_findings_of_one_kind_are_said_once_in_the_text(tmp_path):
    for number in range(30):
        (tmp_path / f"train{number}.py").write_text("x = 1\n")
    scan = lk.scan(tmp_path)
    assert len(scan.to_frame()) == 30
    assert repr(scan).count("train") == 10
    assert "note: and 20 more of this kind" in repr(scan)


# -- the command line ------------------------------------------------------------------------------------------------


def test_the_exit_status_says_what_was_found(tmp_path, capsys):
    assert main(["scan", str(plain(tmp_path / "clean"))]) == 0
    assert capsys.readouterr().out.startswith("No danger was found in the 6 files of")
    (plain(tmp_path / "bad") / "model.pkl").write_bytes(pickle.dumps(touching(tmp_path)))
    assert main(["scan", str(tmp_path / "bad"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["rule"] == "pickle-runs-code"
    assert main(["scan", str(tmp_path / "nowhere" / "at" / "all")]) == 2
    assert "there is no folder or file" in capsys.readouterr().err
    assert main(["scan", "./nothing.gguf", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["safe"] is False


def test_a_scan_from_the_command_line_imports_neither_torch_nor_transformers(tmp_path):
    code = (
        "import sys; from labkit.cli import main; main(['scan', sys.argv[1]]); "
        "print(sorted({'torch', 'transformers', 'pandas', 'IPython'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sharded(tmp_path))], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# -- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="not everyone may make links here")
def test_a_snapshot_of_the_hubs_cache_is_found_by_the_models_name(tmp_path, monkeypatch):
    from huggingface_hub import constants

    snapshot = hub_cache(tmp_path)
    (refs := tmp_path / "models--a--b" / "refs").mkdir()
    (refs / "main").write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    scan = lk.scan("a/b")
    assert (scan.place, scan.revision, scan.safe, scan.of("warning")) == ("hub cache", "c0ffee", True, ())


def test_all_parts_of_a_split_gguf_are_looked_at(tmp_path):
    for number in (1, 2):
        gguf(tmp_path / f"a-{number:05d}-of-00002.gguf", tensors={f"blk.{number}.w": ([4, 8], 0, 96 * (number - 1))})
    (one,) = lk.scan(tmp_path / "a-00001-of-00002.gguf").of("danger")
    assert one.file == "a-00002-of-00002.gguf"


@pytest.mark.parametrize("name", ["./nothing", "/no/where", "a/b/c", "nothing.gguf", "~nobody/x"])
def test_what_is_not_there_is_told(name):
    with pytest.raises(ModelNotFound, match="there is no folder or file"):
        lk.scan(name)


def test_a_checkpoint_as_large_as_deepseek_v3_is_scanned_in_two_seconds_beside_reading_headers(tmp_path):
    """160 files with 90,000 tensors; the seconds are those of the processor."""
    plain(tmp_path, weights=False)
    places = {}
    for shard in range(160):
        names = [f"model.layers.{shard}.mlp.experts.{n}.down_proj.weight" for n in range(560)]
        places |= dict.fromkeys(names, file := f"model-{shard:05d}-of-00160.safetensors")
        safetensors(tmp_path / file, header({name: ("U8", [1, 1]) for name in names}))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    began = time.process_time()
    for file in tmp_path.glob("*.safetensors"):
        tensor_headers.parse(file.read_bytes()[8:-560])
    headers = time.process_time() - began
    scan = lk.scan(tmp_path)
    assert (scan.safe, scan.of("warning")) == (True, ())
    assert time.process_time() - began - 2 * headers < 2


def test_of_weights_only_the_header_is_read(tmp_path):
    """A file of 40 GB, which takes no place on disk, is looked at as soon as a small one."""
    entries = header({"a": ("BF16", [1 << 20, 1 << 14]), "b": ("U8", [1 << 33])})
    safetensors(plain(tmp_path, weights=False) / "model.safetensors", entries, 0)
    os.truncate(tmp_path / "model.safetensors", (tmp_path / "model.safetensors").stat().st_size + (1 << 35) + (1 << 33))
    read = 0

    class Counted(io.BytesIO):
        def read(self, size=-1):
            nonlocal read
            data = super().read(size)
            read += len(data)
            return data

    file = tmp_path / "model.safetensors"
    head = file.open("rb").read(1 << 16)
    looked = contents.look(File(file.name, file.stat().st_size, lambda: Counted(head)))
    assert looked.findings == ()
    assert read < 2_000
    assert lk.scan(tmp_path).safe
