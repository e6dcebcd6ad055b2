"""Sites: the named places in a forward pass that can be read and written.

A site is written `kind.layer`, `kind.layer.head`, and with `@` one position: `resid_pre.5`, `z.5.3`, `attn_out.5@-1`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from labkit.models.language_model import LanguageModel

# What each kind is, and its shape for one layer. Heads come right before the last axis or the last two, as they do in
# the literature: (batch, position, head, d_head) for vectors, (batch, head, query, key) for patterns.
KINDS = {
    "embed": ("token embeddings", "(batch, position, d_model)"),
    "resid_pre": ("residual stream entering a layer", "(batch, position, d_model)"),
    "resid_mid": ("residual stream between attention and MLP", "(batch, position, d_model)"),
    "resid_post": ("residual stream leaving a layer", "(batch, position, d_model)"),
    "attn_out": ("output of attention, all heads together", "(batch, position, d_model)"),
    "mlp_out": ("output of the MLP", "(batch, position, d_model)"),
    "mlp_act": ("neurons: what the MLP's output projection takes in", "(batch, position, d_mlp)"),
    "q": ("queries by head, after rotary", "(batch, position, n_heads, d_head)"),
    "k": ("keys by head, after rotary", "(batch, position, n_kv_heads, d_head)"),
    "v": ("values by head", "(batch, position, n_kv_heads, d_head)"),
    "pattern": ("attention pattern by head", "(batch, n_heads, query, key)"),
    "z": ("pattern times values by head, before the output projection", "(batch, position, n_heads, d_head)"),
    "head_out": ("what each head adds, after the output projection", "(batch, position, n_heads, d_model)"),
    "router": ("which experts take each token", "(batch, position, n_experts)"),
}
HEAD_KINDS = ("q", "k", "v", "pattern", "z", "head_out")
ATTENTION_KINDS = ("q", "k", "v", "pattern", "z")  # those that the attention function sees
_FORM = re.compile(r"(?P<kind>[a-z_]+)(\.(?P<layer>-?\d+))?(\.(?P<head>-?\d+))?(@(?P<position>-?\d+))?")


@dataclass(frozen=True, order=True)
class Site:
    """One place: a kind, and where they are given a layer, a head and a position. None means all of them."""

    kind: str
    layer: int | None = None
    head: int | None = None
    position: int | None = None

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
            raise ValueError(f"there is no site {kind!r}; {hint}The kinds are {', '.join(KINDS)}")
        numbers = {name: int(match[name]) if match[name] else None for name in ("layer", "head", "position")}
        if numbers["head"] is not None and kind not in HEAD_KINDS:
            raise ValueError(f"{text!r}: {kind} has no heads; those that have are {', '.join(HEAD_KINDS)}")
        return cls(kind, **numbers)

    def __str__(self) -> str:
        layer = "" if self.layer is None else f".{self.layer}"
        head = "" if self.head is None else f".{self.head}"
        position = "" if self.position is None else f"@{self.position}"
        return f"{self.kind}{layer}{head}{position}"

    def layers(self, lm: LanguageModel) -> range:
        """The layers this site covers in a model: its own, or all of them."""
        if self.kind == "embed":
            return range(1)
        return range(lm.n_layers) if self.layer is None else range(self.layer, self.layer + 1)


def n_heads_of(lm: LanguageModel, kind: str) -> int:
    """How many heads a kind has: keys and values have fewer where queries are grouped."""
    return lm.n_kv_heads if kind in ("k", "v") else lm.n_heads


def checked(lm: LanguageModel, site: str | Site, *, length: int | None = None) -> Site:
    """The site with its layer, head and position counted from zero, held against what the model has.

    Raises:
        ValueError: the layer, head or position is out of range, or this architecture has no such site.
    """
    site = Site.parse(site)
    if (why := absent(lm, site.kind)) is not None:
        raise ValueError(f"{lm.name} has no {site.kind}: {why}")

    def within(what: str, value: int | None, count: int) -> int | None:
        if value is None:
            return None
        if not -count <= value < count:
            raise ValueError(f"{site}: {what} {value} is out of range; {lm.name} has {what}s 0 to {count - 1}")
        return value % count

    layer = within("layer", site.layer, 1 if site.kind == "embed" else lm.n_layers)
    head = within("head", site.head, n_heads_of(lm, site.kind))
    position = site.position if length is None else within("position", site.position, length)
    return Site(site.kind, layer, head, position)


def absent(lm: LanguageModel, kind: str) -> str | None:
    """Why a kind of site is absent in this architecture, or None where it is there."""
    blocks = lm.anatomy.blocks
    if kind == "router":
        return "its MLPs have no router (not a mixture of experts, or none that labkit can read yet)"
    missing = {
        "resid_mid": (lambda b: b.mid, "its blocks run attention and MLP side by side"),
        "attn_out": (lambda b: b.attention, "no attention was found in its layers"),
        "mlp_out": (lambda b: b.mlp, "no MLP was found in its layers"),
        "mlp_act": (lambda b: b.down_projection, "no single projection takes its neurons"),
        "head_out": (lambda b: b.output_projection, "no single projection takes its heads"),
        **dict.fromkeys(ATTENTION_KINDS, (lambda b: b.attention, "no attention was found in its layers")),
    }
    if kind not in missing:
        return None
    part, why = missing[kind]
    return None if all(part(block) is not None for block in blocks) else why


def describe_sites(lm: LanguageModel) -> pd.DataFrame:
    """One row a kind: what it is, its shape, whether this model has it, and why not."""
    import pandas as pd

    rows = [(kind, what, shape, (why := absent(lm, kind)) is None, why or "") for kind, (what, shape) in KINDS.items()]
    return pd.DataFrame(rows, columns=["site", "what", "shape", "available", "why not"]).set_index("site")
