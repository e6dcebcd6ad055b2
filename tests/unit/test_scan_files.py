"""What a scan makes of pickles, headers and templates, whole and spoiled, and of files made to take long."""

from __future__ import annotations

import io
import json
import os
import pickle
import time
import zipfile
from pathlib import Path

import pytest
from hostile import ENDLESS, ESCAPES, HOSTILE
from hypothesis import given
from hypothesis import strategies as st
from suspects import (
    CLEAN,
    LLAMA_3,
    QWEN_3,
    WEIGHTS,
    Runs,
    gguf,
    header,
    made,
    plain,
    safetensors,
    storage,
)

import labkit as lk
from labkit.models.scan import contents, gguf_headers, pickles, templates, tensor_headers
from labkit.models.scan.places import Bounded, File

# -- pickles ---------------------------------------------------------------------------------------------------------


def graded(data: bytes) -> set[str]:
    return {one.rule for one in pickles.look(Bounded(io.BytesIO(data)), "x.pkl")}


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_seen_in_every_protocol(protocol):
    assert graded(pickle.dumps([1, {"a": Runs(os.system, "id")}], protocol)) == {"pickle-runs-code"}
    assert graded(pickle.dumps({"a": [1.5, None, ("x", b"y")], "b": {3, 4}}, protocol)) == {"pickle"}


@pytest.mark.parametrize(
    ("module", "name", "grade"),
    [
        ("collections", "OrderedDict", "harmless"),
        ("torch", "BFloat16Storage", "harmless"),
        ("copy_reg", "_reconstructor", "harmless"),
        ("transformers.training_args", "TrainingArguments", "odd"),
        ("torch.nn.modules.linear", "Linear", "odd"),
        ("__builtin__", "eval", "danger"),
        ("collections", "OrderedDict.__class__", "danger"),
        ("functools", "partial", "danger"),
        ("numpy.testing._private.utils", "KnownFailure", "danger"),  # picklescan lists the module
        ("torch.hub", "load", "danger"),
        ("logging", "FileHandler", "danger"),
        ("a b", "C", "danger"),
    ],
)
def test_an_import_is_graded_by_what_it_could_do(module, name, grade):
    assert pickles.grade(module, name) == grade


def test_a_training_run_leaves_a_warning_not_a_danger(tmp_path):
    plain(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"\x80\x02ctransformers.training_args\nTrainingArguments\n)\x81}b.")
    scan = lk.scan(tmp_path)
    assert scan.safe
    assert [one.what for one in scan.of("warning")] == ["the file imports transformers.training_args.TrainingArguments"]


@given(st.data())
def test_a_spoiled_pickle_is_a_finding_and_nothing_worse(data):
    whole = data.draw(st.sampled_from([storage(), pickle.dumps(Runs(os.system, "id"), 4), pickle.dumps([1, "a"], 0)]))
    spoiled = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, len(spoiled) - 1), max_size=4)):
        spoiled[place] ^= 1 << data.draw(st.integers(0, 7))
    file = File("x.pkl", len(spoiled), lambda: io.BytesIO(bytes(spoiled)))
    assert contents.look(file).findings
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("archive/data.pkl", bytes(spoiled))
    packed = bytearray(archive.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(packed) - 1), max_size=4)):
        packed[place] ^= 1 << data.draw(st.integers(0, 7))
    assert contents.look(File("x.bin", len(packed), lambda: io.BytesIO(bytes(packed)))).kind


# -- headers ---------------------------------------------------------------------------------------------------------


@given(st.data())
def test_a_spoiled_header_is_a_finding_or_true(data):
    """A header of which bits are turned or the end is missing either still fits its file or is flagged."""
    text = json.dumps(header(WEIGHTS)).encode()
    whole = len(text).to_bytes(8, "little") + text + bytes(288)
    spoiled = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(spoiled) - 1)), max_size=4)) if spoiled else []:
        spoiled[place] ^= 1 << data.draw(st.integers(0, 7))
    looked = contents.look(File("x.safetensors", len(spoiled), lambda: io.BytesIO(bytes(spoiled))))
    if spoiled and not looked.findings:
        assert tensor_headers.check(looked.holds, len(whole) - 8 - len(text)) == []


@given(st.data())
def test_a_spoiled_gguf_is_a_finding_or_read(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "x.gguf"
    gguf(file, {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a", "b"], "llama.block_count": 2})
    spoiled = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(4, 200), min_size=1, max_size=6)):
        spoiled[place] ^= 1 << data.draw(st.integers(0, 7))
    looked = contents.look(File("x.gguf", len(spoiled), lambda: io.BytesIO(bytes(spoiled))))
    assert looked.findings or isinstance(looked.holds, gguf_headers.Header)


def test_a_header_is_checked_as_the_safetensors_library_does(tmp_path):
    """What one refuses, the other refuses; the library alone takes a name that is there twice."""
    import safetensors as library

    refused = 0
    for number, (name, (make, rule, _)) in enumerate(HOSTILE.items()):
        if rule != "safetensors-header" or "twice" in name:
            continue
        (folder := tmp_path / str(number)).mkdir()
        made(make, folder)
        with pytest.raises((library.SafetensorError, OSError)):
            library.safe_open(folder / "model.safetensors", framework="np")
        refused += 1
    assert refused >= 8
    for number, make in enumerate(CLEAN.values()):
        (folder := tmp_path / f"clean{number}").mkdir()
        for file in made(make, folder).rglob("*.safetensors"):
            with library.safe_open(file, framework="np") as opened:
                assert set(opened.keys()) == set(contents.look(_file(file)).holds)


def _file(path: Path) -> File:
    return File(path.name, path.stat().st_size, lambda: path.open("rb"))


# -- chat templates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ESCAPES))
def test_a_template_is_flagged_wherever_it_is(name, tmp_path):
    gguf(tmp_path / "a.gguf", {"general.architecture": "llama", "tokenizer.chat_template.rag": LLAMA_3 + ESCAPES[name]})
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "a.jinja").write_text(QWEN_3 + ESCAPES[name])
    found = {one.file for one in lk.scan(tmp_path).of("danger")}
    assert found == {"a.gguf", "additional_chat_templates/a.jinja"}


@given(st.data())
def test_a_spoiled_template_is_looked_through_or_broken(data):
    whole = data.draw(st.sampled_from([LLAMA_3, QWEN_3, *ESCAPES.values(), *ENDLESS.values()]))
    begin = data.draw(st.integers(0, len(whole)))
    spoiled = (
        whole[:begin]
        + data.draw(st.text("{}%_'\"\\(.|~[9", max_size=6))
        + whole[begin + data.draw(st.integers(0, 9)) :]
    )
    assert all(one.rule.startswith("template-") for one in templates.look(spoiled, "x.jinja"))


def test_a_template_is_named_by_its_line():
    (one,) = templates.look(LLAMA_3 + "\n\n{{ messages.__class__ }}", "x.jinja")
    assert f"line {LLAMA_3.count(chr(10)) + 3}:" in one.what


def test_templates_that_never_end_are_looked_through_at_once(tmp_path):
    for number, template in enumerate(ENDLESS.values()):
        (tmp_path / f"{number}.jinja").write_text(template)
    began = time.process_time()
    assert len({one.file for one in lk.scan(tmp_path).of("danger")}) == len(ENDLESS)
    assert time.process_time() - began < 5


# -- what takes long -------------------------------------------------------------------------------------------------


def _many_pickles(folder: Path) -> None:
    with zipfile.ZipFile(folder / "x.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            archive.writestr(f"{number}.pkl", b"\x80\x02" + b"N0" * 200_000 + b".")


def _one_name_twice(folder: Path) -> None:
    entries = ",".join(f'"{n}":{{}}' for n in [*range(300_000), 299_999])
    safetensors(folder / "model.safetensors", b"{" + entries.encode() + b"}", 0)


SLOW = {
    "pickle-cannot-be-followed": lambda folder: (folder / "x.pkl").write_bytes(b"\x80\x02" + b"N0" * 4_000_000 + b"."),
    "pickle-cannot-be-followed, in many": _many_pickles,
    "safetensors-header": _one_name_twice,
    "archive-damaged": lambda folder: (folder / "x.zip").write_bytes(b"PK\x03\x04" * 1_000_000),
    "licence-unclear": lambda folder: (plain(folder) / "README.md", (folder / "LICENSE").write_text("x"))[0].write_text(
        "---" + "\n" * 500_000
    ),
    "template-endless": lambda folder: (folder / "x.jinja").write_text("{{ '" + "__" * 500_000 + "' }}"),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_file_made_to_take_long_is_done_with_in_seconds(name, tmp_path):
    SLOW[name](tmp_path)
    began = time.process_time()
    scan = lk.scan(tmp_path)
    assert time.process_time() - began < 6
    assert name.split(",")[0] in {one.rule for one in scan.findings}
