"""Rows through single blocks: many variants of one run, each layer by itself, with reads and edits on the way.

A block is called as in the recorded run (`recorded_run.record`), with a batch of residual streams instead of one.
Unlike in the wavefront, nothing has to pass from one layer to the next: paths and circuits give every layer inputs that
no ordinary run has. Each block is tested once per model: do several rows in a batch give what each gives alone, and
does a block add its output to its input unchanged?
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from labkit.activations.attention_interface import AttentionCall
from labkit.activations.hooks import Edit, Place, hooked
from labkit.activations.sites import layers_with
from labkit.engine.recorded_run import RecordedRun, Unsupported, expanded, mapped, same_output
from labkit.models.flow import first_tensor
from labkit.models.processors import look_again

if TYPE_CHECKING:
    from labkit.models.handle import Model

_batched: WeakKeyDictionary[Model, dict[int, bool]] = WeakKeyDictionary()
_additive: WeakKeyDictionary[Model, dict[int, bool]] = WeakKeyDictionary()


class _Reached(Exception):
    """Attention was called; the rest of the block is not needed."""


class BlockRunner:
    """The blocks of one recorded run, for rows (rows, seq, d_model) instead of the run's own residual stream.

    With a `start`, rows have only the positions from there on. Attention over them differs from attention over the
    whole prompt; that is for callers who write `attn_out` themselves.

    Attributes:
        resid: the run's own residual stream before each block and after the last, n_layers + 1 of (seq, d_model).
    """

    def __init__(self, base: RecordedRun, *, start: int = 0) -> None:
        if any(x.ndim != 2 for x in base.resid):
            raise Unsupported(f"the residual stream of {base.lm.name} has several copies")
        self.base, self.lm, self.start = base, base.lm, start
        self.resid = [x[start:] for x in base.resid]

    def block(
        self,
        layer: int,
        x: torch.Tensor,
        *,
        reads: Collection[Place] = (),
        edits: Mapping[Place, Edit] | None = None,
        keep: Callable[[torch.Tensor], torch.Tensor] = lambda x: x.detach().clone(),
    ) -> tuple[torch.Tensor, dict[Place, torch.Tensor]]:
        """The output of a block for rows (rows, seq, d_model), and what was read in it, with rows as the batch.

        Raises:
            Unsupported: the block gives a different result when run on its own.
        """
        if not self._takes_rows(layer) and len(x) > 1:
            parts = [
                self._call(layer, x[n : n + 1], reads, _row_of(edits or {}, n, len(x)), keep) for n in range(len(x))
            ]
            out = torch.cat([out for out, _ in parts])
            return out, {place: torch.cat([found[place] for _, found in parts]) for place in parts[0][1]}
        return self._call(layer, x, reads, edits or {}, keep)

    def attention(self, layer: int, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """q, k and v (rows, seq, head, d_head) of rows, still in their graph; the block is left where it attends."""
        found: dict[str, torch.Tensor] = {}

        def note(kind: str, value: torch.Tensor) -> torch.Tensor:
            found[kind] = value
            if kind == "v":
                raise _Reached
            return value

        if not self._takes_rows(layer) and len(x) > 1:
            each = [self.attention(layer, x[n : n + 1]) for n in range(len(x))]
            return {kind: torch.cat([one[kind] for one in each]) for kind in each[0]}
        try:
            self._call(layer, x, (), {(kind, layer): partial(note, kind) for kind in ("q", "k", "v")}, lambda x: x)
        except _Reached:
            return found
        raise Unsupported(f"layer {layer} of {self.lm.name} has no attention that labkit can read")

    def call_of(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> AttentionCall:
        """The recorded attention call of a layer with other q, k, v (rows, head, seq, d_head)."""
        return replace(self.base.attention[layer], q=q, k=k, v=v)

    def additive(self, layer: int) -> bool:
        """With attention and MLP frozen, does a change of the block's input come out unchanged?"""
        known = _additive.setdefault(self.lm, {})
        if layer not in known:
            sites = [(kind, layer) for kind in ("attn_out", "mlp_out") if layer in layers_with(self.lm, kind)]
            x = self.resid[layer][None]
            change = _noise(x, layer)
            with self.lm.busy():
                out, held = self.block(layer, x, reads=sites)
                moved, _ = self.block(layer, x + change, edits={p: (lambda _, p=p: held[p]) for p in sites})  # type: ignore[misc]
            off = (moved.float() - out.float() - change.float()).abs()
            share, rounding = (1e-4, 1e-6) if x.dtype == torch.float32 else (0.05, 2.0**-7)
            limit = share * change.float().abs().mean() + rounding * (out.float().abs() + moved.float().abs())
            known[layer] = float((off <= limit).float().mean()) > 0.99
        return known[layer]

    def _takes_rows(self, layer: int) -> bool:
        """Does a block treat each row of a batch as it treats that row alone?"""
        known = _batched.setdefault(self.lm, {})
        if layer not in known and self.start:
            return BlockRunner(self.base)._takes_rows(layer)
        if layer not in known:
            x = self.base.resid[layer][None]
            rows = torch.cat([x, x + _noise(x, layer)])
            with self.lm.busy():
                each = [self._call(layer, row[None], (), {}, lambda x: x)[0][0] for row in rows]
                if not same_output(each[0], self.base.resid[layer + 1], x[0]):
                    raise Unsupported(f"layer {layer} of {self.lm.name} gives a different result when run on its own")
                try:
                    both = self._call(layer, rows, (), {}, lambda x: x)[0]
                    known[layer] = all(same_output(a, b, c) for a, b, c in zip(both, each, rows, strict=True))
                except Exception:  # a form of argument that cannot be shared by rows; one at a time it works
                    known[layer] = False
        return known[layer]

    def _call(
        self,
        layer: int,
        x: torch.Tensor,
        reads: Collection[Place],
        edits: Mapping[Place, Edit],
        keep: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor, dict[Place, torch.Tensor]]:
        look_again()
        arguments = self.base.calls[layer]
        if self.start:
            arguments = mapped(partial(_from, start=self.start, length=self.base.length), arguments)
        args, kwargs = expanded(arguments, len(x))
        with hooked(self.lm, set(reads), edits, keep=keep) as found:
            out = first_tensor(self.lm.anatomy.blocks[layer].module(x, *args, **kwargs))
        assert out is not None
        return out, found


def same_calls(a: RecordedRun, b: RecordedRun) -> bool:
    """Did the blocks of two runs get the same arguments besides the residual stream?

    Most of them all blocks of a run share, and each is compared once.
    """
    compared: dict[tuple[int, int], bool] = {}
    return all(_equal(x, y, compared) for x, y in zip(a.calls, b.calls, strict=True))


def _equal(a: Any, b: Any, compared: dict[tuple[int, int], bool]) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        pair = (id(a), id(b))
        if pair not in compared:
            compared[pair] = a.shape == b.shape and torch.equal(a, b)
        return compared[pair]
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_equal(x, y, compared) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name], compared) for name in a)
    return type(a) is type(b)


def _row_of(edits: Mapping[Place, Edit], row: int, rows: int) -> dict[Place, Edit]:
    """Edits that are written for all rows, for one of them."""

    def one(edit: Edit) -> Edit:
        return lambda x: edit(x.expand(rows, *x.shape[1:]).clone())[row, None]

    return {place: one(edit) for place, edit in edits.items()}


def _noise(x: torch.Tensor, seed: int) -> torch.Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    # of the size of most numbers at each position; a few of a residual stream's are very much larger
    return x.float().abs().median(-1, keepdim=True).values.to(x.dtype) * noise


def _from(name: str, x: torch.Tensor, start: int, length: int) -> torch.Tensor | None:
    """One argument of a block, for the positions from `start` on."""
    if "mask" in name or x.ndim == 4:
        return None
    if x.ndim >= 2 and x.shape[:2] == (1, length):
        return x[:, start:]
    return x[start:] if x.shape == (length,) else x
