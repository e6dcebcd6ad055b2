"""Hostile checkpoints, the first half: pickles, archives and headers. `hostile` adds the rest."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from suspects import (
    WEIGHTS,
    Make,
    Runs,
    gguf,
    header,
    plain,
    safetensors,
    storage,
    text,
    torch_legacy,
    torch_zip,
    touching,
)

HOSTILE: dict[str, tuple[Make, str, str]] = {}
"""By name: how to make it, the rule, and what the finding says."""
NOT_ON_WINDOWS = {"link-leaves", "special-file"}
"""Rules about what only other systems let everyone make."""


def add(name: str, rule: str, says: str) -> Callable[[Make], Make]:
    def added(make: Make) -> Make:
        HOSTILE[name] = make, rule, says
        return make

    return added


def one(name: str, rule: str, says: str, make: Make) -> None:
    add(name, rule, says)(make)


# -- pickles ---------------------------------------------------------------------------------------------------------


def pickled(held: Any, protocol: int = 4, name: str = "pytorch_model.bin") -> Make:
    """A clean checkpoint with a pickle of this beside it."""

    def make(folder: Path) -> None:
        (plain(folder) / name).write_bytes(held if isinstance(held, bytes) else pickle.dumps(held, protocol))

    return make


@add("a pickle with os.system", "pickle-runs-code", r"imports \w+\.system and calls \w+\.system \(opcodes STACK_GLOBAL")
def _(folder: Path) -> None:
    (plain(folder) / "pytorch_model.bin").write_bytes(pickle.dumps(touching(folder), 4))


@add("a file of torch with os.system", "pickle-runs-code", r"archive/data\.pkl in it imports (posix|nt)\.system")
def _(folder: Path) -> None:
    torch_zip(plain(folder) / "pytorch_model.bin", pickle.dumps(touching(folder), 2))


@add("an old file of torch with os.system", "pickle-runs-code", r"imports (posix|nt)\.system")
def _(folder: Path) -> None:
    torch_legacy(plain(folder) / "model.pt", pickle.dumps(touching(folder), 2))


@add("a second pickle behind a clean one", "pickle-runs-code", r"imports (posix|nt)\.system")
def _(folder: Path) -> None:
    (plain(folder) / "extra.pkl").write_bytes(pickle.dumps([1]) + pickle.dumps(touching(folder), 0))


@add("an array of objects", "pickle-runs-code", r"weights\.npy in it imports (posix|nt)\.system")
def _(folder: Path) -> None:
    np.savez(plain(folder) / "data.npz", weights=np.array([touching(folder)], dtype=object))


@add("an array of objects alone", "pickle-runs-code", r"imports (posix|nt)\.system")
def _(folder: Path) -> None:
    np.save(plain(folder) / "data.npy", np.array([touching(folder)], dtype=object))


@add("a tokenizer that is a pickle", "pickle-runs-code", r"imports (posix|nt)\.system")
def _(folder: Path) -> None:
    (plain(folder) / "tokenizer.model").write_bytes(pickle.dumps(touching(folder), 4))


one("builtins.eval", "pickle-runs-code", r"builtins\.eval", pickled(Runs(eval, "1")))
one("getattr by name", "pickle-runs-code", r"builtins\.getattr", pickled(Runs(getattr, "", "upper")))
one(
    "names through the memo",
    "pickle-runs-code",
    r"imports os\.system and calls os\.system",
    pickled(b"\x80\x04\x8c\x02os\x940\x8c\x06system\x940h\x00h\x01\x93\x8c\x02id\x85R."),
)
one(
    "names put together as it runs",
    "pickle-runs-code",
    "names only while it runs",
    pickled(b"\x80\x04\x8c\x02osK\x01\x93\x8c\x02id\x85R."),
)
one("INST of protocol 0", "pickle-runs-code", r"imports os\.system", pickled(b"(S'id'\nios\nsystem\n."))
one(
    "torch.load by way of a storage",
    "pickle-runs-code",
    r"torch\.storage\._load_from_bytes",
    pickled(b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01x\x85R."),
)
one("a module that nobody knows", "pickle-runs-code", r"evil\.payload", pickled(b"\x80\x02cevil\npayload\n)R."))
one(
    "a path through a module",
    "pickle-runs-code",
    r"transformers\.utils\.os\.system",
    pickled(b"\x80\x04\x8c\x0ctransformers\x8c\x0futils.os.system\x93\x8c\x02id\x85R."),
)
one(
    "a pickle that breaks off after its call",
    "pickle-runs-code",
    r"(posix|nt)\.system",
    pickled(pickle.dumps(Runs(os.system, "id"), 4)[:-1] + b"\xff\xff"),
)
one(
    "a pickle that cannot be followed",
    "pickle-cannot-be-followed",
    "cannot be followed to its end",
    pickled(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40)),
)
one(
    "a pickle in the place of safetensors",
    "disguised",
    "it is a pickle",
    lambda folder: (plain(folder) / "model.safetensors").write_bytes(pickle.dumps(Runs(os.system, "id"), 4)),
)

# -- archives --------------------------------------------------------------------------------------------------------


@add("a zip bomb", "archive-bomb", r"bytes that unpack to 400,000,000")
def _(folder: Path) -> None:
    with zipfile.ZipFile(plain(folder) / "more.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("zeros", "w") as opened:
            for _ in range(40):
                opened.write(bytes(1 << 20))
    whole = (folder / "more.zip").read_bytes()  # what it declares is changed, which is quicker than 400 MB
    (folder / "more.zip").write_bytes(whole.replace(struct.pack("<I", 40 << 20), struct.pack("<I", 400_000_000)))


@add("members on top of each other", "archive-bomb", "overlap")
def _(folder: Path) -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a", bytes(500))
        archive.writestr("b", bytes(500))
        archive.infolist()[1].header_offset = 0
    (plain(folder) / "more.zip").write_bytes(held.getvalue())


@add("an archive that writes outside", "archive-path", r"\.\./\.\./\.bashrc")
def _(folder: Path) -> None:
    with zipfile.ZipFile(plain(folder) / "more.zip", "w") as archive:
        archive.writestr("../../.bashrc", "x")


one(
    "a damaged archive",
    "archive-damaged",
    "cannot be read",
    lambda folder: (plain(folder) / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(60)),
)
one(
    "TorchScript",
    "torchscript",
    r"archive/code/__torch__\.py",
    lambda folder: torch_zip(plain(folder) / "model.pt", storage(), **{"archive/code/__torch__.py": b"def f(): ..."}),
)


@add("a Lambda layer of Keras", "keras-lambda", "Lambda")
def _(folder: Path) -> None:
    with zipfile.ZipFile(plain(folder) / "model.keras", "w") as archive:
        archive.writestr("config.json", '{"config": {"layers": [{"class_name": "Lambda"}]}}')


one(
    "a gzip bomb",
    "archive-bomb",
    "unpack to",
    lambda folder: (plain(folder) / "data.tar.gz").write_bytes(b"\x1f\x8b\x08" + bytes(30) + struct.pack("<I", 2**31)),
)

# -- headers ---------------------------------------------------------------------------------------------------------


def headed(change: Callable[[dict[str, Any]], Any], **how: Any) -> Make:
    """A clean checkpoint whose safetensors header is changed by `change`; what follows stays as long as it was."""

    def make(folder: Path) -> None:
        entries = header(WEIGHTS)
        room = max(entry["data_offsets"][1] for entry in entries.values())
        change(entries)
        safetensors(plain(folder) / "model.safetensors", entries, how.get("room", room), how.get("length"))

    return make


EMBED, NORM = WEIGHTS
LIES = "safetensors-header"
one(
    "a shape that does not fit",
    LIES,
    "takes 2,048 bytes, not 256",
    headed(lambda entries: entries[EMBED].update(shape=[128, 8])),
)
one(
    "a shape beyond all numbers",
    LIES,
    "no dtype and shape",
    headed(lambda entries: entries[EMBED].update(shape=[1 << 80])),
)
one("a negative shape", LIES, "no dtype and shape", headed(lambda entries: entries[EMBED].update(shape=[-16, -8])))
one(
    "a tensor outside the file",
    LIES,
    "of 288",
    headed(lambda entries: entries[NORM].update(shape=[1000], data_offsets=[256, 4256])),
)
one(
    "tensors on top of each other", LIES, "overlaps", headed(lambda entries: entries[NORM].update(data_offsets=[0, 32]))
)
one("bytes that belong to none", LIES, "belongs to none", headed(lambda entries: None, room=1000))
one(
    "a header longer than the file",
    LIES,
    r"should have 1,099,511,627,776 bytes",
    headed(lambda entries: None, length=1 << 40),
)
one(
    "a tensor that is there twice",
    LIES,
    "twice",
    lambda folder: safetensors(
        plain(folder) / "model.safetensors",
        (b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'),
        4,
    ),
)
one(
    "a header nested without end",
    LIES,
    "nested without end",
    lambda folder: safetensors(plain(folder) / "model.safetensors", b'{"a":' * 100_000),
)


def ggufs(**how: Any) -> Make:
    return lambda folder: gguf(folder / "model.gguf", **how)


one("GGUF: more values than bytes", "gguf-header", "a header of", ggufs(counts=(1 << 60, 3)))
one(
    "GGUF: a key longer than the file",
    "gguf-header",
    "are left of the file",
    ggufs(values={}, tensors={}, counts=(0, 1), after=struct.pack("<Q", 1 << 63)),
)
one(
    "GGUF: an array longer than the file",
    "gguf-header",
    r"tokens with .* entries",
    ggufs(values={"tokenizer.ggml.tokens": struct.pack("<IIQ", 9, 8, 1 << 50)}),
)
one(
    "GGUF: dimensions beyond all numbers",
    "gguf-header",
    "ends at byte",
    ggufs(tensors={"token_embd.weight": ([1 << 40, 1 << 40], 0, 0)}),
)
one(
    "GGUF: a thousand dimensions",
    "gguf-header",
    "1,000 dimensions",
    ggufs(tensors={}, counts=(1, 2), after=text("a") + struct.pack("<I", 1000) + bytes(64)),
)
one(
    "GGUF: tensors on top of each other",
    "gguf-header",
    "overlaps",
    ggufs(tensors={"a": ([4, 8], 0, 0), "b": ([4, 8], 0, 64)}, room=256),
)
one(
    "GGUF: a model of a billion blocks",
    "absurd-size",
    r"llama\.block_count = 1,000,000,000",
    ggufs(values={"general.architecture": "llama", "llama.block_count": 10**9}),
)
one(
    "a configuration of a billion layers",
    "absurd-size",
    "num_hidden_layers",
    lambda folder: plain(folder, num_hidden_layers=10**9),
)
one(
    "a configuration nested without end",
    "cannot-be-read",
    "RecursionError",
    lambda folder: (plain(folder) / "config.json").write_text('{"a":' * 100_000),
)
