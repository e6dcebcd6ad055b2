"""Wiring: which parts of a model feed which, the edges that circuits are made of.

A sender is what adds to the residual stream: the embedding, a head (`z.5.3`), an MLP (`mlp_out.5`). A receiver is
what reads it: a head's queries, keys or values (`q.6.1`, `k.6.0`, `v.6.0`), an MLP (`mlp_in.6`), the logits. There is
an edge from each sender to each receiver that comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Wiring:
    """The parts of a model: heads and key-value heads of each layer, and whether its MLP reads what attention reads."""

    n_heads: tuple[int, ...]
    n_kv_heads: tuple[int, ...]
    parallel: tuple[bool, ...]

    @property
    def n_layers(self) -> int:
        return len(self.n_heads)

    @cached_property
    def senders(self) -> list[str]:
        """In the order in which they write; a layer's heads, then its MLP."""
        names = ["embed"]
        for layer, heads in enumerate(self.n_heads):
            names += [f"z.{layer}.{head}" for head in range(heads)] + [f"mlp_out.{layer}"]
        return names

    @cached_property
    def receivers(self) -> list[str]:
        """In the order in which they read; a layer's queries, keys, values, then its MLP."""
        names = []
        for layer, (heads, kv) in enumerate(zip(self.n_heads, self.n_kv_heads, strict=True)):
            names += [f"{kind}.{layer}.{n}" for kind, many in (("q", heads), ("k", kv), ("v", kv)) for n in range(many)]
            names.append(f"mlp_in.{layer}")
        return [*names, "logits"]

    @cached_property
    def exists(self) -> np.ndarray:
        """(sender, receiver) bool: is there an edge?"""
        said = np.array([-1 if name == "embed" else 2 * layer_of(name) + is_mlp(name) for name in self.senders])
        heard = [
            2 * self.n_layers if name == "logits"
            else 2 * layer_of(name) + (is_mlp(name) and not self.parallel[layer_of(name)])
            for name in self.receivers
        ]  # fmt: skip
        return said[:, None] < np.array(heard)[None]

    def senders_of_layer(self, layer: int) -> slice:
        """The senders of a layer, heads first."""
        start = 1 + sum(n + 1 for n in self.n_heads[:layer])
        return slice(start, start + self.n_heads[layer] + 1)

    def receivers_of_layer(self, layer: int) -> slice:
        """The receivers of a layer: queries, keys, values, MLP."""
        sizes = [q + 2 * kv + 1 for q, kv in zip(self.n_heads, self.n_kv_heads, strict=True)]
        return slice(sum(sizes[:layer]), sum(sizes[: layer + 1]))

    def leads_to(self, receiver: str) -> list[str]:
        """The parts whose input a receiver is, by the names they send under; shared keys lead to several heads."""
        if receiver == "logits":
            return ["logits"]
        layer = layer_of(receiver)
        if is_mlp(receiver):
            return [f"mlp_out.{layer}"]
        kind, _, head = receiver.split(".")
        share = 1 if kind == "q" else self.n_heads[layer] // self.n_kv_heads[layer]
        return [f"z.{layer}.{n}" for n in range(int(head) * share, (int(head) + 1) * share)]

    def pruned(self, kept: np.ndarray) -> np.ndarray:
        """The edges (sender, receiver) that lie on a path from the embedding to the logits."""
        kept = kept & self.exists
        into: dict[str, list[int]] = {}
        for n, receiver in enumerate(self.receivers):
            for part in self.leads_to(receiver):
                into.setdefault(part, []).append(n)
        fed = np.zeros(len(self.senders), bool)
        fed[0] = True
        for n, part in enumerate(self.senders[1:], 1):
            fed[n] = bool((kept[:, into[part]] & fed[:, None]).any())
        heard = {"logits"}
        useful = np.zeros(len(self.receivers), bool)
        useful[-1] = True
        for n in range(len(self.senders) - 1, 0, -1):
            if (kept[n] & useful).any():
                heard.add(self.senders[n])
                useful[into[self.senders[n]]] = True
        return kept & fed[:, None] & useful[None]

    @classmethod
    def of(cls, n_heads: Sequence[int], n_kv_heads: Sequence[int], parallel: Sequence[bool]) -> Wiring:
        return cls(tuple(n_heads), tuple(n_kv_heads), tuple(parallel))


def layer_of(name: str) -> int:
    return int(name.split(".")[1])


def is_mlp(name: str) -> bool:
    return name.startswith("mlp")
