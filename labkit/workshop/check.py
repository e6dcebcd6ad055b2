"""What is wrong on a participant's machine, in one line, once labkit is installed."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from labkit._version import DISTRIBUTION
from labkit.doctor import PACKAGES, mismatches, unimportable
from labkit.models.cache import cache_folder, is_whole
from labkit.models.memory import available, in_words
from labkit.models.sources import default_model as packaged

MEMORY = 1 << 30  # bytes: a kernel with the default model and a grid, and JupyterLab


def problem(folder: Path) -> str:
    """The first thing that is wrong on this machine for a folder that is right, and what to do; empty if nothing is."""
    if found := next(mismatches((DISTRIBUTION, *PACKAGES)), "") or next(unimportable(PACKAGES), ""):
        return f"the installation is broken ({found}): delete it and run the install script again"
    started = not os.environ.get("LABKIT_CACHE") and is_whole(
        folder / "cache" / packaged.checkpoint(4)
    )  # start.sh sets it
    if not started and not packaged.default_is_ready():
        return f"the model is not in {cache_folder()}: set LABKIT_CACHE to {folder / 'cache'}"
    if (left := available(torch.device("cpu"))) < MEMORY:
        return f"{in_words(left)} of memory are free, {in_words(MEMORY)} are needed: close other programs"
    return ""
