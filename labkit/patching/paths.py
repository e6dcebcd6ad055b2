"""Path patching: which head feeds which, and through which of its inputs?

Patching a head's output changes everything after it. Path patching changes only its *direct* input to a receiver (Wang
et al. 2022, "Interpretability in the Wild", section 3.1 and appendix B). In four runs:

1. and 2. the source prompt and the base prompt, plainly;
3. the base prompt with the sender's activation from the source run, every attention output after it frozen to the base
   run: what reaches the receiver went through residual connections and MLPs, but no other head. The receiver's new
   input, such as head 23.3's queries, is kept;
4. the base prompt with the receiver's input replaced by that one, everything after it recomputed, and the metric read.

MLPs in between are recomputed in run 3, as in the paper; `mlps="freeze"` freezes them too, leaving only the residual
connections. Layer norms are recomputed in either case. Run 3 needs no attention after the sender and run 4 nothing
below the receiver, and all senders go up the blocks as the rows of one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from labkit.activations.hooks import Edit, Place
from labkit.activations.metrics import Metric
from labkit.activations.run import run, run_to_measure
from labkit.activations.site_kinds import HEAD_IN
from labkit.activations.sites import Site, layers_with, n_heads_of
from labkit.elsewhere import where_the_model_is
from labkit.engine.batching import is_out_of_memory, tokens_at_once
from labkit.engine.block_runner import BlockRunner
from labkit.engine.readout import readout_of
from labkit.engine.recorded_run import Unsupported, record
from labkit.language_model import LanguageModel
from labkit.models.devices import to_index
from labkit.models.handle import PerModel
from labkit.patching.gap import measured
from labkit.patching.pair_runs import ENDS
from labkit.patching.path_ends import RECEIVERS, comes_before, of_head, receivers_of, senders_of
from labkit.patching.path_grid import PathGrid
from labkit.patching.spec import DIRECTIONS, PairSpec, asks
from labkit.results.job import finish
from labkit.text.warn import warn

CHECKED: PerModel[set[str]] = PerModel(set)
"""For each model the paths whose fast path was checked against full forward passes."""


@dataclass(frozen=True, kw_only=True)
class PathSpec(PairSpec):
    """Direct paths to a receiver.

    Attributes:
        receiver: `logits` (or `resid_post.last`, the same) for the direct effect on them; heads' inputs such as
            `q.23.3`, `k.20.1` or several of them, patched together; or one place in the residual stream, such as
            `resid_mid.20`. Where queries are grouped, `k` and `v` are counted by key and value head.
        senders: heads (`z.5.3`), layers of heads (`z.5`), MLPs (`mlp_out.5`), or a kind (`z`, `mlp_out`); by default
            every head.
        mlps: `recompute` lets the change pass through the MLPs between sender and receiver, as Wang et al. do; `freeze`
            keeps their output, so that only the residual stream carries it.
        direction: `denoise` puts the clean sender into a corrupt run, `noise` (the paper's) the other way round.
    """

    receiver: str | Site | Sequence[str | Site] = "logits"
    senders: Sequence[str | Site] | str | None = None
    mlps: str = "recompute"
    direction: str = "denoise"

    def __post_init__(self) -> None:
        if self.mlps not in ("recompute", "freeze") or self.direction not in DIRECTIONS:
            got = f"{self.mlps!r}, {self.direction!r}"
            raise ValueError(f"mlps must be recompute or freeze, and direction denoise or noise; got {got}")


@where_the_model_is
@asks(PathSpec)
def path_patch(lm: LanguageModel, spec: PathSpec) -> PathGrid:
    """Patch the direct path from each sender to a receiver, and measure the metric after each.

    Args:
        lm: the model, in any bits.
        clean, corrupt, answer, foil, metric, at, progress: as in `lk.patch`.
        receiver, senders, mlps, direction: as in `PathSpec`: the receiver, the senders, and the MLPs in between.

    Returns:
        A `PathGrid`: `values` (layer, head) float32, with one more column if MLPs send; NaN for anything not requested.
            After an interrupt it has what was computed so far.

    Raises:
        ValueError: invalid input, before the model has run.
    """
    job = _Paths(lm, spec)
    finish(job, "paths", unit="sender", kept="grid", progress=spec.progress)
    return job.grid.warned()


class _Paths:
    """The work of one `path_patch`: the input is checked here, before anything runs."""

    def __init__(self, lm: LanguageModel, spec: PathSpec) -> None:
        for kind in ("attn_out", "mlp_out") if spec.mlps == "freeze" else ("attn_out",):
            if len(layers_with(lm, kind)) < lm.n_layers:
                raise ValueError(f"{lm.name} has no paths to patch: not every layer has {kind}")
        self.lm, self.spec, self.mlps = lm, spec, spec.mlps
        self.receivers = receivers_of(lm, spec.receiver)
        self.senders = senders_of(lm, spec.senders)
        self.pair = spec.prepared(lm)
        self.ids = self.pair.ids
        self.source, self.base = ENDS[spec.direction]
        self.heads = HEAD_IN if layers_with(lm, HEAD_IN) else "z"
        self.total, self.done = len(self.senders), 0
        layers = sorted({s.layer for s in self.senders if s.layer is not None})
        n_heads = n_heads_of(lm, "z")
        columns = list(range(n_heads)) if any(s.kind == "z" for s in self.senders) else []
        columns += [n_heads] if any(s.kind == "mlp_out" for s in self.senders) else []
        recipe = self.pair.recipe(
            direction=spec.direction, mlps=spec.mlps, n_heads=n_heads, kind="paths", site="path", method="exact",
            usual_over=("layer", "head"), receiver=[str(r) for r in self.receivers] or "logits",
            senders=None if spec.senders is None else [str(s) for s in self.senders],
        )  # fmt: skip
        self.grid = PathGrid(
            np.full((len(layers), len(columns)), np.nan, np.float32), ("layer", "head"), (layers, columns),
            float("nan"), float("nan"), *self.pair.tokens, recipe,
        )  # fmt: skip

    def steps(self) -> Iterator[None]:
        """Do the work; yields after every chunk."""
        try:
            self._prepare()
        except Unsupported as why:
            self._fall_back(str(why))
        for sender in self.senders if self.receivers else []:
            if not any(comes_before(sender, receiver) for receiver in self.receivers):  # no path to them
                self.grid.values[self._cell(sender)] = self.grid.unpatched
                self.done += 1
        yield
        waiting = [[s for s in self.senders if np.isnan(self.grid.values[self._cell(s)])]]
        most = max(1, tokens_at_once(self.lm) // self.ids["clean"].shape[1])
        waiting = [chunk[n : n + most] for chunk in waiting for n in range(0, len(chunk), most)]
        while waiting:
            chunk = waiting.pop(0)
            try:
                values = self._values(chunk)
                self._check(chunk, values)
            except Exception as error:
                if is_out_of_memory(error) and len(chunk) > 1:
                    waiting[:0] = [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
                elif not self.fast:
                    raise
                else:
                    self._slower(str(error))
                    waiting.insert(0, chunk)
                continue
            for sender, value in zip(chunk, values, strict=True):
                self.grid.values[self._cell(sender)] = value
            self.done += len(chunk)
            yield

    def _cell(self, sender: Site) -> tuple[int, int]:
        layers, columns = self.grid.index
        head = self.grid.recipe["n_heads"] if sender.head is None else sender.head
        assert sender.layer is not None
        return layers.index(sender.layer), columns.index(head)

    def _prepare(self) -> None:
        """The two plain runs, what is kept of them, and their metric."""
        self.fast = True
        self.metric: Metric | None = None
        kinds = sorted({self.heads if s.kind == "z" else s.kind for s in self.senders})
        source, self.said = record(self.lm, self.ids[self.source], sites=kinds)
        held = {"attn_out", *(["mlp_out"] if self.mlps == "freeze" else [])}
        held |= {self.heads} & set(kinds)  # the other heads of a sender's layer
        base, self.held = record(self.lm, self.ids[self.base], sites=sorted(held))
        # what is frozen does not mix positions: nothing changes before the first difference, and logits read the last
        differ = (self.ids["clean"] != self.ids["corrupt"])[0].nonzero()
        last = base.length - 1
        self.start = last if not self.receivers or not len(differ) else int(differ[0])
        self.rows, self.whole_rows = BlockRunner(base, start=self.start), BlockRunner(base)
        self.readout = readout_of(base)
        self._measure({self.base: base.logits, self.source: source.logits})

    def _measure(self, logits: dict[str, torch.Tensor]) -> None:
        self.metric = self.pair.metric(logits["clean"])
        self.grid.clean, self.grid.corrupt = (
            float(self.metric.of(logits[name][None])[0]) for name in ("clean", "corrupt")
        )
        rows = {name: row[None] for name, row in logits.items()}
        found = measured(dict.fromkeys(self.ids, self.lm), [(self.ids, 1)], rows, self.metric)
        self.grid.measured_in(self.metric.unit, found)

    def _check(self, senders: list[Site], values: np.ndarray) -> None:
        """On the first paths of a kind in this model, check the two strongest against full forward passes."""
        key = f"paths to {', '.join(sorted({r.kind for r in self.receivers})) or 'logits'}, {self.mlps}"
        if not self.fast or key in CHECKED[self.lm]:
            return
        most = np.abs(values - self.grid.unpatched).argsort()[-2:]
        whole = np.array([self._whole(senders[n]) for n in most])
        scale = max(1.0, abs(self.grid.clean), abs(self.grid.corrupt))
        if not np.all(np.abs(values[most] - whole) <= scale * (1e-3 if self.lm.dtype == torch.float32 else 0.1)):
            raise Unsupported(f"rows gave {values[most].tolist()} where whole runs gave {whole.tolist()}")
        CHECKED[self.lm].add(key)

    def _slower(self, why: str) -> None:
        """The next slower way: rows from the first position on, then full forward passes."""
        if self.start == 0:
            self._fall_back(why)
        self.start, self.rows = 0, self.whole_rows

    def _fall_back(self, why: str) -> None:
        warn(f"patching paths with two full forward passes per sender, which is slow: {why}")
        self.fast = False
        if self.metric is None:
            self._measure({name: run_to_measure(self.lm, ids).logits[0, -1] for name, ids in self.ids.items()})

    def _values(self, senders: list[Site]) -> np.ndarray:
        """The metric for each sender, float32 (len(senders),)."""
        if not self.fast:
            return np.array([self._whole(sender) for sender in senders], np.float32)
        assert self.metric is not None
        with self.lm.busy(), self.lm.for_patching():
            senders_up = sorted(senders, key=lambda s: s.layer or 0)
            if self.receivers:
                x = self._heard(self._received(senders_up))
            else:
                x = self._up(senders_up, self.lm.n_layers, {})
            rows = max(1, (64 << 20) // (4 * self.lm.n_vocab))
            values = torch.cat([self.metric(self.readout(part, self.metric.columns)) for part in x[:, -1].split(rows)])
        return values.cpu().numpy()[[senders_up.index(s) for s in senders]]

    # -- run 3: from the senders to the receivers ----------------------------------------------------------------

    def _received(self, senders: list[Site]) -> dict[Site, torch.Tensor]:
        """Each receiver's new value (senders, seq, ...)."""
        wanted = {r: self._base_value(r) for r in self.receivers}
        values = {r: v[None].repeat(len(senders), *(1,) * v.ndim) for r, v in wanted.items()}
        self._up(senders, max(r.layer or 0 for r in self.receivers) + 1, values)
        return values

    def _base_value(self, receiver: Site) -> torch.Tensor:
        layer = receiver.layer or 0
        if receiver.kind in ("resid_pre", "resid_post"):
            return self.rows.resid[layer + (receiver.kind == "resid_post")]
        place = (receiver.kind, layer)
        _, found = self.rows.block(layer, self.rows.resid[layer][None], reads=[place], edits=self._edits(layer, 1, []))
        return of_head(found[place], receiver)[0]

    def _up(self, senders: list[Site], top: int, values: dict[Site, torch.Tensor]) -> torch.Tensor:
        """The senders' rows up the blocks below `top`, attention frozen; collects the receivers' inputs.

        Returns the residual stream there, (senders, seq, d_model). With MLPs frozen too, blocks that only add are
        skipped: the change of each row stays as it was when it joined.
        """
        resid = self.rows.resid
        x = resid[0].new_empty(0, *resid[0].shape)
        change = x.float()
        for layer in range(senders[0].layer or 0, top):
            old, new = len(x), [s for s in senders if s.layer == layer]
            here = [r for r in values if r.layer == layer]
            places = {(r.kind, layer) for r in here if r.kind not in ("resid_pre", "resid_post")}
            x = torch.cat([x, resid[layer][None].expand(len(new), *resid[layer].shape)])
            if self.mlps == "freeze" and self.rows.additive(layer) and not places:
                found: dict[Place, torch.Tensor] = {}
                if new:
                    out, _ = self.rows.block(layer, x[old:], edits=self._edits(layer, 0, new))
                    change = torch.cat([change, out.float() - resid[layer + 1].float()])
                out = (resid[layer + 1].float() + change).to(x.dtype)
            else:
                out, found = self.rows.block(layer, x, reads=places, edits=self._edits(layer, old, new))
                change = out.float() - resid[layer + 1].float()
            for receiver in here:
                at = {"resid_pre": x, "resid_post": out}.get(receiver.kind)
                heard = of_head(found[receiver.kind, layer], receiver) if at is None else at
                rows = slice(old if receiver.kind in ("q", "k", "v", "resid_pre") else len(x))
                values[receiver][: len(x)][rows] = heard[rows].to(values[receiver].dtype)
            x = out
        return x

    def _edits(self, layer: int, old: int, new: list[Site]) -> dict[Place, Edit]:
        """In one layer: attention frozen in all rows, except for the senders here; MLPs too, if asked."""
        heads = [(old + n, s) for n, s in enumerate(new) if s.kind == "z"]
        others = [(old + n, s) for n, s in enumerate(new) if s.kind == "mlp_out"]
        quiet = [*range(old), *(row for row, _ in others)]
        edits: dict[Place, Edit] = {}
        if heads:
            edits[self.heads, layer] = self._put(self.heads, layer, [row for row, _ in heads], heads)
        if quiet:
            edits["attn_out", layer] = self._put("attn_out", layer, quiet, [])
        if self.mlps == "freeze":
            edits["mlp_out", layer] = self._put("mlp_out", layer, list(range(old + len(new))), others)
        elif others:
            edits["mlp_out", layer] = self._put("mlp_out", layer, [], others)
        return edits

    def _put(self, kind: str, layer: int, held: list[int], speaking: list[tuple[int, Site]]) -> Edit:
        """Some rows get the base run's activation, and then some a sender's."""

        def edit(value: torch.Tensor) -> torch.Tensor:
            value = value.clone()
            if held:
                value[to_index(held, value.device)] = self.held[kind][layer][self.start :].to(value.dtype)
            for row, site in speaking:
                heads = () if site.head is None else (slice(None), site.head)
                value[row][heads] = self.said[kind][layer][self.start :][heads].to(value.dtype)
            return value

        return edit

    # -- run 4: from the receivers to the logits -----------------------------------------------------------------

    def _heard(self, values: dict[Site, torch.Tensor]) -> torch.Tensor:
        """The last residual stream (senders, seq, d_model) with the receivers' inputs put in."""
        rows = self.whole_rows
        count = len(next(iter(values.values())))
        first = min(r.layer or 0 for r in values)
        x = rows.resid[first][None].expand(count, *rows.resid[first].shape)
        for layer in range(first, self.lm.n_layers):
            here = {kind: [r for r in values if (r.kind, r.layer) == (kind, layer)] for kind in RECEIVERS}
            if here["resid_pre"]:
                x = self._hear(here["resid_pre"], values)(x)
            inside = {(kind, layer): here[kind] for kind in ("q", "k", "v", "resid_mid") if here[kind]}
            x, _ = rows.block(layer, x, edits={place: self._hear(sites, values) for place, sites in inside.items()})
            if here["resid_post"]:
                x = self._hear(here["resid_post"], values)(x)
        return x

    def _hear(self, sites: list[Site], values: dict[Site, torch.Tensor]) -> Edit:
        """Replace (rows, seq, ...) by the inputs of receivers of one kind and layer, from the start on."""

        def edit(value: torch.Tensor) -> torch.Tensor:
            value = value.clone()
            for site in sites:
                of_head(value, site)[:, self.start :] = values[site].to(value.dtype)
            return value

        return edit

    # -- the same, one whole run at a time -----------------------------------------------------------------------

    def _whole(self, sender: Site) -> float:
        """One sender, by definition: four full forward passes."""
        lm, base, source = self.lm, self.ids[self.base], self.ids[self.source]
        assert sender.layer is not None
        assert self.metric is not None
        freeze = self.mlps == "freeze"
        kind = "head_out" if self.heads == HEAD_IN and sender.kind == "z" else sender.kind
        spoken = Site(kind, sender.layer, sender.head)
        said = run(lm, source, read=[spoken])[spoken]
        plain = run(lm, base, read=["attn_out", *(["mlp_out"] if freeze else [])])
        write: dict[Site, torch.Tensor] = {spoken: said}
        for layer in range(sender.layer, lm.n_layers):
            if layer > sender.layer:
                write[Site("attn_out", layer)] = plain[f"attn_out.{layer}"]
            if freeze and (layer > sender.layer or sender.kind == "z"):
                write[Site("mlp_out", layer)] = plain[f"mlp_out.{layer}"]
        third = run_to_measure(lm, base, read=self.receivers, write=write)
        if self.receivers:
            third = run_to_measure(lm, base, write={r: third[r] for r in self.receivers})
        return float(self.metric.of(third.logits[:, -1])[0])
