"""Code that a checkpoint brings along: what its configuration names, and what the files of Python would do.

transformers imports a model's own files if `auto_map` (or `custom_pipelines`) of a configuration names them and the
caller trusts them; PEFT and sentence-transformers import modules that theirs name. Files of Python are read as a syntax
tree.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from labkit.models.scan.rules import Finding, found, inert, listed

_KERNELS = {"attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
            "_experts_implementation"}  # fmt: skip
_PLAIN_KERNELS = ("paged|", "flash_attention", "sdpa", "eager", "flex_attention")
_PACKAGES = {"torch", "transformers", "numpy", "tokenizers", "safetensors", "accelerate", "peft", "pandas", "labkit",
             "huggingface_hub", "jinja2", "IPython", "ipywidgets", "datasets", "sentencepiece"}  # fmt: skip
_ACTS = {
    "os": {"system", "popen", "fork", "startfile", "remove", "unlink", "rmdir", "putenv"},
    "subprocess": None, "pty": None, "ctypes": {"CDLL", "WinDLL", "PyDLL", "cdll"}, "socket": {"socket",
    "create_connection"}, "pickle": {"load", "loads", "Unpickler"}, "marshal": {"load", "loads"}, "dill": {"load",
    "loads"}, "runpy": None, "shutil": {"rmtree"}, "code": {"interact"}, "webbrowser": None, "ftplib": None,
    "smtplib": None, "telnetlib": None, "paramiko": None, "importlib": {"reload"},
}  # fmt: skip
_ALONE = {"eval", "exec", "compile", "__import__", "breakpoint"}
_LONGEST = 1_000_000  # characters of a file of Python


@dataclass(frozen=True)
class Named:
    """Code that a configuration names.

    Attributes:
        file: the configuration.
        module: the Python file, as `modeling_x.py`.
        repository: where it is instead of here; empty for here.
    """

    file: str
    module: str
    repository: str = ""


def named_in(held: Any, file: str) -> Iterator[Named]:
    """Code that a JSON file names, at whatever depth."""
    for key, value in items(held):
        if key == "auto_map" and isinstance(value, dict):
            named = [one for held in value.values() for one in (held if isinstance(held, list) else [held])]
        elif key == "custom_pipelines" and isinstance(value, dict):
            named = [one.get("impl") for one in value.values() if isinstance(one, dict)]
        else:
            continue
        for one in named:
            if isinstance(one, str) and one:
                repository, _, name = one.rpartition("--")
                yield Named(file, name.rpartition(".")[0].replace(".", "/") + ".py", repository)


def of_configuration(held: Any, file: str) -> list[Finding]:
    """What a JSON file asks for besides the model's own Python files."""
    findings = []
    for key, value in items(held):
        if key in _KERNELS and isinstance(value, str) and "/" in value.split("|")[-1]:
            findings.append(found("compiled-code", file, f"{key} is {inert(value)!r}"))
        elif key == "parent_library" and isinstance(value, str) and value.partition(".")[0] not in _PACKAGES:
            findings.append(found("remote-code", file, f"PEFT would import the module {inert(value)!r}"))
    if isinstance(held, list):  # modules.json of sentence-transformers
        kinds = [one.get("type") for one in held if isinstance(one, dict)]
        other = [kind for kind in kinds if isinstance(kind, str) and not kind.startswith("sentence_transformers.")]
        if other and file.endswith("modules.json"):
            findings.append(found("remote-code", file, f"sentence-transformers would import {listed(other)}"))
    return findings


def items(held: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of a JSON file, at whatever depth."""
    left = [held]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            yield from one.items()
            left += one.values()
        elif isinstance(one, list):
            left += one


def of_python(text: str, file: str, *, trusted: bool) -> list[Finding]:
    """What a file of Python would do.

    Args:
        text: what it holds.
        file: its name.
        trusted: whether `trust_remote_code=True` would import it.
    """
    acts = acts_of(text)
    if acts is None:
        if trusted:
            return [found("not-looked-at", file, "it is not Python that this version can parse")]
        return [found("python", file, "a Python file that this version cannot parse")]
    if acts and trusted:
        return [found("remote-code-acts", file, listed(acts))]
    findings = [] if trusted else [found("python", file, f"a Python file{': ' * bool(acts)}{listed(acts)}")]
    stem, _, _ = file.partition(".")
    if "/" not in file and (stem in _PACKAGES or stem in sys.stdlib_module_names or stem in ("sitecustomize",)):
        findings.append(found("shadows", file, f"it has the name of the package {inert(stem)}"))
    return findings


def acts_of(text: str) -> list[str] | None:
    """What a file of Python does that a model has no need to do, with the lines; None if it cannot be parsed."""
    if len(text) > _LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the file's own spelling
            tree = ast.parse(text)
        return _acts(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _acts(tree: ast.Module) -> list[str]:
    modules: dict[str, str] = {}  # local name -> module
    names: dict[str, str] = {}  # local name -> module.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name.partition(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    seen: dict[str, None] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        of = node.func
        if isinstance(of, ast.Name):
            name = names.get(of.id, of.id)
        elif isinstance(of, ast.Attribute) and isinstance(of.value, ast.Name):
            name = f"{modules.get(of.value.id, names.get(of.value.id, '?'))}.{of.attr}"
        else:
            continue
        module, _, called = name.rpartition(".")
        which = _ACTS.get(module, set())
        starts = module == "os" and called.startswith(("exec", "spawn", "posix_spawn"))
        if name in _ALONE or which is None or called in which or starts:
            seen[f"{inert(name)}() in line {node.lineno}"] = None
    return list(seen)
