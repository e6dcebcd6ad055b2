"""Two other ways through the packed blocks of the wavefront, behind a switch that is off.

Around its matmuls a block is some thirty small kernels, and its attention is one call for each position at which rows
start; on a GPU both may take longer than the matmuls. With `compiled`, torch.compile joins the small kernels, for any
number of tokens; linear layers in 4 or 8 bits stay as they are. With `flex`, one call of FlexAttention computes a
layer's attention for all packed rows, which share the keys before their starts instead of each having a copy.

What neither covers goes the usual way, which is the reference: layers that are patched inside, layers that restart on
whole rows, masks, caps and sinks of an architecture's own, models spread over devices. Neither has been measured on a
GPU; benchmarks/gpu.py has a row for each, and until then both are off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import nn

from labkit.activations.attention_interface import AttentionCall, keep_out_of_graphs
from labkit.models.devices import sent
from labkit.models.packed_experts import PackedExperts

if TYPE_CHECKING:
    from labkit.models.handle import Model

BLOCK = 128  # queries and keys that FlexAttention computes or leaves out together


@dataclass(frozen=True)
class Ways:
    """Which of them are on, and what `torch.compile` compiles with."""

    compiled: bool = False
    flex: bool = False
    backend: str = "inductor"


_ways: ContextVar[Ways] = ContextVar("ways", default=Ways())  # noqa: B039 (frozen)


@contextmanager
def block_loop(*, compiled: bool = False, flex: bool = False, backend: str = "inductor") -> Iterator[None]:
    """Send packed rows through blocks in another way while the block runs, in this thread.

    Args:
        compiled: blocks compiled by `torch.compile`, for any number of tokens.
        flex: attention of a layer's packed rows in one call of FlexAttention, compiled likewise.
        backend: of `torch.compile`; `inductor` needs a C++ compiler on a CPU and Triton on a GPU.
    """
    token = _ways.set(Ways(compiled, flex, backend))
    try:
        yield
    finally:
        _ways.reset(token)


def ways() -> Ways:
    """What is on in this thread."""
    return _ways.get()


# -- compiled blocks ---------------------------------------------------------------------------------------------------

_compiled: WeakKeyDictionary[nn.Module, dict[str, Callable[..., Any]]] = WeakKeyDictionary()
_opaque: WeakKeyDictionary[nn.Module, Callable[..., Any]] = WeakKeyDictionary()
_real: WeakKeyDictionary[nn.Module, Callable[..., Any]] = WeakKeyDictionary()


@contextmanager
def compiled_block(lm: Model, block: nn.Module) -> Iterator[Callable[..., Any]]:
    """What to call in place of a block, under the model's lock."""
    how = ways()
    if not how.compiled or lm.anatomy.shared or any(hasattr(part, "_hf_hook") for part in block.modules()):
        yield block
        return
    keep_out_of_graphs()
    made = _compiled.setdefault(block, {})
    if how.backend not in made:
        made[how.backend] = torch.compile(_call_of(block), backend=how.backend, dynamic=True)
    with ExitStack() as stack:
        for part in block.modules():
            if "forward" in part.__dict__ or _is_packed(part):
                stack.enter_context(_as_it_is(part))
        stack.enter_context(_compiling())
        yield made[how.backend]


def _call_of(block: nn.Module) -> Callable[..., Any]:
    it = ref(block)  # what is kept for a block must not keep it alive

    def call(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        own = it()
        assert own is not None
        return own(x, *args, **kwargs)

    return call


def _is_packed(part: nn.Module) -> bool:
    return isinstance(part, PackedExperts) or (isinstance(part, nn.Linear) and type(part) is not nn.Linear)


@contextmanager
def _as_it_is(part: nn.Module) -> Iterator[None]:
    """Let compiled code call a module without looking into it."""
    if part not in _opaque:
        it = ref(part)

        def forward(*args: Any, **kwargs: Any) -> Any:
            own = it()
            assert own is not None
            return _real[own](*args, **kwargs)

        _opaque[part] = torch.compiler.disable(forward)
    before = part.__dict__.get("forward")
    _real[part] = part.forward
    part.__dict__["forward"] = _opaque[part]
    try:
        yield
    finally:
        del _real[part]
        if before is None:
            del part.__dict__["forward"]
        else:
            part.__dict__["forward"] = before


@contextmanager
def _compiling() -> Iterator[None]:
    """Compiled code is used although a model in use runs uncompiled (`models.compiled`), and once for every layer."""
    import torch._dynamo as dynamo

    many = 4096
    with torch.compiler.set_stance("default"), dynamo.config.patch(recompile_limit=many):
        yield


# -- attention of packed rows in one call ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Rows of one length and one start, end to end.

    Attributes:
        lane: which run's keys come before them.
        start: the position of their first token.
        length: tokens of each.
        count: rows.
    """

    lane: int
    start: int
    length: int
    count: int


class Together:
    """One layer's attention over packed rows: each token sees those of its row up to itself, and its run's before.

    Keys are the packed tokens' own and behind them those of each lane, up to its latest start.

    Args:
        groups: the rows, in their order.
        spare: tokens after them that are not used.
    """

    def __init__(self, groups: Sequence[Rows], spare: int, device: torch.device) -> None:
        self.before = {lane: max(g.start for g in groups if g.lane == lane) for lane in {g.lane for g in groups}}
        position = [np.tile(np.arange(g.start, g.start + g.length), g.count) for g in groups]
        lengths = np.repeat([g.length for g in groups], [g.count for g in groups])
        row = np.repeat(np.arange(len(lengths)), lengths)
        start, lane = (
            np.repeat([getattr(g, name) for g in groups], [g.length * g.count for g in groups])
            for name in ("start", "lane")
        )
        tokens = len(row) + spare
        last = np.minimum(np.arange(tokens), len(row) - 1)  # a spare token asks what the last one does
        own = np.where(np.arange(tokens) < len(row), row[last], len(row))  # and none sees it
        at = np.concatenate(position)
        prefixes = [np.arange(end) for end in self.before.values()]
        numbers = np.concatenate([np.full(end, -1 - n) for n, end in self.before.items()])
        queries = np.stack([row[last], at[last], -1 - lane[last], start[last]])  # each (4, tokens)
        keys = np.stack([np.concatenate([own, numbers]), np.concatenate([at[last], *prefixes])])  # (2, keys)
        first = np.concatenate([[0], np.cumsum(lengths)])[row[last]]  # of each token's row
        self.mask = self._mask(queries, keys, first, tokens, device)

    @staticmethod
    def _mask(queries: np.ndarray, keys: np.ndarray, first: np.ndarray, tokens: int, device: torch.device) -> Any:
        """The blocks of keys that any query of a block sees; a large grid has no room for the whole table."""
        from torch.nn.attention.flex_attention import BlockMask

        n_keys = keys.shape[1]
        blocks = np.arange(-(-tokens // BLOCK))
        lowest = first[blocks * BLOCK] // BLOCK
        prefix = np.maximum(blocks + 1, tokens // BLOCK)  # the first block with keys of a lane that is not its own
        ends = -(-n_keys // BLOCK)
        counts = (blocks + 1 - lowest) + np.maximum(ends - prefix, 0)
        column = np.arange(ends)[None]
        own = (blocks + 1 - lowest)[:, None]
        seen = np.where(column < own, lowest[:, None] + column, prefix[:, None] + column - own)
        seen = np.where(column < counts[:, None], seen, 0)

        q, k = (sent(torch.as_tensor(x, dtype=torch.int32), device) for x in (queries, keys))
        (q_row, q_at, q_lane, q_start), (k_row, k_at) = q.unbind(), k.unbind()

        def sees(batch: Any, head: Any, i: Any, j: Any) -> Any:
            own = (k_row[j] == q_row[i]) & (k_at[j] <= q_at[i])
            return own | ((k_row[j] == q_lane[i]) & (k_at[j] < q_start[i]))

        number, index = (sent(torch.as_tensor(x, dtype=torch.int32), device)[None, None] for x in (counts, seen))
        return BlockMask.from_kv_blocks(number, index, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(tokens, n_keys))

    def __call__(self, call: AttentionCall, stored: dict[int, AttentionCall]) -> torch.Tensor:
        """z (1, tokens, head, d_head) of a call with packed rows, and the recorded call of each lane."""
        k, v = (
            torch.cat([own, *(getattr(stored[n], name)[:, :, :end] for n, end in self.before.items())], 2)
            for name, own in (("k", call.k), ("v", call.v))
        )
        attend = _flex(ways().backend)
        with _compiling():
            z = attend(call.q, k, v, block_mask=self.mask, scale=call.scaling, enable_gqa=call.q.shape[1] != k.shape[1])
        return z.transpose(1, 2)


@cache
def _flex(backend: str) -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    made: Callable[..., torch.Tensor] = torch.compile(flex_attention, backend=backend, dynamic=True)
    return made
