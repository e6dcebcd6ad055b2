"""What can go wrong when a model is loaded; every message says what to do next."""

from __future__ import annotations


class LoadError(Exception):
    """A model could not be loaded."""


class CacheUnusable(LoadError, OSError):
    """labkit's cache cannot be read or written by this user."""


class ModelNotFound(LoadError, ValueError):
    """No model of that name, folder or file."""


class GatedModel(LoadError, PermissionError):
    """The model's licence has to be accepted first."""


class NoNetwork(LoadError, ConnectionError):
    """The model is not on this machine and the hub cannot be reached."""


class NotEnoughMemory(LoadError, MemoryError):
    """The weights would not fit."""


class UnsafeWeights(LoadError, ValueError):
    """Pickled weights, which can run code when they are read."""


class UnsafeCheckpoint(LoadError, ValueError):
    """A checkpoint that tries to do more than hold a model; `lk.scan` says what."""


class NotADecoder(LoadError, ValueError):
    """Not a decoder-only language model."""
