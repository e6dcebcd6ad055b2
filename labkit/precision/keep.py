"""Which matrices hurt? A small set of parts that have to stay in 16 bits for a metric to come back.

Patching across precisions says where the damage is made: what the output of one layer's attention or MLP from the more
precise model moves, summed over positions, is about what its matrices cost. In that order, the parts that move it most
towards the source first, they are given their 16-bit weights until the metric is back within what rounding moves it,
and those that are not needed are taken out again. What is found repairs this metric on this prompt, which errors that
cancel each other help to do; whether it helps elsewhere is for `lk.quantisation_report` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from labkit.activations.run import run_to_measure
from labkit.activations.sites import layers_with
from labkit.elsewhere import LOAD_BOTH, needs_weights
from labkit.models.memory import tensors_of
from labkit.models.weights import bias_of, is_quantised, weight_of
from labkit.patching.patch import patch
from labkit.patching.spec import PatchSpec
from labkit.precision.findings import rounding
from labkit.text.as_code import as_python

if TYPE_CHECKING:
    import pandas as pd

    from labkit.activations.metrics import MetricFunction
    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt

PARTS = {"attn_out": "attention", "mlp_out": "mlp"}
TIMES = 4  # roundings, whose largest effect is the tolerance
Layers = list[tuple[nn.Module, nn.Module]]
"""Linear layers of the model in few bits, each with the same one of the source."""


@dataclass
class KeepSearch:
    """Parts that have to stay in 16 bits, and how they were found.

    Attributes:
        keep: for `lk.load(..., keep=...)`, those that help most first; empty if none has to.
        enough: whether they bring the metric back; if not, `keep` is all parts.
        metric: its name.
        source, without, value: the metric in the source, in this model as it is, and with `keep`.
        tolerance: how far from the source's it may be.
        bytes: what `keep` costs: its weights in 16 bits less the packed ones.
        effects: by part what its output from the source moves, in the metric's unit: the order of the search.
        tried: the mixtures of the two models that were run, with the metric.
        load: the Python that loads the model without `keep`.
    """

    keep: list[str]
    enough: bool
    metric: str
    source: float
    without: float
    value: float
    tolerance: float
    bytes: int
    effects: dict[str, float] = field(repr=False)
    tried: list[tuple[list[str], float]] = field(repr=False)
    load: str = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row per part: `part`, `effect`, whether it is `kept`; those that help most first."""
        import pandas as pd

        rows = [(part, effect, part in self.keep) for part, effect in self.effects.items()]
        return pd.DataFrame(rows, columns=["part", "effect", "kept"])

    def code(self) -> str:
        """The Python that loads the model with these parts in 16 bits."""
        return self.load.rstrip().removesuffix(")") + f", keep={as_python(self.keep)})\n" if self.keep else self.load

    def __repr__(self) -> str:
        said = f"{len(self.keep)} of {len(self.effects)} parts" if self.enough else "all parts are not enough"
        return (
            f"KeepSearch({said}; {self.metric} {self.without:.3f} -> {self.value:.3f}, source {self.source:.3f} within "
            f"{self.tolerance:.3f}; {self.bytes / 1e6:.1f} MB more, {len(self.tried)} tried)"
        )


def what_to_keep(
    lm: LanguageModel,
    source: LanguageModel,
    prompt: Prompt,
    answer: str | int | None = None,
    foil: str | int | None = None,
    *,
    metric: str | MetricFunction | None = None,
    tolerance: float | None = None,
    evaluations: int = 20,
    progress: bool = True,
) -> KeepSearch:
    """Find a small set of parts that have to stay in 16 bits for a metric on a prompt to be what it is in the source.

    A part is the attention or the MLP of one layer. What is found is the smallest set in the order of the parts'
    effects, less those that are not needed; not all sets are searched.

    Args:
        lm: the model in few bits.
        source: the same in 16 or 32 bits.
        prompt, answer, foil, metric: as for `lk.patch(lm, prompt, source=source, ...)`.
        tolerance: how near the metric has to come, in its unit; by default twice what rounding moves it here.
        evaluations: after how many mixtures of the two to stop.
        progress: show the progress of the two grids that the order comes from.

    Raises:
        ValueError: the models cannot be compared, the source has no more bits, or nothing is packed in this one; before
            anything has run.
    """
    needs_weights("lk.what_to_keep exchanges matrices", lm, source, instead=LOAD_BOTH)
    if evaluations < 3:
        raise ValueError(f"evaluations must be at least 3; got {evaluations}")
    asked: dict[str, Any] = {"answer": answer, "foil": foil, "metric": metric, "source": source, "progress": progress}
    pair = PatchSpec(prompt, **asked).prepared(lm)
    names = _names(lm)
    parts = _parts(lm, source, names)
    if not any(parts.values()):
        raise ValueError(f"no layer of {lm.name} is packed in few bits, so there is nothing to keep")
    if source.bits <= lm.bits:
        raise ValueError(
            f"the source {source.name} is itself in {source.bits} bits, so it has nothing better to keep; load it with "
            "bits=16 or bits=32"
        )
    effects: dict[tuple[str, int], float] = {}
    for site in PARTS:
        if layers_with(lm, site):
            grid = patch(lm, prompt, site=site, **asked)
            moved = (grid.values - grid.corrupt).sum(1)
            effects |= {(site, layer): float(x) for layer, x in zip(grid.index[0], moved, strict=True)}
    named = {name: effects.get(place, 0.0) for place, name in names.items() if parts.get(name)}
    ids, reference = pair.ids["corrupt"], run_to_measure(source, pair.ids["clean"].to(source.device)).logits[:, -1]
    measure = pair.metric(reference[0].to(ids.device))
    of = lambda model: float(measure.of(run_to_measure(model, ids.to(model.device)).logits[:, -1].to(ids.device))[0])  # noqa: E731
    target, without = of(source), of(lm)
    towards = 1 if target > without else -1
    order = sorted(named, key=lambda name: -towards * named[name])
    if tolerance is None:
        tolerance = 0.0
        for seed in range(TIMES):
            with rounding(lm, seed=seed):
                tolerance = max(tolerance, 2 * abs(of(lm) - without))
    tried: list[tuple[list[str], float]] = []

    def near(names: Sequence[str]) -> bool:
        with kept_from([pair for name in names for pair in parts[name]], lm):
            tried.append((list(names), of(lm)))
        return abs(tried[-1][1] - target) <= tolerance

    keep, enough = _smallest(order, near, lambda: len(tried) < evaluations)
    value = next((value for names, value in tried if names == keep), without)
    size = sum(_extra_bytes(layer) for name in keep for layer, _ in parts[name])
    ranked = {name: named[name] for name in order}
    return KeepSearch(keep, enough, measure.name, target, without, value, tolerance, size, ranked, tried, lm.code())


def _smallest(
    order: list[str], near: Callable[[Sequence[str]], bool], more: Callable[[], bool]
) -> tuple[list[str], bool]:
    """The shortest beginning of a list that is near, less what is not needed; and whether there is one."""
    if near([]):
        return [], True
    low, high = 0, min(1, len(order))  # the first `low` are not enough
    while not near(order[:high]):
        if high == len(order) or not more():
            return order, False
        low, high = high, min(2 * high, len(order))
    while high - low > 1 and more():
        middle = (low + high) // 2
        low, high = (low, middle) if near(order[:middle]) else (middle, high)
    keep = order[:high]
    size = max(1, len(keep) // 2)
    while len(keep) > 1 and more():  # pieces from the end on, which matter least; the halves first
        for start in range(len(keep) - size, -1, -size):
            fewer = keep[:start] + keep[start + size :]
            if fewer and more() and near(fewer):
                keep = fewer
        if size == 1:
            break
        size //= 2
    return keep, True


@contextmanager
def kept_from(layers: Layers, lm: LanguageModel) -> Iterator[None]:
    """While a block runs, these layers compute with the source's weights, in the model's 16-bit dtype."""

    def computed_with(theirs: nn.Module) -> Callable[..., torch.Tensor]:
        bias = bias_of(theirs)

        def instead(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            x = args[0]
            weight = weight_of(theirs, dtype=lm.dtype)  # made when needed: all at once are a model in 16 bits
            return F.linear(x, weight.to(x), None if bias is None else bias.to(x))

        return instead

    with lm.lock, ExitStack() as stack:
        for mine, theirs in layers:
            stack.callback(mine.register_forward_hook(computed_with(theirs)).remove)
        yield


def _names(lm: LanguageModel) -> dict[tuple[str, int], str]:
    """By (site, layer) the name of the part that `keep=` takes, such as `self_attn.3`."""
    names = {}
    for layer, block in enumerate(lm.anatomy.blocks):
        inside = {module: name for name, module in block.module.named_modules()}
        for site, part in PARTS.items():
            if name := inside.get(getattr(block, part)):
                names[site, layer] = f"{name}.{layer}"
    return names


def _parts(lm: LanguageModel, source: LanguageModel, names: Mapping[tuple[str, int], str]) -> dict[str, Layers]:
    """By the name of each part its packed layers in the model, and what they are in the source."""
    found: dict[str, Layers] = {}
    blocks = zip(lm.anatomy.blocks, source.anatomy.blocks, strict=True)
    for layer, (block, other) in enumerate(blocks):
        for site, part in PARTS.items():
            mine, theirs = getattr(block, part), getattr(other, part)
            if mine is None or (site, layer) not in names:
                continue
            same = dict(theirs.named_modules())
            found[names[site, layer]] = [
                (module, same[name]) for name, module in mine.named_modules() if is_quantised(module)
            ]
    return found


def _extra_bytes(layer: Any) -> int:
    """What a packed layer would take more in 16 bits."""
    bias = bias_of(layer)
    packed = sum(x.untyped_storage().nbytes() for x in tensors_of(layer) if x is not bias)
    return int(2 * layer.in_features * layer.out_features) - packed
