"""Is a checkpoint complete? A missing tensor would be filled with random numbers.

transformers itself checks it, before any weight is read: it "loads" tensors that have a shape but no numbers, with all
its rules for renamed, merged and tied ones, and reports what it did not find. What it leaves out on purpose (a tied
unembedding, layers that predict several tokens ahead) is not an error.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from labkit.models.errors import LoadError
from labkit.models.sources.tensors import Tensor
from labkit.models.sources.text_part import text_of
from labkit.text.warn import warn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPANIONS = re.compile(
    r"(weight|_proj)_(scale(_inv|_2)?|zero_point|packed|shape|g_idx|blocks|scales)$|\.(qweight|qzeros|scales|g_idx|SCB)$"
    r"|\.weight\.(absmax|quant_map|nested_absmax|quant_state\..*)$|_(blocks|scales)$|\.(qdata|scale)$"
)
# what bitsandbytes and labkit keep for a packed weight
_PACKED = re.compile(
    r"(?<=\.weight)\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)$|(?<=\.)(SCB|weight_format)$"
    r"|\.(packed|scales|nested|offset)$"
)
# masks and positions that older versions saved, and layers that predict several tokens ahead
_OF_OLD = re.compile(
    r"(attn|attention)\.(bias|masked_bias)$|inv_freq$|position_ids$|num_batches_tracked$|(^|\.)(mtp|nextn)"
)
_LAYER = re.compile(r"(.*?\.)(\d+)\.")


def check(label: str, skeleton: PreTrainedModel, tensors: Mapping[str, Tensor], *, extra: bool = True) -> bool:
    """Refuse a checkpoint that lacks tensors of the model, or has them in other shapes.

    Args:
        label: what to call it.
        skeleton: the model without weights.
        tensors: what the checkpoint holds, by name.
        extra: whether tensors that the model has no place for say something.

    Returns:
        Whether it could be looked through.

    Raises:
        LoadError: with the names of what is missing.
    """
    names = {name: tensor.empty() for name, tensor in tensors.items()}
    try:
        info = _try(skeleton, names)
    except RuntimeError:  # what is merged into one tensor is not all there
        raise incomplete(label, gaps(tensors), skeleton) from None
    except Exception:  # an architecture that cannot be tried without numbers; what loading itself reports is looked at
        return False
    judge(label, info, skeleton, extra=extra)
    return True


def check_packed(label: str, skeleton: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint in 4 or 8 bits of bitsandbytes that lacks tensors; shapes of packed weights say nothing.

    Raises:
        LoadError: with the names of what is missing.
    """
    there = {_PACKED.sub("", name) for name in tensors}
    same: dict[int, set[str]] = defaultdict(set)  # names of one and the same parameter, as a tied unembedding has two
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        same[id(parameter)].add(name)
    missing = [min(names) for names in same.values() if not names & there]
    if not missing:
        return
    named = {name: tensor for name, tensor in tensors.items() if not _PACKED.search(name)}
    try:  # perhaps they have the names of a hub, which transformers changes
        info = _try(skeleton, {name: tensor.empty() for name, tensor in named.items()})
    except Exception:
        raise incomplete(label, missing, skeleton) from None
    judge(label, info, skeleton, shapes=False)


def _try(skeleton: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        _, info = type(skeleton).from_pretrained(
            None,
            config=skeleton.config,
            state_dict=dict(tensors),
            dtype=skeleton.dtype,
            device_map={"": torch.device("meta")},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        logging.set_verbosity(before)
    return info


def judge(
    label: str,
    info: Mapping[str, Any],
    hf: PreTrainedModel,
    *,
    shapes: bool = True,
    extra: bool = True,
    buffers: bool = False,
) -> None:
    """Refuse what transformers reports as missing, of another shape, or of layers that the model does not have.

    Args:
        label: what to call the checkpoint.
        info: the report, `output_loading_info`.
        hf: the model, with or without weights.
        shapes: whether shapes say something.
        extra: whether tensors that the model has no place for do.
        buffers: whether every buffer has to be there, as where they hold packed weights.

    Raises:
        LoadError: with the names.
    """
    if missing := sorted(info["missing_keys"]) if buffers else _missing(info["missing_keys"], hf):
        raise incomplete(label, missing, hf)
    if shapes and (wrong := sorted(info["mismatched_keys"])):
        name, stored, wanted = wrong[0][:3]
        more = f", and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise LoadError(
            f"{label} has {name} with shape {tuple(stored)}, but its config.json asks for {tuple(wanted)}{more}. "
            "Weights and config.json are not from one model"
        )
    unexpected = sorted(name for name in info["unexpected_keys"] if not _OF_OLD.search(name)) if extra else []
    beyond, ahead = _beyond(unexpected, hf)
    if beyond:
        raise LoadError(
            f"{label} has weights for layers that its config.json does not have: {_some(beyond)}. Weights and "
            "config.json are not from one model"
        )
    unexpected = [name for name in unexpected if name not in ahead]
    if companions := [name for name in unexpected if _COMPANIONS.search(name)]:
        raise LoadError(
            f"{label} has scales of quantised weights ({_some(companions)}) which its config.json does not mention, so "
            "its weights would be misread. Its config.json lacks quantization_config; fetch it again"
        )
    if unexpected:
        warn(
            f"{label} has tensors that its model does not use: {_some(unexpected)}. If the model that they come from "
            "used them, its results differ from these"
        )


def _missing(names: Iterable[str], hf: PreTrainedModel) -> list[str]:
    """Of missing tensors those that count.

    A buffer does not where no layer's is in the checkpoint: it is computed, or of a later version of the model. A bias
    that a router adds is learned, though it is a buffer.
    """
    buffers = dict(hf.named_buffers())
    missing = set(names)
    there = {name.rpartition(".")[2] for name in buffers.keys() - missing}
    learned = {name for name, b in buffers.items() if name.endswith("_bias") and b.is_floating_point()}
    learned -= {name for name in learned if name.endswith("masked_bias")}
    return sorted(
        name for name in missing if name not in buffers or name in learned or name.rpartition(".")[2] in there
    )


def _beyond(names: Iterable[str], hf: PreTrainedModel) -> tuple[list[str], set[str]]:
    """Of names without a place those of more layers than a stack of the model has.

    Apart from them those of layers that predict several tokens ahead, which are left out on purpose.
    """
    counts: dict[str, int] = {}
    for name in hf.state_dict():
        if found := _LAYER.match(name):
            counts[found[1]] = max(counts.get(found[1], 0), int(found[2]) + 1)
    text = text_of(hf.config)
    spare = max(int(getattr(text, field, 0) or 0) for field in ("num_nextn_predict_layers", "mtp_num_layers"))
    beyond, ahead = [], set()
    for name in names:
        found = _LAYER.match(name)
        past = int(found[2]) - counts[found[1]] if found and found[1] in counts else -1
        if past >= spare:
            beyond.append(name)
        elif past >= 0:
            ahead.add(name)
    return beyond, ahead


def incomplete(label: str, missing: Iterable[str], hf: PreTrainedModel) -> LoadError:
    """The error for tensors that are not there."""
    missing = list(missing)
    of = len(list(hf.parameters()))
    return LoadError(
        f"{label} is incomplete: {len(missing) or 'some'} of its {of} tensors are "
        f"missing{': ' + _some(missing) if missing else ''}. They would be random numbers, so it was not loaded. Fetch "
        "the model again, or correct its config.json if that is from another model"
    )


def gaps(names: Iterable[str]) -> list[str]:
    """Names that a numbered part lacks and the other parts of its kind have."""
    children: dict[str, set[str]] = defaultdict(set)
    for name in names:
        for found in re.finditer(r"\.\d+\.", name):
            children[name[: found.end()]].add(name[found.end() :])
    kinds: dict[str, list[str]] = defaultdict(list)
    for parent in children:
        kinds[re.sub(r"\d+", "*", parent)].append(parent)
    lacking: set[str] = set()
    for parents in kinds.values():
        for parent in parents:
            for child in set().union(*(children[p] for p in parents)) - children[parent]:
                if 2 * sum(child in children[p] for p in parents) >= len(parents):
                    lacking.add(parent + child)
    return sorted(lacking)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")
