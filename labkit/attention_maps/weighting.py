"""What to weight attention by, since attending is not yet causing.

- The value: a head may attend strongly to a token whose value it has learnt to keep small. The norm of pattern x value
  x output projection says how much is moved (Kobayashi et al. 2020, "Attention is Not Only a Weight").
- A logit: the same vector along the direction read by the final norm (with its scale frozen) and the unembedding.
- Rollout: attention followed through the layers, half of each layer being the residual stream (Abnar and Zuidema 2020).
- No sink: what the other tokens get, renormalised without the first one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from labkit.activations.attention_interface import AttentionCall, shared_heads
from labkit.activations.sites import checked
from labkit.attention_maps.base import ModelPatterns, rows_of
from labkit.elsewhere import where_the_model_is
from labkit.language_model import LanguageModel
from labkit.lens.direct_attribution import logit_path
from labkit.models.weights import weight_of
from labkit.text.tokens import Token


@where_the_model_is(small=True)
def value_weighted(patterns: ModelPatterns, layer: int, head: int | None = None) -> np.ndarray:
    """The norm of what each query-key pair adds to the residual stream: of pattern x value x output projection.

    (head, query, key), or (query, key) of one head, float32 (Kobayashi et al. 2020).

    Raises:
        ValueError: layer or head out of range, or a gate between the heads and the output projection.
    """
    site = checked(patterns.lm, f"head_out.{layer}" + ("" if head is None else f".{head}"))
    assert site.layer is not None
    call = patterns.call(site.layer)
    if _gate(patterns, site.layer, call) is not None:
        raise ValueError(
            f"layer {site.layer} of {patterns.lm.name} changes its heads' outputs before the output projection, so a "
            "value has no single norm; use the pattern itself"
        )
    weight = _projection(patterns.lm, site.layer, call)  # (d_model, head, d_head)
    gram = torch.einsum("mhd,mhe->hde", weight, weight)
    v = shared_heads(call.v, call.q.shape[1])[0].float()  # (head, key, d_head)
    norms = torch.einsum("hkd,hde,hke->hk", v, gram, v).clamp(min=0).sqrt().cpu().numpy()
    return patterns.pattern(site.layer, site.head) * (norms[:, None] if site.head is None else norms[site.head])


def _projection(lm: LanguageModel, layer: int, call: AttentionCall) -> torch.Tensor:
    """The output projection by head, (d_model, head, d_head) float32."""
    module: Any = lm.anatomy.blocks[layer].output_projection
    with lm.busy():
        return weight_of(module, dtype=lm.dtype).float().unflatten(1, (call.q.shape[1], call.v.shape[-1]))


def _gate(patterns: ModelPatterns, layer: int, call: AttentionCall) -> torch.Tensor | None:
    """What z is multiplied by before the projection, (head, d_head) at the last token; None if by nothing."""
    checked(patterns.lm, f"head_out.{layer}")
    taken = patterns.before_projection(layer).float()
    length = call.q.shape[2]
    row = rows_of(call, length - 1, length)[:, 0]  # (head, key)
    z = torch.einsum("hk,hkd->hd", row, shared_heads(call.v, call.q.shape[1])[0].float())
    if float((taken - z).norm()) <= (1e-4 if call.v.dtype == torch.float32 else 0.02) * float(z.norm()):
        return None
    return torch.where(z == 0, 0, taken / torch.where(z == 0, 1, z))


@dataclass(repr=False)
class LogitContribution:
    """What each head writes directly to a logit (difference) from each key, the final norm's scale frozen.

    Attributes:
        values: (layer, head, key) float32, in logits; NaN where heads cannot be separated. Summed over keys they give
            the head's share in `lk.direct_logit_attribution`.
        tokens: the prompt's tokens.
        answer, foil: their texts.
    """

    values: np.ndarray
    tokens: list[Token] = field(repr=False)
    answer: str = ""
    foil: str | None = None

    @property
    def heads(self) -> np.ndarray:
        """The share of each head, (layer, head)."""
        return self.values.sum(-1)

    @property
    def what(self) -> str:
        """The logit in words: `' Mary' − ' John'`."""
        return repr(self.answer) + ("" if self.foil is None else f" − {self.foil!r}")

    def __repr__(self) -> str:
        what = self.what.replace("−", "-")
        shares = np.nan_to_num(self.heads)
        most = np.argsort(-np.abs(shares), axis=None)[:3]
        words = ", ".join("{}.{} {:+.2f}".format(*(at := np.unravel_index(i, shares.shape)), shares[at]) for i in most)
        return f"LogitContribution({what}, {len(self.tokens)} tokens; most: {words})"


@where_the_model_is(small=True)
def contribution(patterns: ModelPatterns, answer: str | int, foil: str | int | None = None) -> LogitContribution:
    """What each head adds to the answer's logit minus the foil's by attending from the last token to each.

    Raises:
        ValueError: an answer of several tokens, or a model without direct attribution; the message says why.
    """
    lm = patterns.lm
    directions, words = logit_path(lm, patterns.ids, answer, foil)
    values = np.full((patterns.n_layers, patterns.n_heads, len(patterns.tokens)), np.nan, np.float32)
    for layer, direction in directions.items():
        if layer not in patterns.layers:
            continue
        call = patterns.call(layer)
        if call.k.shape[2] != len(patterns.tokens):
            continue  # keys that are no tokens
        along = torch.einsum("mhd,m->hd", _projection(lm, layer, call), direction.float())
        gate = _gate(patterns, layer, call)
        along = along if gate is None else along * gate
        row = rows_of(call, len(patterns.tokens) - 1, len(patterns.tokens))[:, 0]  # (head, key)
        share = row * torch.einsum("hkd,hd->hk", shared_heads(call.v, call.q.shape[1])[0].float(), along)
        values[layer, : len(share)] = share.cpu().numpy()
    return LogitContribution(values, patterns.tokens, *words)


@where_the_model_is(small=True)
def rollout(patterns: ModelPatterns, layer: int | None = None) -> np.ndarray:
    """Attention followed down from a layer (the last) to the tokens: (query, key) float32, rows sum to 1.

    Every layer is half residual stream and half the mean of its heads, as in Abnar and Zuidema (2020); a layer without
    attention is residual stream only.

    Raises:
        ValueError: no such layer, or one whose keys are not the tokens (compressed attention).
    """
    length = len(patterns.tokens)
    layer = patterns.layers[-1] if layer is None else layer
    if not 0 <= layer < patterns.n_layers:
        raise ValueError(f"layer {layer} is out of range; there are layers 0 to {patterns.n_layers - 1}")
    share = torch.eye(length)
    for below in (one for one in patterns.layers if one <= layer):
        call = patterns.call(below)
        if call.k.shape[2] != length:
            raise ValueError(f"layer {below} has keys that are not tokens; there is no rollout through it")
        step = torch.zeros(length, length)
        for start, block in patterns.blocks(call):
            step[start : start + block.shape[1], : block.shape[2]] = block.mean(0).cpu()
        step = step / step.sum(-1, keepdim=True).clamp(min=1e-9)
        share = 0.5 * share + 0.5 * (step @ share)
    return share.numpy()
