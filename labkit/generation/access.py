"""Sites read and written while a model writes.

The hooks are those of a run (`activations.hooks`). With its cache a model passes once over the prompt and then over one
token at a time; a model without a cache passes over the whole text each time. So a pass covers the last positions of
the text there is, down to one, and what is read and written there goes by their places in the text.
"""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol, TypeAlias, get_args

import torch
from torch.nn.functional import pad

from labkit.activations.batch import Batch
from labkit.activations.hooks import Edit, Place, hooked
from labkit.activations.run import by_layer, edits_of, index, parts_by_place, run
from labkit.activations.site_kinds import BY_QUERY, KINDS
from labkit.activations.sites import (
    Site,
    adds_keys,
    checked,
    layers_with,
    of_keys,
    refuse_without_positions,
    refuse_written,
)
from labkit.generation.readings import Readings, Span, new_folder, token_axis, unseen
from labkit.models.handle import Model
from labkit.text.as_code import as_python

ROWS = Batch(0)  # one row, without padding
SHORT = 16  # numbers of a tensor that code shows


class Direction(Protocol):
    """What is added where it is written, such as a steering vector."""

    values: torch.Tensor


Written: TypeAlias = (
    torch.Tensor | float | Direction | Callable[[torch.Tensor], Any] | Callable[[torch.Tensor, int], Any]
)
"""What may be written at a site while a model writes; see `generate`."""


class Access:
    """The sites that one generation reads and writes, checked.

    `edits` are made at their places in the prompt, each of the prompt's whole activation, (1, seq, ...).

    Attributes:
        readings: what is read; None if nothing is.
        step: of the pass that runs: 0 for the prompt's, n for that of the n-th token written.
        over: is the text complete, so that nothing of later passes is kept?

    Raises:
        ValueError: see `generate`.
    """

    def __init__(
        self,
        lm: Model,
        ids: torch.Tensor,
        most: int,
        *,
        read: Sequence[str | Site] = (),
        read_at: Span = "written",
        write: Mapping[Any, Any] | None = None,
        write_at: Span | slice | Sequence[int] = "all",
        store: str | os.PathLike[str] | None = None,
        edits: Mapping[Place, Edit] | None = None,
    ) -> None:
        self.lm, self.ids, self.prompt, self.most, self.step = lm, ids, ids.shape[1], most, 0
        read = (read,) if isinstance(read, str | Site) else tuple(read)
        for name, at, usual, given in (("read", read_at, "written", read), ("write", write_at, "all", write)):
            listed = name == "write" and isinstance(at, slice | Sequence) and not isinstance(at, str)
            if not listed and at not in get_args(Span):
                raise ValueError(f"{name}_at must be 'written', 'prompt' or 'all'; got {at!r}")
            if at != usual and not given:
                raise ValueError(f"{name}_at={at!r} has no effect without {name}=; name the sites there")
        if store is not None and not read:
            raise ValueError("store= says where to keep what is read, but nothing is; name sites in read=[...]")
        self.write, self.write_at, self.scope = dict(write or {}), write_at, self._scope(write_at)
        wanted = [self._checked(site) for site in read]
        self.parts = parts_by_place(lm, wanted)
        self.edits = self._edits() | {
            place: partial(self._in_prompt, place[0], edit) for place, edit in (edits or {}).items()
        }
        self.readings: Readings | None = None
        self.over = False
        if wanted:
            layers = {site.kind: layers_with(lm, site.kind) for site in wanted}
            folder = None if store is None else new_folder(store)
            self.readings = Readings(tuple(map(str, wanted)), read_at, self.prompt, layers, lm.n_layers, folder)

    @property
    def reads_last(self) -> bool:
        """Does the model have to pass over the last token, too?"""
        return self.readings is not None and self.readings.at != "prompt"

    def recipe(self) -> dict[str, Any]:
        """The arguments, for JSON; what is written as code, and the lines that come before it."""
        found: dict[str, Any] = {}
        if self.readings is not None:
            found |= {"read": list(self.readings.asked)}
            if self.readings.at != "written":
                found["read_at"] = self.readings.at
            if self.readings.folder is not None:
                found["store"] = str(self.readings.folder.parent)
        if self.write:
            found |= written_as_code(self.lm, self.write)
            if self.write_at != "all":
                at = self.write_at
                found["write_at"] = (
                    f"slice({at.start}, {at.stop})" if isinstance(at, slice)
                    else at if isinstance(at, str)
                    else [int(position) for position in at]
                )  # fmt: skip
        return found

    def _checked(self, site: str | Site) -> Site:
        found = checked(self.lm, site)
        refuse_without_positions(found)
        if found.position is not None:
            raise ValueError(
                f"{site}: which positions are read and written while the model writes is said by read_at and write_at; "
                f"leave out @{found.position}"
            )
        if found.kind in BY_QUERY or of_keys(found.kind):
            for layer in found.layers(self.lm):
                if adds_keys(self.lm, layer):
                    raise ValueError(
                        f"{site}: layer {layer} of {self.lm.name} adds compressed keys to those of the positions, and "
                        f"which are which changes as it writes; use another kind of site, or lm.run on the text"
                    )
        return found

    def passed(self, length: int) -> None:
        """A pass over a text of this length is complete; the next is over one token more."""
        self.step = length - self.prompt + 1
        if (kept := self.readings) is not None:
            written = 0 if kept.at == "prompt" else length - self.prompt
            kept.passed(written + (0 if kept.at == "written" else self.prompt))

    def ended(self, tokens: int) -> None:
        """The text is complete, with so many tokens after the prompt: of later passes nothing is kept."""
        if (kept := self.readings) is not None:
            kept.rows = min(kept.rows, (0 if kept.at == "written" else self.prompt) + tokens)
            kept.flush()

    # -- reading ------------------------------------------------------------------------------------------------------

    def keep(self, sites: list[Site], x: torch.Tensor) -> torch.Tensor:
        """Keep of what passes, (1, position, ...), the rows that are asked for."""
        kept = self.readings
        assert kept is not None
        if self.over or kept.at == ("prompt" if self.step else "written"):
            return x
        count = 1 if self.step else self.prompt
        for site in sites:
            axis = token_axis(site)
            rows = index(x, site, ROWS)[0]
            rows = rows.narrow(axis, rows.shape[axis] - count, count).detach()
            before = self.prompt + self.step - rows.shape[-1] if site.kind in BY_QUERY else 0
            # keys that are out of the window
            kept.add(site, pad(rows, (before, 0), value=unseen(site)) if before else rows.clone())
        return x

    # -- writing ------------------------------------------------------------------------------------------------------

    def _edits(self) -> dict[Place, Edit]:
        values: dict[Site, Any] = {}  # of one layer each
        for name, value in self.write.items():
            site = self._checked(name)
            refuse_written(site)
            layers = by_layer(self.lm, site)
            if _direction(value) is None and not callable(value):
                value = _tensor(site, value)
                if site.layer is None and KINDS[site.kind].by_layer and value.ndim:
                    if len(value) != len(layers):
                        raise ValueError(
                            f"{site} is in {len(layers)} layers, so its value needs a first axis of {len(layers)}; it "
                            f"has shape {tuple(value.shape)}"
                        )
                    values |= dict(zip(layers, value, strict=True))
                    continue
            values |= dict.fromkeys(layers, value)
        given = [site for site, value in values.items() if not callable(value)]
        one = run(self.lm, self.ids[:, :1], read=given, logits="none") if given else None
        edits: dict[Site, Edit] = {
            site: partial(self._by_function, site, value, _takes_step(value))
            if callable(value) or one is None
            else self._given(site, value, one[site].shape)
            for site, value in values.items()
        }
        return edits_of(self.lm, edits, ROWS)

    def _in_prompt(self, kind: str, edit: Edit, x: torch.Tensor) -> torch.Tensor:
        """What passes, with its part in the prompt edited; a model without a cache passes over that each time."""
        axis = 2 if kind in BY_QUERY else 1
        if (count := x.shape[axis] - self.step) <= 0:
            return x
        x = x.clone()
        part = x.narrow(axis, 0, count)
        part.copy_(edit(part))
        return x

    def _scope(self, at: Span | slice | Sequence[int]) -> list[range]:
        """The positions that are written, in prompt and text, as ranges."""
        length = self.prompt + self.most
        if isinstance(at, str):
            return [range(self.prompt if at == "written" else 0, self.prompt if at == "prompt" else length)]
        if isinstance(at, slice):
            if at.step not in (None, 1) or any(end is not None and end < 0 for end in (at.start, at.stop)):
                raise ValueError(f"write_at must count from the first token of the prompt and skip none; got {at!r}")
            positions = list(range(length)[at])
        else:
            positions = sorted({int(position) for position in at})
        if not positions or positions[0] < 0 or positions[-1] >= length:
            raise ValueError(f"write_at={at!r} is not among the positions 0 to {length - 1} of prompt and text")
        starts = [n for n, one in enumerate(positions) if not n or positions[n - 1] != one - 1]
        ends = [*starts[1:], len(positions)]
        return [range(positions[start], positions[end - 1] + 1) for start, end in zip(starts, ends, strict=True)]

    def _given(self, site: Site, value: Any, one: Sequence[int]) -> Edit:
        """The edit that writes a value, or adds a direction; `one` is the shape of a pass over one token."""
        axis, count, room = 1 + token_axis(site), sum(map(len, self.scope)), list(one)
        direction = _direction(value)
        if direction is None:
            room[axis] = count
            if site.kind in BY_QUERY:
                room[-1] = self.scope[-1].stop
        elif site.kind in BY_QUERY:
            raise ValueError(f"a steering vector is added to vectors; {site} has none")
        given = value if direction is None else direction.detach()
        try:
            whole = given.expand(room)
        except RuntimeError:
            per = f", for {count} positions with write_at={self.write_at!r}" if direction is None else ""
            raise ValueError(
                f"{site} has shape {tuple(room)}{per}; the value written there has {tuple(given.shape)}, which cannot "
                "be broadcast to it"
            ) from None

        def put(x: torch.Tensor) -> torch.Tensor:
            for _, before, part in self._in_scope(site, x):
                if direction is not None:
                    part += whole.to(part.device, part.dtype)
                    continue
                rows = whole.narrow(axis, before, part.shape[axis])
                if site.kind in BY_QUERY:
                    end = self.prompt + self.step
                    rows = rows[..., end - part.shape[-1] : end]
                part.copy_(rows)
            return x

        return put

    def _in_scope(self, site: Site, x: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
        """The parts of an activation at positions that are written: the first position of each, how many positions of
        the scope come before it, and the part, a view.
        """
        axis, end, before = 1 + token_axis(site), self.prompt + self.step, 0
        begin = end - x.shape[axis]
        for scope in self.scope:
            first = max(begin, scope.start)
            if (count := min(end, scope.stop) - first) > 0:
                yield first, before + first - scope.start, x.narrow(axis, first - begin, count)
            before += len(scope)

    def _by_function(self, site: Site, function: Callable[..., Any], takes_step: bool, x: torch.Tensor) -> torch.Tensor:
        """Written by a function, that is called for the prompt at once and for each written token alone."""
        axis = 1 + token_axis(site)
        for first, _, within in self._in_scope(site, x):
            count = within.shape[axis]
            prompt = min(count, max(0, self.prompt - first))
            for start, length in [(0, prompt)] * bool(prompt) + [(n, 1) for n in range(prompt, count)]:
                part = within.narrow(axis, start, length)
                step = max(0, first + start - self.prompt + 1)
                new = function(part, step) if takes_step else function(part)
                new = new if isinstance(new, torch.Tensor) else _tensor(site, new)
                try:
                    part.copy_(new.expand_as(part))
                except RuntimeError:
                    raise ValueError(
                        f"{site} has shape {tuple(part.shape)} in step {step}; the value written there has "
                        f"{tuple(new.shape)}"
                    ) from None
        return x


def hooks_of(lm: Model, accesses: Sequence[Access]) -> AbstractContextManager[Any]:
    """The reads and writes of each row of a batch while the block runs; the rows read and write the same sites."""
    parts, edits = accesses[0].parts, accesses[0].edits

    def keep(sites: list[Site], x: torch.Tensor) -> torch.Tensor:
        for row, access in enumerate(accesses):
            access.keep(sites, x[row : row + 1])
        return x

    def edit(place: Place, x: torch.Tensor) -> torch.Tensor:
        rows = [access.edits[place](x[row : row + 1]) for row, access in enumerate(accesses)]
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    reads = {place: partial(keep, sites) for place, sites in parts.items()}
    return hooked(lm, reads, {place: partial(edit, place) for place in edits})


def _direction(value: Any) -> torch.Tensor | None:
    """The values of a steering vector; None for anything else. A tensor has a method of that name."""
    values = None if isinstance(value, torch.Tensor) else getattr(value, "values", None)
    return values if isinstance(values, torch.Tensor) else None


def _tensor(site: Site, value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"what is written at {site} must be a tensor, a number, a function or a steering vector; got "
            f"{type(value).__name__}"
        ) from None


def _takes_step(function: Callable[..., Any]) -> bool:
    """Does a function want the step beside the activation: as `step`, or as a second argument that it needs?"""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # one of PyTorch's own
        return False
    places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(places) > 1 and (places[1].name == "step" or places[1].default is inspect.Parameter.empty)


def written_as_code(lm: Model, write: Mapping[Any, Any]) -> dict[str, Any]:
    """What is written at each site as an expression, and the lines before it that make it.

    A long tensor, or a function without source of its own, is named, with a comment that says what it was.
    """
    expressions: dict[str, str] = {}
    lines: dict[str, str] = {}  # by name
    for site, value in write.items():
        if hasattr(value, "as_code") or _direction(value) is not None:
            made, name = {"vector": getattr(value, "code", str)()}, "vector"
            if hasattr(value, "as_code"):
                made, name = value.as_code()
            for old, code in made.items():
                new = old if old not in lines else f"{old}_{len(lines) + 1}"
                code = re.sub(r"(?<![\w.])vector\b", new, code.removeprefix(lm.code()))
                lines[new] = code or f"# {new}: a steering vector that was written at {site}\n"
                name = re.sub(rf"(?<![\w.]){old}\b", new, name)
        elif callable(value):
            called = getattr(value, "__name__", "function")
            name = called if called.isidentifier() else "function"
            name = name if name not in lines else f"{name}_{len(lines) + 1}"
            source = _source(value) if name == called else ""
            lines[name] = source or f"# {name}: the function that was written at {site}\n"
        else:
            given = _tensor(Site.parse(site), value)
            if given.numel() <= SHORT:
                name = as_python(given) if given.ndim else repr(given.item())
            else:
                name = "value" if "value" not in lines else f"value_{len(lines) + 1}"
                lines[name] = f"# {name}: a tensor {tuple(given.shape)}, written at {site}\n"
        expressions[str(site)] = name
    return {"write": expressions, "write_code": "".join(lines.values())}


def _source(function: Any) -> str:
    """The source of a function that was defined by name; nothing for any other."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return ""
    return f"{source}\n" if source.startswith(f"def {function.__name__}(") else ""
