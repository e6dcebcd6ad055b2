"""What each part adds to the residual stream: the embedding, every head, every MLP.

The stream that a part reads is the sum of what the parts before it added, so a part can be given an input of its own:
that is what an edge from one part to another means. It needs blocks that add to their input unchanged, attention whose
heads go side by side through one projection, and readable q, k and v; `ResidualDecomposition` says which of these is
missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labkit.activations.hooks import Edit, Place
from labkit.activations.site_kinds import HEAD_IN
from labkit.activations.sites import absent, layers_with, n_heads_of
from labkit.engine.block_runner import BlockRunner
from labkit.engine.recorded_run import RecordedRun
from labkit.models.handle import PerModel

if TYPE_CHECKING:
    from labkit.models.handle import Model

_AS_PUT_OUT: PerModel[dict[int, tuple[bool, bool]]] = PerModel(dict)
"""Of each layer of a model, whether attention and MLP add their outputs as they are."""


@dataclass
class Layer:
    """One layer of one run, float32: what its heads (rows, head, seq, d_model) and its MLP (rows, seq, d_model) add."""

    heads: torch.Tensor
    mlp: torch.Tensor


class ResidualDecomposition:
    """One recorded run, decomposed.

    Attributes:
        rows: the run's blocks.
        parallel: for each layer, whether its MLP reads what attention reads.

    Raises:
        ValueError: the model cannot be decomposed; the message says why.
    """

    def __init__(self, base: RecordedRun) -> None:
        lm = self.lm = base.lm
        self.rows, self.base = BlockRunner(base), base
        for kind in ("q", "k", "v", "z", "head_out", "mlp_out"):
            if len(layers_with(lm, kind)) < lm.n_layers:
                layer = next(n for n in range(lm.n_layers) if absent(lm, kind, n) is not None)
                raise ValueError(f"{lm.name} has no edges: layer {layer} has no {kind}, {absent(lm, kind, layer)}")
        self.parallel = [absent(lm, "resid_mid", n) is not None for n in range(lm.n_layers)]
        self._as_put_out = [(True, True)] * lm.n_layers
        for layer in range(lm.n_layers):
            if not self.rows.additive(layer):
                raise ValueError(f"{lm.name} has no edges: layer {layer} does not add to the residual stream unchanged")
            known = _AS_PUT_OUT[lm]
            if layer not in known:  # a property of the layer, not of the run
                known[layer] = self._look(layer)
            self._as_put_out[layer] = known[layer]
        self._own: dict[int, Layer] = {}

    @property
    def embed(self) -> torch.Tensor:
        """What enters the first layer (seq, d_model), float32."""
        return self.base.resid[0].float()

    def own(self, layer: int) -> Layer:
        """What a layer's parts added in this run itself."""
        if layer not in self._own:
            x = self.base.resid[layer][None]
            self._own[layer] = Layer(self.heads(layer, x), self.mlp(layer, self.mlp_input(layer)[None]))
        return self._own[layer]

    def mlp_input(self, layer: int) -> torch.Tensor:
        """The residual stream that a layer's MLP reads (seq, d_model)."""
        x = self.base.resid[layer]
        if self.parallel[layer]:
            return x
        return self.rows.block(layer, x[None], reads=[("resid_mid", layer)])[1]["resid_mid", layer][0]

    def heads(self, layer: int, x: torch.Tensor, *, z: torch.Tensor | None = None) -> torch.Tensor:
        """What each head adds (rows, head, seq, d_model), float32, with z (rows, seq, head, d_head) put in if given."""
        places: list[Place] = [("head_out", layer), ("attn_out", layer)]
        places += [] if self.parallel[layer] else [("resid_mid", layer)]
        edits: dict[Place, Edit] = {} if z is None else {("z", layer): lambda _: z}
        _, found = self.rows.block(layer, x, reads=places, edits=edits)
        out = found["head_out", layer].float()  # (rows, seq, head, d_model)
        if not self._as_put_out[layer][0]:
            # a norm or a multiplier lies between: each head's share of what came out of it, its scale as in this run
            put, added = found["attn_out", layer].float(), found["resid_mid", layer].float() - x.float()
            out = out * torch.where(put == 0, 0, added / torch.where(put == 0, 1, put))[:, :, None]
        return out.transpose(1, 2)

    def mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """What the MLP adds (rows, seq, d_model), float32, when it reads x (rows, seq, d_model)."""
        place = ("mlp_out", layer)
        if self.parallel[layer]:
            return self.rows.block(layer, x, reads=[place])[1][place].float()
        start = self.base.resid[layer][None].expand(len(x), *x.shape[1:])
        out, found = self.rows.block(layer, start, reads=[place], edits={("resid_mid", layer): lambda _: x})
        return found[place].float() if self._as_put_out[layer][1] else out.float() - x.float()

    def _look(self, layer: int) -> tuple[bool, bool]:
        """Do attention and MLP add their outputs as they are, or does something lie between?"""
        x = self.base.resid[layer][None]
        kinds = ["attn_out", "mlp_out", "z", HEAD_IN] + ([] if self.parallel[layer] else ["resid_mid"])
        out, found = self.rows.block(layer, x, reads=[(kind, layer) for kind in kinds])
        attn, mlp, z, projected = (found[kind, layer].float() for kind in kinds[:4])
        if not torch.allclose(z.flatten(2), projected.flatten(2)):
            raise ValueError(f"{self.lm.name} has no edges: its heads' outputs are gated by the residual stream")
        if self.parallel[layer]:
            if not _is(out - x, attn + mlp, out):
                raise ValueError(f"{self.lm.name} has no edges: attention and MLP are changed before they are added")
            return True, True
        middle = found["resid_mid", layer]
        plain = _is(middle - x, attn, middle), _is(out - middle, mlp, out)
        if not plain[0]:
            added = (middle.float() - x.float())[0]
            scale = added / torch.where(attn[0] == 0, 1, attn[0])  # (seq, d_model): norm's weight times its scale
            guess = scale.median(0).values * attn[0]
            guess = guess * ((guess * added).sum(-1) / (guess * guess).sum(-1).clamp(min=1e-30))[:, None]
            if float((guess - added).norm()) > 0.05 * float(added.norm()):
                raise ValueError(f"{self.lm.name} has no edges: its heads' contributions cannot be separated")
        return plain


def _is(seen: torch.Tensor, put_out: torch.Tensor, stream: torch.Tensor) -> bool:
    rounding = 1e-5 if stream.dtype == torch.float32 else 2.0**-7
    limit = rounding * (float(stream.float().norm()) + float(put_out.norm()))
    return float((seen.float() - put_out).norm()) <= limit


def head_counts(lm: Model) -> tuple[list[int], list[int]]:
    """Query heads and key-value heads of each layer."""
    layers = range(lm.n_layers)
    return [n_heads_of(lm, "q", n) for n in layers], [n_heads_of(lm, "k", n) for n in layers]
