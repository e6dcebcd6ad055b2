"""What is wrong on a participant's machine, in one line, once labkit is installed."""

from __future__ import annotations

from pathlib import Path

from labkit.workshop import folder_check

MEMORY = 1 << 30  # bytes: a kernel with the default model and a grid, and JupyterLab


def problem(folder: Path) -> str:
    """The first thing that is wrong with the folder or this machine, and what to do; empty if nothing is."""
    folder = folder.expanduser().absolute()
    if found := folder_check.wrong(folder):
        return found
    from labkit.doctor import PACKAGES, mismatches

    if found := next(mismatches(tuple(PACKAGES)), ""):
        return f"the installation is broken ({found}): delete it and run the install script again"
    from labkit.models.cache import cache_folder
    from labkit.models.memory import available, in_words
    from labkit.models.sources import default_model as packaged

    if not packaged.default_is_ready():
        return f"the model is not in {cache_folder()}: set LABKIT_CACHE to {folder / 'cache'}"
    import torch

    if (left := available(torch.device("cpu"))) < MEMORY:
        return f"{in_words(left)} of memory are free, {in_words(MEMORY)} are needed: close other programs"
    return ""
