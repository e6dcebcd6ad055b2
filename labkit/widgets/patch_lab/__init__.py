"""PatchLab: a pair, its grid, and a close look at it."""

from labkit.widgets.patch_lab.lab import PatchLab as PatchLab
