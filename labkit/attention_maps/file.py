"""Attention patterns in a file: tokens, scores, thumbnails, and a layer at a time as float16."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labkit.attention_maps.base import ModelPatterns, Patterns, frame_of
from labkit.results.file import described, open_about, reading, written_whole
from labkit.text.tokens import Token

if TYPE_CHECKING:
    import pandas as pd


class SavedAttention(Patterns):
    """Patterns that `AttentionPatterns.save` wrote; each is read from the file when it is needed.

    `layers` are those whose patterns are in the file; `scores()` covers them all.
    """

    def __init__(self, path: Path, about: dict) -> None:
        self.path, self._about = path, about
        self.tokens = [Token(**token) for token in about["tokens"]]
        self.layers: list[int] = about["layers"]
        self.n_layers, self.n_heads = about["n_layers"], about["n_heads"]

    def _read(self, name: str) -> np.ndarray:
        with np.load(self.path, allow_pickle=False) as file:
            return file[name]

    def pattern(self, layer: int, head: int | None = None) -> np.ndarray:
        layer = layer + self.n_layers if layer < 0 else layer
        if layer not in self.layers:
            raise ValueError(f"{self.path.name} has no pattern of layer {layer}; it has {self.layers}")
        packed = self._read(f"layer_{layer}")  # (head, ...)
        if head is not None and not -len(packed) <= head < len(packed):
            raise ValueError(f"head {head} is out of range; layer {layer} has heads 0 to {len(packed) - 1}")
        chosen = packed if head is None else packed[head]
        if packed.ndim > 2:
            return chosen.astype(np.float32)
        length = len(self.tokens)  # lower triangles
        found = np.zeros((*chosen.shape[:-1], length, length), np.float32)
        found[..., *np.tril_indices(length)] = chosen
        return found

    def thumbnails(self) -> np.ndarray:
        """Small pictures of all heads, uint8 (layer, head, size, size)."""
        return self._read("thumbnails")

    def scores(self) -> pd.DataFrame:
        """One row per head, a column per score, of every layer of the model."""
        scores = {name: self._read(f"score_{name}") for name in self._about["scores"]}
        return frame_of(scores, self._about["all_layers"])

    def code(self) -> str:
        """The Python that computes the same patterns."""
        return str(self._about["code"])

    def __repr__(self) -> str:
        return f"SavedAttention({len(self.tokens)} tokens, layers {self.layers} of {self.n_layers})"


def save(
    path: Path,
    patterns: ModelPatterns,
    layers: Sequence[int],
    *,
    scores: Mapping[str, np.ndarray],
    thumbnails: np.ndarray,
) -> Path:
    """Write the patterns of some layers, a layer at a time, with scores (layer, head) and thumbnails of all."""
    about = {
        "tokens": [vars(token) for token in patterns.tokens],
        "layers": list(layers),
        "all_layers": patterns.layers,
        "n_layers": patterns.n_layers,
        "n_heads": patterns.n_heads,
        "scores": list(scores),
        "code": patterns.code(),
    }
    arrays = {"about": described("attention", about), "thumbnails": thumbnails}
    arrays |= {f"score_{name}": grid for name, grid in scores.items()}
    with written_whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            _write(archive, name, array)
        for layer in layers:
            _write(archive, f"layer_{layer}", _packed(patterns, layer))
    return path


def _packed(patterns: ModelPatterns, layer: int) -> np.ndarray:
    """A layer's patterns as float16: lower triangles (head, n), or (head, query, key) where keys are not tokens."""
    call = patterns.call(layer)
    length, keys = call.q.shape[2], call.k.shape[2]
    if keys != length:
        return patterns.pattern(layer).astype(np.float16)
    rows, columns = np.tril_indices(length)
    packed = np.zeros((call.q.shape[1], len(rows)), np.float16)
    for head in range(len(packed)):
        packed[head] = patterns.pattern(layer, head)[rows, columns]
    return packed


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def open_attention(path: str | os.PathLike[str]) -> SavedAttention:
    """Open patterns that `AttentionPatterns.save` wrote; no model is needed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no patterns, or was saved by a newer labkit.
    """
    about = open_about(path, "attention")
    with reading(path, "attention"):
        saved = SavedAttention(Path(path), about)
        with np.load(path, allow_pickle=False) as file:
            wanted = ["thumbnails", *(f"layer_{n}" for n in saved.layers), *(f"score_{n}" for n in about["scores"])]
            if missing := [name for name in wanted if name not in file.files]:
                raise ValueError(f"it lacks {', '.join(missing)}")
    return saved
