"""The model where the work is done: here, in threads, in processes, on the workers of a cluster.

A worker gets a `Plan`: which model, and what to compute. The calling process uses its own model; any other loads it
once and keeps it for the following shards. On a machine with several GPUs each process takes a free one.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from labkit.elsewhere import where_the_model_is
from labkit.language_model import LanguageModel, load
from labkit.models.sources.default_model import NAME
from labkit.models.weights import is_quantised

ModelSource = LanguageModel | str | Mapping[str, Any] | Callable[[], LanguageModel]
"""A model, or a way to load one where the work is done: a name, arguments of `lk.load`, or a function."""

_at_home: weakref.WeakValueDictionary[str, LanguageModel] = weakref.WeakValueDictionary()
_functions: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_loaded: dict[str, LanguageModel] = {}  # at most one: what this worker loaded last
_loading = threading.Lock()
_gpu: tuple[int, FileLock] | None = None  # this process's own; its lock is held for as long as the process lives


@dataclass(frozen=True)
class Plan:
    """What a worker needs; small, and the same for every shard."""

    home: int  # the calling process
    key: str  # which model, there
    spec: dict[str, Any] | Callable[[], LanguageModel]  # how to load it elsewhere
    weights: str | None  # fingerprint of the caller's model, if any
    settings: dict[str, Any]  # what to compute
    call: str  # what was called: `sweep`
    threads: int | None = None  # how many a process may use

    def model(self) -> LanguageModel:
        """The model: the caller's own in its process, loaded once anywhere else.

        Raises:
            LoadError: it cannot be loaded here.
            ValueError: the loaded model has other weights than the caller's.
        """
        if os.getpid() == self.home and (lm := _at_home.get(self.key)) is not None:
            return lm
        with _loading:
            if self.key not in _loaded:
                _loaded.clear()
                if self.threads:
                    torch.set_num_threads(self.threads)
                lm = self._load()
                if self.weights not in (None, fingerprint(lm)):
                    raise ValueError(
                        f"a worker loaded {lm.name!r} with other weights than the model that lk.{self.call} was given, "
                        "which was changed or wrapped. Instead of the model, give it a function that loads it"
                    )
                _loaded[self.key] = lm
            return _loaded[self.key]

    def _load(self) -> LanguageModel:
        if callable(self.spec):
            return self.spec()
        wanted = {"progress": False, **self.spec}
        if wanted.get("device") in (None, "cuda") and torch.cuda.device_count() > 1:
            wanted["device"] = f"cuda:{free_gpu()}"
        return load(**wanted)


def plan_for(source: ModelSource, settings: dict[str, Any], *, call: str, threads: int | None = None) -> Plan:
    """The plan for a model that is here, or that is to be loaded where the work is done; `call` names what asks for it.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(source, LanguageModel):
        # Workers compute in the caller's dtype, so a call gives one result wherever its shards are done.
        name = None if source.name == NAME else source.name
        spec: dict[str, Any] = {"name": name, "revision": source.revision if name else None, "bits": source.bits}
        spec |= {"dtype": source.dtype, "device": source.device.type}
        weights = fingerprint(source)
        key = _key(spec, weights)
        _at_home[key] = source
        return Plan(os.getpid(), key, spec, weights, settings, call, threads)
    if isinstance(source, str | Mapping):
        spec = {"name": source} if isinstance(source, str) else dict(source)
        return Plan(os.getpid(), _key(spec, None), spec, None, settings, call, threads)
    if callable(source):
        key = _functions.setdefault(source, uuid.uuid4().hex)
        return Plan(os.getpid(), key, source, None, settings, call, threads)
    raise TypeError(
        f"lk.{call} needs a model from lk.load, or a way to load one: a name, a dict of lk.load's arguments, or a "
        f"function; got {source!r:.80}"
    )


def _key(spec: dict[str, Any], weights: str | None) -> str:
    """The same for the same model, so that a worker that has it does not load it again for the next call."""
    return hashlib.sha256(repr([sorted(spec.items()), weights]).encode()).hexdigest()


@where_the_model_is
def fingerprint(lm: LanguageModel) -> str:
    """A short hash of a model's weights: a few of every matrix, the same before and after it has run.

    bitsandbytes repacks weights when a layer first runs, and devices round differently, so for a quantised layer it
    takes the signs of the outputs for a few unit vectors.
    """
    digest = hashlib.sha256()
    with lm.busy():
        for name, module in lm.hf.named_modules():
            if is_quantised(module):
                columns = torch.linspace(0, module.in_features - 1, 4, device=lm.device).long()
                units = torch.zeros(4, module.in_features, dtype=lm.dtype, device=module.weight.device)
                units[torch.arange(4), columns] = 1
                found = {f"{name}.weight": module.forward(units).sign()}
            else:
                packed = {n: b for n, b in module.named_buffers(recurse=False) if b.dtype == torch.uint8}
                found = {f"{name}.{n}": w for n, w in [*module.named_parameters(recurse=False), *packed.items()]}
            for place, weight in found.items():
                digest.update(f"{place} {tuple(weight.shape)}".encode())
                flat = weight.detach().reshape(-1)
                digest.update(flat[:: max(1, len(flat) // 64)].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def recipe_of(plan: Plan) -> dict[str, Any]:
    """What identifies a call, for JSON; the model's arguments are listed with the others, to be compared."""
    model = plan.spec if isinstance(plan.spec, dict) else {"model": plan.spec}
    recipe = {**{k: v for k, v in model.items() if k != "device"}, "weights": plan.weights, **plan.settings}
    other = {k: v for k, v in recipe.items() if not (v is None or isinstance(v, str | int | float | list | tuple))}
    return recipe | {k: source_of(v) if callable(v) else str(v) for k, v in other.items()}


def source_of(function: Callable[..., Any]) -> str:
    """A function as a store knows it again: its source text, or its name where there is none."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", repr(type(function)))


def load_code(source: ModelSource, plan: Plan) -> str:
    """The Python that loads the model."""
    if isinstance(source, LanguageModel):
        return source.code()
    if isinstance(plan.spec, dict):
        arguments = ", ".join(f"{name}={value!r}" for name, value in plan.spec.items())
        return f"import labkit as lk\n\nlm = lk.load({arguments})\n"
    return "import labkit as lk\n\n"


def free_gpu(uuids: Sequence[str] | None = None, *, folder: str | os.PathLike[str] | None = None) -> int:
    """The number of a GPU that no other process of labkit has; any of them if all are taken.

    A process holds a lock file by the GPU's own identity, so that it does not matter in which order processes see their
    GPUs; the system releases the lock when the process ends.
    """
    global _gpu
    if _gpu is not None:
        return _gpu[0]
    if uuids is None:
        uuids = [str(torch.cuda.get_device_properties(n).uuid) for n in range(torch.cuda.device_count())]
    place = Path(folder or tempfile.gettempdir())
    for number, identity in enumerate(uuids):
        lock = FileLock(place / f"labkit-gpu-{identity}.lock")
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            continue
        _gpu = number, lock
        return number
    return os.getpid() % len(uuids)
