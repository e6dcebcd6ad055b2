"""Patched cells in detail: what would the model predict, without the patch and with it?

A patch here is a `Move`: an activation read in the source run at one site and written into the base run at another,
most often the same one. `inspect` is one cell of a grid, `transplant` one cell's activation put somewhere else,
`together` several cells in one run, whose joint effect need not be the sum of the single ones: two heads may each
suffice, or only work together. A grid between two models needs the other one too, as `source`: the clean run is its.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from labkit.activations.metrics import Metric, metric_of
from labkit.activations.run import Run, run_to_measure
from labkit.activations.site_kinds import BY_QUERY, HEAD_KINDS
from labkit.activations.sites import Site, absent, n_heads_of
from labkit.elsewhere import where_the_model_is
from labkit.engine.cells import UNIT_KINDS
from labkit.language_model import LanguageModel
from labkit.patching.answers import Answers
from labkit.patching.grid import PatchGrid
from labkit.patching.pair_runs import ENDS, beside
from labkit.patching.source_model import check_sizes, run_names
from labkit.results.recipe import answer_ids
from labkit.text.tokens import describe

Place = tuple[int, int]
"""A cell as people name it: (layer, position), (layer, head), ...: the numbers on the grid's two axes."""


@dataclass(frozen=True)
class Move:
    """One activation on its way: read at `source` in the source run, written at `target` in the base run."""

    source: Site
    target: Site


@dataclass(frozen=True)
class CellReport:
    """One patch in detail.

    Attributes:
        before, after: the likeliest next tokens without and with it, as (text, probability).
        effect: the change of the metric; NaN for your own metric where a cell is not in the grid.
        normalized: the metric after it, where 0 is the corrupt run and 1 the clean run.
        attention_before, attention_after: the attention at the cell, float32: (head, key) from a position, for one head
            or all of the layer; (query, key) for a head at all positions; None if the layer has no patterns, or if
            several cells are patched.
    """

    before: list[tuple[str, float]]
    after: list[tuple[str, float]]
    effect: float
    normalized: float
    attention_before: np.ndarray | None = field(default=None, repr=False)
    attention_after: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class JointReport(CellReport):
    """Several cells patched in one run, with the `singles`: the effect of each alone, in the order they were given."""

    singles: tuple[float, ...] = ()

    @property
    def sum(self) -> float:
        """The sum of the single effects."""
        return float(np.sum(self.singles))


@where_the_model_is(small=True)
def inspect(
    lm: LanguageModel, grid: PatchGrid, layer: int, column: int, *, k: int = 10, source: LanguageModel | None = None
) -> CellReport:
    """Rerun one cell of a two-axis grid in full, and report what the model predicts without and with the patch.

    Args:
        layer: the layer number; or what the grid's first axis counts.
        column: the position, or the head, as the grid's second axis has it.
        k: how many tokens.
        source: of a grid between two models, the one given to `patch` as `source`.

    Raises:
        ValueError: the cell is not in the grid, or the grid is between two models and `source` is missing.
    """
    return transplant(lm, grid, (layer, column), (layer, column), k=k, source=source)


@where_the_model_is(small=True)
def transplant(
    lm: LanguageModel,
    grid: PatchGrid,
    taken: Place,
    target: Place,
    *,
    k: int = 10,
    source: LanguageModel | None = None,
) -> CellReport:
    """Read the source run at one cell, and write what was there into the base run at another cell.

    Raises:
        ValueError: a cell is not in the grid, or what is read does not fit the site where it is written.
    """
    move = Move(site_of(grid, taken), site_of(grid, target))
    if grid.site in BY_QUERY and (move.source.position or 0) > (move.target.position or 0):
        raise ValueError(
            f"the attention of position {move.source.position} reaches tokens that position {move.target.position} "
            "cannot see; drag it to a later one"
        )
    return _report(lm, grid, [move], k=k, other=source)


@where_the_model_is(small=True)
def together(
    lm: LanguageModel, grid: PatchGrid, cells: Sequence[Place], *, k: int = 10, source: LanguageModel | None = None
) -> JointReport:
    """Patch several cells in one run, and compare the joint effect with the single ones.

    Raises:
        ValueError: a cell is not in the grid, or there is none.
    """
    if not cells:
        raise ValueError("choose at least one cell")
    moves = [Move(site, site) for site in (site_of(grid, cell) for cell in cells)]
    joint = _report(lm, grid, moves, k=k, other=source)
    singles = [_effect_in(grid, cell) for cell in cells]
    for n, move in enumerate(moves):
        if not np.isfinite(singles[n]):
            singles[n] = _report(lm, grid, [move], k=1, other=source).effect
    return JointReport(joint.before, joint.after, joint.effect, joint.normalized, singles=tuple(singles))


def site_of(grid: PatchGrid, cell: Place) -> Site:
    """The site of a cell of a two-axis grid; a neuron is in the place of a head.

    Raises:
        ValueError: the cell is not in the grid.
    """
    if len(grid.over) != 2 or any(n not in numbers for n, numbers in zip(cell, grid.index, strict=True)):
        names = ", ".join(f"{name} {n}" for name, n in zip(grid.over, cell, strict=False))
        raise ValueError(f"the grid has no cell {names}")
    at = dict(zip(grid.over, map(int, cell), strict=True))
    layer = at["layer"] if "layer" in at else int(grid.recipe["layer"])
    return Site(grid.site, layer, at.get("head", at.get("neuron")), at.get("position"))


def cone(grid: PatchGrid, cell: Place) -> np.ndarray:
    """The causal cone of a cell, uint8 in the grid's shape: 1 what it can reach, 2 what can reach it, 3 itself.

    Later layers at the same and later positions are reached, earlier layers at the same and earlier ones reach it;
    heads of one layer do not reach each other.
    """
    rows, columns = (np.array(numbers) for numbers in grid.index)
    site_of(grid, cell)
    mask = np.zeros((len(rows), len(columns)), np.uint8)
    if grid.over[0] == "layer":
        by_position = grid.over[1] == "position"
        later, earlier = (columns >= cell[1], columns <= cell[1]) if by_position else (columns >= 0, columns >= 0)
        mask[np.ix_(rows > cell[0], later)] = 1
        mask[np.ix_(rows < cell[0], earlier)] = 2
    mask[grid.index[0].index(cell[0]), grid.index[1].index(cell[1])] = 3
    return mask


def code_of(grid: PatchGrid, moves: Sequence[Move]) -> str:
    """The Python of these moves, given `lm`, and `source` where the grid is between two models."""
    source, base = ENDS[grid.direction]
    moves = [Move(partner_of(grid, move.source), move.target) for move in moves]
    if grid.alignment is not None and any(move.source.position is None for move in moves):
        raise ValueError(
            "no code is written for a whole head between prompts of unequal length; take the code of the grid"
        )
    models = {"clean": "source" if "source" in grid.recipe else "lm", "corrupt": "lm"}
    reads = list(dict.fromkeys(str(_whole(move.source)) for move in moves))
    given = f"given = {models[source]}.run({grid.recipe[source]!r}, read={reads!r})\n"
    if any(move.target.kind in UNIT_KINDS and move.target.head is not None for move in moves):
        lines = "".join(
            f"neurons = patched_into.setdefault({str(_whole(m.target))!r}, [])\n"
            f"neurons.append(({m.target.head}, given[{str(_whole(m.source))!r}][..., {m.source.head}]))\n"
            for m in moves
        )
        given += f"patched_into = {{}}\n{lines}"
        given += (
            "\n\ndef put(neurons):\n    def edit(x):\n        x = x.clone()\n        for n, value in neurons:\n"
            "            x[..., n] = value.to(x)\n        return x\n\n    return edit\n\n\n"
        )
        writes = "write={site: put(neurons) for site, neurons in patched_into.items()}"
    else:
        lines = "".join(f"        {str(m.target)!r}: given[{str(m.source)!r}],\n" for m in moves)
        writes = f"write={{\n{lines}    }}"
    return (
        f"{given}patched = {models[base]}.run(\n    {grid.recipe[base]!r},\n    {writes},\n)\n"
        f"[lm.tokenizer.decode(id) for id in patched.logits[0, {grid.recipe['at']}].topk(5).indices]\n"
    )


def _report(
    lm: LanguageModel, grid: PatchGrid, moves: Sequence[Move], *, k: int, other: LanguageModel | None
) -> CellReport:
    source, base = ENDS[grid.direction]
    if "by" in grid.recipe:
        raise ValueError("a cell of a grid with by= is not one run; see it with lm.run(..., write=...)")
    models = models_of(lm, grid, other)
    patched_lm = models[base]
    end = None if grid.recipe["at"] == -1 else grid.recipe["at"] + 1
    ids = {name: torch.tensor([grid.recipe[f"{name}_ids"][:end]], device=models[name].device) for name in models}
    several = _several(grid)
    target = moves[0].target
    looks = len(moves) == 1 and target.layer is not None and absent(patched_lm, "pattern", target.layer) is None
    read = [f"pattern.{target.layer}"] if looks else []
    beside_base = None if grid.alignment is None else grid.partners
    moves_in = [Move(partner_of(grid, move.source), move.target) for move in moves]
    reads = list({str(_whole(move.source)): None for move in moves_in})

    def of(forced: tuple[int, ...] = ()) -> dict[str, Run]:
        """The three runs, with a continuation of both prompts."""
        more = {name: torch.cat([x, x.new_tensor([forced])], 1) if forced else x for name, x in ids.items()}
        partners = beside_base and [*beside_base, *range(ids[source].shape[1], more[source].shape[1])]
        count = 1 + len(forced)
        given = run_to_measure(models[source], more[source], read=reads, count=count)
        plain = run_to_measure(patched_lm, more[base], read=read, count=count)
        writes = _writes(given, moves_in, partners)
        return {
            source: given,
            base: plain,
            "patched": run_to_measure(patched_lm, more[base], read=read, write=writes, count=count),
        }

    runs = of()
    logits = {name: run.logits[0].to(lm.device) for name, run in runs.items()}  # (1, vocab)
    before, after = (likeliest(lm, logits[name][0], k) for name in (base, "patched"))
    effect = normalized = float("nan")
    if (metric := _metric(lm, grid, logits["clean"][0], several)) is not None:
        if several is not None:  # of every lane the positions that the metric reads
            lanes = [of(forced) if forced else runs for forced in several.lanes]
            logits = {name: torch.cat([lane[name].logits[0].to(lm.device) for lane in lanes]) for name in logits}
        at = {name: float(metric.of(rows)[0]) for name, rows in logits.items()}
        effect, gap = at["patched"] - at[base], at["clean"] - at["corrupt"]
        normalized = (at["patched"] - at["corrupt"]) / gap if gap else float("nan")
    if len(moves) == 1 and moves[0].source == target:
        cell: Place = tuple(getattr(target, "head" if name == "neuron" else name) for name in grid.over)
        known = _effect_in(grid, cell)  # as the grid shows it, where it has it: another batch rounds otherwise
        if np.isfinite(known):
            effect, normalized = known, float(grid.normalized[_at(grid, cell)])
    attention = [_looks(patched_lm, runs[name], target) if looks else None for name in (base, "patched")]
    return CellReport(before, after, effect, normalized, *attention)


def models_of(lm: LanguageModel, grid: PatchGrid, other: LanguageModel | None) -> dict[str, LanguageModel]:
    """The models of the clean and of the corrupt run.

    Raises:
        ValueError: the grid is between two models, and the other one is missing, or of other sizes; or it is not.
    """
    if ("source" in grid.recipe) != (other is not None):
        names = run_names(grid.recipe)
        raise ValueError(
            f"the grid is between two models, {names['corrupt']} and {names['clean']}: give the second, which was its "
            "source, as source="
            if other is None
            else "the grid is between two prompts of one model; leave source out"
        )
    if other is not None:
        check_sizes(lm, other)
    return {"clean": other or lm, "corrupt": lm}


def _whole(site: Site) -> Site:
    """The site that a run knows: neurons are not written one by one there."""
    return replace(site, head=None) if site.kind in UNIT_KINDS else site


def partner_of(grid: PatchGrid, site: Site) -> Site:
    """Where the source run has a site of the patched run.

    Raises:
        ValueError: its position has no partner there.
    """
    if grid.alignment is None or site.position is None:
        return site
    if (partner := grid.partners[site.position]) is None:
        raise ValueError(f"position {site.position} has no partner in the other prompt, so nothing can be put there")
    return replace(site, position=partner)


def _writes(given: Run, moves: Sequence[Move], partners: Sequence[int | None] | None) -> dict[Site, Any]:
    """What to write where; single neurons go into what is there, and so do positions that have a partner."""
    writes: dict[Site, Any] = {}
    neurons: dict[Site, list[tuple[int, torch.Tensor]]] = {}
    for move in moves:
        value = given[_whole(move.source)]
        if move.source.kind in UNIT_KINDS and move.source.head is not None and move.target.head is not None:
            neurons.setdefault(_whole(move.target), []).append((move.target.head, value[..., move.source.head]))
        elif partners is not None and move.target.position is None:
            writes[move.target] = lambda x, value=value: beside(partners, value[0], x[0])[None]
        else:
            writes[move.target] = value
    return writes | {site: _into(changes) for site, changes in neurons.items()}


def _into(changes: list[tuple[int, torch.Tensor]]) -> Callable[[torch.Tensor], torch.Tensor]:
    def edit(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        for neuron, value in changes:
            x[..., neuron] = value.to(x)
        return x

    return edit


def likeliest(lm: LanguageModel, row: torch.Tensor, k: int) -> list[tuple[str, float]]:
    """The likeliest tokens by logits (vocab,), as (text to show, probability)."""
    shares, ids = row.softmax(-1).topk(k)
    return [(t.display, p) for t, p in zip(describe(lm.tokenizer, ids.tolist()), shares.tolist(), strict=True)]


def _several(grid: PatchGrid) -> Answers | None:
    """The grid's answers and foils, where they are several or of several tokens."""
    if "answer_tokens" not in grid.recipe:
        return None
    return Answers(*(tuple(map(tuple, grid.recipe[f"{name}_tokens"])) for name in ("answer", "foil")))


def _metric(lm: LanguageModel, grid: PatchGrid, reference: torch.Tensor, several: Answers | None) -> Metric | None:
    if grid.recipe["own_metric"]:
        return None
    if several is not None:
        return several.metric(grid.recipe["metric"])
    answer, foil = answer_ids(lm, grid.recipe)
    return metric_of(grid.recipe["metric"], answer=answer, foil=foil, reference=reference)


def _at(grid: PatchGrid, cell: Place) -> tuple[int, int]:
    return grid.index[0].index(cell[0]), grid.index[1].index(cell[1])


def _effect_in(grid: PatchGrid, cell: Place) -> float:
    return float(grid.values[_at(grid, cell)]) - grid.unpatched


def _looks(lm: LanguageModel, seen: Run, target: Site) -> np.ndarray:
    """Where a place looks: (head, key) from a position, or (query, key) of a head from everywhere."""
    pattern = seen[f"pattern.{target.layer}"][0].float().cpu().numpy()  # (head, query, key)
    if target.head is not None and target.kind in HEAD_KINDS:
        group = max(1, len(pattern) // n_heads_of(lm, target.kind, target.layer))  # query heads that share a key head
        pattern = pattern[target.head * group : (target.head + 1) * group].mean(0, keepdims=True)
    if target.position is not None:
        return np.asarray(pattern[:, target.position])  # (head, key)
    return np.asarray(pattern[0] if len(pattern) == 1 else pattern.mean(0))  # (query, key)
