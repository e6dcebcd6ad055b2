"""What a file is, by its first bytes before its name, and what there is to say of it alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from labkit.models.scan import archives, code, gguf_headers, pickles, templates, tensor_headers
from labkit.models.scan.places import File
from labkit.models.scan.rules import Finding, found, inert, listed

EXECUTABLE = {
    b"\x7fELF": "an ELF program or library", b"MZ": "a Windows program or library",
    b"\xfe\xed\xfa\xce": "a macOS program or library", b"\xfe\xed\xfa\xcf": "a macOS program or library",
    b"\xce\xfa\xed\xfe": "a macOS program or library", b"\xcf\xfa\xed\xfe": "a macOS program or library",
    b"\xca\xfe\xba\xbe": "a macOS or Java program", b"\0asm": "a WebAssembly program",
}  # fmt: skip
_PROGRAMS = (".so", ".dll", ".dylib", ".exe", ".pyd", ".com", ".scr", ".msi", ".class", ".pyc", ".wasm", ".app")
_SCRIPTS = (".sh", ".bash", ".bat", ".cmd", ".ps1", ".vbs", ".js", ".mjs", ".rb", ".pl", ".lua", ".command", ".desktop")
_OTHERS = {
    ".onnx": "an ONNX model", ".pb": "a TensorFlow graph", ".tflite": "a TensorFlow Lite model",
    ".mlmodel": "a Core ML model", ".h5": "a Keras model", ".hdf5": "an HDF5 file", ".msgpack": "Flax weights",
    ".pte": "an ExecuTorch program", ".engine": "a TensorRT engine", ".llamafile": "a program with weights",
}  # fmt: skip
_TEXTS = (".json", ".txt", ".md", ".jinja", ".jinja2", ".j2", ".yaml", ".yml", ".py")
_SURELY = re.compile(r"(pytorch_model|adapter_model|training_args|optimizer|scheduler|rng_state|consolidated).*", re.I)
_CONFIGURES = re.compile(r".*(config|chat_template|special_tokens_map|index|modules)\.json", re.I)
_VOCABULARIES = ("tokenizer.json", "vocab.json")
_POINTER = b"version https://git-lfs"
_LONGEST = 32 << 20  # bytes of a JSON file that is read; the longest indexes have 10 MB
LARGEST = {
    "num_hidden_layers": 10_000, "n_layer": 10_000, "n_layers": 10_000, "num_layers": 10_000, "hidden_size": 10_000_000,
    "intermediate_size": 100_000_000, "vocab_size": 100_000_000, "num_attention_heads": 1_000_000,
    "num_key_value_heads": 1_000_000, "n_routed_experts": 1_000_000, "num_experts": 1_000_000,
    "num_local_experts": 1_000_000, "head_dim": 1_000_000,
}  # fmt: skip
"""What no model comes near, by the key in a configuration."""


@dataclass(frozen=True)
class Looked:
    """A file that was looked at.

    Attributes:
        file: which.
        kind: what it is: `safetensors`, `gguf`, `json`, `python`, `text`, `pointer`, `pickle`, ...
        findings: what there is to say of it alone.
        holds: a safetensors or GGUF header, what a JSON file holds, a text; None elsewhere.
    """

    file: File
    kind: str
    findings: tuple[Finding, ...] = ()
    holds: Any = None


def look(file: File) -> Looked:
    """Look at a file. Whatever it holds, this raises nothing: what makes reading fail is a finding."""
    try:
        kind, findings, holds = _look(file)
    except OSError as error:
        return Looked(file, "unread", (found("not-looked-at", file.name, f"it cannot be read: {inert(error)}"),))
    except Exception as error:  # whatever a hostile file leads a parser to
        what = f"reading it fails with {type(error).__name__}: {inert(error)}"
        return Looked(file, "unread", (found("cannot-be-read", file.name, what),))
    return Looked(file, kind, tuple(findings), holds)


Answer = tuple[str, list[Finding], Any]


def _look(file: File) -> Answer:
    if file.size == 0 and file.suffix != ".py":
        return "empty", [], None
    head = file.head(512)
    if head.startswith(_POINTER):
        if file.suffix in (".safetensors", ".gguf", *pickles.SUFFIXES):
            return "pointer", [found("not-looked-at", file.name, "a Git LFS pointer in the place of weights")], None
        return "pointer", [found("pointer", file.name, "a pointer")], None
    binary = _binary(file, head)
    if (
        file.suffix in (".safetensors", ".gguf", *_TEXTS)
        and binary
        and not (file.suffix == ".gguf" and binary == "gguf")
    ):
        _, findings, _ = _of_kind(binary, file, head)
        return binary, [found("disguised", file.name, f"it is {_NAMES.get(binary, 'a program')}"), *findings], None
    return _of_kind(binary or _by_name(file, head), file, head)


_NAMES = {"zip": "a zip archive", "pickle": "a pickle", "numpy": "an array of numpy's", "archive": "an archive",
          "hdf5": "an HDF5 file", "gguf": "a GGUF file"}  # fmt: skip


def _binary(file: File, head: bytes) -> str:
    """What a file is by its first bytes; empty where these say nothing."""
    if file.suffix == ".safetensors" and head[8:9] == b"{":
        return ""  # the length of a header can begin like anything
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x93NUMPY"):
        return "numpy"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(tuple(archives.MAGIC)) or head[257:262] == b"ustar":
        return "archive"
    if any(head.startswith(magic) for magic in EXECUTABLE) and (not head.startswith(b"MZ") or b"\0" in head[:64]):
        return "executable"
    return "pickle" if pickles.is_pickle(head) else ""


def _by_name(file: File, head: bytes) -> str:
    suffix, base = file.suffix, file.base
    by_suffix = {".safetensors": "safetensors", ".gguf": "gguf", ".json": "json", ".py": "python", ".ipynb": "notebook",
                 ".jinja": "template", ".jinja2": "template", ".j2": "template", ".zip": "zip", ".npz": "zip",
                 ".keras": "zip", ".npy": "numpy", ".tar": "archive", ".rar": "archive"}  # fmt: skip
    if suffix in by_suffix:
        return by_suffix[suffix]
    if suffix in pickles.SUFFIXES:
        return "pickle"
    if suffix in _OTHERS:
        return "other"
    if suffix in _PROGRAMS or re.search(r"\.so(\.\d+)+$", base):
        return "executable"
    if suffix in _SCRIPTS or head.startswith(b"#!"):
        return "script"
    return "text" if re.match(r"(readme|licen[cs]e|copying|notice|use_policy|model_card)", base) else ""


def _of_kind(kind: str, file: File, head: bytes) -> Answer:
    name = file.name
    if kind == "safetensors":
        return kind, *_safetensors(file)
    if kind == "gguf":
        return kind, *_gguf(file)
    if kind == "json":
        return kind, *_json(file)
    if kind == "zip":
        return kind, archives.look(file), None
    if kind == "numpy":
        with file.open() as opened:
            return kind, archives.numpy(opened, name), None
    if kind == "pickle":
        sure = pickles.is_pickle(head) or file.suffix not in (".bin", ".p") or bool(_SURELY.match(file.base))
        with file.open() as opened:
            return kind, pickles.look(opened, name, sure=sure), None
    if kind == "hdf5":
        layers = archives.keras(file.head(4 << 20), name)
        return kind, layers or [found("other-format", name, "an HDF5 file, as Keras keeps models in")], None
    if kind == "archive":
        return kind, archives.compressed(file, head), None
    if kind == "template":
        return kind, templates.look(_text(file, templates.MOST * 4), name), None
    if kind in ("python", "text"):
        return kind, [], _text(file, 4 << 20)
    notes = {
        "executable": ("executable", next((what for magic, what in EXECUTABLE.items() if head.startswith(magic)),
                                          "a program or library")),
        "script": ("script", "a script"),
        "notebook": ("notebook", "a notebook"),
        "other": ("other-format", _OTHERS.get(file.suffix, "")),
    }  # fmt: skip
    return kind, [found(notes[kind][0], name, notes[kind][1])] if kind in notes else [], None


def _text(file: File, most: int) -> str:
    return file.head(most).decode("utf-8", "replace")


def _safetensors(file: File) -> tuple[list[Finding], Any]:
    with file.open() as opened:
        try:
            length = tensor_headers.lengths(opened.read(8), file.size)
            text = b"".join(opened.read(min(length - at, 1 << 20)) for at in range(0, length, 1 << 20))
            entries = tensor_headers.parse(text)
            unknown = tensor_headers.check(entries, file.size - 8 - length)
        except tensor_headers.Lies as error:
            return [found("safetensors-header", file.name, str(error))], None
    if unknown:
        kinds = {entries[name]["dtype"] for name in unknown}
        return [found("unknown-dtype", file.name, f"{len(unknown)} tensors are of dtype {listed(kinds)}")], entries
    return [], entries


def _gguf(file: File) -> tuple[list[Finding], Any]:
    with file.open() as opened:
        try:
            header = gguf_headers.read(opened, file.size)
        except tensor_headers.Lies as error:
            return [found("gguf-header", file.name, str(error))], None
    findings = [found("absurd-size", file.name, what) for what in header.absurd]
    for key, value in header.values.items():
        if "chat_template" in key and isinstance(value, str):
            findings += templates.look(value, file.name, key)
    return findings, header


def _json(file: File) -> tuple[list[Finding], Any]:
    if file.base in _VOCABULARIES:
        return [], None  # texts and numbers alone, however large
    configures = bool(_CONFIGURES.fullmatch(file.base))
    if file.size > _LONGEST:
        return [found("cannot-be-read", file.name, f"a configuration of {file.size:,} bytes")] * configures, None
    try:
        held = json.loads(file.head(_LONGEST).decode("utf-8-sig"))
    except ValueError as error:
        what = f"it is not JSON: {inert(error)}"
        return [found("cannot-be-read", file.name, what)] * configures, None
    findings = list(_absurd(held, file.name)) + code.of_configuration(held, file.name)
    for where, template in templates.in_json(held):
        findings += templates.look(template, file.name, where)
    return findings, held


def _absurd(held: Any, file: str) -> Iterator[Finding]:
    for key, value in code.items(held):
        if isinstance(value, int) and value > LARGEST.get(key, value):
            yield found("absurd-size", file, f"{key} = {value:.3g}" if value < 1e300 else f"{key} is endless")
