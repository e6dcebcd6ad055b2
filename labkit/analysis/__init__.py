"""Moved to rooms of their own (`labkit.patching`, `labkit.lens`, ...); here for notebooks of version 0.1."""
