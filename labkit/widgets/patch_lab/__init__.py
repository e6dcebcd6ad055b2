"""PatchLab: a pair, its grid, and a close look at it."""
