"""Activation patching: which activations carry the answer?

Put one activation of a source run into a base run and see how far the metric moves (Vig et al. 2020; Meng et al.
2022; Wang et al. 2022). *Denoise* puts clean into corrupt: what is enough to bring the answer back. *Noise* puts
corrupt into clean: what the answer cannot do without.

`PatchJob` does the work in chunks of cells, so that results can be watched, stopped and kept; `patch` runs one to its
end. The engine is `internals.wavefront`; where an architecture cannot be restarted in the middle, or the fast path does
not agree with running the model whole on a few cells (looked at once a model and site), every cell is run whole.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.analysis.attribution import estimate
from labkit.analysis.batching import is_out_of_memory, tokens_at_once
from labkit.analysis.grid import PatchGrid
from labkit.analysis.metrics import Metric, MetricFunction, metric_of
from labkit.internals.run import run
from labkit.internals.sites import HEAD_IN, HEAD_KINDS, Site, checked, layers_with, n_heads_of
from labkit.internals.wavefront import Cancelled, Cell, Readout, Unsupported, Wavefront, readout_of, record
from labkit.tokens import Pair, align, describe, single_token

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel, Prompt

POSITION_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_act", "router", "latent")
DIRECTIONS = ("denoise", "noise")
METHODS = ("exact", "attribution")


def patch(
    lm: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    answer: str | int | None = None,
    foil: str | int | None = None,
    *,
    site: str = "resid_pre",
    metric: str | MetricFunction | None = None,
    method: str = "exact",
    direction: str = "denoise",
    over: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    at: int = -1,
    progress: bool = True,
) -> PatchGrid:
    """Patch a site everywhere, one cell at a time, and measure the metric after each.

    Args:
        lm: the model.
        clean: the prompt with the behaviour to explain.
        corrupt: one with the same number of tokens that lacks it.
        answer: the token that clean calls for, with its space: `" Mary"`.
        foil: the token that corrupt calls for.
        site: `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `mlp_act` over layers x positions;
            `q`, `k`, `v`, `pattern`, `z`, `head_out` over layers x heads, all positions together.
        metric: `logit_diff`, `logprob`, `kl` (from the clean run), `rank`, or a function of the logits,
            (rows, vocab) -> (rows,); without one `logit_diff`, or `logprob` where there is no foil.
        method: `exact` reruns the model from each patch on; `attribution` is the gradient estimate of the same, from
            one forward and one backward pass.
        direction: `denoise` puts clean into corrupt, `noise` corrupt into clean.
        over: other axes, such as `("layer", "head", "position")` or `("layer", "position")` for a site by head.
        layers, heads, positions: only these.
        at: the position whose logits the metric reads.
        progress: show a progress bar.

    Returns:
        A `PatchGrid`. After an interrupt, one with what was computed by then, the rest NaN, and a warning.

    Raises:
        ValueError: anything about the input that cannot work, before the model has run.
    """
    job = PatchJob(
        lm, clean, corrupt, answer, foil, site=site, metric=metric, method=method, direction=direction,
        over=over, layers=layers, heads=heads, positions=positions, at=at,
    )  # fmt: skip
    from tqdm.auto import tqdm

    with tqdm(total=job.total, desc=f"patching {site}", unit="cell", disable=not progress, leave=False) as bar:
        try:
            for _ in job.steps():
                bar.update(job.done - bar.n)
        except KeyboardInterrupt:
            warnings.warn(
                f"interrupted: {job.done} of {job.total} cells are in the grid, the others are NaN", stacklevel=2
            )
        except Exception as error:
            error.grid = job.grid  # type: ignore[attr-defined]
            error.add_note(f"{job.done} of {job.total} cells were done; they are in the `grid` of this error")
            raise
    return job.grid


@dataclass(frozen=True)
class _Ready:
    """What the two unpatched runs left: the source's activations, the metric, and how to read logits out."""

    source: dict[int, torch.Tensor]
    metric: Metric
    readout: Readout | None  # None where runs cannot be restarted in the middle


class PatchJob:
    """Patching that can be watched and stopped.

    `for _ in job.steps(): ...` does the work in the calling thread; after each step `job.grid.values` has more cells.
    `job.cancel()`, from any thread, ends it soon; what is done is kept, and `steps()` goes on from there.

    Attributes:
        grid: the `PatchGrid` so far.
        total, done: how many cells there are, and how many have their value.
        engine: `wavefront` or `whole runs`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        clean: Prompt,
        corrupt: Prompt,
        answer: str | int | None = None,
        foil: str | int | None = None,
        *,
        site: str = "resid_pre",
        metric: str | MetricFunction | None = None,
        method: str = "exact",
        direction: str = "denoise",
        over: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        at: int = -1,
    ) -> None:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction is one of {', '.join(DIRECTIONS)}; got {direction!r}")
        if method not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}; got {method!r}")
        self.method = method
        self.lm = lm
        self.site = checked(lm, site).kind
        if self.site not in (*POSITION_SITES, *HEAD_KINDS):
            raise ValueError(
                f"{self.site} cannot be patched as a grid; use one of {', '.join((*POSITION_SITES, *HEAD_KINDS))}"
            )
        pair = align(lm, clean, corrupt)
        length = pair.clean.shape[1]
        if not -length <= at < length:
            raise ValueError(f"at={at} is out of range; the prompts have positions 0 to {length - 1}")
        self.at = at % length
        self.ids = {"clean": pair.clean[:, : self.at + 1], "corrupt": pair.corrupt[:, : self.at + 1]}
        self.answer = None if answer is None else single_token(lm, answer, role="answer")
        self.foil = None if foil is None else single_token(lm, foil, role="foil")
        self.metric_asked = metric
        metric_of(metric, answer=self.answer, foil=self.foil, reference=torch.zeros(1))  # a wrong one fails here
        self.direction = direction
        over, index = self._axes(over, layers, heads, positions)
        self.cells = [
            Cell(place["layer"], place.get("head"), place.get("position"))
            for place in (dict(zip(over, numbers, strict=True)) for numbers in itertools.product(*index))
        ]
        self.engine = "wavefront"
        self._stop = threading.Event()
        self._ready: _Ready | None = None
        self.grid = PatchGrid(
            np.full([len(numbers) for numbers in index], np.nan, np.float32),
            over,
            index,
            float("nan"),
            float("nan"),
            pair.clean_tokens[: self.at + 1],
            pair.corrupt_tokens[: self.at + 1],
            self._recipe(pair, clean, corrupt, method),
        )

    @property
    def total(self) -> int:
        return len(self.cells)

    @property
    def done(self) -> int:
        return int((~np.isnan(self.grid.values)).sum())

    def cancel(self) -> None:
        """Ask the job to end; it does before the next block of the model."""
        self._stop.set()

    # -- what is asked for ---------------------------------------------------------------------------------------

    def _axes(
        self,
        over: Sequence[str] | None,
        layers: Sequence[int] | None,
        heads: Sequence[int] | None,
        positions: Sequence[int] | None,
    ) -> tuple[tuple[str, ...], tuple[list[int], ...]]:
        by_head = self.site in HEAD_KINDS
        names = tuple(over) if over is not None else self.usual_over
        allowed = [("layer", "position"), ("layer", "head"), ("layer", "head", "position")]
        if names not in (allowed if by_head else allowed[:1]):
            raise ValueError(
                f"over={names!r} is not possible for {self.site}; use {allowed if by_head else allowed[0]}"
            )
        sizes = self.sizes
        index = []
        for name, asked in (("layer", layers), ("head", heads), ("position", positions)):
            if name not in names:
                if asked is not None:
                    raise ValueError(f"{name}s={list(asked)!r} was given, but the grid is over {names!r}")
                continue
            for number in asked if asked is not None else ():
                if not -sizes[name] <= number < sizes[name]:
                    raise ValueError(f"{name} {number} is out of range; {name}s go from 0 to {sizes[name] - 1}")
                if name == "layer":
                    checked(self.lm, Site(self.site, number))
            every = layers_with(self.lm, self.site) if name == "layer" else list(range(sizes[name]))
            index.append([n % sizes[name] for n in asked] if asked is not None else every)
            if len(set(index[-1])) != len(index[-1]) or not index[-1]:
                raise ValueError(f"{name}s={list(asked or ())!r} is empty or names one twice")
        return names, tuple(index)

    @property
    def usual_over(self) -> tuple[str, ...]:
        return ("layer", "head") if self.site in HEAD_KINDS else ("layer", "position")

    @property
    def sizes(self) -> dict[str, int]:
        heads = n_heads_of(self.lm, self.site) if self.site in HEAD_KINDS else self.lm.n_heads
        return {"layer": self.lm.n_layers, "head": heads, "position": self.at + 1}

    def _recipe(self, pair: Pair, clean: Prompt, corrupt: Prompt, method: str) -> dict[str, Any]:
        import transformers

        import labkit

        texts = lambda prompt: prompt if isinstance(prompt, str | list) else None  # noqa: E731
        own = callable(self.metric_asked)
        word = lambda id: None if id is None else describe(self.lm.tokenizer, [id])[0].text  # noqa: E731
        default = "logit_diff" if self.foil is not None else "logprob"
        return {
            "model": self.lm.name,
            "load": self.lm.code(),
            "revision": self.lm.revision,
            "bits": self.lm.bits,
            "dtype": str(self.lm.dtype).removeprefix("torch."),
            "clean": texts(clean) or pair.clean[0].tolist(),
            "corrupt": texts(corrupt) or pair.corrupt[0].tolist(),
            "clean_ids": pair.clean[0].tolist(),
            "corrupt_ids": pair.corrupt[0].tolist(),
            "answer": word(self.answer),
            "foil": word(self.foil),
            "site": self.site,
            "metric": getattr(self.metric_asked, "__name__", "metric") if own else (self.metric_asked or default),
            "own_metric": own,
            "direction": self.direction,
            "method": method,
            "at": -1 if self.at == pair.clean.shape[1] - 1 else self.at,
            "usual_over": self.usual_over,
            "sizes": self.sizes,
            "versions": {
                "labkit": labkit.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    # -- the work ------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """Do the work; yields how many cells are done after every chunk. Goes on where an earlier call ended."""
        try:
            yield from self._work()
        finally:
            self._stop.clear()

    def _work(self) -> Iterator[int]:
        if self._ready is None:
            self._prepare()
        if self._fast and self.method == "exact":
            try:
                self._check_engine()
            except Cancelled:  # before it began: the check is made when the work goes on
                return
        yield self.done
        if self.method == "attribution":
            open_cells = self._open()
            self.grid.values.reshape(-1)[open_cells] = self._unpatched + self._estimates(open_cells)
            yield self.done
            return
        waiting = self._chunks(tokens_at_once(self.lm))
        while waiting and not self._stop.is_set():
            chunk = waiting.pop(0)
            try:
                values = self._values([self.cells[i] for i in chunk])
            except Cancelled:
                return
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(chunk) == 1:
                    raise
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                half = len(chunk) // 2
                waiting[:0] = [chunk[:half], chunk[half:]]
                continue
            self.grid.values.reshape(-1)[chunk] = values
            yield self.done

    def _prepare(self) -> None:
        """The two unpatched runs, the metric on them, and the cells that need no run at all."""
        source, base = ("clean", "corrupt") if self.direction == "denoise" else ("corrupt", "clean")
        kind = self._kind
        try:
            source_run, activations = record(self.lm, self.ids[source], site=kind)
            base_run, own = record(self.lm, self.ids[base], site=kind)
            readout = readout_of(base_run)
            self._wavefront = Wavefront(base_run, activations, site=kind, first=self._first)
            logits = {source: source_run.logits, base: base_run.logits}
        except Unsupported as why:
            self._fall_back(str(why))
            runs = {name: run(self.lm, ids, read=[kind]) for name, ids in self.ids.items()}
            logits = {name: r.logits[0, -1].float() for name, r in runs.items()}
            activations, own = (
                {layer: runs[name][f"{kind}.{layer}"][0] for layer in layers_with(self.lm, kind)}
                for name in (source, base)
            )
            base_run, readout = None, None
        metric = metric_of(self.metric_asked, answer=self.answer, foil=self.foil, reference=logits["clean"])
        self.grid.clean, self.grid.corrupt = (float(metric.of(logits[name][None])[0]) for name in ("clean", "corrupt"))
        self.grid.recipe["unit"] = metric.unit
        flat = self.grid.values.reshape(-1)
        self._unpatched = self.grid.corrupt if base == "corrupt" else self.grid.clean
        for i, cell in enumerate(self.cells):
            if self._first > self.at or (cell.position is not None and cell.position < self._first):
                flat[i] = self._unpatched  # nothing before the first difference can have an effect
            elif torch.equal(_of_cell(own, kind, cell), _of_cell(activations, kind, cell)):
                flat[i] = self._unpatched
        self._ready = _Ready(activations, metric, readout)

    @property
    def _kind(self) -> str:
        """What is patched: head_out is linear in what the output projection takes in, so that is the same patch."""
        return HEAD_IN if self.site == "head_out" else self.site

    @property
    def _first(self) -> int:
        """The first position at which the prompts differ; nothing before it can have an effect."""
        differ = (self.ids["clean"] != self.ids["corrupt"])[0].nonzero()
        return int(differ[0]) if len(differ) else self.at + 1

    def _open(self) -> list[int]:
        cells: list[int] = np.isnan(self.grid.values.reshape(-1)).nonzero()[0].tolist()
        return cells

    def _chunks(self, budget: int) -> list[list[int]]:
        """The open cells in chunks of about `budget` tokens, those with the largest estimated effects first."""
        waiting = self._open()
        length = {i: self.at + 1 - self._wavefront.start_of(self.cells[i]) if self._fast else 1 for i in waiting}
        importance = dict.fromkeys(waiting, 0.0)
        if self._fast and sum(length.values()) > 2 * budget:  # a grid of one chunk or two is there at once anyway
            # Rows of one start share their prefix, so a position's cells stay together and go by its largest.
            by_start: dict[int | None, float] = {}
            for i, value in zip(waiting, np.abs(self._estimates(waiting)), strict=True):
                importance[i] = float(value)
                start = self.cells[i].position
                by_start[start] = max(by_start.get(start, 0.0), float(value))
            for i in waiting:
                if self.cells[i].position is not None:
                    importance[i] = by_start[self.cells[i].position]
        waiting.sort(key=lambda i: (-importance[i], self.cells[i].position or 0, self.cells[i].layer))
        chunks: list[list[int]] = []
        tokens = 0
        for i in waiting:
            if not chunks or tokens + length[i] > budget:
                chunks.append([])
                tokens = 0
            chunks[-1].append(i)
            tokens += length[i]
        return chunks

    @property
    def _fast(self) -> bool:
        return self.engine == "wavefront"

    def _estimates(self, cells: list[int]) -> np.ndarray:
        """The gradient estimate of each cell's effect, float32."""
        assert self._ready is not None
        return estimate(
            self.lm,
            self.ids["corrupt" if self.direction == "denoise" else "clean"],
            self._ready.source,
            site=self._kind,
            metric=self._ready.metric.of,
            cells=[self.cells[i] for i in cells],
        ).numpy()

    def _values(self, cells: list[Cell]) -> np.ndarray:
        """The metric of each patched run, float32 (len(cells),)."""
        assert self._ready is not None
        metric, readout = self._ready.metric, self._ready.readout
        if readout is None or not self._fast:
            return np.array([self._whole(cell) for cell in cells], np.float32)
        x = self._wavefront(cells, cancelled=self._stop.is_set)
        rows = max(1, (64 << 20) // (4 * self.lm.n_vocab))  # logits of at most 64 MB at once
        with self.lm.busy():
            return torch.cat([metric(readout(part, metric.columns)) for part in x.split(rows)]).cpu().numpy()

    def _whole(self, cell: Cell) -> float:
        """One cell by the naive path: run the source, run the base with the site written."""
        if self._stop.is_set():
            raise Cancelled
        assert self._ready is not None
        source, base = ("clean", "corrupt") if self.direction == "denoise" else ("corrupt", "clean")
        site = Site(self.site, cell.layer, cell.head, cell.position)
        value = run(self.lm, self.ids[source], read=[site])[site]
        logits = run(self.lm, self.ids[base], write={site: value}).logits[:, -1].float()
        return float(self._ready.metric.of(logits)[0])

    def _check_engine(self) -> None:
        """On the first grid of a site in this model, hold a few cells against the naive path."""
        if self.site in self.lm.checked:
            return
        waiting = np.isnan(self.grid.values.reshape(-1)).nonzero()[0]
        if not len(waiting):
            return
        some = [self.cells[i] for i in waiting[[0, len(waiting) // 2]]]
        fast, whole = self._values(some), np.array([self._whole(cell) for cell in some])
        scale = max(1.0, abs(self.grid.clean), abs(self.grid.corrupt))
        tolerance = scale * (1e-3 if self.lm.dtype == torch.float32 else 0.1)
        if not np.all(np.abs(fast - whole) <= tolerance):
            self._fall_back(f"fast patching gave {fast.tolist()} where whole runs gave {whole.tolist()}")
        else:
            self.lm.checked.add(self.site)

    def _fall_back(self, why: str) -> None:
        self.engine = "whole runs"
        warnings.warn(f"patching {self.site} one whole run a cell, which is slow: {why}", stacklevel=4)


def _of_cell(activations: dict[int, torch.Tensor], kind: str, cell: Cell) -> torch.Tensor:
    """The part of an activation that a cell patches: (seq, ...) or, for patterns, (head, seq, seq)."""
    value = activations[cell.layer]
    if kind == "pattern":
        value = value if cell.head is None else value[cell.head]
        return value if cell.position is None else value[..., cell.position, :]
    value = value if cell.position is None else value[cell.position]
    return value if cell.head is None else value[..., cell.head, :]
