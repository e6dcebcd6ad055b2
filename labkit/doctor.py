"""`labkit doctor`: what this machine has, what is wrong with it, and how to mend that."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from labkit._version import DISTRIBUTION, __version__, install_command

PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "ipywidgets", "anywidget", "jupyterlab")
IMPORT = """
import importlib, os, sys
for name in sys.argv[1:]:
    print(name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(" ", type(error).__name__ + ":", *str(error).split(), flush=True)
os._exit(0)
"""
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
        wrong = [*mismatches((DISTRIBUTION, *PACKAGES)), *unimportable(PACKAGES)]
        if not any(what.startswith("torch does not import") for what in wrong):
            try:
                _machine()
                wrong += [*_gpu(), *_caches()]
            except ImportError as error:  # of what labkit needs, which is said already where it is missing
                wrong = wrong or [f"labkit does not import ({error}): install it again: {install_command()}"]
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
    from labkit.models.errors import CacheUnusable
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
    try:
        ready = "ready" if packaged.default_is_ready() else "not downloaded yet: run labkit pull"
        cache = cache_folder()
        size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) if cache.is_dir() else 0
        print(f"cache         {cache} ({in_words(size)})")
    except (CacheUnusable, OSError):  # why is said at the end
        ready = "not readable"
    print(f"default model {packaged.NAME}, {ready}")


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
            extra = "lab" if name == DISTRIBUTION and needed.name in names else ""  # JupyterLab, where it is installed
            if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
                continue
            try:
                there = version(needed.name)
            except PackageNotFoundError:
                if extra:
                    continue
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


def unimportable(names: tuple[str, ...]) -> Iterator[str]:
    """Of these packages, as far as they are installed, those that cannot be imported, each cause once.

    They are imported in another process, since what is wrong with compiled code may end it.
    """
    waiting, causes = [name for name in names if is_installed(name)], set()
    while waiting:
        done = subprocess.run(
            [sys.executable, "-c", IMPORT, *waiting], capture_output=True, text=True, errors="replace"
        )
        failed = ""
        for line in done.stdout.splitlines():
            if line in waiting:
                failed = line
            elif line.startswith("  ") and line not in causes:
                causes.add(line)
                yield _import_failed(failed, line.strip())
        waiting = waiting[waiting.index(failed) + 1 :] if done.returncode and failed else []
        if done.returncode and failed:
            how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
            yield _import_failed(failed, f"Python ended with {how}")


def is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _import_failed(name: str, why: str) -> str:
    _, _, build = version(name).partition("+")
    exact = f"'{name}=={version(name)}'" + (f" --index-url INDEX, PyTorch's index of {build} builds" if build else "")
    first = "install the Visual C++ Redistributable, or " if name == "torch" and sys.platform == "win32" else ""
    return f"{name} does not import ({why}): {first}install it again: pip install --force-reinstall --no-deps {exact}"


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
        try:
            from bitsandbytes.cextension import lib
        except Exception:  # why is said by `unimportable`
            return
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


def _caches() -> Iterator[str]:
    """What keeps a model from being downloaded and kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from labkit.models.cache import cache_folder
    from labkit.models.errors import CacheUnusable
    from labkit.models.sources import default_model as packaged

    try:
        ready = packaged.default_is_ready()
    except CacheUnusable as error:
        yield str(error)
        return
    if found := folder_trouble(cache_folder(), "LABKIT_CACHE", read_only_is_well=ready):
        yield found
    hub = Path(HF_HUB_CACHE)
    shared = os.path.isdir(hub) and any(hub.glob("models--*"))
    if found := folder_trouble(hub, "HF_HUB_CACHE", read_only_is_well=shared):
        yield found
    if not ready and (why := unreachable(packaged.REQUIREMENT)):
        yield f"the default model is not here, and {why}, or copy the cache of a machine that has it"


def folder_trouble(folder: Path, variable: str, *, read_only_is_well: bool) -> str:
    """What keeps models from being kept in a folder, made yet or not; empty if nothing does.

    Args:
        folder: where models are kept.
        variable: the one in the environment that names another.
        read_only_is_well: it has what is needed, so that nobody has to write there.
    """
    from labkit.models.memory import in_words

    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not there.is_dir():
        return f"{there} is a file, not a folder, so no model can be kept there: set {variable} to a folder of yours"
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        if read_only_is_well:
            return ""
        return (
            f"{there} cannot be written ({error.strerror}), so no model can be kept there: set {variable} to a folder "
            "of yours"
        )
    if (left := shutil.disk_usage(there).free) < ROOM:
        return f"the disk of {folder} has {in_words(left)} left: make room, or set {variable} to a folder on another"
    return ""


def unreachable(requirement: str) -> str:
    """Why pip cannot get a package, from whichever index or proxy, and what to do; empty if it can."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "5"]
    name = Requirement(requirement).name
    if not importlib.util.find_spec("pip"):
        return "this Python has no pip, which fetches it: run python -m ensurepip (with uv: uv pip install pip)"
    try:
        done = subprocess.run([*command, "index", "versions", name], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "pip had no answer from the package index in a minute: connect, or name your proxy in HTTPS_PROXY"
    why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
    return f"pip does not find {name} in the package index ({why}): connect to the network" if done.returncode else ""
