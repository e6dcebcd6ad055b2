"""From a name to a model in memory.

In order: where it comes from, what kind of model it is, and whether it fits; only then are weights read, from
safetensors or GGUF, never from pickles.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from labkit.models import shared_weights
from labkit.models import unpacked_layers as fast
from labkit.models.catalog import that_fit
from labkit.models.errors import LoadError, NotADecoder, NotEnoughMemory
from labkit.models.handle import Model
from labkit.models.hub_errors import explained
from labkit.models.memory import available, empty_model, in_words, predict
from labkit.models.packed_experts import register
from labkit.models.processors import shared
from labkit.models.quantisation import USUAL, Packing, has_experts, import_bitsandbytes, quantisation_config
from labkit.models.quiet import quiet
from labkit.models.scan.loading import check_templates
from labkit.models.sources import default_model as packaged
from labkit.models.sources import kinds as sources
from labkit.models.sources import stored, text_part
from labkit.models.sources.read import Plan, read
from labkit.models.sources.tensors import adapter_alone, check_folder, check_tokenizer
from labkit.models.unwrapped import adapters_of, unwrapped
from labkit.text.as_code import changed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

M = TypeVar("M", bound=Model)

BITS = (4, 8, 16, 32)


@shared()
def loaded(
    kind: type[M],
    name: str | os.PathLike[str] | None,
    *,
    bits: int | None,
    revision: str | None,
    device: str | torch.device | None,
    dtype: torch.dtype | str | None,
    packing: Packing,
    trust_remote_code: bool,
    progress: bool,
) -> M:
    """A model of this kind, read from its source; see `labkit.load`."""
    if bits is not None and bits not in BITS:
        raise ValueError(f"bits must be 4, 8, 16 or 32; got {bits!r}")
    check_packing(packing, bits or 4)
    asked = _dtype(dtype)
    where, spread = _device(device)
    # what is kept in NF4 was packed in the usual way; another way starts from the numbers before
    kept_bits = (bits or 4) if packing == USUAL else 16
    found = sources.find(None if name is None else str(name), bits=kept_bits, progress=progress)
    folder, label, pinned, ours, stored_as = found
    source = str(folder or name)
    with explained(label), quiet(progress=progress), torch.inference_mode(False):
        if folder is not None and not ours:
            check_folder(folder)
        whole = _config(source, revision=revision, trust_remote_code=trust_remote_code)
        config = text_part.config_of(whole, label) or whole
        form = stored.of(whole)
        bits = stored.bits_to_load(form, bits, label)
        if form is not None and form.way != "expanded" and packing != USUAL:
            raise ValueError(
                f"{label} is already quantised ({form.name}); keep, quant_type and double_quant need the weights from "
                "before that"
            )
        dtype = asked or compute_dtype(where.type, bits)
        if bits < 16:
            import_bitsandbytes()
        if form is not None and form.way == "package":
            stored.check_package(form, label, device=where, dtype=dtype)
        lazily = config is not whole or (form is not None and form.way == "expanded")
        if form is not None and form.way == "expanded":
            stored.forget(config)  # it is read as if it were stored in 16 bits
        skeleton = empty_model(config, trust_remote_code=trust_remote_code)
        choices = BITS if form is None else form.choices
        _check_fits(
            label, skeleton, bits=bits, dtype=dtype, device=where, spread=spread, choices=choices, disk=not lazily,
            packing=packing,
        )  # fmt: skip
        tokenizer = _tokenizer(source, label, revision=revision, trust_remote_code=trust_remote_code)
        check_templates(tokenizer, label)
        settings: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if bits == 4 and has_experts(skeleton):
            settings["experts_implementation"] = "eager"  # one expert after another, one at a time dequantised
        if (form is None or form.way == "expanded") and bits < 16:
            settings["quantization_config"] = quantisation_config(bits, dtype, skeleton, packing)
        plan = Plan(
            source=source,
            label=label,
            revision=revision,
            config=config,
            skeleton=skeleton,
            stored=form,
            is_part=config is not whole,
            ours=ours,
            packing=packing,
            bits=bits,
            dtype=dtype,
            devices={"device_map": "auto", **_spread_over(bits)} if spread else {"device_map": {"": where}},
            settings=settings,
        )
        hf = read(plan, tokenizer)
        if form is not None and stored.of(hf.config) is None:  # transformers has dequantised it
            bits = bits if form.way == "expanded" else torch.finfo(dtype).bits
    commit = pinned or getattr(whole, "_commit_hash", None) or _commit(source, revision) or revision
    code = _load_code(label, bits=bits, dtype=asked, packing=packing, revision=commit)
    stored_as = stored_as or (form.name if form else None)
    model = kind(hf, tokenizer, name=label, revision=commit, bits=bits, load_code=code, stored_as=stored_as)
    if ours and bits == 4:
        model.fast.mapped = shared_weights.mapped(hf)
    return model


def wrapped(kind: type[M], hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> M:
    """A model of this kind around a transformers model; see `labkit.wrap`."""
    hf = unwrapped(hf)
    name = getattr(hf.config, "_name_or_path", "") or type(hf).__name__
    form = stored.of(hf.config)
    hf = text_part.of_model(hf, name)
    _check_decoder(hf.config, name)
    bits = (form and form.bits) or torch.finfo(hf.get_input_embeddings().weight.dtype).bits
    if adapters := adapters_of(hf):
        name = f"{name} + {', '.join(adapters)}"  # another model than the one of that name alone
    revision = getattr(hf.config, "_commit_hash", None)
    code = _load_code(name, bits=bits, dtype=None, revision=revision)
    return kind(
        hf, tokenizer, name=name, revision=revision, bits=bits, load_code=code, stored_as=form.name if form else None
    )


def check_packing(packing: Packing, bits: int) -> None:
    """Can weights of so many bits be packed in this way?

    Raises:
        ValueError: nothing is packed, or not in 4 bits.
    """
    if packing.keep and bits > 8:
        raise ValueError(f"keep= leaves matrices unquantised; with bits={bits} none is quantised, so leave it out")
    if bits != 4 and replace(packing, keep=()) != USUAL:
        raise ValueError(f"quant_type and double_quant are for bits=4; got bits={bits}")


def _load_code(
    name: str, *, bits: int, dtype: torch.dtype | None, revision: str | None, packing: Packing = USUAL
) -> str:
    told = [] if name == packaged.NAME else [repr(name)]
    told.append(f"bits={bits}")
    if dtype is not None:
        told.append(f"dtype={str(dtype).removeprefix('torch.')!r}")
    how = changed(vars(USUAL), vars(packing))
    told += [f"{setting}={list(value) if setting == 'keep' else value!r}" for setting, value in how.items()]
    if revision and name != packaged.NAME:
        told.append(f"revision={revision!r}")
    return f"lm = lk.load({', '.join(told)})"


# -- how and what --------------------------------------------------------------------------------------------------


def _device(asked: str | torch.device | None) -> tuple[torch.device, bool]:
    """The device, and whether to spread the model over all there are."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    spread = asked == "auto"
    try:
        device = torch.device(best if asked is None or spread else asked)
    except RuntimeError:
        raise ValueError(f"{asked!r} is not a device; use cpu, cuda, cuda:1, mps or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no CUDA GPU that PyTorch can use; leave device out to run on the CPU")
    return device, spread


def _config(source: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    register()  # a checkpoint may have been saved with its experts in 4 bits
    try:
        config = AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=trust_remote_code)
    except OSError as error:
        from transformers.utils.hub import cached_file

        answered = "does not appear to have a file named" in str(error)  # otherwise the hub is not contacted again
        try:  # it may be an adapter, which has another configuration
            adapter = cached_file(
                source, "adapter_config.json", revision=revision or "main", local_files_only=not answered
            )
        except OSError:
            raise error from None
        raise adapter_alone(source, Path(str(adapter))) from None
    if text_part.config_of(config, source) is None:
        _check_decoder(config, source)
    return config


def _commit(source: str, revision: str | None) -> str | None:
    """The commit of the hub that a model was read from; some versions of transformers keep it nowhere."""
    from transformers.utils.hub import cached_file

    if Path(source).is_dir():
        return None
    place = Path(str(cached_file(source, "config.json", revision=revision or "main", local_files_only=True))).parent
    return place.name if place.parent.name == "snapshots" else None


def _check_decoder(config: Any, name: str) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    what = config.model_type
    if config.is_encoder_decoder:
        why = f"it is an encoder-decoder ({what})"
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        why = f"it is an encoder ({what})"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(config, "auto_map"):
        why = f"transformers has no causal language model of type {what!r}"
    else:
        return
    raise NotADecoder(f"{name} is not a decoder-only language model: {why}. `labkit models` lists some that work")


# -- what to compute in ---------------------------------------------------------------------------------------------


def compute_dtype(device: str, bits: int) -> torch.dtype:
    """What to compute in: float32 for 32 bits; else bfloat16 on every CPU, float16 on older GPUs and Apple's.

    A CPU without units for bfloat16 multiplies in float32 and rounds (`models.bf16_matmul`), so a model has one size
    and gives the same numbers, up to the order of summation, on all of them.
    """
    if bits == 32:
        return torch.float32
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    if device == "mps":
        return torch.float16
    return torch.bfloat16


def _dtype(asked: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by itself or by its name."""
    found = getattr(torch, asked.removeprefix("torch."), None) if isinstance(asked, str) else asked
    if found in (None, torch.float32, torch.bfloat16, torch.float16) and (found is None) == (asked is None):
        return found
    raise ValueError(f"dtype must be 'float32', 'bfloat16' or 'float16'; got {asked!r}")


# -- will it fit ----------------------------------------------------------------------------------------------------


def _check_fits(
    label: str,
    skeleton: PreTrainedModel,
    *,
    bits: int,
    dtype: torch.dtype,
    device: torch.device,
    spread: bool,
    choices: tuple[int, ...] = BITS,
    disk: bool = True,
    packing: Packing = USUAL,
) -> None:
    """Compare the size of the weights with the free memory, before any is read.

    `choices` are the numbers of bits that it can be loaded in, for the advice; with `disk` the rest can go to disk.
    """
    need = predict(skeleton, bits=bits, dtype=dtype, packing=packing)
    have = available(device)
    if device.type != "cuda" and need > 0.95 * have and fast.kept_unpacked():
        fast.give_back()  # kept for speed alone
        have = available(device)
    if spread:
        have = sum(room(bits).values()) + (shutil.disk_usage(tempfile.gettempdir()).free if bits >= 16 and disk else 0)
    if need <= 0.95 * have:
        return
    fits = lambda b: predict(skeleton, bits=b, dtype=compute_dtype(device.type, b)) <= 0.8 * have  # noqa: E731
    smaller = [b for b in choices if b < bits and fits(b)]
    advice = f" It would fit with bits={max(smaller)}." if smaller else ""
    if models := that_fit(0.8 * have, bits=4):
        advice += f" In 4 bits these would fit: {', '.join(m.id for m in models[:3])}."
    raise NotEnoughMemory(
        f"{label} in {bits} bits needs {in_words(need)}, but {device} has {in_words(have)} free."
        + (advice or " Free some memory, or use a machine with more.")
    )


def _spread_over(bits: int) -> dict[str, Any]:
    """How much of each device to fill, and where on disk the rest goes; that folder goes with the process."""
    if bits < 16:
        return {"max_memory": room(bits)}
    folder = tempfile.mkdtemp(prefix="labkit-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"max_memory": room(bits), "offload_folder": folder}


def room(bits: int) -> dict[int | str, int]:
    """Bytes of weights that each device may take: what is free, minus working memory.

    bitsandbytes' layers stay on the GPUs where there are any; the CPU takes weights of 16 and 32 bits only.
    """
    found: dict[int | str, int] = {}
    for index in range(torch.cuda.device_count()):
        free = available(torch.device("cuda", index))
        found[index] = int(free - max(2e9, 0.15 * free))
    if bits >= 16 or not found:
        found["cpu"] = int(0.8 * available(torch.device("cpu")))
    return {device: max(0, size) for device, size in found.items()}


def _tokenizer(source: str, label: str, *, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if (folder := Path(source)).is_dir():
        check_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision or "main", trust_remote_code=trust_remote_code)
    except Exception as error:
        of_the_hub = isinstance(error, OSError) and not folder.is_dir() and "tokenizer" not in str(error)
        if of_the_hub or "trust_remote_code" in str(error):
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise LoadError(
            f"the tokenizer of {label} cannot be read: {reason}. Download its files again (tokenizer.json, "
            "tokenizer_config.json), or load the model with transformers and call lk.wrap(model, tokenizer)"
        ) from error
