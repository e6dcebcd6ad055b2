"""A saved lab: one file with the settings and every grid that is known, exact cells and estimates."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.language_model import LanguageModel
from labkit.patching.grid import about_of
from labkit.patching.saved_grid import grid_of
from labkit.patching.spec import PatchSpec
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.widgets.patch_lab.live_grid import Known
from labkit.widgets.patch_lab.state import ASKED


def save_lab(
    path: str | os.PathLike[str], lm: LanguageModel, settings: dict[str, Any], known: Mapping[PatchSpec, Known]
) -> Path:
    """Write settings and grids to one file (`.npz`), in one step: the file is whole or not there."""
    arrays = {}
    for n, one in enumerate(known.values()):
        arrays[f"values_{n}"] = one.grid.values
        if one.estimate is not None:
            arrays[f"estimate_{n}"] = one.estimate
    grids = [{"question": _asked(spec), "grid": about_of(one.grid)} for spec, one in known.items()]
    about = {"model": _model(lm), "settings": settings, "grids": grids}
    return save_arrays(path, "lab", about, **arrays)


def open_lab(path: str | os.PathLike[str], lm: LanguageModel) -> tuple[dict[str, Any], dict[PatchSpec, Known]]:
    """The settings and the grids, as `save_lab` wrote them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a saved lab, or it belongs to another model.
    """
    about, arrays = open_arrays(path, "lab")
    known = {}
    with reading(path, "lab"):
        saved, here = (f"{m['name']} in {m['bits']} bits" for m in (about["model"], _model(lm)))
        same, settings = about["model"] == _model(lm), about["settings"]
        for n, saved_grid in enumerate(about["grids"]):
            grid = grid_of(arrays[f"values_{n}"], saved_grid["grid"])
            known[_spec(saved_grid["question"])] = Known(grid, arrays.get(f"estimate_{n}"))
    if not same:
        raise ValueError(f"{str(path)!r} holds grids of {saved}; this model is {here}. Load that model to open it.")
    return settings, known


def _asked(spec: PatchSpec) -> dict[str, Any]:
    asked = {name: getattr(spec, name) for name in ASKED}
    return asked | {name: asked[name] or "" for name in ("answer", "foil", "metric")}


def _spec(asked: dict[str, Any]) -> PatchSpec:
    return PatchSpec(
        asked["clean"], asked["corrupt"], asked["answer"] or None, asked["foil"] or None,
        metric=asked.get("metric") or None, site=asked["site"],
        over=tuple(asked["over"]), direction=asked["direction"],
        layers=None if asked["layer"] is None else (asked["layer"],), alignment=asked.get("alignment"),
    )  # fmt: skip


def _model(lm: LanguageModel) -> dict[str, Any]:
    return {"name": lm.name, "bits": lm.bits, "revision": lm.revision}
