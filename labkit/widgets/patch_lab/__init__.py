"""PatchLab: a pair, its grid, and its cells in detail."""

from labkit.widgets.patch_lab.lab import PatchLab as PatchLab
