"""One forward pass with sites read and written.

Hooks (`activations.hooks`) are there only while the pass runs. A pass that reads and writes nothing is a plain forward
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from labkit.activations.batch import Batch
from labkit.activations.gradients import gradients
from labkit.activations.hooks import Edit, Place, hooked
from labkit.activations.metrics import Metric, MetricFunction, metric_of
from labkit.activations.site_kinds import BY_QUERY, KINDS
from labkit.activations.sites import Site, refuse_written
from labkit.activations.unembedding import logits_and_measured, measured_end
from labkit.elsewhere import where_the_model_is
from labkit.models.reference import RefersToModel
from labkit.text.encode import single_token
from labkit.text.prompts import prompts_of

if TYPE_CHECKING:
    from labkit.models.handle import Model
    from labkit.text.types import Prompt


@dataclass
class Run(RefersToModel):
    """One forward pass: `logits` (batch, position, vocab), and `run["resid_pre.5"]` for what was read.

    Activations have the model's dtype and stay on its device, unless `to` names another. A kind without a layer stacks
    the layers that have it, on the first axis. A residual stream kept in several copies (hyper-connections) has an axis
    for them before d_model.

    Prompts of different lengths are padded on the left, and `mask` (batch, position) is False where there is padding,
    which everything read at all positions also has (patterns in both queries and keys). A single position is counted
    within each prompt: `resid_pre.5@0` is the first token of each, `@-1` the last.

    Attributes:
        logits: at the requested positions, by default all; see `logits_at`.
        positions: the positions of `logits`, as requested; None for all.
        activations: what was read, by site and layer.
        gradients: the gradients that were asked for, by site and layer; see `gradient`.
        measured: the metric that they are of, (batch,) float32; None without `grad`.
    """

    logits: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    activations: dict[Site, torch.Tensor] = field(repr=False)
    lm: Model = field(repr=False)
    positions: tuple[int, ...] | None = None
    rows: Batch = field(default_factory=lambda: Batch(0), repr=False)
    asked: tuple[str, ...] = field(default=(), repr=False)
    gradients: dict[Site, torch.Tensor] = field(default_factory=dict, repr=False)
    asked_gradients: tuple[str, ...] = field(default=(), repr=False)
    measured: torch.Tensor | None = field(default=None, repr=False)

    def __getitem__(self, site: str | Site) -> torch.Tensor:
        return self._found(site, self.activations, partial(not_read, site, self.asked, "this run"))

    def gradient(self, site: str | Site) -> torch.Tensor:
        """The gradient of each row's metric at a site named in `grad`: as the activation itself would be, in its shape
        and dtype.

        Raises:
            ValueError: there is no such site.
            KeyError: its gradient was not asked for.
        """
        return self._found(site, self.gradients, partial(no_gradient, site, self.asked_gradients))

    def _found(
        self, site: str | Site, kept: Mapping[Site, torch.Tensor], missing: Callable[[], KeyError]
    ) -> torch.Tensor:
        wanted = self.rows.checked(self.lm, site)
        found = []
        for one in by_layer(self.lm, wanted):
            have = next((place for place in kept if covers(place, one)), None)
            if have is None:
                raise missing()
            found.append(index(kept[have], one, self.rows, taken=have))
        return stacked(wanted, found)

    def logits_at(self, position: int) -> torch.Tensor:
        """The logits (batch, vocab) at one position of each prompt, counted from the end if negative.

        Raises:
            ValueError: there is no such position.
            KeyError: its logits were not kept.
        """
        at = self.rows.position(self.lm, position)
        if self.positions is None:
            return self.rows.take(self.logits, 1, at)
        have = [self.rows.position(self.lm, one) for one in self.positions]
        if at not in have:
            raise KeyError(f"this run has no logits at position {position}; it kept positions {list(self.positions)}")
        return self.logits[:, have.index(at)]


def not_read(site: str | Site, asked: Sequence[str], by: str) -> KeyError:
    """The error of a site that was asked for and not read."""
    return KeyError(f"{site} was not read in {by} (it read {', '.join(asked) or 'nothing'}); add it to read=[...]")


def no_gradient(site: str | Site, asked: Sequence[str]) -> KeyError:
    """The error of a gradient that was not asked for."""
    return KeyError(f"this run has no gradient at {site} (it has {', '.join(asked) or 'none'}); add it to grad=[...]")


def stacked(wanted: Site, found: Sequence[torch.Tensor]) -> torch.Tensor:
    """What a site has in each layer that it names: as it is for one layer, on a first axis for all.

    Raises:
        ValueError: layers differ in shape.
    """
    if wanted.layer is not None or not KINDS[wanted.kind].by_layer:
        return found[0]
    if len(shapes := {value.shape for value in found}) > 1:
        raise ValueError(f"{wanted} differs in shape between layers ({shapes}); read them one by one")
    return torch.stack([value.to(found[0].device) for value in found])


def covers(kept: Site, wanted: Site) -> bool:
    """Is one site, of one layer, in what was kept for another?"""
    return (kept.kind, kept.layer) == (wanted.kind, wanted.layer) and all(
        mine in (None, its) for mine, its in ((kept.head, wanted.head), (kept.position, wanted.position))
    )


def index(value: torch.Tensor, site: Site, rows: Batch, *, taken: Site | None = None) -> torch.Tensor:
    """The head and the position of a site out of its layer's activation, or out of what was `taken` of that already.

    A view, except for a position in rows of different lengths.
    """
    axes = ["batch", "head", "position"] if site.kind in BY_QUERY else ["batch", "position", "head"]
    axes = [axis for axis in axes if taken is None or axis == "batch" or getattr(taken, axis) is None]
    if site.position is not None and "position" in axes:
        value = rows.take(value, axes.index("position"), site.position)
        axes.remove("position")
    return value.select(axes.index("head"), site.head) if site.head is not None and "head" in axes else value


@where_the_model_is(without=("to",), small=True)
def run(
    lm: Model,
    prompt: Prompt | Sequence[Prompt],
    *,
    read: Sequence[str | Site] = (),
    write: Mapping[Any, torch.Tensor | Edit] | None = None,
    logits: Literal["all", "last", "none"] | Sequence[int] | None = "all",
    count: int = 1,
    to: str | torch.device | None = None,
    grad: Sequence[str | Site] = (),
    of: str | MetricFunction | None = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    at: int = -1,
) -> Run:
    """One forward pass over a prompt, or over a list of prompts as one left-padded batch.

    Args:
        lm: the model.
        prompt: text, chat messages, token ids (1, seq), or a list of these.
        read: sites to keep, such as `["resid_pre", "pattern.3", "z.5.3"]`. Only what is named is kept: `resid_pre@-1`
            is one vector per layer, however long the prompt. In a batch a position is counted within each prompt.
        write: for each site its new value (broadcast to its shape), or a function from the activation to the new one.
        logits: the positions whose logits are kept: `all`, `last`, `none`, or a list such as `[0, -1]`. The others are
            not computed if the model can skip them. None: the last, as metrics read it (`run_to_measure`).
        count: how many last ones, with `logits=None`.
        to: the device for everything the run keeps, such as `cpu`; activations are moved as they are read.
        grad: sites at which to take the gradient of a metric, by one backward pass: `run.gradient("z.5.3")`, with the
            shape and dtype of the activation. It counts all that the site does further up. What is written is taken as
            given, so the gradient is at the written value.
        of: the metric: a name (docs/reference.md has them), or a function of the logits, (rows, vocab) -> (rows,); by
            default `logit_diff` of answer and foil, or `logprob` of the answer. In a batch each row has its own.
        answer, foil: tokens for the metric, the same for all rows: `" Mary"`, or an id.
        at: the position whose logits the metric reads.

    Raises:
        ValueError: an unknown site, a layer, head or position out of range (in a batch, of the shortest prompt), a
            value of the wrong shape, a bad prompt; a gradient at a site that is only read, or of a metric without one.
        RuntimeError: the model never reached a site that was to be read or written.
    """
    ids, mask = batch_of(lm, prompt)
    rows = Batch.of(lm, ids, mask)
    positions = tuple(range(-count, 0)) if logits is None else _positions(lm, rows, logits)
    wanted = {str(site): rows.checked(lm, site) for site in read}
    slopes = {str(site): _with_gradient(rows.checked(lm, site)) for site in grad}
    metric = _metric(lm, ids, mask, rows, of=of, answer=answer, foil=foil, at=at, asked=bool(slopes))
    kept: dict[Site, torch.Tensor] = {}
    reads = _keeps(lm, list(wanted.values()), rows, kept, to)
    edits = edits_of(lm, {rows.checked(lm, site): value for site, value in (write or {}).items()}, rows)
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": any(kind == "state" for kind, _ in reads)}
    if rows.padding:
        inputs |= {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
    found: dict[Site, torch.Tensor] = {}
    measured = None
    if metric is None:
        with lm.busy(), hooked(lm, reads, edits):
            out = measured_end(lm, ids, count) if logits is None else rows.logits(lm, inputs, positions)
    else:
        parts = parts_by_place(lm, list(slopes.values()))

        def measure() -> torch.Tensor:
            nonlocal out
            given = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
            out, last = logits_and_measured(lm, given, rows, positions, at=at, columns=metric.columns)
            out = out.detach()
            return metric(last)

        measured, _, at_places = gradients(lm, list(parts), measure, edits=edits, reads=reads)
        for place, sites in parts.items():
            _keep(sites, rows, found, to, at_places.pop(place))
    if to is not None:
        out, ids, mask = (x.to(to) for x in (out, ids, mask))
        measured = measured if measured is None else measured.to(to)
    return Run(out, ids, mask, kept, lm, positions, rows, tuple(wanted), found, tuple(slopes), measured)


def run_to_measure(
    lm: Model,
    ids: torch.Tensor,
    *,
    read: Sequence[str | Site] = (),
    write: Mapping[Any, torch.Tensor | Edit] | None = None,
    count: int = 1,
) -> Run:
    """`run` with the logits of the last positions alone, as metrics read them (`activations.unembedding`): float32."""
    return run(lm, ids, read=read, write=write, logits=None, count=count)


def _positions(
    lm: Model, rows: Batch, logits: Literal["all", "last", "none"] | Sequence[int]
) -> tuple[int, ...] | None:
    """The positions whose logits are wanted, checked against the prompts; None for all of them."""
    named: dict[Any, tuple[int, ...] | None] = {"all": None, "last": (-1,), "none": ()}
    if isinstance(logits, str) and logits not in named:
        raise ValueError(f"logits must be 'all', 'last', 'none' or a list of positions; got {logits!r}")
    asked = named[logits] if isinstance(logits, str) else tuple(int(position) for position in logits)
    for position in asked or ():
        rows.position(lm, position)
    return asked


def _keeps(
    lm: Model, wanted: Sequence[Site], rows: Batch, kept: dict[Site, torch.Tensor], to: Any
) -> dict[Place, Callable[[torch.Tensor], torch.Tensor]]:
    """For each place that is read, a function that keeps only the parts asked for, each once, in its own memory."""

    return {place: partial(_keep, sites, rows, kept, to) for place, sites in parts_by_place(lm, wanted).items()}


def _keep(sites: list[Site], rows: Batch, kept: dict[Site, torch.Tensor], to: Any, x: torch.Tensor) -> torch.Tensor:
    for site in sites:
        part = index(x, site, rows).detach()
        kept[site] = part.to(part.device if to is None else to, copy=True)
    return x


def _with_gradient(site: Site) -> Site:
    if not KINDS[site.kind].writable:
        raise ValueError(f"{site} has no gradient: it can only be read; take that of {KINDS[site.kind].instead}")
    return site


def _metric(
    lm: Model,
    ids: torch.Tensor,
    mask: torch.Tensor,
    rows: Batch,
    *,
    of: str | MetricFunction | None,
    answer: str | int | None,
    foil: str | int | None,
    at: int,
    asked: bool,
) -> Metric | None:
    """The metric whose gradient is asked for, checked; None without one."""
    if not asked:
        given = {"of": of, "answer": answer, "foil": foil, "at": None if at == -1 else at}
        if named := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{named[0]}= says what a gradient is of, but none is asked for; name sites in grad=[...]")
        return None
    rows.position(lm, at, what="the metric's ")
    end = [(column + 1) for column in rows.columns(at)] * (1 if len(rows.columns(at)) > 1 else len(ids))
    tokens: dict[str, int | None] = {}
    for role, word in (("answer", answer), ("foil", foil)):
        each = {
            None if word is None else single_token(lm, word, role=role, after=row[:stop][seen[:stop]][None])
            for row, seen, stop in zip(ids, mask, end, strict=True)
        }
        if len(each) > 1:
            raise ValueError(f"the {role} {word!r} is not the same token after each prompt; give its id")
        (tokens[role],) = each
    metric = metric_of(of, reference=torch.zeros(1), **tokens)
    if metric.kind is not None and "clean" in metric.kind.needs:
        raise ValueError(
            f"{metric.name} compares with a clean run, and there is none here; give a function of the logits"
        )
    if metric.kind is not None and not metric.kind.has_gradient:
        raise ValueError(f"{metric.name} has no gradient: it moves in steps")
    return metric


def parts_by_place(lm: Model, wanted: Sequence[Site]) -> dict[Place, list[Site]]:
    """For each place that is read, what to keep there: nothing twice."""
    at: dict[Place, dict[Site, None]] = {}
    for site in wanted:
        for one in by_layer(lm, site):
            assert one.layer is not None
            at.setdefault((one.kind, one.layer), {})[one] = None
    return {
        place: [one for one in parts if not any(covers(other, one) for other in parts if other != one)]
        for place, parts in at.items()
    }


def by_layer(lm: Model, site: Site) -> list[Site]:
    """A site in each layer that it names."""
    return [replace(site, layer=layer) for layer in site.layers(lm)]


def batch_of(lm: Model, prompt: Prompt | Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (batch, seq), both; prompts of different lengths are padded on the left."""
    if isinstance(prompt, torch.Tensor) and prompt.ndim == 2 and prompt.shape[0] > 1:
        rows = [lm.encode(row[None])[0] for row in prompt]
    else:
        rows = [lm.encode(one)[0] for one in prompts_of(prompt) or [prompt]]  # type: ignore[list-item]
    pad = lm.tokenizer.pad_token_id if lm.tokenizer.pad_token_id is not None else (lm.tokenizer.eos_token_id or 0)
    ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
    ones = [torch.ones_like(row, dtype=torch.bool) for row in rows]
    return ids, pad_sequence(ones, batch_first=True, padding_side="left")


def edits_of(lm: Model, write: Mapping[Site, torch.Tensor | Edit], rows: Batch) -> dict[Place, Edit]:
    """One edit per place; several sites of one place (two heads, two positions) follow one another."""
    edits: dict[Place, list[Edit]] = {}
    for site, value in write.items():
        refuse_written(site)
        for n, layer in enumerate(site.layers(lm)):
            stacked = site.layer is None and KINDS[site.kind].by_layer and not callable(value) and value.ndim > 0
            edit = partial(_edited, site, value[n] if stacked else value, rows)  # type: ignore[index]
            edits.setdefault((site.kind, layer), []).append(edit)

    def chain(steps: list[Edit]) -> Edit:
        return lambda x: reduce(lambda edited, step: step(edited), steps, x)

    return {place: chain(steps) for place, steps in edits.items()}


def _edited(site: Site, value: torch.Tensor | Edit, rows: Batch, x: torch.Tensor) -> torch.Tensor:
    position = Site(site.kind, position=site.position)
    x = x.clone()
    part = index(x, position, rows)
    target = index(part, site, rows, taken=position)
    new = value(target) if callable(value) else torch.as_tensor(value)
    try:
        target.copy_(new.to(device=target.device, dtype=target.dtype).expand_as(target))
    except RuntimeError:
        raise ValueError(f"{site} has shape {tuple(target.shape)}; the value written has {tuple(new.shape)}") from None
    if site.position is not None:
        rows.put(x, 2 if site.kind in BY_QUERY else 1, site.position, part)
    return x
