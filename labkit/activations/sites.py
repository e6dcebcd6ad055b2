"""Sites: the named places in a forward pass that can be read and written.

A site is written `kind.layer`, `kind.layer.head`, and with `@` one position: `resid_pre.5`, `z.5.3`, `attn_out.5@-1`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from torch import nn

from labkit.activations.before_rotary import before_rotary
from labkit.activations.head_layout import heads_of
from labkit.activations.recurrent_states import layers_with_state
from labkit.activations.site_kinds import HEAD_IN, HEAD_KINDS, KINDS, ROTATED_KINDS
from labkit.elsewhere import where_the_model_is
from labkit.models.unwrapped import MERGE

if TYPE_CHECKING:
    import pandas as pd

    from labkit.models.handle import Model

_FORM = re.compile(r"(?P<kind>[a-z_]+)(\.(?P<layer>-?\d+))?(\.(?P<head>-?\d+))?(@(?P<position>-?\d+))?")


@dataclass(frozen=True, order=True)
class Site:
    """One place: a kind, and optionally a layer, a head and a position; None means all."""

    kind: str
    layer: int | None = None
    head: int | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        if self.head is not None and self.layer is None:
            raise ValueError(f"head {self.head} of {self.kind} in which layer? A site with a head needs its layer too")

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """`Site.parse("z.5.3")`.

        Raises:
            ValueError: the text is not of that form, or names no known kind (the nearest one is offered).
        """
        if isinstance(text, Site):
            return text
        match = _FORM.fullmatch(text.strip())
        if not match:
            raise ValueError(
                f"{text!r} is not a site; write kind.layer or kind.layer.head, such as 'resid_pre.5', 'z.5.3'"
            )
        kind = match["kind"]
        if kind not in KINDS:
            near = get_close_matches(kind, KINDS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"there is no site {kind!r}; {hint}Kinds: {', '.join(KINDS)}")
        numbers = {name: int(match[name]) if match[name] else None for name in ("layer", "head", "position")}
        if numbers["head"] is not None and kind not in HEAD_KINDS:
            raise ValueError(f"{text!r}: {kind} has no heads; those that have are {', '.join(HEAD_KINDS)}")
        return cls(kind, **numbers)

    def __str__(self) -> str:
        numbers = "".join(f".{number}" for number in (self.layer, self.head) if number is not None)
        return self.kind + numbers + ("" if self.position is None else f"@{self.position}")

    def layers(self, lm: Model) -> list[int]:
        """The layers this site covers in a model: its own, or all that have such a site."""
        if not KINDS[self.kind].by_layer:
            return [0]
        return layers_with(lm, self.kind) if self.layer is None else [self.layer]


@where_the_model_is
def n_heads_of(lm: Model, kind: str, layer: int | None = None) -> int:
    """How many heads a kind has in a layer, or at most: keys and values have fewer where queries are grouped."""
    seen = heads_of(lm) if layer is None else heads_of(lm)[layer : layer + 1]
    return max(((h.n_kv_heads if of_keys(kind) else h.n_heads) for h in seen), default=0)


def of_keys(kind: str) -> bool:
    """Are the heads of a kind those of keys and values, which several query heads may share?"""
    return "n_kv_heads" in KINDS[kind].axes


def checked(lm: Model, site: str | Site, *, length: int | None = None) -> Site:
    """The site with its layer, head and position counted from zero, checked against the model.

    Raises:
        ValueError: the layer, head or position is out of range, or this architecture has no such site.
    """
    site = Site.parse(site)
    if site.position is not None and not KINDS[site.kind].by_position:
        raise ValueError(
            f"{site}: {site.kind} has no positions; run the prompt up to a position to read what it is there"
        )

    def within(what: str, value: int | None, count: int) -> int | None:
        if value is None:
            return None
        if not -count <= value < count:
            raise ValueError(f"{site}: {out_of_range(lm, site.kind, what, value, count)}")
        return value % count

    layer = within("layer", site.layer, lm.n_layers if KINDS[site.kind].by_layer else 1)
    if (why := absent(lm, site.kind, layer)) is not None:
        where = f" in layer {layer}" if layer is not None and layers_with(lm, site.kind) else ""
        raise ValueError(f"{lm.name} has no {site.kind}{where}: {why}")
    head = within("head", site.head, n_heads_of(lm, site.kind, layer)) if site.kind in HEAD_KINDS else None
    position = site.position if length is None else within("position", site.position, length)
    return Site(site.kind, layer, head, position)


def refuse_written(site: Site) -> None:
    """Raise a ValueError for a site that can only be read."""
    if not KINDS[site.kind].writable:
        raise ValueError(f"{site} can be read and not written; write {KINDS[site.kind].instead}")


def refuse_without_positions(site: Site) -> None:
    """Raise a ValueError for a site that has no row for each position."""
    if not KINDS[site.kind].by_position:
        raise ValueError(f"{site} has no row for each position; lm.run reads it after the last one of a prompt")


def out_of_range(lm: Model, kind: str, what: str, value: int, count: int) -> str:
    """The message for a layer, head, neuron or position that a model does not have; it says which heads are counted."""
    shared = f" at {kind}"
    if what == "head" and of_keys(kind):
        what = "key-value head"
        if (queries := n_heads_of(lm, "q")) != count:
            shared += f", shared by its {queries} query heads"
    most = f"{what}s 0 to {count - 1}" if count else f"no {what}s"
    owner = "the prompt" if what == "position" else lm.name
    return f"{what} {value} is out of range; {owner} has {most}{shared if 'head' in what else ''}"


def layers_with(lm: Model, kind: str) -> list[int]:
    """The layers that have a kind of site; [0] for one that is not by layer, such as `embed`."""
    if kind in KINDS and not KINDS[kind].by_layer:
        return [0] if absent(lm, kind) is None else []
    return [n for n in range(lm.n_layers) if _missing(lm, kind, n) is None]


@where_the_model_is
def adds_keys(lm: Model, layer: int) -> bool:
    """Does attention in a layer add keys of its own to those of the positions (DeepSeek-V4's compressed ones)?"""
    attention = heads_of(lm)[layer].attention
    return attention is not None and any(hasattr(module, "compress_rate") for module in attention.modules())


def absent(lm: Model, kind: str, layer: int | None = None) -> str | None:
    """Why a kind of site is absent in a layer, or in all of them; None where it is there."""
    if kind == "embed":
        return None
    if kind == "final_norm":
        return _missing(lm, kind, 0)
    reasons = [_missing(lm, kind, n) for n in ([layer] if layer is not None else range(lm.n_layers))]
    return None if None in reasons else reasons[-1]


@where_the_model_is
def _missing(lm: Model, kind: str, layer: int) -> str | None:
    if kind == "final_norm":
        return None if lm.anatomy.final_norm is not None else KINDS[kind].absent
    if lm.anatomy.repeated:
        return "its layers run more than once per pass, so a layer is not a single place"
    block = lm.anatomy.blocks[layer]
    if kind in ROTATED_KINDS:
        return before_rotary(lm)[layer].missing.get(kind)
    if kind == HEAD_IN or KINDS[kind].unit == "head":
        why = heads_of(lm)[layer].missing.get("head_out" if kind == HEAD_IN else kind)
    elif kind == "state":
        why = None if layer in layers_with_state(lm) else KINDS[kind].absent
    elif kind in ("router", "experts"):
        why = None if block.experts is not None or block.router is not None else KINDS[kind].absent
    else:
        where = KINDS[kind].where
        why = None if where is None or where(block) is not None else KINDS[kind].absent
    return _or_adapter(lm, layer, why) if why and (kind == HEAD_IN or KINDS[kind].at_projection) else why


def _or_adapter(lm: Model, layer: int, why: str) -> str:
    """Why a site at a projection is absent; a nonlinear adapter can be the reason."""
    inside = set(lm.anatomy.blocks[layer].module.modules()) - {m for a in lm.anatomy.adapted for m in a.modules()}
    blocking = any(isinstance(getattr(m, "base_layer", None), nn.Module) for m in inside)
    return f"an adapter that is not a linear map is in the way; {MERGE}" if blocking else why


def describe_sites(lm: Model) -> pd.DataFrame:
    """One row per kind: what it is, its shape, in which layers this model has it, and why not where it has none."""
    import pandas as pd

    rows = []
    for name, kind in KINDS.items():
        layers = layers_with(lm, name)
        where = "" if not kind.by_layer else "all" if len(layers) == lm.n_layers else ", ".join(map(str, layers))
        rows.append((name, kind.what, kind.shape, bool(layers), where, "" if layers else absent(lm, name)))
    columns = ["site", "what", "shape", "available", "layers", "why not"]
    return pd.DataFrame(rows, columns=columns).set_index("site")
