"""The last matmul, from the last hidden state to the logits that a metric reads, in float32.

A model in 16 bits rounds its logits to 16 bits: near 5 in steps of 1/32, near 20 in steps of 1/8, and so is a
difference of two of them. Small effects of a patch are lost in that rounding, though the hidden state has them. So for
a metric the hidden state is the model's own and only the matmul with the unembedding is done in float32, with the
model's scale and soft cap. `lm.run(...).logits` are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from labkit.activations.batch import Batch
from labkit.elsewhere import where_the_model_is
from labkit.models.bf16_matmul import linear
from labkit.models.devices import columns_of, to_index
from labkit.models.weights import is_plain

if TYPE_CHECKING:
    from labkit.models.handle import Model

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

_ends: WeakKeyDictionary[Model, End | None] = WeakKeyDictionary()


def unembedded(unembed: Any, x: torch.Tensor, columns: Sequence[int] | None = None) -> torch.Tensor:
    """The unembedding of x (rows, width): (rows, vocab) or (rows, len(columns)), computed in float32.

    One that has no plain weight (packed, adapted, kept elsewhere) computes as it does.
    """
    if is_plain(unembed) and (columns is not None or x.dtype != torch.float32):
        weight, bias = unembed.weight, unembed.bias
        if columns is not None:
            wanted = to_index(columns, weight.device)
            weight, bias = weight[wanted].float(), None if bias is None else bias[wanted]
        return linear(x.to(weight.device).float(), weight, None if bias is None else bias.float())
    logits = unembed(x).float()
    return columns_of(logits, columns)


@dataclass(frozen=True)
class End:
    """What a model does to the output of its unembedding."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, made: torch.Tensor) -> torch.Tensor:
        made = made * self.scale
        return made if self.softcap is None else torch.tanh(made / self.softcap) * self.softcap

    def uncapped(self, logits: torch.Tensor) -> torch.Tensor:
        """The value before the soft cap, as far as it can be recovered."""
        if self.softcap is None:
            return logits
        return torch.atanh((logits / self.softcap).clamp(-0.999, 0.999)) * self.softcap

    def fitted(self, made: torch.Tensor, logits: torch.Tensor) -> float:
        """The scale that turns the matmul (vocab,) into a model's logits (vocab,) before the soft cap."""
        # architectures name the scale of their logits in many ways; it is the number that fits
        return float((made @ self.uncapped(logits)) / (made @ made).clamp(min=1e-30))


def softcap_of(lm: Model) -> float | None:
    return next((getattr(lm.config, n) for n in SOFTCAPS if getattr(lm.config, n, None)), None)


@where_the_model_is(busy=True, small=True)
def last_logits(lm: Model, ids: torch.Tensor) -> torch.Tensor:
    """The model's own logits (batch, vocab) at the last position; only these are computed if possible."""
    return lm.hf(input_ids=ids, use_cache=False, **lm.only_last).logits[:, -1]


@where_the_model_is(busy=True, small=True)
def measured_logits(lm: Model, ids: torch.Tensor, columns: Sequence[int] | None = None) -> torch.Tensor:
    """The same, (batch, vocab) or (batch, len(columns)), as metrics read them: with their last matmul in float32."""
    with _before_unembedding(lm) as taken:
        own = last_logits(lm, ids)[:, None]
    return _exactly(lm, taken, own, columns)[:, 0]


def measured_tail(lm: Model, ids: torch.Tensor, count: int) -> torch.Tensor:
    """The logits (batch, count, vocab) of the last `count` positions of ids (batch, position), as metrics read them.

    The logits of earlier positions are not computed if the model can skip them.
    """
    inputs = {"input_ids": ids, "use_cache": False}
    with _before_unembedding(lm) as taken:
        own = Batch(ids.shape[1]).logits(lm, inputs, range(-count, 0))
    return _exactly(lm, taken, own)


def measured_end(lm: Model, ids: torch.Tensor, count: int, columns: Sequence[int] | None = None) -> torch.Tensor:
    """The same, of one position as `measured_logits` has them: (batch, count, vocab), or of one (batch, 1, columns)."""
    return measured_logits(lm, ids, columns)[:, None] if count == 1 else measured_tail(lm, ids, count)


def logits_and_measured(
    lm: Model,
    inputs: dict[str, Any],
    rows: Batch,
    positions: Sequence[int] | None,
    *,
    at: int,
    columns: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """From one pass the model's own logits at some positions (row, position, vocab), None for all, and those at one
    position (row, vocab) or (row, len(columns)) as metrics read them.
    """
    used = [column for position in (*(positions or ()), at) for column in rows.columns(position)]
    count = rows.length - (0 if positions is None else min(used))
    with _before_unembedding(lm) as taken:
        logits = lm.hf(**inputs, **dict.fromkeys(lm.only_last, count)).logits

    def take(x: torch.Tensor, position: int) -> torch.Tensor:
        """One position of each row, from x (row, last positions, ...)."""
        columns = torch.tensor(rows.columns(position), device=x.device) - (rows.length - x.shape[1])
        return x[torch.arange(len(x), device=x.device), columns]

    hidden = [take(taken[0], at)[:, None]] if taken and taken[0].ndim == 3 else []
    measured = _exactly(lm, hidden, take(logits, at)[:, None], columns)[:, 0]
    if positions is None:
        return logits, measured
    return torch.stack([take(logits, one) for one in positions], 1) if positions else logits[:, :0], measured


@contextmanager
def _before_unembedding(lm: Model) -> Iterator[list[torch.Tensor]]:
    """While a block runs, the last input of the unembedding is kept in a list."""
    taken: list[torch.Tensor] = []

    def take(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        taken[:] = args[:1]

    handle = lm.anatomy.unembed.register_forward_pre_hook(take)
    try:
        yield taken
    finally:
        handle.remove()


def _exactly(
    lm: Model, taken: list[torch.Tensor], own: torch.Tensor, columns: Sequence[int] | None = None
) -> torch.Tensor:
    """The logits of the last positions (batch, position, vocab), float32: recomputed from the unembedding's input, or
    the model's own where that is not needed or not possible."""
    unembed = lm.anatomy.unembed
    some = columns_of(own, columns).float()
    if not taken or taken[0].dtype == torch.float32 or taken[0].ndim != 3 or not is_plain(unembed):
        return some
    x = taken[0][:, -own.shape[1] :]
    if lm not in _ends:  # once per model: can its last step be recomputed?
        with torch.no_grad():
            _ends[lm] = _end_of(lm, unembedded(unembed, x[0, -1:])[0], own[0, -1].float())
    end = _ends[lm]
    if end is None:
        return some
    return end(unembedded(unembed, x.flatten(0, 1), columns)).to(own.device).unflatten(0, x.shape[:2])


def _end_of(lm: Model, made: torch.Tensor, own: torch.Tensor) -> End | None:
    """What comes between the matmul (vocab,) and the model's own rounded logits (vocab,), if it can be determined."""
    if made.shape != own.shape:
        return None
    made, plain = made.to(own.device), End(softcap=softcap_of(lm))
    fitted = plain.fitted(made, own)
    numbers = [float(v) for v in lm.config.to_dict().values() if isinstance(v, int | float) and v > 0]
    declared = [n for v in numbers for n in (v, 1 / v) if abs(n - fitted) <= 2e-3 * abs(fitted)]
    for scale in (1.0, *declared, fitted):  # a declared scale has no rounding in it
        end = End(scale, plain.softcap)
        if bool(((end(made) - own).abs() <= 2.0**-6 * (own.abs() + own.pow(2).mean().sqrt())).all()):
            return end
    return None
