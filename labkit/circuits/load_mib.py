"""Graphs in MIB's JSON format, opened; see `labkit.circuits.mib`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from labkit.circuits.circuit import Circuit
from labkit.circuits.graph import Wiring
from labkit.circuits.mib import edges_of
from labkit.circuits.scores import EdgeScores
from labkit.engine.decomposition import head_counts
from labkit.language_model import LanguageModel

_MOST = 1 << 30  # bytes that are read; GPT-2 small has 2 MB, Llama 3.1 8B 300 MB
_SIZES = ("n_layers", "n_heads", "parallel_attn_mlp")


def load_mib(path: str | os.PathLike[str], lm: LanguageModel | None = None) -> EdgeScores | Circuit:
    """Open a graph in MIB's JSON format, from `EdgeScores.save_mib`, `Circuit.save_mib`, or EAP-IG and MIB themselves.

    Args:
        path: the file.
        lm: the model it is of. Needed to measure the circuit (`Circuit.faithfulness`), and where heads share keys and
            values: scores of edges that are one in `lm` are added up, and one is kept if any of them is.

    Returns:
        The circuit, if the file says that some edges are in it, with its scores in `.scores`; else the scores.
        `clean` and `corrupt` are NaN, as the format does not have them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such graph, or one of another model than `lm`.
    """
    graph = _read(Path(path))
    own = _own_wiring(graph, path)
    wiring = own if lm is None else _wiring_of(lm, own, path)
    values, kept = np.full(wiring.exists.shape, np.nan, np.float32), np.zeros(wiring.exists.shape, bool)
    values[wiring.exists] = 0
    left = dict(graph["edges"])
    for name, at, _ in edges_of(wiring):
        edge = left.pop(name, None)
        if edge is None:  # a file may leave out edges that have no score
            continue
        try:
            values[at] += float(edge["score"])
            kept[at] |= bool(edge["in_graph"])
        except (TypeError, KeyError, ValueError):
            raise ValueError(f"{str(path)!r}: edge {name!r} has no score and `in_graph`: {str(edge)[:80]}") from None
    if left:
        raise ValueError(f"{str(path)!r} has edges that its sizes do not allow, such as {str(next(iter(left)))[:60]!r}")
    call = f"lk.load_mib({os.fspath(path)!r}{'' if lm is None else ', lm'})"
    load = "import labkit as lk\n\n" if lm is None else lm.code()
    recipe = {"model": None if lm is None else lm.name, "metric": "score", "load": load, "d_model": graph["width"]}
    if kept.any():
        scores = EdgeScores(values, wiring, np.nan, np.nan, recipe | {"code": f"{load}circuit = {call}\n"})
        return Circuit(wiring.pruned(kept), scores)
    return EdgeScores(values, wiring, np.nan, np.nan, recipe | {"code": f"{load}edges = {call}\n"})


def _read(path: Path) -> dict[str, Any]:
    """The file, as far as it is what it should be."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if path.stat().st_size > _MOST:
        raise ValueError(f"{str(path)!r} has more than {_MOST >> 30} GB, which no graph of this format needs")
    try:
        graph = json.loads(path.read_text("utf-8"))
        cfg, edges = graph["cfg"], graph["edges"]
        sizes = {name: cfg[name] for name in _SIZES}
        if not isinstance(edges, dict):
            raise TypeError(f"its edges are a {type(edges).__name__}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"[:120]
        raise ValueError(
            f"{str(path)!r} is no graph in MIB's JSON format, with `cfg`, `nodes`, `edges` ({what})"
        ) from None
    return {"edges": edges, "width": cfg.get("d_model"), **sizes}


def _own_wiring(graph: dict[str, Any], path: str | os.PathLike[str]) -> Wiring:
    layers, heads = graph["n_layers"], graph["n_heads"]
    if (
        not all(type(n) is int and 0 < n <= 4096 for n in (layers, heads))
        or type(graph["parallel_attn_mlp"]) is not bool
    ):
        said = {name: graph[name] for name in _SIZES}
        raise ValueError(f"{str(path)!r} has sizes that no model has: {str(said)[:120]}")
    most = max((int(n) for name in graph["edges"] for n in re.findall(r"(?<!\w)[am](\d{1,6})(?!\d)", name)), default=0)
    if most >= layers:
        raise ValueError(f"{str(path)!r} has an edge of layer {most}, and {layers} layers")
    if layers * heads > 4 * max(len(graph["edges"]), 1):  # before anything of that size is made
        raise ValueError(f"{str(path)!r} has {len(graph['edges'])} edges, too few for {layers} layers of {heads} heads")
    return Wiring.of([heads] * layers, [heads] * layers, [graph["parallel_attn_mlp"]] * layers)


def _wiring_of(lm: LanguageModel, own: Wiring, path: str | os.PathLike[str]) -> Wiring:
    """The model's, if the graph can be of it."""
    n_heads, n_kv_heads = head_counts(lm)
    if tuple(n_heads) != own.n_heads:
        raise ValueError(
            f"{str(path)!r} is of a model with {own.n_layers} layers of {own.n_heads[0]} heads; {lm.name} has "
            f"{lm.n_layers} of {lm.n_heads}"
        )
    return Wiring.of(n_heads, n_kv_heads, own.parallel)
