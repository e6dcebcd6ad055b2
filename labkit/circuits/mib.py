"""Edge scores and circuits as the JSON of MIB, the Mechanistic Interpretability Benchmark (Mueller et al. 2025).

Its circuit track, and EAP-IG by Hanna et al. on which it builds, keep a graph in one file: `cfg` with the sizes,
`nodes` such as `a5.h3` and `m5`, and `edges` such as `input->a5.h3<q>`, each with a score and whether it is in the
circuit (`Graph.to_json` in src/eap/graph.py). There every head has keys and values of its own. In a model whose heads
share them one edge of ours is several of theirs: it is written in equal shares, which add up to it again when read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from labkit.circuits.graph import Wiring
from labkit.results.file import written_whole

_NODE = {"embed": "input", "logits": "logits"}


def write_mib(
    path: str | os.PathLike[str], wiring: Wiring, values: np.ndarray, kept: np.ndarray, d_model: int | None
) -> Path:
    """Write the scores of all edges (sender, receiver) and which are kept, in one step.

    Raises:
        ValueError: layers differ in how many heads they have or in whether MLP and attention are parallel, which the
            format cannot say; or the width of the model is not known.
    """
    if d_model is None:
        raise ValueError("MIB's format has the width of the model, which these scores do not know: give d_model=...")
    if len(set(wiring.n_heads)) != 1 or len(set(wiring.parallel)) != 1:
        raise ValueError(
            "MIB's format has one number of heads for all layers, and one answer to whether MLP and attention are "
            f"parallel; this model has {sorted(set(wiring.n_heads))} heads and {sorted(set(wiring.parallel))}"
        )
    heads = wiring.n_heads[0]
    sending, used = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
    fed = {part for n in used for part in wiring.leads_to(wiring.receivers[n])}
    nodes = {
        _node(name): {"in_graph": bool((sending == n).any()) and (n == 0 or name in fed)}
        for n, name in enumerate(wiring.senders)
    }  # fmt: skip
    nodes["logits"] = {"in_graph": True}
    edges = {
        name: {"score": float(values[at]) / share, "in_graph": bool(kept[at])} for name, at, share in edges_of(wiring)
    }
    cfg = {"n_layers": wiring.n_layers, "n_heads": heads, "parallel_attn_mlp": wiring.parallel[0], "d_model": d_model}
    with written_whole(path) as file:
        file.write(json.dumps({"cfg": cfg, "nodes": nodes, "edges": edges}).encode())
    return Path(path)


def _node(name: str) -> str:
    if name in _NODE:
        return _NODE[name]
    kind, _, place = name.partition(".")
    return f"m{place}" if kind.startswith("mlp") else "a" + place.replace(".", ".h")


def edges_of(wiring: Wiring) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Every edge by MIB's name, its place in (sender, receiver), and how many of theirs are one there."""
    for column, receiver in enumerate(wiring.receivers):
        kind, parts = receiver.partition(".")[0], wiring.leads_to(receiver)
        ends = [f"{_node(part)}<{kind}>" if kind in "qkv" else _node(part) for part in parts]
        for row in np.flatnonzero(wiring.exists[:, column]).tolist():
            for end in ends:
                yield f"{_node(wiring.senders[row])}->{end}", (row, column), len(ends)
