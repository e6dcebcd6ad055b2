"""Results on disk: every kind of file that labkit saves, and one way to write, recognise and open them.

Most are numpy arrays and what describes them, in one `.npz` file without pickles; a PromptLab session is JSON; a sweep
and a collection are folders, with a manifest and shards. Each says its kind and the version of its format. Files from
before they did are recognised by what they hold. Whatever is opened with the opener of another kind is refused with the
name of the right one.
"""

from __future__ import annotations

import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open


@dataclass(frozen=True)
class Kind:
    """A kind of file: what it calls itself, what it is in words, what opens it, and the newest format read here.

    A kind that is a folder has the name of the file in it that describes it: its manifest.
    """

    name: str
    words: str
    opener: str
    newest: int = 1
    manifest: str = ""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("grid", "a grid", "lk.open_grid(path)"),
        Kind("edges", "edge scores", "lk.open_edges(path)"),
        Kind("attention", "attention patterns", "lk.open_attention(path)"),
        Kind("lens", "a lens", "lk.open_lens(path)", newest=2),  # 1 counted ranks from 0
        Kind("steering vector", "a steering vector", "lk.open_steering_vector(path)"),
        Kind("steering search", "a search for where to steer", "lk.open_steering_search(path)"),
        Kind("generation", "a generation", "lk.open_generation(path)"),
        Kind("lab", "a PatchLab", "lk.PatchLab.open(lm, path)"),
        Kind("labkit prompt session", "a session of PromptLab", "lk.PromptLab(lm).open_session(path)"),
        Kind("quantisation report", "a quantisation report", "lk.open_report(path)"),
        Kind("findings", "findings in two precisions", "lk.open_findings(path)"),
        Kind("audit", "an audit", "lk.open_audit(path)"),
        Kind("audit heads", "what heads carry of a preference", "lk.open_audit_heads(path)"),
        Kind("audit ablation", "an audit without some heads", "lk.open_audit_ablation(path)", newest=2),
        Kind("benchmark", "a benchmark", "lk.open_benchmark(path)"),
        Kind("refusal", "a refusal direction", "lk.open_refusal(path)"),
        Kind("injection", "what follows a hidden instruction", "lk.open_injection(path)"),
        Kind("memorisation", "continuations of known texts", "lk.open_memorisation(path)"),
        Kind("choices", "a choice between answers", "lk.open_choices(path)"),
        Kind("input attribution", "what in a prompt made a text likely", "lk.open_input_attribution(path)"),
        Kind("deletion curve", "a deletion curve", "lk.open_deletion_curve(path)"),
        Kind("patchscope", "a patchscope", "lk.open_patchscope(path)"),
        Kind("continued", "what is written under a patch", "lk.open_continued(path)"),
        Kind("running cost", "what models cost to run", "lk.open_running_cost(path)"),
        Kind("probe", "a probe", "lk.open_probe(path)", newest=2),  # 1 had no biases
        Kind("head circuit", "what a head reads and writes", "lk.open_head_circuit(path)"),
        Kind("head circuits", "how heads compose", "lk.open_head_circuits(path)"),
        Kind("examples", "examples of a unit", "lk.open_examples(path)"),
        Kind("sweep", "a sweep", "lk.open_sweep(folder)", manifest="sweep.json"),
        Kind("sweep shard", "a part of a sweep", "lk.open_sweep(its folder)"),
        Kind("collection", "a collection", "lk.open_collection(folder)", manifest="collection.json"),
        Kind("collection shard", "a part of a collection", "lk.open_collection(its folder)"),
    )
}


def register(kind: Kind) -> None:
    """Register a kind of file: every opener then names it and its opener.

    Raises:
        ValueError: there is a kind of that name.
    """
    if KINDS.setdefault(kind.name, kind) is not kind:
        raise ValueError(f"there is already a kind of file {kind.name!r}")


MANIFESTS = tuple(kind.manifest for kind in KINDS.values() if kind.manifest)
"""The files that make a folder a sweep, or a collection."""

_UNREADABLE = (
    KeyError, IndexError, TypeError, ValueError, AttributeError, OSError, EOFError,
    zipfile.BadZipFile, zlib.error, RuntimeError, SafetensorError,
)  # fmt: skip
_MARKS = {"edges": {"edges", "recipe"}, "attention": {"all_layers", "scores"}, "grid": {"over", "index"}}
_MARKS |= {"sweep": {"recipe", "pairs", "shard"}, "sweep shard": {"hash", "pairs"}, "lab": {"settings", "grids"}}


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write to that takes its name when the block ends: it is complete, or the old one stays.

    It gets the permissions that any new file gets here, so that a shared folder stays shared.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def save_arrays(path: str | os.PathLike[str], kind: str, about: dict[str, Any], **arrays: np.ndarray) -> Path:
    """Write arrays and a JSON-able description to one file, in one step."""
    with written_whole(path) as file:
        np.savez_compressed(file, about=described(kind, about), **arrays)  # type: ignore[arg-type]
    return Path(path)


def described(kind: str, about: dict[str, Any]) -> np.ndarray:
    """The description of a file, as the array that goes into it."""
    return np.array(json.dumps({"kind": kind, "format": KINDS[kind].newest, **about}))


def open_arrays(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays of a file that `save_arrays` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else, is damaged, or was saved by a newer labkit.
    """
    about = open_about(path, kind)
    with reading(path, kind), np.load(path, allow_pickle=False) as file:
        return about, {name: file[name] for name in file.files if name != "about"}


def open_about(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The description of a file (or of the folder of a sweep), if it is of this kind.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, or was saved by a newer labkit; the message names its opener.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    wanted, about, found = KINDS[kind], None, ""
    try:
        about = _about(Path(path))
        held = _kind_of(about)
        found = _unknown(about) if held is None else f"it holds {held.words}, which {held.opener} opens"
    except _UNREADABLE as error:
        held, found = None, f"it is {_other(Path(path), error)}"
    if held is not wanted or about is None:
        raise ValueError(f"{str(path)!r} is not {wanted.words} saved by labkit: {found}")
    with reading(path, kind):
        version = int(about.get("format", about.get("version", 1)))  # a session called its format `version` before
    if version > wanted.newest:
        raise ValueError(
            f"{str(path)!r} was saved by a newer labkit: it holds {wanted.words} of format {version}, and this labkit "
            f"reads formats up to {wanted.newest}. Update labkit to open it with {wanted.opener}"
        )
    return about


@contextmanager
def reading(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Wraps the parsing of a file of a known kind: missing parts are reported as a damaged file, not as a raw error.

    Raises:
        ValueError: something went wrong in the block.
    """
    try:
        yield
    except _UNREADABLE as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ValueError(
            f"{str(path)!r} says that it holds {KINDS[kind].words}, but it is damaged or incomplete ({what})"
        ) from None


def _about(path: Path) -> Any:
    """The description in a file of any kind of ours."""
    if path.is_dir():
        return json.loads((path / _manifest_in(path)).read_text("utf-8"))
    with path.open("rb") as file:
        start = file.read(64)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:  # the header of safetensors
        with safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {})["about"])
    start = start.lstrip()
    if start[:1] in (b"{", b"["):
        return json.loads(path.read_text("utf-8"))
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file["about"]))


def _manifest_in(folder: Path) -> str:
    """The name of the manifest that a folder has, or of any."""
    return next((name for name in MANIFESTS if (folder / name).exists()), MANIFESTS[0])


def _kind_of(about: Any) -> Kind | None:
    """What a description is of; one that does not say so is known by its keys."""
    if not isinstance(about, dict):
        return None
    if "kind" in about:
        return KINDS.get(about["kind"]) if isinstance(about["kind"], str) else None
    return next((KINDS[name] for name, keys in _MARKS.items() if keys <= set(about)), None)


def _unknown(about: Any) -> str:
    if isinstance(about, dict) and "kind" in about:
        return f"it holds {str(about['kind'])[:60]!r}, which this version of labkit does not know; a newer one may"
    return "it holds JSON of another kind"


def _other(path: Path, error: Exception) -> str:
    """What kind of file this is, if it is not one of ours."""
    if path.is_dir():
        name = _manifest_in(path)
        return f"a folder whose {name} cannot be read ({error})" if (path / name).exists() else "a folder"
    if not path.is_file():
        return "no file"
    if isinstance(error, PermissionError):
        return "a file that you are not allowed to read"
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    if start[:4] == b"PK\x03\x04" and not zipfile.is_zipfile(path):
        return "a zip file that was cut short, perhaps by a copy or download that stopped"
    if start[:2] == b"PK":
        return "a zip file that labkit did not write"
    if start.lstrip()[:1] in (b"{", b"["):
        return f"a text file that looks like JSON but is incomplete ({error})"
    control = "the weights of a model (GGUF), or a control vector, which lk.load_control_vector(lm, path) reads"
    names = {b"GGUF": control, b"\x93NUM": "a bare numpy array", b"\x89PNG": "a picture"}
    return names.get(start[:4]) or ("a binary file of another kind" if b"\0" in start else "a text file")
