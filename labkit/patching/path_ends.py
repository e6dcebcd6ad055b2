"""The two ends of a path: what can send, what can receive, and which comes before which."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from labkit.activations.site_kinds import KINDS, names
from labkit.activations.sites import Site, checked, n_heads_of
from labkit.language_model import LanguageModel

RECEIVERS = names(kind for kind in KINDS.values() if kind.received)
SENDERS = names(kind for kind in KINDS.values() if kind.sent)


def receivers_of(lm: LanguageModel, asked: str | Site | Sequence[str | Site]) -> list[Site]:
    """The receivers, checked against the model; empty for the logits."""
    several = [asked] if isinstance(asked, str | Site) else list(asked)
    if several in (["logits"], ["resid_post.last"]):
        return []
    if not several or any(str(one) in ("logits", "resid_post.last") for one in several):
        raise ValueError("receiver must be 'logits' alone, or heads' inputs such as ['q.20.3', 'k.20.1']")
    found = []
    for one in several:
        site = Site.parse(one)
        if site.kind not in RECEIVERS or site.layer is None or site.position is not None:
            raise ValueError(
                f"{one!s} is not a receiver; use 'logits', a head's input such as 'q.20.3', or a layer's 'resid_mid.20'"
            )
        kv, n_heads = n_heads_of(lm, site.kind), n_heads_of(lm, "q")
        if site.kind in ("k", "v") and site.head is not None and kv <= site.head < n_heads:
            raise ValueError(
                f"{site}: queries are grouped, and layer {site.layer} has {kv} {site.kind} heads; head {site.head} "
                f"uses {site.kind}.{site.layer}.{site.head // (n_heads // kv)}"
            )
        found.append(checked(lm, site))
    if len(found) > 1 and any(site.kind.startswith("resid") for site in found):
        raise ValueError("a residual stream cannot be combined with other receivers; give it alone")
    whole = {(site.kind, site.layer) for site in found if site.head is None}
    return list(dict.fromkeys(s for s in found if s.head is None or (s.kind, s.layer) not in whole))


def senders_of(lm: LanguageModel, asked: Sequence[str | Site] | str | None) -> list[Site]:
    """The single senders, by layer."""
    several = ["z"] if asked is None else [asked] if isinstance(asked, str | Site) else list(asked)
    if not several:
        raise ValueError("senders is empty; leave it out for every head, or name some, such as ['z.5.3', 'mlp_out.5']")
    found: list[Site] = []
    for one in several:
        site = Site.parse(one)
        if site.kind not in SENDERS or site.position is not None:
            raise ValueError(f"{one!s} is not a sender; use heads such as 'z.5.3' and MLPs such as 'mlp_out.5'")
        kind = "z" if site.kind == "head_out" else site.kind
        site = checked(lm, Site(kind, site.layer, site.head))
        for layer in site.layers(lm):
            every = range(n_heads_of(lm, "z", layer)) if site.head is None else [site.head]
            found += [Site(kind, layer, head) for head in (every if kind == "z" else [None])]
    return sorted(dict.fromkeys(found), key=lambda s: (s.layer or 0, s.kind == "mlp_out", s.head or 0))


def comes_before(sender: Site, receiver: Site) -> bool:
    """Can the output of a sender reach a receiver?"""
    assert sender.layer is not None
    assert receiver.layer is not None
    if receiver.kind == "resid_post" or (receiver.kind == "resid_mid" and sender.kind == "z"):
        return sender.layer <= receiver.layer
    return sender.layer < receiver.layer


def of_head(value: torch.Tensor, site: Site) -> torch.Tensor:
    """One head's part (rows, seq, d_head) of (rows, seq, head, d_head), or the whole."""
    return value if site.head is None else value[:, :, site.head]
