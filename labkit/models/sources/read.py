"""From a checkpoint to a model with weights: which files, in what form, through the cache or straight into memory."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labkit.models.cache import entry
from labkit.models.errors import CacheUnusable, LoadError
from labkit.models.quantisation import USUAL, Packing, finish, has_experts, quantisation_config, stored_dtype
from labkit.models.scan.loading import check_paths
from labkit.models.sources import text_part, whole
from labkit.models.sources.default_model import SHARD
from labkit.models.sources.expand import expanded
from labkit.models.sources.pinned import FORMAT
from labkit.models.sources.stored import Stored, check_weights, not_read
from labkit.models.sources.tensors import INDEX, SINGLE, Tensor, check_index, open_files, read_json, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Plan:
    """All that is decided before weights are read.

    Attributes:
        source: a hub id or a folder.
        label: what to call the model.
        revision: of the hub.
        config: of the model that is made.
        skeleton: that model without weights.
        stored: how the checkpoint is stored; None for plain numbers.
        is_part: it is the text part of a larger one.
        ours: it is an entry of labkit's cache, whole by its manifest.
        packing: of 4-bit weights.
        bits, dtype: to load in, and to compute in.
        devices: where to put it, as arguments of `from_pretrained`.
        settings: further arguments of `from_pretrained`.
    """

    source: str
    label: str
    revision: str | None
    config: Any
    skeleton: PreTrainedModel
    stored: Stored | None
    is_part: bool
    ours: bool
    packing: Packing
    bits: int
    dtype: torch.dtype
    devices: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def way(self) -> str:
        return self.stored.way if self.stored else "plain"


def read(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model with its weights.

    Raises:
        LoadError: the checkpoint is not whole, or not read right.
    """
    dtype = plan.dtype
    cached = (
        plan.way == "expanded" and plan.bits == 4 and plan.packing == USUAL and not hasattr(plan.config, "auto_map")
    )
    if cached:  # quantised from bfloat16 whatever is computed in, so that what is kept is one and the same
        four = quantisation_config(4, torch.bfloat16, plan.skeleton)
        plan = replace(plan, dtype=torch.bfloat16, settings={**plan.settings, "quantization_config": four})
    files = [] if plan.ours else _files(plan)
    tensors, checked = _tensors(plan, files) if files else ({}, plan.ours)
    # with the text part of one that takes more, the rest has no place
    extra = not checked and not plan.is_part and type(plan.skeleton.config) is type(plan.config)
    if plan.way == "expanded" or plan.is_part:
        if not tensors:
            raise LoadError(f"{plan.label} has no safetensors weights; labkit reads no others")
        if cached:
            try:
                return _through_the_cache(plan, files, tensors, tokenizer, dtype=dtype)
            except CacheUnusable as error:
                print(f"labkit: {plan.label} in 4 bits was not cached: {error}", file=sys.stderr)
        return _finished(replace(plan, dtype=dtype), *_from_tensors(plan, tensors), extra=extra)
    if plan.ours and plan.bits == 16:  # kept in 32 bits: halved one tensor at a time, so that never both are in memory
        halved = open_files(weight_files(Path(plan.source)))
        return _finished(plan, *_from_tensors(plan, halved), extra=extra)
    try:
        return _finished(plan, *_from_source(plan, plan.source, plan.revision, plan.settings), extra=extra)
    except Exception as error:
        if plan.stored is None or plan.way != "package" or isinstance(error, OSError | MemoryError):
            raise
        raise not_read(plan.stored, plan.label, error) from error


def _finished(plan: Plan, hf: PreTrainedModel, info: Mapping[str, Any], *, extra: bool) -> PreTrainedModel:
    whole.judge(plan.label, info, hf, extra=extra, buffers=plan.way == "package")
    finish(hf, plan.bits, plan.dtype)
    _cap_scores(hf)
    if plan.stored is not None and plan.way == "package":
        check_weights(plan.stored, plan.label, hf)
    return hf


def _cap_scores(hf: PreTrainedModel) -> None:
    """Have a model that was trained with soft-capped attention scores (Gemma 2) run with them: older versions of
    transformers run it with fused attention, which leaves the cap out."""
    config = hf.config.get_text_config(decoder=True)
    if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
        hf.set_attn_implementation("eager")


def _from_source(plan: Plan, source: str, revision: str | None, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        source,
        revision=revision or "main",
        dtype=stored_dtype(plan.bits, plan.dtype),
        use_safetensors=True,
        output_loading_info=True,
        **plan.devices,
        **settings,
    )


def _from_tensors(plan: Plan, tensors: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """From tensors that are read one by one as they are needed."""
    from transformers import GenerationConfig

    settings = {name: value for name, value in plan.settings.items() if name != "trust_remote_code"}
    with _one_by_one() if plan.bits < 16 else nullcontext():
        hf, info = type(plan.skeleton).from_pretrained(
            None,
            config=plan.config,
            state_dict=dict(tensors),
            dtype=stored_dtype(plan.bits, plan.dtype),
            output_loading_info=True,
            **{name: value for name, value in plan.devices.items() if name != "offload_folder"},
            **settings,
        )
    hf.config._name_or_path = hf.name_or_path = plan.source
    with suppress(OSError):  # it has none of its own
        hf.generation_config = GenerationConfig.from_pretrained(plan.source, revision=plan.revision or "main")
    return hf, info


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Keep transformers from reading tensors ahead of those that it quantises, as older versions do."""
    before = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = before


def _tensors(plan: Plan, files: list[Path]) -> tuple[dict[str, Tensor], bool]:
    """What the files hold, as it will be loaded; and whether it could be looked through before that."""
    tensors = open_files(files)
    check_index(files[0].parent, tensors)
    if plan.way == "package":  # only the package knows what it does with its tensors
        return tensors, False
    if plan.stored is not None and plan.way == "expanded":
        tensors = expanded(tensors, dtype=plan.dtype, stored=plan.stored.settings)
    if plan.is_part:
        tensors = text_part.tensors_of(tensors, plan.skeleton, plan.label)
    if plan.way == "as it is":
        whole.check_packed(plan.label, plan.skeleton, tensors)
        return tensors, False
    extra = not plan.is_part and type(plan.skeleton.config) is type(plan.config)
    return tensors, whole.check(plan.label, plan.skeleton, tensors, extra=extra)


def _files(plan: Plan) -> list[Path]:
    """The checkpoint's files of weights, downloaded from the hub first; none if it has no safetensors there."""
    named = getattr(plan.config, "transformers_weights", None)
    if named:
        check_paths([named], plan.label, of="config.json")
    if (folder := Path(plan.source)).is_dir():
        return weight_files(folder, named=named)
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    at: dict[str, Any] = {"revision": plan.revision or "main"}
    optional: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    for name in (named, SINGLE):
        if name and name.endswith(".safetensors") and (file := cached_file(plan.source, name, **at, **optional)):
            return [Path(file)]
    if (index := cached_file(plan.source, INDEX, **at, **optional)) is None:
        return []
    places = read_json(Path(index)).get("weight_map")
    named_there = places.values() if isinstance(places, dict) else ()
    check_paths({place for place in named_there if isinstance(place, str)}, plan.label, of=INDEX)
    try:
        found, _ = get_checkpoint_shard_files(plan.source, index, **at)
    except OSError as error:
        weight_files(Path(index).parent)  # names what is missing
        raise error from None
    return [Path(file) for file in found]


# -- FP8 and MXFP4 in 4 bits ------------------------------------------------------------------------------------------


def _through_the_cache(
    plan: Plan,
    files: list[Path],
    tensors: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """An NF4 checkpoint in the cache, made once: read, dequantised and quantised a tensor at a time.

    It is then loaded to compute in `dtype`.
    """

    def build(part: Path) -> None:
        hf, info = _from_tensors(plan, tensors)
        whole.judge(plan.label, info, hf, extra=False)
        hf.save_pretrained(part, save_original_format=not has_experts(plan.skeleton), max_shard_size=SHARD)
        tokenizer.save_pretrained(part)

    stem = plan.label.rstrip("/\\").replace("\\", "/").split("/")[-1]
    folder = entry(f"models/{stem}-{_digest(plan, files)}-nf4-v{FORMAT}", build)
    settings = {name: value for name, value in plan.settings.items() if name != "quantization_config"}
    plan = replace(plan, dtype=dtype)
    return _finished(plan, *_from_source(plan, str(folder), None, settings), extra=False)


def _digest(plan: Plan, files: list[Path]) -> str:
    """What tells one checkpoint from another without reading it all: its files' names, sizes and dates, its headers.

    A file of the hub's cache is known by its content: that is the name of the file that it links to.
    """
    found = hashlib.sha256(json.dumps(plan.config.to_dict(), sort_keys=True, default=str).encode())
    for file in files:
        real = file.resolve()
        stat = real.stat()
        found.update(json.dumps([real.name, stat.st_size, stat.st_mtime_ns if real == file else 0]).encode())
        with file.open("rb") as opened:
            found.update(opened.read(1 << 16))
    return found.hexdigest()[:12]
