"""The wavefront: many patched runs of one prompt, or of several, in a single pass up the blocks.

A patch at layer L and position p changes nothing below L and nothing before p. So each patched run, a *row*, joins the
batch at block L with the stored residual stream from position p on, and attends to the stored keys and values of the
positions before p. Linear layers see one packed list of tokens without padding (each row only its own p..end); our own
attention works on the rows of the same p together, against the shared prefix. At the top only the position that the
metric reads is unembedded.

What a block is called with (position ids, rotary tables, whatever else an architecture passes) is recorded from one
plain run and re-indexed for the packed tokens, so no architecture needs a table here. Layers that mix positions in
another way than attention does (state spaces, convolutions, attention of their own) are run on whole rows, with the
base run's prefix in front; once per model each layer is tested for the fastest way that reproduces its own output.
`readout_of` checks the stored run against the model's own logits first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F

from labkit.activations.attention_interface import (
    AttentionCall,
    apply_pattern,
    attention_tasks,
    needs_pattern,
    pattern_of,
    scores_of,
    softmax_of,
)
from labkit.activations.head_layout import heads_of
from labkit.activations.hooks import hooked
from labkit.activations.site_kinds import ATTENTION_KINDS, BY_QUERY, HEAD_IN, MODULE_KINDS, ROTATED_KINDS
from labkit.engine.block_loop import Rows, Together, block_loop, compiled_block, ways
from labkit.engine.cells import Cell, layers_of, put_cell, put_rows
from labkit.engine.recorded_run import RecordedRun, Unsupported, expanded, mapped, same_output
from labkit.models.devices import to_index
from labkit.models.flow import first_tensor
from labkit.models.handle import PerModel
from labkit.models.processors import look_again


class Cancelled(Exception):
    """The caller asked to stop during a pass."""


_MODULES = (kind for kind in MODULE_KINDS if kind not in ("resid_pre", "resid_post"))
_HOOKED = (*_MODULES, *ROTATED_KINDS, "router", HEAD_IN)


RESTARTS: PerModel[dict[int, str]] = PerModel(dict)
"""How each layer of a model is restarted: `packed`, `rows` or `one`."""


@dataclass(frozen=True)
class Lane:
    """One run that is patched, and what is put into it.

    Attributes:
        base: the run.
        source: the site's activation of each layer of the other run, as `record` gives it.
        first: the first position at which the two prompts differ; nothing before it can have an effect.
        reads: of how many last positions the residual stream is wanted.
    """

    base: RecordedRun
    source: Mapping[int, torch.Tensor]
    first: int
    reads: int = 1

    def start_of(self, cell: Cell) -> int:
        return self.first if cell.position is None else cell.position


@dataclass
class _Group:
    """Rows of one lane that start at the same position."""

    lane: int
    start: int
    x: torch.Tensor  # (rows, length, d_model)
    cells: list[int]  # the cell of each row

    @property
    def tokens(self) -> int:
        return self.x.shape[0] * self.x.shape[1]


class Wavefront:
    """Patches of one kind of site, put into one base run or into several at once.

    Args:
        lanes: the runs, of any lengths; a cell's `lane` says which one it belongs to.
        site: the kind of site.
        window: how many layers each cell patches, its own in their middle.

    Raises:
        Unsupported: a layer gives a different result when run on its own.
    """

    def __init__(self, lanes: Sequence[Lane], *, site: str, window: int = 1) -> None:
        self.lanes, self.site, self.lm, self.window = lanes, site, lanes[0].base.lm, window
        self._causal: dict[tuple[torch.device, int], torch.Tensor] = {}
        with self.lm.busy(), block_loop():  # how a layer restarts is found, and kept, in the usual way
            self._find_restarts()

    def __call__(self, cells: Sequence[Cell], *, cancelled: Callable[[], bool] = lambda: False) -> torch.Tensor:
        """The last residual stream (rows, d_model) at the last positions of each patched run, cell by cell.

        There are as many rows to a cell as its lane `reads`: one, unless it says otherwise.

        Raises:
            Cancelled: `cancelled()` returned true; it is checked before every block.
        """
        joins: dict[int, list[int]] = {}
        after = int(self.site == "resid_post")
        spans = [layers_of(cell, self.window, self.lm.n_layers) for cell in cells]
        for index, span in enumerate(spans):
            joins.setdefault(span.start + after, []).append(index)
        groups: dict[tuple[int, int], _Group] = {}
        with self.lm.busy(), self.lm.for_patching():
            for layer in range(min(joins), self.lm.n_layers + 1):
                if cancelled():
                    raise Cancelled
                self._join(groups, layer, joins.get(layer, []), cells)
                patched = {index for index, span in enumerate(spans) if self._has(layer - after, span, cells[index])}
                if self.site in ("resid_pre", "resid_post"):
                    self._put_stream(groups, layer - after, patched, cells)
                if layer < self.lm.n_layers:
                    rows = [groups[key] for key in sorted(groups)]
                    self._block(layer, rows, patched, cells, RESTARTS[self.lm][layer])
            last = torch.cat([group.x[:, -self.lanes[group.lane].reads :].flatten(0, 1) for group in groups.values()])
            final = torch.empty_like(last)
            first = list(accumulate((self.lanes[cell.lane].reads for cell in cells), initial=0))
            rows_of = [
                row for group in groups.values() for cell in group.cells for row in range(first[cell], first[cell + 1])
            ]
            final[to_index(rows_of, last.device)] = last
        return final

    def _join(self, groups: dict[tuple[int, int], _Group], layer: int, new: list[int], cells: Sequence[Cell]) -> None:
        """Rows whose first patch is at this layer enter with their base run's residual stream."""
        by_start: dict[tuple[int, int], list[int]] = {}
        for index in new:
            cell = cells[index]
            by_start.setdefault((cell.lane, self.lanes[cell.lane].start_of(cell)), []).append(index)
        for (number, start), indices in by_start.items():
            lane = self.lanes[number]
            x = lane.base.resid[layer][start:][None].repeat_interleave(len(indices), 0)
            if (old := groups.get((number, start))) is not None:
                x, indices = torch.cat([old.x, x]), old.cells + indices
            groups[number, start] = _Group(number, start, x, indices)

    def _has(self, layer: int, span: range, cell: Cell) -> bool:
        """Is a cell patched at a layer? Not where the layer has no such site."""
        return layer in span and (self.window == 1 or layer in self.lanes[cell.lane].source)

    def _put_stream(
        self, groups: dict[tuple[int, int], _Group], layer: int, patched: set[int], cells: Sequence[Cell]
    ) -> None:
        """The residual stream of the rows that are patched at a layer, the last ones of their groups."""
        for group in groups.values():
            if edited := [cells[i] for i in group.cells if i in patched]:
                put_rows(group.x, self.lanes[group.lane].source[layer][group.start :], edited)

    def _block(self, layer: int, groups: list[_Group], patched: set[int], cells: Sequence[Cell], how: str) -> None:
        """One block over all rows; those that are patched here get their patch on the way."""
        look_again()
        if how == "packed":
            self._packed(layer, groups, patched, cells)
            return
        for group in groups:
            step = 1 if how == "one" else len(group.cells)
            parts = [slice(first, first + step) for first in range(0, len(group.cells), step)]
            group.x = torch.cat([self._whole(layer, group, rows, patched, cells) for rows in parts])

    def _packed(self, layer: int, groups: list[_Group], patched: set[int], cells: Sequence[Cell]) -> None:
        """All rows as one list of tokens, end to end, each row from its start on."""
        block = self.lm.anatomy.blocks[layer]
        spare = _spare(sum(g.tokens for g in groups), groups[0].x.device)
        packed = _packed([g.x.flatten(0, 1) for g in groups], spare)  # (1, tokens, d_model)
        used = sorted({g.lane for g in groups})
        at = [to_index(self._positions(groups, lane), packed.device) for lane in used]
        at[-1] = torch.cat([at[-1], at[-1][-1:].expand(spare)])
        calls = [self.lanes[lane].base.calls[layer] for lane in used]
        lengths = [self.lanes[lane].base.length for lane in used]
        args, kwargs = mapped(partial(_reindexed, at=at, lengths=lengths), *calls)
        put = partial(self._put, layer, groups, patched, cells)
        edits = {(self.site, layer): put} if self.site in _HOOKED and patched else {}
        attention = heads_of(self.lm)[layer].attention
        assert attention is not None
        task = partial(self._attend, layer, groups, patched, cells)
        untouched = not edits and not (patched and self.site in ATTENTION_KINDS)
        if untouched and ways().flex:
            task = partial(self._attend_together, layer, groups, cells)
        with ExitStack() as stack:
            stack.enter_context(hooked(self.lm, set(), edits))
            stack.enter_context(attention_tasks(self.lm.hf, {attention: task}))
            call = stack.enter_context(compiled_block(self.lm, block.module)) if untouched else block.module
            out = first_tensor(call(packed, *args, **kwargs))
        assert out is not None
        for group, x in zip(groups, _parts(groups, out[0]), strict=True):
            group.x = x.view(group.x.shape)

    def _positions(self, groups: list[_Group], lane: int) -> torch.Tensor:
        """The position of each packed token of a lane."""
        mine = [g for g in groups if g.lane == lane]
        return torch.cat([torch.arange(g.start, self.lanes[lane].base.length).repeat(len(g.cells)) for g in mine])

    def _whole(self, layer: int, group: _Group, rows: slice, patched: set[int], cells: Sequence[Cell]) -> torch.Tensor:
        """What the block makes of some of a group's rows, with the base run's residual stream in front."""
        indices, start, base = group.cells[rows], group.start, self.lanes[group.lane].base
        x = group.x[rows]
        prefix = base.resid[layer][:start][None].expand(len(indices), *(-1,) * (x.ndim - 1))
        args, kwargs = expanded(base.calls[layer], len(indices))
        places = [(n, cells[index]) for n, index in enumerate(indices) if index in patched]
        edits = {}
        if places and self.site in (*_HOOKED, *ATTENTION_KINDS):
            edits[self.site, layer] = partial(self._put_whole, layer, places)
        with hooked(self.lm, set(), edits):
            out = first_tensor(self.lm.anatomy.blocks[layer].module(torch.cat([prefix, x], 1), *args, **kwargs))
        assert out is not None
        return out[:, start:]

    def _put_whole(self, layer: int, places: list[tuple[int, Cell]], x: torch.Tensor) -> torch.Tensor:
        """Whole rows (rows, seq, ...), of patterns (rows, head, seq, seq), with the source's values in their cells."""
        x = x.clone()
        for row, cell in places:
            put_cell(x[row], self.lanes[cell.lane].source[layer].to(x.dtype), self.site, cell)
        return x

    # -- which way each layer can be restarted -------------------------------------------------------------------

    def _find_restarts(self) -> None:
        """For each layer the fastest way that reproduces its output on a changed residual stream."""
        base = self.lanes[0].base
        for layer in range(self.lm.n_layers):
            if layer in RESTARTS[self.lm]:
                continue
            x = base.resid[layer][None]
            start = base.length // 2
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(layer)).to(x)
            x = torch.cat([x[:, :start], x[:, start:] + x.float().std().to(x.dtype) * noise[:, start:]], 1)
            args, kwargs = base.calls[layer]
            out = first_tensor(self.lm.anatomy.blocks[layer].module(x, *args, **kwargs))
            assert out is not None
            before = base.resid[layer + 1][:start]
            if start and not same_output(out[0, :start], before, x[0, :start]):
                raise Unsupported(f"layer {layer} of {self.lm.name} gives a different result when run on its own")
            ways = (["packed"] if heads_of(self.lm)[layer].attention is not None else []) + ["rows", "one"]
            RESTARTS[self.lm][layer] = next(way for way in ways if way == "one" or self._agrees(layer, way, x, out))

    def _agrees(self, layer: int, way: str, x: torch.Tensor, out: torch.Tensor) -> bool:
        start = self.lanes[0].base.length // 2
        groups = [_Group(0, 0, x.repeat_interleave(2, 0), [0, 1]), _Group(0, start, x[:, start:].clone(), [2])]
        try:
            self._block(layer, groups, set(), [], way)
        except Exception:  # a form of argument that this way cannot handle; a slower way can
            return False
        return all(same_output(row, out[0, g.start :], x[0, g.start :]) for g in groups for row in g.x)

    def _put(
        self, layer: int, groups: list[_Group], patched: set[int], cells: Sequence[Cell], x: torch.Tensor
    ) -> torch.Tensor:
        """A packed activation (1, tokens, ...) with the source's vectors at the patched rows' positions."""
        x = x.clone()
        for group, part in zip(groups, _parts(groups, x[0]), strict=True):
            rows = part.view(*group.x.shape[:2], *part.shape[1:])
            source = self.lanes[group.lane].source
            if (edited := [cells[i] for i in group.cells if i in patched]) and layer in source:
                put_rows(rows, source[layer][group.start :], edited)
        return x

    def _attend(
        self, layer: int, groups: list[_Group], patched: set[int], cells: Sequence[Cell], call: AttentionCall
    ) -> torch.Tensor:
        """z of packed rows (1, tokens, head, d_head): each group's against its base run's keys and values before it."""
        by_head = self.site if self.site in ATTENTION_KINDS else None
        tokens = (_parts(groups, x[0].transpose(0, 1)) for x in (call.q, call.k, call.v))  # (tokens, head, d_head)
        z = []
        for group, *flat in zip(groups, *tokens, strict=True):
            shape, start, lane = group.x.shape[:2], group.start, self.lanes[group.lane]
            stored = lane.base.attention[layer]
            q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in flat)  # (rows, head, length, d_head)
            edited = [cells[i] for i in group.cells if by_head and i in patched]
            for name, x in (("q", q), ("k", k), ("v", v)):
                if by_head == name and edited:
                    put_rows(x.transpose(1, 2), lane.source[layer][start:], edited)
            k = torch.cat([stored.k[:, :, :start].expand(len(group.cells), -1, -1, -1), k], 2)
            v = torch.cat([stored.v[:, :, :start].expand(len(group.cells), -1, -1, -1), v], 2)
            here = replace(call, q=q, k=k, v=v, mask=self._mask(lane.base, stored, start))
            out = _fast(here)  # (rows, length, head, d_head)
            if by_head == "z" and edited:
                put_rows(out, lane.source[layer][start:], edited)
            elif by_head in BY_QUERY and edited:
                _put_by_query(out, here, by_head, lane.source[layer][:, start:], edited)
            z.append(out.flatten(0, 1))
        return _packed(z, call.q.shape[2] - sum(g.tokens for g in groups))

    def _attend_together(
        self, layer: int, groups: list[_Group], cells: Sequence[Cell], call: AttentionCall
    ) -> torch.Tensor:
        """z of packed rows as `_attend` computes it where nothing is patched, in one call if that can be done."""
        stored = {g.lane: self.lanes[g.lane].base.attention[layer] for g in groups}
        if needs_pattern(call.options) or any(one.mask is not None for one in stored.values()):
            return self._attend(layer, groups, set(), cells, call)
        rows = [Rows(g.lane, g.start, g.x.shape[1], len(g.cells)) for g in groups]
        spare = call.q.shape[2] - sum(g.tokens for g in groups)
        return Together(rows, spare, call.q.device)(call, stored)

    def _mask(self, base: RecordedRun, stored: AttentionCall, start: int) -> torch.Tensor | None:
        """The base run's mask for the queries from `start` on, (..., length, seq)."""
        if start == 0:
            return stored.mask
        if stored.mask is not None:
            return stored.mask[..., start:, :]
        device, length = stored.k.device, base.length
        if (device, length) not in self._causal:  # one for all starts: theirs are its last rows
            self._causal[device, length] = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        return self._causal[device, length][start:]


def _spare(tokens: int, device: torch.device) -> int:
    """How many tokens to add, so that matmuls come in few sizes: on a CPU each new one costs half a millisecond."""
    step = 16 if tokens < 512 else 32
    return -tokens % step if device.type == "cpu" else 0


def _packed(parts: list[torch.Tensor], spare: int) -> torch.Tensor:
    """Tokens (tokens, ...) end to end, as a batch of one, the last once more for each spare one."""
    return torch.cat([*parts, parts[-1][-1:].expand(spare, *parts[-1].shape[1:])])[None]


def _parts(groups: list[_Group], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each group's tokens out of packed ones (tokens, ...), without the spare ones."""
    sizes = [g.tokens for g in groups]
    return x[: sum(sizes)].split(sizes)


def _put_by_query(z: torch.Tensor, call: AttentionCall, kind: str, source: torch.Tensor, cells: Sequence[Cell]) -> None:
    """Recompute z (rows, length, head, d_head) of these cells' rows, the last, with the source's pattern or scores, in
    place.

    In chunks of rows whose patterns take at most 256 MB.
    """
    first, size = len(z) - len(cells), call.q.shape[1] * call.q.shape[2] * call.k.shape[2]
    step = max(1, (64 << 20) // size)
    for begin in range(0, len(cells), step):
        some = cells[begin : begin + step]
        rows = slice(first + begin, first + begin + len(some))
        part = replace(call, q=call.q[rows], k=call.k[rows], v=call.v[rows])
        shown = pattern_of(part) if kind == "pattern" else scores_of(part)  # (rows, head, length, seq)
        put_rows(shown.transpose(1, 2), source.transpose(0, 1), some)
        z[rows] = apply_pattern(shown if kind == "pattern" else softmax_of(part, shown), part.v)


def _fast(call: AttentionCall) -> torch.Tensor:
    """z (rows, length, head, d_head) by SDPA with shared key and value heads, where SDPA can do it."""
    if needs_pattern(call.options):
        return call.fast()
    grouped = call.q.shape[1] != call.k.shape[1]
    out = F.scaled_dot_product_attention(
        call.q, call.k, call.v, attn_mask=call.mask, is_causal=call.mask is None, scale=call.scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2)


def _reindexed(
    name: str, *values: torch.Tensor, at: Sequence[torch.Tensor], lengths: Sequence[int]
) -> torch.Tensor | None:
    """One argument of a block, for packed tokens: what has a position axis is taken at each token's position.

    `values` has the argument of each lane, `at` the positions of its tokens, and `lengths` how many it has.
    """
    value, length = values[0], lengths[0]
    if "mask" in name or value.ndim == 4:
        return None  # masks are taken from the recorded attention calls, group by group
    if value.ndim >= 2 and value.shape[:2] == (1, length):
        return torch.cat([v[:, p.to(v.device)] for v, p in zip(values, at, strict=True)], 1)
    if value.shape == (length,):
        return torch.cat([v[p.to(v.device)] for v, p in zip(values, at, strict=True)])
    return value
