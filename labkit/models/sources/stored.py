"""How a checkpoint is stored: as plain numbers, in 4 or 8 bits of bitsandbytes, in FP8 or MXFP4, or in another way.

`config.json` says it in `quantization_config`. labkit reads bitsandbytes' formats as they are and dequantises FP8 and
MXFP4 (`sources.expand`). Every other format is for the package that made it: with that package it loads as it is
stored, without it a `LoadError` names the format and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from labkit.models.errors import LoadError
from labkit.models.packed_experts import METHOD
from labkit.models.sources.text_part import text_of
from labkit.models.weights import weight_of

ALL = (4, 8, 16, 32)
_FIELDS = ("quantization_config", "compression_config", "quantization")
_NAMES = {
    "gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ", "aqlm": "AQLM", "eetq": "EETQ", "spqr": "SpQR", "vptq": "VPTQ",
    "bitnet": "BitNet", "fp8": "FP8", "mxfp8": "MXFP8", "fbgemm_fp8": "FP8 (FBGEMM)", "mxfp4": "MXFP4",
    "nvfp4": "NVFP4", "higgs": "HIGGS", "quark": "Quark", "sinq": "SINQ", "exl2": "EXL2", "exl3": "EXL3",
    "modelopt": "ModelOpt", "auto-round": "AutoRound", "fp_quant": "FP-Quant",
}  # fmt: skip
_WIDTHS = {"eetq": 8, "fp8": 8, "mxfp8": 8, "fbgemm_fp8": 8, "mxfp4": 4, "nvfp4": 4, "bitnet": 2, "awq": 4, "gptq": 4}


@dataclass(frozen=True)
class Stored:
    """The way in which a checkpoint's weights are stored.

    Attributes:
        name: of the format, for people.
        bits: of a weight in the file; None where it does not say.
        way: `as it is` (bitsandbytes and labkit's own), `expanded` (dequantised as it is read), or `package` (by the
            package that made it, as it is).
        settings: `quantization_config`.
    """

    name: str
    bits: int | None
    way: Literal["as it is", "expanded", "package"]
    settings: Mapping[str, Any]

    @property
    def choices(self) -> tuple[int, ...]:
        """The numbers of bits that it can be loaded in."""
        return ALL if self.way == "expanded" else () if self.bits is None else (self.bits,)


def of(config: Any) -> Stored | None:
    """How the checkpoint with this configuration is stored; None for plain numbers."""
    settings = _settings(config)
    if settings is None:
        return None
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method") or "")).lower()
    four, eight = (any(settings.get(f"{_}load_in_{n}bit") for _ in ("", "_")) for n in (4, 8))
    if method == METHOD or four or eight:
        return Stored("bitsandbytes", 8 if eight and method != METHOD else 4, "as it is", settings)
    if _expandable(method, settings):
        name = "MXFP4" if method == "mxfp4" else _NAMES.get(method, "FP8")
        if method == "compressed-tensors":
            whole = any(weights.get("type") == "int" for weights in _groups(settings))
            name = f"{'int8' if whole else 'FP8'} (compressed-tensors)"
        return Stored(name, 4 if method == "mxfp4" else 8, "expanded", settings)
    unnamed = "MLX" if {"group_size", "bits"} <= set(settings) else "a format that config.json does not name"
    return Stored(_NAMES.get(method, method) or unnamed, _width(method, settings), "package", settings)


def _settings(config: Any) -> dict[str, Any] | None:
    """`quantization_config` of a configuration or of its text part."""
    for part in (config, text_of(config)):
        for name in _FIELDS:
            found = getattr(part, name, None)
            if found and (isinstance(found, dict) or hasattr(found, "to_dict")):
                return dict(found if isinstance(found, dict) else found.to_dict())
    return None


def forget(config: Any) -> None:
    """Take away what a configuration says of how weights are stored."""
    for part in (config, text_of(config)):
        for name in _FIELDS:
            if hasattr(part, name):
                delattr(part, name)


def _groups(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What compressed-tensors says of the weights of each of its groups."""
    return [dict(group.get("weights") or {}) for group in (settings.get("config_groups") or {}).values()]


def _expandable(method: str, settings: Mapping[str, Any]) -> bool:
    if method in ("fp8", "mxfp8", "fbgemm_fp8", "mxfp4"):
        return True
    if method == "modelopt":
        return str(settings.get("quant_algo")).upper() == "FP8"
    if method != "compressed-tensors" or settings.get("transform_config"):
        return False
    formats = {settings.get("format"), *(g.get("format") for g in (settings.get("config_groups") or {}).values())}
    sparse = (settings.get("sparsity_config") or {}).get("format") or "dense"
    plain = formats - {None} <= {"float-quantized", "int-quantized", "naive-quantized"} and bool(formats - {None})
    whole = all(w.get("num_bits") == 8 and w.get("actorder") is None for w in _groups(settings))
    return plain and whole and sparse == "dense" and bool(_groups(settings))


def _width(method: str, settings: Mapping[str, Any]) -> int | None:
    """Bits of a weight, where the settings say it under one of the names in use."""
    found: list[Any] = [settings.get(name) for name in ("bits", "nbits", "w_bit", "weights", "weights_dtype")]
    found += [weights.get("num_bits") for weights in _groups(settings)]
    if isinstance(inner := settings.get("quant_config"), dict):  # HQQ
        found += [(inner.get("weight_quant_params") or {}).get("nbits"), inner.get("nbits")]
    for value in [*found, _WIDTHS.get(method)]:
        digits = "".join(c for c in str(value) if c.isdigit()) if value is not None else ""
        if digits and 1 <= int(digits) <= 32:
            return int(digits)
    return None


_OTHERWISE = (
    "Load the unquantised original instead, usually the base model on its hub page; labkit converts it to 4, 8, 16 or "
    "32 bits itself"
)


# -- what may be asked ----------------------------------------------------------------------------------------------


def bits_to_load(stored: Stored | None, asked: int | None, label: str) -> int:
    """How many bits to load a checkpoint in.

    Without `asked`: 4 for plain numbers; what the file has, for quantised ones; 16 for FP8 and MXFP4, which are
    dequantised exactly.

    Raises:
        ValueError: it cannot be loaded in `asked` bits.
    """
    if stored is None:
        return asked or 4
    if stored.way == "expanded":
        return asked or 16
    if asked is None or asked == stored.bits:
        return stored.bits or 8
    if stored.way == "as it is":
        raise ValueError(f"{label} is stored in {stored.bits} bits; bits={asked} contradicts it. Leave bits out")
    bits = f" in {stored.bits} bits" if stored.bits else ""
    raise ValueError(
        f"{label} is stored as {stored.name}{bits}, which cannot be converted to bits={asked}. {_OTHERWISE}"
    )


def check_package(stored: Stored, label: str, *, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a format whose package is not here or does not run here.

    Raises:
        LoadError: with the format, what it needs and what to do.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoHfQuantizer

    method = str(stored.settings.get("quant_method") or "")
    if method not in AUTO_QUANTIZER_MAPPING:
        raise LoadError(
            f"{label} is stored as {stored.name}, which neither labkit nor transformers reads. {_OTHERWISE}"
        )
    try:
        quantizer = AutoHfQuantizer.from_config(dict(stored.settings), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, dtype=dtype, weights_only=True)
    except Exception as error:
        raise not_read(stored, label, error) from error


def not_read(stored: Stored, label: str, error: Exception) -> LoadError:
    """What to say where the package that made a format is missing or fails, or what it made is not right."""
    needs = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return LoadError(
        f"{label} is stored as {stored.name}, which needs the package that made it, and that does not work here: "
        f"{needs}. Install what it needs, or avoid it: {_OTHERWISE}"
    )


def check_weights(stored: Stored, label: str, hf: nn.Module) -> None:
    """Check that weights of a foreign format are read right: a layer must compute what its weight says.

    One layer of each kind is tried; direct attribution, head_out and neurons depend on it.

    Raises:
        LoadError: they are not.
    """
    tried = set()
    for name, layer in hf.named_modules():
        weight: Any = getattr(layer, "weight", None)
        size = getattr(layer, "in_features", None)
        kind = (type(layer), type(weight))
        if not isinstance(size, int) or kind in tried or list(layer.children()):
            continue
        plain = kind == (nn.Linear, nn.Parameter) and weight.is_floating_point()
        if plain and not hasattr(layer, "quantization_scheme"):
            continue
        tried.add(kind)
        try:
            where = next((t.device for t in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
            dtype = next(p.dtype for p in hf.parameters() if p.is_floating_point() and p.element_size() > 1)
            with torch.no_grad():
                x = torch.linspace(-1, 1, 2 * size, device=where).view(2, size).to(dtype)
                out = layer(x).float()
                bias = getattr(layer, "bias", None)
                read = x.float() @ weight_of(layer, dtype=torch.float32).T + (0 if bias is None else bias.float())
            far = float((out - read).norm() / out.norm().clamp_min(1e-9))
        except Exception as error:
            raise LoadError(
                f"{label} is stored as {stored.name}; it was loaded, but its {type(layer).__name__} at {name} cannot "
                f"be read ({type(error).__name__}: {error}). {_OTHERWISE}"
            ) from error
        if not far < 0.05:
            by = f"by {far:.0%} " if far == far else "(it is NaN) "
            raise LoadError(
                f"{label} is stored as {stored.name}; it was loaded, but the weight read of {name} differs {by}"
                f"from what the layer computes, so direct attribution would be wrong. {_OTHERWISE}"
            )
